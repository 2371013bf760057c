"""Unix sockets at both ends of a service: their access, what is replaced, and how streams through them end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode import Node
from meshnode.cli.commands.services import expose_command
from meshnode.errors import AddressInUse, ConfigError
from meshnode.services import splice
from meshnode.services.health import connect_unix
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for

DEADLINE_S = 10.0
SIZE = 3_000_000
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, end when the other end does."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Way:
    """A program at a Unix socket, exposed by one node; the Unix socket of a forward at the other."""

    def __init__(self, nodes: tuple[Node, Node], folder: Path) -> None:
        self.target, self.listen = folder / "target.sock", folder / "listen.sock"
        self.books = ServiceBook(nodes[0]), ServiceBook(nodes[1])
        self.to = f"{nodes[0].id}/x"

    async def forward(self) -> str:
        return str((await self.books[1].forward(f"unix:{self.listen}", self.to))["listen"])

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.listen))


@asynccontextmanager
async def way(make_node: MakeNode, folder: Path, answer: Answer = echo) -> AsyncIterator[Way]:
    there = await make_node()
    found = Way((there, await make_node(seed=there)), folder)
    server = await asyncio.start_unix_server(answer, str(found.target))
    told = await found.books[0].expose("x", f"unix:{found.target}", ("any",))
    assert told["target"] == f"unix:{found.target}"
    try:
        yield found
    finally:
        for book in found.books:
            await book.close()
        server.close()


async def test_bytes_and_half_closes_pass_between_two_unix_sockets(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        assert await through.forward() == f"unix:{through.listen}"
        reader, writer = await through.client()
        data = os.urandom(SIZE)
        writer.write(data)
        writer.write_eof()
        assert await wait_for(reader.read(), DEADLINE_S) == data
        writer.close()


async def test_a_reader_that_stops_holds_the_target_back(make_node: MakeNode, tmp_path: Path) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
                sent += 65_536
        except ConnectionError:
            writer.close()

    async with way(make_node, tmp_path, flood) as through:
        await through.forward()
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(through.listen))
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(1)
        assert 0 < sent < 16_000_000


async def test_a_target_that_leaves_data_unread_is_a_reset_at_the_client(make_node: MakeNode, tmp_path: Path) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"!")
        await asyncio.sleep(0.3)
        writer.transport.abort()

    async with way(make_node, tmp_path, leave) as through:
        await through.forward()
        reader, writer = await through.client()
        writer.write(b"a")
        assert await wait_for(reader.readexactly(1), DEADLINE_S) == b"!"
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(bytes(1_000_000))  # some of it is in the target's socket when that closes
        await asyncio.sleep(1)
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"more")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()


async def test_a_client_that_closed_gives_its_place_back(
    make_node: MakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "GONE_S", 0.02)
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    hung = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await heard.put(await reader.read())
        await hung.wait()
        writer.close()

    async with way(make_node, tmp_path, hang) as through:
        await through.forward()
        half, gone = await through.client(), await through.client()
        half[1].write(b"half")
        half[1].write_eof()
        gone[1].write(b"gone")
        gone[1].close()
        assert {await wait_for(heard.get(), DEADLINE_S) for _ in range(2)} == {b"half", b"gone"}
        (forward,) = through.books[1].forwards.values()
        for _ in range(200):
            if forward.connections == 1:
                break
            await asyncio.sleep(0.02)
        assert forward.connections == 1, "that of the client that still reads"
        await asyncio.sleep(0.5)
        assert forward.connections == 1
        hung.set()
        assert await wait_for(half[0].read(), DEADLINE_S) == b""
        half[1].close()


async def test_only_its_user_may_connect_and_it_is_removed_at_the_end(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        mask = os.umask(0)
        try:
            await through.forward()
        finally:
            os.umask(mask)
        assert stat.S_IMODE(through.listen.stat().st_mode) == 0o600
        assert (await through.books[1].unforward(str(through.listen)))["listen"] == f"unix:{through.listen}"
        assert not through.listen.exists()
        await through.forward()
        await through.books[1].close()
        assert not through.listen.exists()


async def test_a_socket_file_that_was_left_behind_is_replaced(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(through.listen))
            killed.listen()
        await through.forward()
        _, writer = await through.client()
        writer.close()


async def test_what_is_in_use_or_no_socket_is_never_replaced(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(str(through.listen))
            busy.listen(0)
            queued = []
            for _ in range(3):  # the backlog is full
                queued.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                queued[-1].connect_ex(str(through.listen))
            with pytest.raises(AddressInUse, match="another program listens there"):
                await through.forward()
            assert through.listen.is_socket()
            for each in queued:
                each.close()
        through.listen.unlink()
        through.listen.write_text("notes")
        with pytest.raises(AddressInUse, match="no socket"):
            await through.forward()
        assert through.listen.read_text() == "notes"
        with pytest.raises(AddressInUse, match="no such file"):
            await through.books[1].forward(f"unix:{tmp_path}/missing/x.sock", through.to)
        with pytest.raises(ConfigError, match="no whole path"):
            await through.books[1].forward("unix:x.sock", through.to)


async def test_a_file_that_another_program_has_put_there_meanwhile_stays(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        await through.forward()
        through.listen.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(through.listen))
            await through.books[1].unforward(str(through.listen))
            assert through.listen.is_socket()


async def test_a_forward_to_a_unix_socket_is_back_after_a_kill(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        await through.forward()
        home = through.books[1]._node.config.home_path
        saved = (home / "services.json").read_bytes()
        await through.books[1].close()
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(through.listen))
            killed.listen()
        (home / "services.json").write_bytes(saved)
        again = ServiceBook(through.books[1]._node)
        await again.restore()
        reader, writer = await through.client()
        writer.write(b"back")
        assert await wait_for(reader.readexactly(4), DEADLINE_S) == b"back"
        writer.close()
        await again.close()


async def test_a_target_that_is_not_there_is_told_and_met_again(make_node: MakeNode, tmp_path: Path) -> None:
    async with way(make_node, tmp_path) as through:
        through.target.unlink()
        expose = through.books[0].exposes["x"]
        assert await expose.probe() == "no such file or directory"
        server = await asyncio.start_unix_server(echo, str(through.target))
        assert await expose.probe() == ""
        server.close()


def test_a_path_is_written_from_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(home: Path, request: Any) -> dict[str, Any]:
        asked.append(request)
        return {"target": request.target, "allow": []}

    monkeypatch.setattr("meshnode.cli.commands.services.ask_one", ask)
    monkeypatch.setattr("meshnode.cli.commands.services.emit", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for text, path in (("x.sock", tmp_path / "x.sock"), ("///run/x", "/run/x"), ("~/x", "/home/me/x")):
        expose_command.main(["x", f"unix:{text}", "--allow", "any", "--json"], standalone_mode=False)
        assert asked[-1].target == f"unix:{path}"


async def test_a_listener_with_as_many_that_wait_as_it_lets_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "busy")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        connecting = asyncio.create_task(connect_unix(path))
        await asyncio.sleep(0.05)
        assert not connecting.done(), "it has no place yet"
        listener.accept()[0].close()
        with await wait_for(connecting, DEADLINE_S) as sock:
            served, _ = listener.accept()
            served.sendall(b"hello")
            assert await wait_for(loop.sock_recv(sock, 5), DEADLINE_S) == b"hello"
            served.close()
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(path)
            monkeypatch.setattr("meshnode.services.health.ATTEMPTS", 2)
            with pytest.raises(BlockingIOError):
                await connect_unix(path)
