"""Seeds that are not there: no name delays another, and the log says once which seed is not reached and why."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import uvloop

from meshnode.base.address import Addr
from meshnode.base.limits import TUNNEL_KNOCK_S
from meshnode.base.metrics import Metrics
from meshnode.config import parse_seed
from meshnode.identity.keys import Identity
from meshnode.runtime import host_names, seeds
from meshnode.runtime.host_names import connect_tcp, look_up
from tests.conftest import MakeNode
from tests.given_time import HANG_S, within

DEAD = "dead.example"


@pytest.fixture
def dead_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A name server that does not answer for ``DEAD``; the list has the names that were asked for."""
    answer, asked, real = threading.Event(), list[str](), socket.getaddrinfo

    def ask(host: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("flags"):
            return real(host, *args, **kwargs)  # an address
        asked.append(host)
        if host == DEAD:
            answer.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real("127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(host_names.socket, "getaddrinfo", ask)
    yield asked
    answer.set()


async def test_a_dead_name_server_delays_no_other_name(dead_server: list[str]) -> None:
    stuck = [asyncio.create_task(look_up(DEAD)) for _ in range(50)]
    await asyncio.sleep(0)
    assert await look_up("good.example") == ["127.0.0.1"]
    while DEAD not in dead_server:  # noqa: ASYNC110 - a thread asks, when it can
        await asyncio.sleep(0.01)
    assert dead_server.count(DEAD) == 1, "fifty callers share one lookup"
    stuck[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck[0]
    assert not stuck[1].done(), "the others wait on"
    for task in stuck:
        task.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


def test_a_program_ends_while_a_name_is_looked_up() -> None:
    program = (
        "import asyncio, time\n"
        "from meshnode.runtime import host_names\n"
        "def stuck(host, flags=0):\n"
        "    if flags: raise OSError('no address')\n"
        "    time.sleep(600)\n"
        "host_names._resolve = stuck\n"
        "async def main():\n"
        "    task = asyncio.create_task(host_names.look_up('dead.example'))\n"
        "    await asyncio.sleep(0.05)\n"
        "    task.cancel()\n"
        "asyncio.run(main())"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=HANG_S, check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_waits_for_no_lookup_of_its_parent() -> None:
    program = (
        "import asyncio, os, sys, time\n"
        "from meshnode.runtime import host_names\n"
        "parent = os.getpid()\n"
        "def resolve(host, flags=0):\n"
        "    if flags: raise OSError('no address')\n"
        "    if os.getpid() == parent: time.sleep(600)\n"
        "    return ['127.0.0.1']\n"
        "host_names._resolve = resolve\n"
        "async def begin():\n"
        "    begin.asked = asyncio.ensure_future(host_names.look_up('seed.example'))\n"
        "    await asyncio.sleep(0)\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(begin())\n"
        "if not os.fork():\n"
        "    found = asyncio.run(asyncio.wait_for(host_names.look_up('seed.example'), 20))\n"
        "    os._exit(0 if found == ['127.0.0.1'] else 3)\n"
        "os._exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr


async def test_without_a_descriptor_nothing_is_known_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds.socket, "socket", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
    assert not await seeds._is_refused(Addr("127.0.0.1", 9))


@pytest.mark.parametrize("host", ["a..b", "x" * 300, "no-such-host.invalid"])
async def test_what_is_no_name_is_an_error_of_the_system(host: str) -> None:
    with pytest.raises(OSError):
        await look_up(host)


async def test_a_target_whose_first_address_is_dead_is_reached_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def two(host: str) -> list[str]:
        return ["127.0.4.200", "127.0.0.1"]  # nothing listens at the first

    monkeypatch.setattr(host_names, "look_up", two)
    sock = await connect_tcp("target.example", port)
    assert sock.getpeername() == ("127.0.0.1", port)
    sock.close()
    server.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_to_an_address_needs_no_thread(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def connect() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            before = len(os.listdir("/proc/self/task"))
            sock = await connect_tcp("127.0.0.1", port)
            assert sock.getpeername() == ("127.0.0.1", port)
            sock.close()
        with pytest.raises(ConnectionRefusedError):
            await connect_tcp("127.0.0.1", port)
        assert len(os.listdir("/proc/self/task")) <= before

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(connect())


async def test_of_many_addresses_that_lead_nowhere_none_takes_the_time_of_the_one_that_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    dead = [f"192.0.2.{n}" for n in range(1, 16)]

    class NoTime:
        """A time limit that is over at once."""

        async def __aenter__(self) -> None:
            raise TimeoutError

        async def __aexit__(self, *_: object) -> None:
            """Nothing was begun."""

    def limit(seconds: float) -> NoTime:
        waits.append(seconds)
        return NoTime()

    async def many(host: str) -> list[str]:
        return [*dead, "127.0.0.1"]

    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(host_names, "look_up", many)
    with monkeypatch.context() as patch:
        patch.setattr(host_names.asyncio, "timeout", limit)
        sock = await connect_tcp("target.example", port)
    assert sock.getpeername() == ("127.0.0.1", port)
    assert len(waits) == len(dead)
    assert sum(waits) < TUNNEL_KNOCK_S
    sock.close()
    server.close()


async def test_a_seed_is_joined_beside_one_whose_name_server_is_dead(
    make_node: MakeNode, dead_server: list[str]
) -> None:
    seed = await make_node()
    at = seed.record.endpoints[0].addr
    node = await make_node(seeds=(f"{seed.id}@{DEAD}:4242", f"{seed.id}@good.example:{at.port}"))
    await _until(lambda: node.status()["peers"] == 1)
    assert DEAD in dead_server


async def _until(holds: Callable[[], bool]) -> None:
    async with within(15):
        while not holds():  # noqa: ASYNC110 - what is waited for announces nothing
            await asyncio.sleep(0.01)


async def test_a_seed_that_is_not_reached_is_told_once_with_the_reason(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seeds, "WARN_AFTER_S", 0.05)
    monkeypatch.setattr(seeds, "LOOK_EVERY_S", 0.02)
    other, stranger = await make_node(), await make_node(mesh="another")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    wrong = str(stranger.id)
    ports = [node.record.endpoints[0].addr for node in (other, stranger)]
    where = {
        f"{wrong}@no-such-host.invalid:1": "its name does not resolve",
        f"{wrong}@127.0.0.1:{closed}": "nothing listens at",
        f"{wrong}@{ports[0]}": "another id",
        f"{wrong}@{ports[1]}": "another mesh",
    }
    for text, reason in where.items():
        caplog.clear()
        node = await make_node(seeds=(text,), gossip=False)
        await _until(lambda: any("is not reached" in r.getMessage() for r in caplog.records))
        await asyncio.sleep(0.2)
        told = [r.getMessage() for r in caplog.records if "is not reached" in r.getMessage()]
        assert len(told) == 1, told
        assert reason in told[0]
        assert text.partition("@")[2] in told[0]
        await node.close()


async def test_a_seed_that_is_reached_at_last_is_told_too(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seeds, "WARN_AFTER_S", 0.05)
    monkeypatch.setattr(seeds, "LOOK_EVERY_S", 0.02)
    caplog.set_level(logging.INFO)
    seed = await make_node()
    at, key, home = seed.record.endpoints[0].addr, seed.id, seed.config.home
    await seed.close()
    await make_node(seeds=(f"{key}@{at}",))
    await _until(lambda: any("is not reached" in r.getMessage() for r in caplog.records))
    await make_node(home=home, listen=str(at))
    await _until(lambda: any("is reached" in r.getMessage() for r in caplog.records))


async def test_a_seed_with_an_ipv6_address_is_told_with_its_brackets(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seeds, "LOOK_EVERY_S", 0.02)
    caplog.set_level(logging.INFO)
    seed = await make_node(listen="[::1]:0")
    at = seed.record.endpoints[0].addr
    await make_node(listen="[::1]:0", seeds=(f"{seed.id}@{at}",))
    await _until(lambda: any(f"at {at} is reached" in r.getMessage() for r in caplog.records))
    assert str(at).startswith("[::1]:")


async def test_a_seed_that_comes_back_elsewhere_with_its_key_alone_is_found_by_its_name(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = "127.0.0.1"

    async def look_up(name: str) -> list[str]:
        return [host]

    monkeypatch.setattr(seeds, "look_up", look_up)
    monkeypatch.setattr(seeds, "RETRY_S", (0.05,))
    seed = await make_node()
    port, home = seed.record.endpoints[0].addr.port, tmp_path / "empty"
    named = {"seeds": (f"{seed.id}@seed.example:{port}",), "tunnel": False}
    nodes = [await make_node(**named) for _ in range(2)]
    await _until(lambda: all(len(node.status()["gossip"]["neighbours"]) == 2 for node in nodes))
    await seed.close()
    home.mkdir(0o700)
    shutil.copy(seed.config.home_path / "key", home)
    back = await make_node(home=home, listen=f"127.0.4.9:{port}")
    host = "127.0.4.9"
    await _until(lambda: all(str(back.id) in node.status()["gossip"]["neighbours"] for node in nodes))


class _Nowhere:
    """A sink for what a source finds."""

    def seed(self, peer: Any, addrs: Any) -> None:
        """Leave it."""


def _source(monkeypatch: pytest.MonkeyPatch, asked: list[str], tasks: list[asyncio.Task[None]]) -> seeds.SeedSource:
    """Return a started source of one named seed that is never reached, in no mesh; ``asked`` has its lookups."""

    async def look_up(name: str) -> list[str]:
        asked.append(name)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(seeds, "look_up", look_up)
    named = parse_seed(f"{Identity.generate().id}@seed.example:4242")
    source = seeds.SeedSource(
        [named],
        lambda work: tasks.append(asyncio.ensure_future(work)),
        lambda: False,
        lambda peer: False,
        Metrics(),
    )
    source.start(cast(Any, _Nowhere()), 0.0)
    return source


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_node_that_knows_no_other_never_waits_as_long_for_a_name_as_one_in_a_mesh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seeds, "RETRY_S", (0.0, 0.01, 3600.0))
    asked: list[str] = []
    tasks: list[asyncio.Task[None]] = []
    _source(monkeypatch, asked, tasks)
    await _until(lambda: len(asked) > 5)
    await _ended(tasks)


async def test_a_name_is_looked_up_at_once_when_the_host_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "RETRY_S", (3600.0,))
    asked: list[str] = []
    tasks: list[asyncio.Task[None]] = []
    source = _source(monkeypatch, asked, tasks)
    for lookups in range(1, 4):
        await _until(lambda: len(asked) == lookups)  # noqa: B023
        source.moved(0.0)
    await _until(lambda: len(asked) == 4)
    await _ended(tasks)
