"""asyncio's protocols on mesh streams between real nodes: bytes, back-pressure, ends, moves, a web server."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging

import pytest

from meshnode import ConfigError, Node, NodeId
from meshnode.errors import ConnectionLost, PolicyDenied, ServiceNotFound, StreamMisused
from meshnode.sdk.asyncio_transport import ProtocolTransport
from meshnode.sdk.node import runtime_of
from meshnode.sdk.streams import MeshReader, MeshWriter
from tests.conftest import MakeNode, echo
from tests.engines import every_engine
from tests.given_time import wait_for, within

PLACES = itertools.count(2)
MB = 1 << 20


class Talk(asyncio.Protocol):
    """Keeps what comes, and what it is told."""

    keeps_open = False

    def __init__(self) -> None:
        self.data = bytearray()
        self.told: list[str] = []
        self.over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.came.set()

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.came.set()
        return self.keeps_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.over.set_result(exc)

    async def until(self, size: int) -> bytes:
        """Wait for so many bytes, or the end of the peer's direction."""
        async with within(20):
            while len(self.data) < size and "eof" not in self.told:
                self.came.clear()
                await self.came.wait()
        return bytes(self.data)


class Echo(Talk):
    """Sends back what comes, and reads no more than its peer takes."""

    keeps_open = True

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        super().eof_received()
        self.transport.write_eof()
        self.transport.close()
        return True


async def pair(make_node: MakeNode, **settings: str) -> tuple[Node, Node]:
    listener = await make_node(**settings)
    return listener, await make_node(seed=listener, **settings)


async def soon(future: asyncio.Future[Exception | None]) -> Exception | None:
    return await wait_for(future, 10)


@every_engine
async def test_a_protocol_on_each_side_talks_and_ends_cleanly(make_node: MakeNode, engine: str) -> None:
    listener, dialler = await pair(make_node, engine=engine)
    served: list[Echo] = []

    def factory() -> Echo:
        served.append(Echo())
        return served[-1]

    async with await listener.create_server(factory, "echo", allow=["any"]) as server:
        assert (server.is_serving(), server.sockets, server.get_loop()) == (True, (), asyncio.get_running_loop())
        transport, talk = await dialler.create_connection(Talk, listener.id, "echo")
        assert isinstance(transport, asyncio.Transport)
        assert talk.transport is transport
        assert [transport.get_extra_info(name) for name in ("peername", "peer", "sockname", "service", "socket")] == [
            listener.id,
            listener.id,
            dialler.id,
            "echo",
            None,
        ]
        assert served[0].transport.get_extra_info("peername") == dialler.id
        transport.writelines([b"hello ", bytearray(b"wor"), memoryview(b"ld")])
        assert await talk.until(11) == b"hello world"
        assert transport.can_write_eof()
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(StreamMisused):
            transport.write(b"x")
        assert await soon(talk.over) is None
        assert await soon(served[0].over) is None
        assert talk.told == served[0].told == ["made", "eof", "lost"]
        assert transport.is_closing()
        transport.write(b"dropped")
        transport.close()
        server.close()
        await wait_for(server.wait_closed(), 5)
    assert not server.is_serving()
    with pytest.raises(ServiceNotFound):
        await dialler.create_connection(Talk, listener.id, "echo")


async def test_either_direction_may_end_first_and_the_other_goes_on(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    others: list[Talk] = []

    class KeepsOpen(Talk):
        keeps_open = True

        def __init__(self) -> None:
            super().__init__()
            others.append(self)

    await listener.create_server(KeepsOpen, "half", allow=["any"])
    transport, talk = await dialler.create_connection(KeepsOpen, listener.id, "half")
    transport.write(b"all that I say")
    transport.write_eof()
    other = others[0]
    assert await other.until(1_000) == b"all that I say"
    for n in range(3):
        other.transport.write(b"%d" % n)
        assert await talk.until(n + 1) == b"012"[: n + 1]
    other.transport.close()
    assert await soon(other.over) is None
    await talk.until(1_000)
    assert not talk.over.done(), "it returned True from eof_received"
    transport.close()
    assert await soon(talk.over) is None


async def test_an_abort_is_a_reset_at_the_other_end_and_none_here(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    others: list[Talk] = []

    def factory() -> Talk:
        others.append(Talk())
        return others[-1]

    await listener.create_server(factory, "talk", allow=["any"])
    transport, talk = await dialler.create_connection(Talk, listener.id, "talk")
    transport.abort()
    assert talk.told == ["made"], "never from inside of a call"
    assert await soon(talk.over) is None
    error = await soon(others[0].over)
    assert isinstance(error, ConnectionLost)
    assert isinstance(error, ConnectionResetError)
    assert others[0].told == ["made", "lost"], "no eof: an abnormal end is never a clean one"


@every_engine
async def test_an_abort_after_a_close_drops_what_the_peer_does_not_take(make_node: MakeNode, engine: str) -> None:
    listener, dialler = await pair(make_node, engine=engine)
    others: list[Talk] = []

    class Paused(Talk):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()
            others.append(self)

    await listener.create_server(Paused, "paused", allow=["any"])
    transport, talk = await dialler.create_connection(Talk, listener.id, "paused")
    transport.write(bytes(4 * MB))
    transport.close()
    await asyncio.sleep(0.3)
    assert not talk.over.done(), "a clean end is one that has arrived"
    transport.abort()
    assert await soon(talk.over) is None
    others[0].transport.resume_reading()
    assert isinstance(await soon(others[0].over), ConnectionLost)
    assert "eof" not in others[0].told


async def test_a_reset_behind_a_close_drops_what_the_peer_does_not_take_and_waits_for_nothing(
    make_node: MakeNode,
) -> None:
    listener, dialler = await pair(make_node)
    taken: asyncio.Future[MeshReader] = asyncio.get_running_loop().create_future()

    async def hold(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        taken.set_result(reader)
        await asyncio.Event().wait()

    async def send() -> None:
        async with await dialler.open(listener.id, "hold") as (_, writer):
            writer.write(bytes(4 * MB))
            writer.close()
            await writer.wait_closed()

    listener.serve("hold", hold, allow=["any"])
    sending = asyncio.create_task(send())
    reader = await wait_for(taken, 10)
    await wait_for(reader.readexactly(1), 10)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait_for(sending, 10)
    with pytest.raises(ConnectionLost):
        await wait_for(reader.read(), 10)


async def test_the_end_of_the_peers_node_is_the_protocols_error(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    server = await listener.create_server(Talk, "talk", allow=["any"])
    _, talk = await dialler.create_connection(Talk, listener.id, "talk")
    await listener.close()
    assert isinstance(await soon(talk.over), ConnectionLost)
    await wait_for(server.wait_closed(), 5)


async def test_a_change_of_policy_is_the_protocols_error(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    with pytest.raises(ServiceNotFound):
        await dialler.create_connection(Talk, listener.id, "none")
    await listener.create_server(Talk, "closed")
    with pytest.raises(PolicyDenied):
        await dialler.create_connection(Talk, listener.id, "closed")
    await listener.create_server(Talk, "open", allow=[dialler.id])
    _, talk = await dialler.create_connection(Talk, listener.id, "open")
    guard = runtime_of(listener).guard
    guard.lists.services["open"] = guard.lists.services["closed"]
    guard.changed()
    assert isinstance(await soon(talk.over), PolicyDenied)


async def test_what_a_protocol_raises_ends_its_stream_and_is_told_to_the_loop(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    class Fails(Talk):
        def data_received(self, data: bytes) -> None:
            raise ValueError("of the protocol's own")

    def refuses() -> Talk:
        raise ValueError("of the factory's own")

    listener.serve("echo", echo, allow=["any"])
    transport, talk = await dialler.create_connection(Fails, listener.id, "echo")
    transport.write(b"x")
    assert repr(await soon(talk.over)) == 'ValueError("of the protocol\'s own")'
    assert repr(told[0]["exception"]) == 'ValueError("of the protocol\'s own")'
    with pytest.raises(ValueError, match="of the factory's own"):
        await dialler.create_connection(refuses, listener.id, "echo")
    with pytest.raises(ConfigError, match="protocol_factory"):
        await listener.create_server(None, "none")  # type: ignore[arg-type]


async def test_a_factory_that_fails_at_the_server_is_a_reset_and_the_next_one_is_served(
    make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    listener, dialler = await pair(make_node)
    calls = itertools.count()

    def factory() -> Talk:
        if not next(calls):
            raise ValueError("of the factory's own")
        return Echo()

    await listener.create_server(factory, "echo", allow=["any"])
    with caplog.at_level(logging.CRITICAL), pytest.raises(ConnectionLost):
        await dialler.create_connection(Talk, listener.id, "echo")
    transport, talk = await dialler.create_connection(Talk, listener.id, "echo")
    transport.write(b"x")
    assert await talk.until(1) == b"x"


async def test_reading_that_is_paused_holds_the_writer_back_and_goes_on(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    others: list[Talk] = []

    class Paused(Talk):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()
            others.append(self)

    await listener.create_server(Paused, "paused", allow=["any"])
    transport, talk = await dialler.create_connection(Talk, listener.id, "paused")
    transport.set_write_buffer_limits(high=MB, low=MB // 4)
    assert transport.get_write_buffer_limits() == (MB // 4, MB)
    with pytest.raises(ValueError, match="water mark"):
        transport.set_write_buffer_limits(high=1, low=2)
    written = 0
    for _ in range(400):  # a second: the window fills, then nothing more is acknowledged
        while "pause" not in talk.told and written < 20 * MB:
            transport.write(bytes(1 << 16))
            written += 1 << 16
        await asyncio.sleep(0.005)
        if talk.told[-1] == "resume":
            talk.told.clear()
    assert "pause" in talk.told
    assert written < 6 * MB, "a window of 2 MB, the mark and a little more"
    assert not others[0].data
    assert not others[0].transport.is_reading()
    others[0].transport.resume_reading()
    assert others[0].transport.is_reading()
    assert len(await others[0].until(written)) == written
    async with within(5):
        while talk.told[-1] != "resume":
            talk.came.clear()
            await talk.came.wait()
    assert transport.get_write_buffer_size() <= MB // 4


async def test_what_has_waited_is_handed_on_in_turns_of_the_loop(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    others: list[Talk] = []
    between: list[int] = []

    class Waits(Talk):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()
            others.append(self)

        def data_received(self, data: bytes) -> None:
            if not self.data:
                asyncio.get_running_loop().call_soon(lambda: between.append(len(self.data)))
            super().data_received(data)

    await listener.create_server(Waits, "waits", allow=["any"])
    transport, _ = await dialler.create_connection(Talk, listener.id, "waits")
    transport.write(bytes(MB))
    for _ in range(1_000):
        if not transport.get_write_buffer_size():
            break
        await asyncio.sleep(0.01)
    others[0].transport.resume_reading()
    assert len(await others[0].until(MB)) == MB
    assert between[0] < MB / 2, "other callbacks run between two turns"


@every_engine
@pytest.mark.parametrize("kind", ["plain", "buffered"])
async def test_megabytes_go_through_with_back_pressure_while_both_move(
    make_node: MakeNode, engine: str, kind: str
) -> None:
    """To a receiver that pauses every few hundred kB, in pieces, through three moves of both ends."""
    seed = await make_node(seed_role=True, engine=engine)
    listener, dialler = await make_node(seed=seed, engine=engine), await make_node(seed=seed, engine=engine)
    size = 100_000_000 if engine == "qh3" else 30_000_000  # the other takes four times as long
    took: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    most = 0

    class Sink(Talk):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.count = hashlib.sha256(), 0

        def data_received(self, data: bytes) -> None:
            self.sum.update(data)
            if (self.count + len(data)) // 400_000 != self.count // 400_000:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(0.001, self.transport.resume_reading)
            self.count += len(data)

        def eof_received(self) -> bool:
            took.set_result(self.sum.hexdigest())
            return False

    class BufferedSink(Sink, asyncio.BufferedProtocol):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = bytearray(70_001)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(memoryview(self.buffer)[:nbytes]))

    class Source(Talk):
        def __init__(self) -> None:
            super().__init__()
            self.sum, self.left, self.is_full = hashlib.sha256(), size, False

        async def until_left(self, left: int) -> None:
            while self.left > left:
                self.came.clear()
                await self.came.wait()

        def go(self) -> None:
            nonlocal most
            while self.left and not self.is_full:
                piece = self.left.to_bytes(8, "big") * 8_000
                piece = piece[: self.left]
                self.sum.update(piece)
                self.left -= len(piece)
                self.came.set()
                self.transport.write(piece)
                most = max(most, self.transport.get_write_buffer_size())
            if not self.left and not self.transport.is_closing():
                self.transport.close()

        def pause_writing(self) -> None:
            self.is_full = True

        def resume_writing(self) -> None:
            self.is_full = False
            self.go()

    await listener.create_server(BufferedSink if kind == "buffered" else Sink, "sink", allow=["any"])
    _, source = await dialler.create_connection(Source, listener.id, "sink")
    source.go()
    async with within(200):
        for _ in range(3):
            left = source.left
            await source.until_left(left - size // 5)
            await asyncio.gather(*(node.rebind(f"127.0.5.{next(PLACES)}:0") for node in (listener, dialler)))
        assert await took == source.sum.hexdigest()
        assert await source.over is None
    assert most <= MB + 64_000, "what is not acknowledged is bounded by the mark and one write"


async def test_a_protocol_that_writes_to_a_peer_that_has_gone_gets_an_error(make_node: MakeNode) -> None:
    listener, dialler = await pair(make_node)
    gone = asyncio.Event()

    async def leave(reader: object, writer: asyncio.StreamWriter, peer: object) -> None:
        writer.transport.get_write_buffer_size()
        gone.set()

    listener.serve("leave", leave, allow=["any"])

    class KeepsOpen(Talk):
        keeps_open = True

    transport, talk = await dialler.create_connection(KeepsOpen, listener.id, "leave")
    await wait_for(gone.wait(), 5)
    await talk.until(1)
    async with within(10):
        while not talk.over.done():
            transport.write(b"to nobody")  # words: ok
            await asyncio.sleep(0.01)
    assert isinstance(talk.over.result(), ConnectionLost)
    assert isinstance(transport, ProtocolTransport)
