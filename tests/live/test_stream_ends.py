"""How a stream ends: whole or lost. TCP clients of a forward see EOF or a reset, never one for the other."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from meshnode import Node
from meshnode.errors import ConnectionLost
from meshnode.sdk.node import runtime_of
from meshnode.services.registry import ServiceBook
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.homes import make_home
from tests.live.copied_process import Process

SIZE = 100_000
DEADLINE_S = 20.0


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Target:
    """A TCP server that sends ``SIZE`` bytes and then ends as the test asks; remembers how its clients ended."""

    def __init__(self) -> None:
        self.end: Callable[[asyncio.StreamWriter], None] | None = None
        self.writers: list[asyncio.StreamWriter] = []
        self.endings: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one client."""
        self.writers.append(writer)
        writer.write(b"x" * SIZE)
        try:
            while await reader.read(65_536):
                pass
            await self.endings.put("eof")
        except ConnectionResetError:
            await self.endings.put("reset")


@asynccontextmanager
async def _target() -> AsyncIterator[tuple[Target, int]]:
    target = Target()
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0)
    try:
        yield target, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in target.writers:
            writer.transport.abort()


async def _rest(reader: asyncio.StreamReader) -> str:
    try:
        return "eof" if not await wait_for(reader.read(1), DEADLINE_S) else "more"
    except ConnectionResetError:
        return "reset"


class Setting:
    """Two nodes with a service between them and one client of its forward, which has read all that was sent."""

    def __init__(self, there: Node, here: Node, target: Target, books: tuple[ServiceBook, ServiceBook]) -> None:
        self.there, self.here, self.target, self.books = there, here, target, books
        self.listen = ""

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and read what the target sends at first."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.listen.rpartition(":")[2]))
        assert len(await wait_for(reader.readexactly(SIZE), DEADLINE_S)) == SIZE
        return reader, writer


@pytest.fixture
async def setting(make_node: MakeNode) -> AsyncIterator[Setting]:
    there = await make_node(idle_timeout=3.0)
    here = await make_node(seed=there, idle_timeout=3.0)
    books = ServiceBook(there), ServiceBook(here)
    async with _target() as (target, port):
        await books[0].expose("x", f"tcp://127.0.0.1:{port}", ("any",))
        found = Setting(there, here, target, books)
        found.listen = (await books[1].forward("127.0.0.1:0", f"{there.id}/x"))["listen"]
        yield found
        for book in books:
            await book.close()


async def _target_resets(setting: Setting) -> None:
    _reset(setting.target.writers[-1])


async def _unforward(setting: Setting) -> None:
    await setting.books[1].unforward(setting.listen)


async def _stop_there(setting: Setting) -> None:
    await setting.there.close()


async def _stop_here(setting: Setting) -> None:
    await setting.here.close()


async def _close_connection(setting: Setting) -> None:
    (await setting.there.connect(setting.here.id)).close()


async def _be_unreachable(setting: Setting) -> None:
    for node in (setting.there, setting.here):
        runtime_of(node).sockets.send = lambda addr, datagrams: True  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "end", [_target_resets, _unforward, _stop_there, _stop_here, _close_connection, _be_unreachable]
)
async def test_an_abnormal_end_is_a_reset_at_the_client(
    setting: Setting, end: Callable[[Setting], Awaitable[None]]
) -> None:
    reader, writer = await setting.client()
    await end(setting)
    assert await _rest(reader) == "reset"
    writer.close()
    if end is not _target_resets:
        assert await wait_for(setting.target.endings.get(), DEADLINE_S) == "reset"


async def test_an_end_is_an_end_at_both(setting: Setting) -> None:
    reader, writer = await setting.client()
    writer.write_eof()
    assert await wait_for(setting.target.endings.get(), DEADLINE_S) == "eof"
    setting.target.writers[-1].write(b"y" * SIZE)  # after its client's end
    setting.target.writers[-1].close()
    assert await wait_for(reader.read(), DEADLINE_S) == b"y" * SIZE
    writer.close()


@pytest.mark.parametrize("has_ended", [False, True], ids=["open", "half-closed"])
async def test_an_answer_that_has_come_whole_reaches_a_slow_client_though_the_connection_is_lost(
    setting: Setting, has_ended: bool
) -> None:
    size = 3_000_000  # more than a socket's buffers hold of it, and less than these and a stream's window
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.settimeout(DEADLINE_S)
        await asyncio.to_thread(client.connect, ("127.0.0.1", int(setting.listen.rpartition(":")[2])))
        if has_ended:
            client.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DEADLINE_S):
            while not setting.target.writers:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        setting.target.writers[-1].write(b"y" * size)
        setting.target.writers[-1].write_eof()
        link = await runtime_of(setting.here).connect(setting.there.id)
        async with asyncio.timeout(DEADLINE_S):
            while not all(stream.fin_received for stream in link.streams if stream.service == "x"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await _close_connection(setting)
        if not has_ended:
            client.send(b"more, which nothing takes")
        await asyncio.sleep(0.3)
        got = 0
        with suppress(ConnectionResetError):  # behind all of it, for what the client says no more arrives
            while data := await asyncio.to_thread(client.recv, 65_536):
                got += len(data)
        assert got == SIZE + size


async def test_a_client_that_resets_is_a_reset_at_the_target(setting: Setting) -> None:
    _, writer = await setting.client()
    _reset(writer)
    assert await wait_for(setting.target.endings.get(), DEADLINE_S) == "reset"


async def test_a_half_closed_connection_ends_when_its_client_has_gone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.splice.GONE_S", 0.1)
    monkeypatch.setattr("meshnode.services.splice.KEEP_ALIVE_S", 1)
    _, writer = await setting.client()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)  # the kernel forgets it a second after its close
    writer.write_eof()
    assert await wait_for(setting.target.endings.get(), DEADLINE_S) == "eof"
    link = await runtime_of(setting.here).connect(setting.there.id)
    assert [stream for stream in link.streams if stream.service == "x"]
    writer.close()  # and the target neither says nor closes anything
    for _ in range(200):
        if not [stream for stream in link.streams if stream.service == "x"]:
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the stream of a client that has gone is still open after 10 s")


async def test_a_half_closed_connection_whose_client_waits_stays(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.splice.GONE_S", 0.1)
    monkeypatch.setattr("meshnode.services.splice.KEEP_ALIVE_S", 1)
    reader, writer = await setting.client()
    writer.write_eof()
    await asyncio.sleep(2.0)  # two probes, and less than the idle timeout
    setting.target.writers[-1].write(b"late")
    assert await wait_for(reader.readexactly(4), DEADLINE_S) == b"late"
    writer.close()


@pytest.mark.parametrize("end", [_target_resets, _stop_there, _close_connection, _be_unreachable])
async def test_an_abnormal_end_is_connection_lost_in_the_sdk(
    setting: Setting, end: Callable[[Setting], Awaitable[None]]
) -> None:
    reader, writer = await setting.here.open(setting.there.id, "x")
    await reader.readexactly(SIZE)
    await end(setting)
    with pytest.raises(ConnectionLost):
        await wait_for(reader.read(), DEADLINE_S)
    with pytest.raises(ConnectionLost):
        writer.write(b"late")


@pytest.mark.parametrize("how", ["killed", "asleep"])
async def test_a_node_that_is_killed_or_sleeps_too_long_resets_its_clients(tmp_path: Path, how: str) -> None:
    for name in ("there", "here"):
        make_home(tmp_path / name)
        (tmp_path / name / "meshnode.toml").write_text("idle_timeout = 2.0\n")
    there = Process(tmp_path / "there", "127.0.4.140", ["up"])
    await there.start()
    here = Process(tmp_path / "here", "127.0.4.141", ["up", "--seed", f"{there.id}@{there.endpoint}"])
    try:
        await here.start()
        async with _target() as (_, port):
            await there.ask("expose", name="x", target=f"tcp://127.0.0.1:{port}", allow=["any"])
            listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/x"))["listen"]
            reader, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
            await wait_for(reader.readexactly(SIZE), DEADLINE_S)
            if how == "killed":
                here.kill()
            else:
                assert here.pid is not None
                os.kill(here.pid, signal.SIGSTOP)
                await asyncio.sleep(5.0)
                os.kill(here.pid, signal.SIGCONT)
            assert await _rest(reader) == "reset"
            writer.close()
    finally:
        await asyncio.gather(here.stop(), there.stop())


async def test_the_clients_of_a_peer_that_was_killed_and_stays_away_learn_it_within_the_idle_timeout(
    tmp_path: Path,
) -> None:
    idle = 3.0
    for name in ("there", "here"):
        make_home(tmp_path / name)
        (tmp_path / name / "meshnode.toml").write_text(f"idle_timeout = {idle}\n")
    there = Process(tmp_path / "there", "127.0.4.142", ["up"])
    await there.start()
    here = Process(tmp_path / "here", "127.0.4.143", ["up", "--seed", f"{there.id}@{there.endpoint}"])
    loop = asyncio.get_running_loop()
    try:
        await here.start()
        async with _target() as (_, port):
            await there.ask("expose", name="x", target=f"tcp://127.0.0.1:{port}", allow=["any"])
            listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/x"))["listen"]
            clients = [await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2])) for _ in range(2)]
            for reader, _ in clients:
                await wait_for(reader.readexactly(SIZE), DEADLINE_S)
            there.kill()
            began = loop.time()

            async def talk(writer: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while True:
                        writer.write(b"is it there?")
                        await writer.drain()
                        await asyncio.sleep(0.1)

            talking = asyncio.create_task(talk(clients[1][1]))
            assert [await _rest(reader) for reader, _ in clients] == ["reset", "reset"]
            assert loop.time() - began < idle + 1.5
            await talking
    finally:
        await asyncio.gather(here.stop(), there.stop())


async def test_a_node_that_slept_longer_than_the_idle_timeout_is_connected_at_once_when_it_wakes(
    tmp_path: Path,
) -> None:
    for name in ("there", "here"):
        make_home(tmp_path / name)
        (tmp_path / name / "meshnode.toml").write_text("idle_timeout = 2.0\n")
    there = Process(tmp_path / "there", "127.0.4.144", ["up"])
    await there.start()
    here = Process(tmp_path / "here", "127.0.4.145", ["up", "--seed", f"{there.id}@{there.endpoint}"])
    loop = asyncio.get_running_loop()
    try:
        await here.start()
        async with _target() as (_, port):
            await there.ask("expose", name="x", target=f"tcp://127.0.0.1:{port}", allow=["any"])
            listen = (await here.ask("forward", listen="127.0.0.1:0", to=f"{there.id}/x"))["listen"]
            reader, _ = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
            await wait_for(reader.readexactly(SIZE), DEADLINE_S)
            assert here.pid is not None
            os.kill(here.pid, signal.SIGSTOP)
            await asyncio.sleep(5.0)
            os.kill(here.pid, signal.SIGCONT)
            began = loop.time()
            again, writer = await asyncio.open_connection("127.0.0.1", int(listen.rpartition(":")[2]))
            assert len(await wait_for(again.readexactly(SIZE), DEADLINE_S)) == SIZE
            assert loop.time() - began < 2.0
            assert await _rest(reader) == "reset"
            writer.close()
    finally:
        await asyncio.gather(here.stop(), there.stop())


async def test_a_node_whose_peer_has_forgotten_the_connection_loses_its_streams_and_opens_new_ones_at_once(
    setting: Setting,
) -> None:
    reader, writer = await setting.here.open(setting.there.id, "x")
    await reader.readexactly(SIZE)
    link = await runtime_of(setting.there).connect(setting.here.id)
    link.abandon(ConnectionLost("slept: its clock stood still, so only the other end's timeout has passed"))
    began = asyncio.get_running_loop().time()
    with pytest.raises(ConnectionLost):
        while True:
            writer.write(b"awake")
            await writer.drain()
            await asyncio.sleep(0.02)
    again, _ = await setting.here.open(setting.there.id, "x")
    assert len(await again.readexactly(SIZE)) == SIZE
    assert asyncio.get_running_loop().time() - began < 2.0
