"""Disks and files that fail: no content stops a start, no write delays a node, what fails is told and tried again."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from meshnode import AddressInUse, Config, ConfigError, Identity, Node
from meshnode.daemon.client import call
from meshnode.daemon.context import Daemon
from meshnode.daemon.requests.node import Status
from meshnode.daemon.server import ControlServer
from meshnode.errors import KeyFileError
from meshnode.runtime import state_files
from meshnode.runtime.files import HomeLock
from meshnode.runtime.state_files import StateFiles, read_state
from meshnode.sdk.node import runtime_of
from meshnode.services import forward, registry, udp
from meshnode.services.proxy import book as proxy_book
from meshnode.services.proxy import dns_server
from meshnode.services.proxy import listener as proxy_listener
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for, within

NAMES = ("seq", "contacts", "name.json", "known_names.json", "services.json")
DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(64),
    "a list": b"[]",
    "a list of lists": b"[[], [1], [[2]]]",
    "a number": b"7.5",
    "a number of 400 digits": b"9" * 400,
    "a date of 400 digits": b'{"name": "bee", "first": ' + b"9" * 400 + b"}",
    "a date for ever": b'{"x": {"share": "", "ends": Infinity, "keys": []}}',
    "half a file": b'{"exposes": [{"name": "web", "tar',
    "wrong items": b'{"exposes": {"name": 1}, "forwards": 3, "name": [], "first": "x"}',
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested maps": b'{"a":' * 5_000,
    "binary": bytes(range(256)),
    "another version": json.dumps({"version": 9, "data": {"exposes": None}}).encode(),
    "too much": b"1" * 9_000_000,
}


def _damage(path: Path, how: str) -> None:
    path.unlink(missing_ok=True)
    if how == "a directory":
        (path / "inside").mkdir(parents=True)
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a link to nothing":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(DAMAGES[how])


@pytest.mark.parametrize("how", [*DAMAGES, "a directory", "a pipe", "a link to nothing"])
async def test_a_node_starts_whatever_its_state_files_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(state_files.log, "filters", [])  # its rate is that of all tests in this process
    config = Config(home=tmp_path / "home", listen="127.0.0.1:0", mdns=False, name="bee", relay="on")
    async with Node(config) as node:
        first = node.id
    for name in (*NAMES, "invitations.json", "tunnel.pem"):
        _damage(config.home_path / name, how)
    async with Node(config) as node:
        book = ServiceBook(node)
        await book.restore()
        assert node.id == first
        await book.expose("web", "80", ())
        await book.close()
    assert "web" in (config.home_path / "services.json").read_text()
    aside = [name for name in NAMES if list(config.home_path.glob(f"{name}.damaged*"))]
    if how not in ("a link to nothing", "a number", "a list"):
        assert aside, "what was there is kept"
    for name in aside:
        assert f"{name} is damaged" in caplog.text
    async with Node(config):
        assert int((config.home_path / "seq").read_text()) > 0, "the node's own files are back"


async def test_directories_in_the_place_of_the_lock_and_the_socket_stop_no_start(tmp_path: Path) -> None:
    for name in ("lock", "control.sock"):
        (tmp_path / name / "inside").mkdir(parents=True)
    tmp_path.chmod(0o700)
    async with Node(Config(home=tmp_path, listen="127.0.0.1:0", mdns=False)) as node:
        daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
        control = ControlServer(daemon, tmp_path, runtime_of(node).sockets.accepted)
        await control.start()
        assert [answer["id"] for answer in await asyncio.to_thread(lambda: list(call(tmp_path, Status())))] == [
            str(node.id)
        ]
        await control.close()
    assert [path.parent.name.startswith("lock.damaged") for path in tmp_path.glob("lock*/inside")] == [True]


async def test_a_relay_starts_without_a_certificate_that_it_cannot_write(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "tunnel.pem")

    monkeypatch.setattr("meshnode.runtime.tunnel_tls.write_atomic", full)
    node = await make_node(relay="on")
    assert "wss" not in node.record.capabilities
    assert "no WebSocket tunnel" in caplog.text


def test_a_damaged_file_does_not_push_out_a_directory_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "seq.damaged").mkdir()
    (tmp_path / "seq").write_text("x")
    assert read_state(tmp_path / "seq", int) is None
    assert (tmp_path / "seq.damaged").is_dir()
    assert not (tmp_path / "seq").exists()


async def test_what_is_saved_during_the_start_has_the_forwards_whose_names_are_still_looked_up(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    path = node.config.home_path / "services.json"
    kept = [{"listen": f"{name}.example:0", "to": "web", "sticky": False, "from": []} for name in ("one", "two")]
    path.write_text(json.dumps({"exposes": [], "forwards": kept}))
    asked, known = asyncio.Event(), asyncio.Event()

    async def slow(host: str) -> list[str]:
        asked.set()
        await known.wait()
        return ["127.0.0.1"]

    monkeypatch.setattr("meshnode.services.forward.look_up", slow)
    book = ServiceBook(node)
    restoring = asyncio.create_task(book.restore())
    await wait_for(asked.wait(), 10)
    await book.expose("web", "80", ())
    assert json.loads(path.read_text())["forwards"] == kept
    known.set()
    await wait_for(restoring, 10)
    await book.expose("other", "81", ())
    listens = [item["listen"] for item in json.loads(path.read_text())["forwards"]]
    assert [listen.partition(":")[0] for listen in listens] == ["one.example", "two.example"]
    await book.close()


async def test_proxies_that_are_stopped_or_not_begun_while_a_name_is_looked_up(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    path = node.config.home_path / "proxies.json"
    names = ["one.example:0", "two.example:0"]
    path.write_text(json.dumps([{"listen": name, "public": False} for name in names]))
    asked, known = asyncio.Event(), asyncio.Event()

    async def slow(host: str) -> list[str]:
        if host.endswith(".example"):
            asked.set()
            await known.wait()
        return ["127.0.0.1"]

    monkeypatch.setattr("meshnode.services.proxy.listener.look_up", slow)
    book = ProxyBook(node)
    restoring = asyncio.create_task(book.restore())
    await wait_for(asked.wait(), 10)
    other = (await book.start("127.0.0.1:0"))["listen"]
    assert [item["listen"] for item in json.loads(path.read_text())] == [*names, other]
    first = book.proxies[names[0]]
    for name in names:
        await book.stop(name)
    known.set()
    await wait_for(restoring, 10)
    assert list(book.proxies) == [other]
    assert first.listen != names[0], "it has listened meanwhile"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(first.listen.rpartition(":")[2]))
    await book.close()


async def test_services_that_are_not_understood_stay_in_the_file(make_node: MakeNode) -> None:
    node = await make_node()
    path = node.config.home_path / "services.json"
    odd = {"name": "odd", "target": "quic://1", "allow": ["any"]}
    later = {"listen": "0", "to": "a/b/c/", "sticky": False, "more": 1}
    good = {"name": "web", "target": "80", "allow": []}
    path.write_text(json.dumps({"exposes": [odd, 7, good], "forwards": [later]}))
    book = ServiceBook(node)
    await book.restore()
    assert list(book.exposes) == ["web"]
    await book.expose("more", "81", ())
    saved = json.loads(path.read_text())
    assert odd in saved["exposes"]
    assert later in saved["forwards"] or later["to"] in {f.to for f in book.forwards.values()}
    assert [item["name"] for item in saved["exposes"] if isinstance(item, dict)] == ["web", "more", "odd"]
    await book.close()


async def test_services_that_would_be_too_long_to_be_read_again_are_refused(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    path = node.config.home_path / "services.json"
    book = ServiceBook(node)
    await book.expose("web", "80", ())
    before = path.read_bytes()
    monkeypatch.setattr(registry, "MAX_STATE", 4 * len(before))
    ids = tuple(str(Identity.generate().id) for _ in range(4))
    with pytest.raises(ConfigError, match="would not be read at the next start"):
        await book.expose("many", "tcp://127.0.0.1:8000-8020", ids)
    with pytest.raises(ConfigError, match="would not be read at the next start"):
        await book.expose("web", "80", ids * 8)
    assert list(book.exposes) == ["web"]
    assert book.exposes["web"].setting.allow == ()
    assert path.read_bytes() == before
    await book.close()


async def test_a_key_that_is_a_link_to_nothing_is_an_error_and_no_new_identity(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "key").symlink_to(tmp_path / "not-mounted-yet")
    with pytest.raises(KeyFileError):
        await Node(Config(home=home, listen="127.0.0.1:0", mdns=False)).start()
    assert (home / "key").is_symlink()
    assert not (tmp_path / "not-mounted-yet").exists()


# ---- writes


class Disk:
    """A disk that a test can fill and slow down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.go_on = threading.Event()
        self.go_on.set()
        self.written: list[bytes] = []
        self._real = state_files.write_atomic
        monkeypatch.setattr(state_files, "write_atomic", self._write)
        monkeypatch.setattr(state_files, "RETRY_S", (0.01,))

    def _write(self, path: Path, data: bytes) -> None:
        self.go_on.wait(30)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.written.append(data)
        self._real(path, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def _until(holds: Callable[[], object]) -> None:
    async with within(15):
        while not holds():  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.005)


async def test_a_slow_disk_stops_nothing_and_gets_the_newest_contents_only(tmp_path: Path, disk: Disk) -> None:
    files = StateFiles(asyncio.get_running_loop(), HomeLock(tmp_path))
    disk.go_on.clear()
    for number in range(100):
        files.save("seq", str(number).encode())  # returns at once: the disk does nothing meanwhile
    disk.go_on.set()
    await files.close()
    assert disk.written == [b"0", b"99"]
    assert (tmp_path / "seq").read_bytes() == b"99"


async def test_what_a_full_disk_did_not_take_is_told_and_written_when_there_is_room(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = StateFiles(asyncio.get_running_loop(), HomeLock(tmp_path))
    disk.full = True
    files.save("seq", b"1")
    files.save("contacts", b"2")
    await _until(lambda: len(files.degraded()) == 2)
    assert "seq cannot be saved: the disk is full" in files.degraded()[0]
    files.save("seq", b"3")
    await asyncio.sleep(0.1)  # several attempts
    assert caplog.text.count("cannot save seq") == 1, "told once"
    disk.full = False
    await _until(lambda: not files.degraded())
    await files.close()
    assert ((tmp_path / "seq").read_bytes(), (tmp_path / "contacts").read_bytes()) == (b"3", b"2")


async def test_a_write_that_a_caller_waits_for_fails_for_that_caller_and_is_not_repeated(
    tmp_path: Path, disk: Disk
) -> None:
    files = StateFiles(asyncio.get_running_loop(), HomeLock(tmp_path))
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        await files.write("services.json", b"{}")
    disk.full = False
    await asyncio.sleep(0.05)
    await files.close()
    assert disk.written == []
    assert files.degraded() == []


async def test_whatever_a_write_raises_is_told_to_the_caller_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StateFiles(asyncio.get_running_loop(), HomeLock(tmp_path))
    with monkeypatch.context() as broken:
        broken.setattr(state_files, "write_atomic", Mock(side_effect=ValueError("a fault")))
        with pytest.raises(OSError, match="a fault"):
            await wait_for(files.write("services.json", b"{}"), 10)
    await wait_for(files.write("services.json", b"{}"), 10)
    await files.close()


async def test_the_end_of_a_node_waits_for_no_disk_for_ever(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_files, "CLOSE_S", 0.05)
    files = StateFiles(asyncio.get_running_loop(), HomeLock(tmp_path))
    disk.go_on.clear()
    files.save("seq", b"1")
    await wait_for(files.close(), 10)
    disk.go_on.set()


async def test_a_node_moves_and_answers_while_its_disk_hangs_and_says_so(make_node: MakeNode, disk: Disk) -> None:
    one, other = await make_node(), await make_node()
    await other.resolve(other.id)
    disk.go_on.clear()
    before = one.record.seq
    await one.rebind("127.0.4.77:0")
    assert one.record.seq > before, "published, though its number waits for the disk"
    assert any(str(e).startswith("127.0.4.77:") for e in one.record.endpoints)
    disk.full = True
    disk.go_on.set()
    await _until(lambda: one.status()["degraded"])
    assert any("seq cannot be saved" in text for text in one.status()["degraded"])
    disk.full = False
    await _until(lambda: not one.status()["degraded"])
    await _until(lambda: (one.config.home_path / "seq").read_text() == str(one.record.seq))


async def test_a_node_with_a_name_starts_and_ends_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    config = Config(home=tmp_path / "home", listen="127.0.0.1:0", mdns=False, name="bee")
    async with Node(config):
        pass
    disk.full = True
    async with Node(config) as node:
        await _until(lambda: len(node.status()["degraded"]) == 2)
        assert runtime_of(node).stack.record is not None


# ---- forwards whose address is not there


async def test_a_forward_whose_address_is_taken_at_the_start_listens_when_it_is_free_and_is_not_forgotten(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "LISTEN_RETRY_S", 0.02)
    node = await make_node()
    holder = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    listen = f"127.0.0.1:{holder.sockets[0].getsockname()[1]}"
    path = node.config.home_path / "services.json"
    path.write_text(json.dumps({"exposes": [], "forwards": [{"listen": listen, "to": "one/web", "sticky": False}]}))
    book = ServiceBook(node)
    await book.restore()
    await book.expose("other", "80", ())
    assert listen in path.read_text(), "another command does not forget it"
    assert "another program has that port" in book.forwards[listen].error
    holder.close()
    await holder.wait_closed()
    await _until(lambda: not book.forwards[listen].error)
    _, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
    writer.close()
    await book.close()


async def test_what_listens_at_a_name_does_so_at_all_of_its_addresses_after_a_restart_too(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def two_addresses(host: str) -> list[str]:
        return ["127.0.0.1", "127.0.0.2"] if host == "localhost" else [host]

    for module in (forward, proxy_listener, dns_server):
        monkeypatch.setattr(module, "look_up", two_addresses)
    node = await make_node()
    book, proxies = ServiceBook(node), ProxyBook(node)
    listen = (await book.forward("localhost:0", "one/web"))["listen"]
    assert (await book.forward(listen, "one/web"))["listen"] == listen, "the same one twice is one"
    proxy = await proxies.start("localhost:0", dns="localhost:0")
    assert await proxies.start(proxy["listen"], dns=proxy["dns"]) == proxy
    await proxies.close()
    await book.close()
    book, proxies = ServiceBook(node), ProxyBook(node)
    await book.restore()
    await proxies.restore()
    for where in (listen, proxy["listen"]):
        assert where.startswith("localhost:")
        for host in ("127.0.0.1", "127.0.0.2"):
            _, writer = await asyncio.open_connection(host, int(where.rpartition(":")[2]))
            writer.close()
    assert await book.unforward(listen) == {"listen": listen}
    assert await proxies.stop(proxy["listen"]) == {"listen": proxy["listen"]}
    await proxies.close()
    await book.close()


async def test_a_forward_that_waits_for_its_address_can_be_given_up_or_replaced(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "LISTEN_RETRY_S", 0.02)
    node = await make_node()
    path = node.config.home_path / "services.json"
    forwards = [{"listen": f"192.0.2.1:{port}", "to": "one/web", "sticky": False} for port in (8001, 8002)]
    path.write_text(json.dumps({"exposes": [], "forwards": forwards}))
    book = ServiceBook(node)
    await book.restore()
    assert sorted(book.forwards) == ["192.0.2.1:8001", "192.0.2.1:8002"]
    await book.unforward("8001")
    assert list(book.forwards) == ["192.0.2.1:8002"]
    assert "8001" not in path.read_text()
    await book.close()


async def test_what_waits_for_its_address_goes_on_whatever_an_attempt_raises_and_says_why(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "LISTEN_RETRY_S", 0.02)
    monkeypatch.setattr(proxy_book, "LISTEN_RETRY_S", 0.02)
    attempts: Counter[str] = Counter()

    async def failing(host: str) -> list[str]:
        attempts[host] += 1
        if attempts[host] == 1:
            raise OSError(-2, "Name or service not known")
        if attempts[host] < 5:
            raise RuntimeError("a fault of this program")
        return ["127.0.0.1"]

    for module in (forward, udp, proxy_listener):
        monkeypatch.setattr(module, "look_up", failing)
    node = await make_node()
    home = node.config.home_path
    wanted = ["one.example:0", "udp://two.example:0"]
    forwards = [{"listen": listen, "to": "one/web", "sticky": False} for listen in wanted]
    (home / "services.json").write_text(json.dumps({"exposes": [], "forwards": forwards}))
    (home / "proxies.json").write_text(json.dumps([{"listen": "three.example:0", "public": False}]))
    book, proxies = ServiceBook(node), ProxyBook(node)
    await book.restore()
    await proxies.restore()
    waiting = [*book.forwards.values(), *proxies.proxies.values()]
    assert len(waiting) == 3
    await _until(lambda: all(each.error == "a fault of this program" for each in waiting))
    await _until(lambda: not any(each.error for each in waiting))
    assert set(attempts.values()) == {5}
    told = [record for record in caplog.records if "could not be started" in record.getMessage()]
    assert len(told) == 3, "once each"
    await proxies.close()
    await book.close()


async def test_a_forward_that_waits_for_its_address_is_not_told_to_listen(make_node: MakeNode) -> None:
    node = await make_node()
    holder = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    listen = f"127.0.0.1:{holder.sockets[0].getsockname()[1]}"
    path = node.config.home_path / "services.json"
    path.write_text(json.dumps({"exposes": [], "forwards": [{"listen": listen, "to": "one/web", "sticky": False}]}))
    book = ServiceBook(node)
    await book.restore()
    with pytest.raises(AddressInUse, match="another program has that port"):
        await book.forward(listen, "one/web")
    assert listen in path.read_text(), "and it is kept"
    holder.close()
    await holder.wait_closed()
    assert (await book.forward(listen, "one/web"))["listen"] == listen
    assert [each.error for each in book.forwards.values()] == [""]
    await book.close()
