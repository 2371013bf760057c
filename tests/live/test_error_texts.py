"""What a running node tells of mistakes: which thing is meant, and a hint that a person can follow."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator

import pytest

from meshnode.daemon.context import Daemon
from meshnode.errors import ConnectionLost, InvalidId, ServiceNotFound, ServiceUnavailable
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import runtime_of
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import within
from tests.unit.test_config_cli import Running, told
from tests.unit.test_error_texts import error_of


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("node"))
    yield running
    running.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_a_forward_that_is_there_is_named_and_the_same_one_twice_is_one(node: Running) -> None:
    port = str(free_port())
    first = json.loads(told(node.home, "forward", port, "one/web", "--json")[1])
    assert json.loads(told(node.home, "forward", f"127.0.0.1:{port}", "one/web", "--json")[1]) == first
    forwards = json.loads(told(node.home, "status", "--json")[1])["forwards"]
    assert [(f["listen"], f["to"]) for f in forwards].count((first["listen"], first["to"])) == 1
    code, message, hint = error_of(node.home, "forward", port, "other/web")
    assert code == "address_in_use"
    assert message == f"127.0.0.1:{port} is forwarded to one/web already"
    assert hint == f"meshnode unforward 127.0.0.1:{port}"
    assert error_of(node.home, "unforward", f"0.0.0.0:{port}")[2] == f"meshnode unforward 127.0.0.1:{port}"
    assert told(node.home, "unforward", port)[0] == 0


@pytest.mark.parametrize("scheme", ["", "udp://"])
def test_a_forward_is_called_as_it_was_typed(node: Running, scheme: str) -> None:
    port = free_port()
    for where in (f"{scheme}localhost:{port}", f"{scheme}{port}"):
        first = json.loads(told(node.home, "forward", where, "one/web", "--json")[1])
        assert first["listen"].endswith(f":{port}")
        assert json.loads(told(node.home, "forward", where, "one/web", "--json")[1]) == first
        assert json.loads(told(node.home, "unforward", where, "--json")[1]) == {"listen": first["listen"]}


def test_a_port_alone_is_one_of_tcp_where_both_are_forwarded(node: Running) -> None:
    port = free_port()
    for scheme in ("udp://", ""):
        assert told(node.home, "forward", f"{scheme}{port}", "one/web")[0] == 0
    for scheme in ("", "udp://"):
        assert json.loads(told(node.home, "unforward", str(port), "--json")[1])["listen"] == f"{scheme}127.0.0.1:{port}"


def test_a_listener_at_a_name_of_this_host_alone_warns_of_no_other(node: Running) -> None:
    status, out, err = told(node.home, "forward", "localhost:0", "one/web")
    assert (status, out.startswith("localhost:")) == (0, True)
    assert "LAN" not in err
    assert told(node.home, "unforward", out.split()[0])[0] == 0


def test_a_url_is_no_service(node: Running) -> None:
    assert error_of(node.home, "forward", "0", "http://one/web")[2] == "write one/web"


def test_a_port_of_another_program_is_told_as_that(node: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        _, message, hint = error_of(node.home, "forward", where, "web")
    assert message == f"cannot listen on {where}: another program has that port"
    assert "choose another port" in hint


def test_an_ipv6_forward_has_brackets(node: Running) -> None:
    status, out, _ = told(node.home, "forward", "[::1]:0", "one/web", "--json")
    if status:
        pytest.skip("this host has no IPv6")
    listen = json.loads(out)["listen"]
    assert listen.startswith("[::1]:")
    assert told(node.home, "unforward", listen)[0] == 0


def test_a_forward_that_others_reach_says_so(node: Running) -> None:
    status, out, err = told(node.home, "forward", "0.0.0.0:0", "one/web")
    assert status == 0
    assert "opens it to the LAN" in err
    told(node.home, "unforward", out.split()[0])
    status, out, err = told(node.home, "forward", "0", "one/web")
    assert status == 0
    assert "LAN" not in err
    told(node.home, "unforward", out.split()[0])


def test_a_target_is_shown_in_one_form(node: Running) -> None:
    for text in ("8000", "127.0.0.1:8000", "tcp://127.0.0.1:8000"):
        found = json.loads(told(node.home, "expose", "web", text, "--allow", "any", "--json")[1])
        assert found["target"] == "tcp://127.0.0.1:8000"
    assert told(node.home, "unexpose", "web")[0] == 0


def test_too_much_metadata_is_told_with_the_option(node: Running) -> None:
    many = [part for number in range(17) for part in ("--meta", f"k{number}=v")]
    _, message, hint = error_of(node.home, "expose", "web", "80", "--allow", "any", *many)
    assert message == "at most 16 metadata, each with a name"
    assert hint == "give fewer or shorter --meta KEY=TEXT"


def test_a_slash_in_a_service_is_refused_at_both_ends(node: Running) -> None:
    assert "no slash" in error_of(node.home, "expose", "a/b", "80")[2]
    assert "no slash" in error_of(node.home, "forward", "0", "one/a/b")[2]


def test_a_rebind_to_the_own_address_says_that_it_is_this_node(node: Running) -> None:
    code, message, _ = error_of(node.home, "rebind", node.ready["endpoints"][0])
    assert code == "address_in_use"
    assert message.startswith("this node itself listens on ")


def test_a_service_that_no_node_offers_is_named_with_what_offers_it(node: Running) -> None:
    status, out, _ = told(node.home, "services", "nothing")
    assert (status, out.strip()) == (1, "no node offers 'nothing'; here: meshnode expose nothing PORT")
    assert error_of(node.home, "services", "nothing")[:2] == ("not_found", "no node offers 'nothing'")


def test_an_id_alone_names_no_service(node: Running) -> None:
    own = node.ready["id"]
    for command in (["forward", "0", own], ["connect", f"{own}.mesh"]):
        _, message, hint = error_of(node.home, *command)
        assert "is a node, and names no service of it" in message
        assert hint == f"write {command[-1]}/SERVICE"


def test_an_argument_that_is_no_utf8_is_told_and_a_message_may_be_any_bytes(node: Running) -> None:
    latin = os.fsdecode("größe".encode("latin-1"))
    for command in (["pub", latin, "x"], ["sub", latin], ["expose", "q", f"{latin}:80"], ["ping", latin]):
        assert "is not UTF-8" in error_of(node.home, *command)[1]
    for meta in (f"{latin}=1", f"zone={latin}"):
        assert "is not UTF-8" in error_of(node.home, "expose", "q", "80", "--allow", "any", "--meta", meta)[1]
    assert told(node.home, "pub", "topic", latin)[0] == 0


def test_the_word_of_the_examples_is_explained(node: Running) -> None:
    assert error_of(node.home, "ping", "ID")[2] == "ID stands for the id that `meshnode id` prints"


def test_a_short_id_as_it_is_shown_will_do(node: Running) -> None:
    own = node.ready["id"]
    assert json.loads(told(node.home, "resolve", own[:8], "--json")[1])["record"]["id"] == own
    listed = json.loads(told(node.home, "forward", "0", f"{own[:12]}/web", "--json")[1])
    assert listed["to"] == f"{own}/web"
    told(node.home, "unforward", listed["listen"])
    for command in (("expose", "web", "8000", "--allow", own[:8]), ("forward", "0", "web", "--from", own[:11])):
        code, _, hint = error_of(node.home, *command)  # one can be found that begins so
        assert (code, hint) == ("invalid_id", "write at least 12 characters of it")
    told(node.home, "expose", "web", "8000", "--allow", own[:12])
    told(node.home, "unexpose", "web")
    code, _, hint = error_of(node.home, "resolve", own[:7])
    assert (code, hint) == ("not_found", "the beginning of an id has at least 8 characters")


async def test_a_short_id_that_may_mean_two_is_refused(make_node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await make_node()
    daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
    own = str(node.id)
    twin = own[:20] + ("a" * 31 if own[20] != "a" else "b" * 31) + "a"
    assert daemon.from_short(own[:8]) == node.id
    monkeypatch.setattr(Daemon, "_known", lambda self: [own, twin])
    with pytest.raises(InvalidId, match="2 known ids"):
        daemon.from_short(own[:8])
    registry = runtime_of(node).stack.registry
    assert registry is not None
    registry.names.restore({own[:8]: node.id})
    assert daemon.from_short(own[:8]) is None, "a name that was used here comes first"


async def test_a_node_whose_name_is_the_beginning_of_anothers_id_is_not_taken_for_it(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    daemon = Daemon(node, ServiceBook(node), ProxyBook(node))
    short, liar = str(node.id)[:8], NodeId(bytes(32))
    holder = str(liar)
    monkeypatch.setattr(Daemon, "_names", lambda self: {short: holder})
    for ask in (daemon.from_short, lambda text: daemon.in_full(f"{text}/web"), lambda text: daemon.trusted((text,))):
        with pytest.raises(InvalidId, match="another node's name") as caught:
            ask(short)
        assert caught.value.hint == f"write more of the id, or {short}.mesh for the name"
    assert daemon.from_short(f"{short}.mesh") is None
    holder = str(node.id)
    assert daemon.from_short(short) == node.id, "its own name may be that"


async def test_a_full_disk_is_told_as_that_and_changes_nothing(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await make_node()
    book = ServiceBook(node)
    await book.expose("web", "80", ())

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "services.json")

    monkeypatch.setattr("meshnode.runtime.state_files.write_atomic", full)
    with pytest.raises(OSError):
        await book.expose("web", "81", ())
    with pytest.raises(OSError):
        await book.expose("new", "81", ())
    with pytest.raises(OSError):
        await book.forward("0", "one/web")
    assert {name: e.target for name, e in book.exposes.items()} == {"web": "tcp://127.0.0.1:80"}
    assert not book.forwards
    await book.close()


async def test_the_service_that_does_not_work_or_is_not_there_is_named(make_node: MakeNode) -> None:
    there = await make_node()
    here = await make_node(seed=there)

    async def refuse(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        return

    there.serve("db", refuse, allow=["any"], accept=False)
    with pytest.raises(ServiceUnavailable, match="the service 'db' is there, but its target does not answer"):
        await here.open(there.id, "db")
    with pytest.raises(ServiceNotFound, match="the peer has no service 'web'"):
        await here.open(there.id, "web")


async def test_a_handler_whose_caller_closed_is_told_so(make_node: MakeNode) -> None:
    import asyncio

    there = await make_node()
    here = await make_node(seed=there)
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def talk(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionLost as error:
            told.set_result(str(error))

    there.serve("talk", talk, allow=["any"])
    _, writer = await here.open(there.id, "talk")
    writer.close()
    async with within(5):
        assert await told == "the peer closed the stream"
