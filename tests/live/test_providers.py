"""A service by its name alone, with an impostor in the mesh: real sockets, and real processes for what is kept."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from meshnode import Node
from meshnode.errors import ConfigError, ConnectionLost, InvalidId, MeshError, NameChanged, NameDisputed
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.given_time import HANG_S, eventually, within
from tests.live.cli_node import CliNode, stopping
from tests.live.test_directory import says, until


async def _called(node: Node, **how: Any) -> bytes:
    reader, writer = await node.open_any("db", **how)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return bytes(answer)


async def _serving(make_node: MakeNode, seed: Node, text: bytes, **settings: Any) -> Node:
    node = await make_node(seed=seed, **settings)
    node.serve("db", says(text), allow=["any"])
    return node


async def _knows(node: Node, count: int) -> None:
    await until(lambda: len(node._life.running().failover.instances("db")) == count)


async def test_the_first_use_of_a_service_that_two_offer_is_an_error_that_names_both(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    both = [await _serving(make_node, seed, text) for text in (b"real", b"evil")]
    for node in both:
        await _knows(node, 1)
    user = await make_node(seed=seed)  # it has seen neither come
    for _ in range(5):
        with pytest.raises(NameDisputed) as caught:
            await _called(user)
        assert caught.value.claimants == tuple(sorted(str(node.id) for node in both))
    assert {await _called(user, trusted=both[0].id) for _ in range(8)} == {b"real"}
    assert {await _called(user, trusted=[str(both[0].id)]) for _ in range(8)} == {b"real"}
    with pytest.raises(NameDisputed):
        await _called(user)


async def test_what_was_used_first_stays_over_a_restart_and_an_impostor_is_told_and_never_used(
    make_node: MakeNode, tmp_path: Path
) -> None:
    seed = await make_node(seed_role=True)
    real = await _serving(make_node, seed, b"real")
    user = await make_node(seed=seed, home=tmp_path / "user")
    assert await _called(user) == b"real"
    told: list[Any] = []

    async def listen() -> None:
        async for event in user.events():
            if event.kind == "provider_conflict":
                told.append((event.peer, event.service))

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    evil = await _serving(make_node, seed, b"evil")
    await until(lambda: told)
    assert told == [(evil.id, "db")]
    assert {await _called(user) for _ in range(10)} == {b"real"}
    await user.close()
    await task
    await real.close()
    again = await make_node(seed=seed, home=tmp_path / "user")
    with pytest.raises(NameChanged) as caught:
        await _called(again)
    assert str(evil.id) in caught.value.message
    assert runtime_of(again).names.forget("db")  # type: ignore[union-attr]
    assert await _called(again) == b"evil", "a person has said that this is right"


async def test_failover_is_among_the_nodes_that_are_trusted_and_no_other(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    a, b = [await _serving(make_node, seed, text, name=text.decode()) for text in (b"rack1", b"rack2")]
    await _serving(make_node, seed, b"evil")
    user = await make_node(seed=seed)
    await _knows(user, 3)
    trusted = ["rack1", b.id]
    assert {await _called(user, trusted=trusted) for _ in range(20)} <= {b"rack1", b"rack2"}
    reader, writer = await user.open_any("db", trusted=trusted)
    served, other = {a.id: (a, b), b.id: (b, a)}[writer.peer]
    runtime_of(served).sockets.udp.close()  # as kill -9 looks from outside
    with pytest.raises(ConnectionLost):
        async with within(10):
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)
                if writer._stream.error is not None:
                    await reader.read()
                    await writer.drain()
    assert await _called(user, trusted=trusted) == other.config.name.encode()
    await other.close()
    with suppress(MeshError):  # unless the first one is back already
        assert await _called(user, trusted=trusted) == served.config.name.encode()


async def test_a_stream_to_the_pinned_node_waits_for_it_and_is_not_ended_for_an_impostor(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    real = await _serving(make_node, seed, b"real")
    user = await make_node(seed=seed)
    _, writer = await user.open_any("db")
    assert writer.peer == real.id
    evil = await _serving(make_node, seed, b"evil")
    await _knows(user, 2)
    await user.ping(evil.id)
    failover = user._life.running().failover
    assert failover._registry is not None
    assert failover._rivals is not None
    failover._registry.directory.experience.on_silent(real.id, asyncio.get_running_loop().time())
    failover._rivals.on_silent(real.id)
    await asyncio.sleep(0.5)
    assert not writer.is_closing()
    writer.close()


@pytest.mark.parametrize(
    ("trusted", "error"), [([], ConfigError), (5, ConfigError), ([5], InvalidId), ("a b", InvalidId)]
)
async def test_what_is_no_node_is_not_trusted(make_node: MakeNode, trusted: Any, error: type[Exception]) -> None:
    node = await make_node()
    with pytest.raises(error):
        await node.open_any("db", trusted=trusted)


def test_the_command_line_names_both_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    with ExitStack() as running:

        def start(name: str, **more: Any) -> CliNode:
            node = CliNode(tmp_path / name, **more)
            running.enter_context(stopping(node))
            return node

        seed = start("seed", command="seed")
        both = [start(f"n{n}", seed=seed) for n in range(2)]
        ports = [running.enter_context(_banner(text)) for text in (b"real", b"evil")]
        for node, port in zip(both, ports, strict=True):
            node.ask("expose", "db", str(port), "--allow", "any")
        user = start("user", seed=seed)
        eventually(lambda: len(user.run("services", "db").stdout.splitlines()) == 2)
        for command in (("forward", "0"), ("connect",)):
            error = user.error(*command, "db")
            assert error["code"] == "name_disputed"
            assert all(node.id in error["message"] for node in both)
            assert "--from" in error["hint"]
        assert user.error("forward", "0", f"{both[0].id}/db", "--from", both[0].id)["code"] == "config_error"
        listen = user.ask("forward", "0", "db", "--from", both[0].id[:12])["listen"]
        assert {_read(listen) for _ in range(10)} == {b"real"}
        user.kill()
        user = start("user", seed=seed)
        eventually(lambda: _read(listen) == b"real")
        assert {_read(listen) for _ in range(10)} == {b"real"}
        any_of = user.ask("forward", "0", "db", "--from", "any")["listen"]
        assert {_read(any_of) for _ in range(10)} <= {b"real", b"evil"}


@contextmanager
def _banner(text: bytes) -> Iterator[int]:
    """A TCP server that says so and closes."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as sock:
                        sock.sendall(text)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def _read(listen: str) -> bytes:
    host, _, port = listen.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=HANG_S) as sock:
        return sock.recv(4)
    return b""
