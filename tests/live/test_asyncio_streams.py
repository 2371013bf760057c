"""What the documentation of asyncio's streams says, a test a sentence, of a stream between two nodes.

The sentences are those of ``StreamReader`` and ``StreamWriter`` in Python's library reference; behind them comes what
asyncio does without saying so, and what a mesh stream adds.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import meshnode
from meshnode import MeshReader, MeshStream, MeshWriter, Node, NodeId
from meshnode.base.limits import STREAM_HIGH_WATER, STREAM_LOW_WATER
from meshnode.errors import ConnectionLost, StreamMisused, Unsupported
from tests.conftest import MakeNode, echo
from tests.given_time import within

DEADLINE_S = 10.0
BULK = bytes(3 << 20)  # more than every window


class Pipe:
    """One stream with both of its ends: ``near`` has opened it, ``far`` was given to the handler."""

    def __init__(self, here: Node, there: Node, near: MeshStream, far: MeshStream) -> None:
        self.here, self.there = here, there
        self.near, self.far = near, far

    async def arrived(self, count: int) -> None:
        """Wait until ``count`` bytes wait at the far end."""
        await _until(lambda: len(self.far.reader._held) + self.far.reader._stream.buffered >= count)

    async def ended(self) -> None:
        """Wait until the near end has ended its direction, as the far end sees it."""
        await _until(lambda: self.far.reader._stream.fin_received)


async def _until(holds: Callable[[], bool]) -> None:
    async with within(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - nothing is told of bytes that no reader waits for
            await asyncio.sleep(0.005)


@pytest.fixture
async def pipe(make_node: MakeNode) -> AsyncIterator[Pipe]:
    there = await make_node(dht=False, gossip=False)
    here = await make_node(seed=there, dht=False, gossip=False)
    taken: asyncio.Future[MeshStream] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def keep(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        taken.set_result(MeshStream(reader, writer))
        await done.wait()

    there.serve("keep", keep, allow="any")
    async with within(DEADLINE_S):
        yield Pipe(here, there, await here.open(there.id, "keep"), await taken)
    done.set()


# ---- StreamReader


async def test_as_an_asynchronous_iterable_the_reader_supports_async_for(pipe: Pipe) -> None:
    pipe.near.writer.write(b"one\ntwo\nrest")
    pipe.near.writer.write_eof()
    assert [line async for line in pipe.far.reader] == [b"one\n", b"two\n", b"rest"]


async def test_feed_eof_acknowledges_the_eof(pipe: Pipe) -> None:
    pipe.near.writer.write(b"here")
    await pipe.arrived(4)
    pipe.far.reader.feed_eof()
    assert await pipe.far.reader.read() == b"here"
    assert pipe.far.reader.at_eof()


@pytest.mark.parametrize("n", [(), (-1,)])
async def test_without_n_or_with_minus_one_read_returns_all_until_eof(pipe: Pipe, n: tuple[int, ...]) -> None:
    reading = asyncio.create_task(pipe.far.reader.read(*n))
    pipe.near.writer.write(BULK)
    pipe.near.writer.write_eof()
    assert await reading == BULK


async def test_after_eof_with_an_empty_buffer_read_returns_an_empty_bytes_object(pipe: Pipe) -> None:
    pipe.near.writer.write_eof()
    assert [await pipe.far.reader.read(), await pipe.far.reader.read(5)] == [b"", b""]


async def test_with_n_of_0_read_returns_an_empty_bytes_object_immediately(pipe: Pipe) -> None:
    reading = pipe.far.reader.read(0)
    with pytest.raises(StopIteration) as end:  # not one wait
        reading.send(None)
    assert end.value.value == b""


async def test_with_a_positive_n_read_returns_at_most_n_bytes_as_soon_as_there_is_one(pipe: Pipe) -> None:
    reading = asyncio.create_task(pipe.far.reader.read(100))
    await asyncio.sleep(0)
    pipe.near.writer.write(b"x")
    assert await reading == b"x"
    pipe.near.writer.write(b"12345")
    await pipe.arrived(5)
    assert [await pipe.far.reader.read(3), await pipe.far.reader.read(3)] == [b"123", b"45"]


async def test_eof_before_any_byte_is_an_empty_bytes_object(pipe: Pipe) -> None:
    reading = asyncio.create_task(pipe.far.reader.read(5))
    await asyncio.sleep(0)
    pipe.near.writer.write_eof()
    assert await reading == b""


async def test_readline_reads_a_sequence_of_bytes_that_ends_with_a_newline(pipe: Pipe) -> None:
    pipe.near.writer.write(b"a li")
    reading = asyncio.create_task(pipe.far.reader.readline())
    await pipe.arrived(4)
    pipe.near.writer.write(b"ne\nand more")
    assert await reading == b"a line\n"


async def test_readline_returns_partially_read_data_at_eof(pipe: Pipe) -> None:
    pipe.near.writer.write(b"no newline")
    pipe.near.writer.write_eof()
    assert [await pipe.far.reader.readline(), await pipe.far.reader.readline()] == [b"no newline", b""]


async def test_readexactly_reads_exactly_n_bytes(pipe: Pipe) -> None:
    pipe.near.writer.write(BULK)
    assert [len(await pipe.far.reader.readexactly(n)) for n in (1, 0, 100_000, 1 << 20)] == [1, 0, 100_000, 1 << 20]


async def test_readexactly_raises_incomplete_read_error_at_eof_with_what_was_read(pipe: Pipe) -> None:
    pipe.near.writer.write(b"four")
    pipe.near.writer.write_eof()
    with pytest.raises(asyncio.IncompleteReadError) as error:
        await pipe.far.reader.readexactly(5)
    assert (error.value.partial, error.value.expected) == (b"four", 5)


async def test_readuntil_returns_the_data_with_the_separator_and_consumes_both(pipe: Pipe) -> None:
    pipe.near.writer.write(b"key: value\r\nnext")
    assert await pipe.far.reader.readuntil(b"\r\n") == b"key: value\r\n"
    assert await pipe.far.reader.readexactly(4) == b"next"


async def test_beyond_the_limit_readuntil_raises_limit_overrun_error_and_leaves_the_data(pipe: Pipe) -> None:
    long = b"x" * 70_000
    pipe.near.writer.write(long + b"\n")
    await pipe.arrived(70_001)
    for _ in range(2):
        with pytest.raises(asyncio.LimitOverrunError):
            await pipe.far.reader.readuntil()
    assert await pipe.far.reader.readuntil(limit=80_000) == long + b"\n"


async def test_at_eof_before_the_separator_readuntil_raises_and_the_buffer_is_reset(pipe: Pipe) -> None:
    pipe.near.writer.write(b"data\r")
    pipe.near.writer.write_eof()
    with pytest.raises(asyncio.IncompleteReadError) as error:
        await pipe.far.reader.readuntil(b"\r\n")
    assert error.value.partial == b"data\r"
    assert pipe.far.reader.at_eof()


async def test_the_separator_may_be_a_tuple_and_the_shortest_match_counts(pipe: Pipe) -> None:
    pipe.near.writer.write(b"ABCDEFG line\r")
    assert await pipe.far.reader.readuntil((b"DEF", b"BCDE")) == b"ABCDE"
    assert await pipe.far.reader.readuntil((b"\n", b"\r")) == b"FG line\r"


async def test_at_eof_is_true_when_the_buffer_is_empty_and_the_end_has_come(pipe: Pipe) -> None:
    pipe.near.writer.write(b"x")
    pipe.near.writer.write_eof()
    await pipe.ended()
    assert not pipe.far.reader.at_eof()
    await pipe.far.reader.read(1)
    assert pipe.far.reader.at_eof()


# ---- StreamWriter


async def test_write_queues_what_cannot_be_sent_at_once(pipe: Pipe) -> None:
    pipe.near.writer.write(BULK)
    assert pipe.near.writer.transport.get_write_buffer_size() > STREAM_HIGH_WATER
    assert await pipe.far.reader.readexactly(len(BULK)) == BULK


async def test_writelines_writes_any_iterable_of_bytes(pipe: Pipe) -> None:
    pipe.near.writer.writelines([b"one", bytearray(b"two")])
    pipe.near.writer.writelines(memoryview(part) for part in (b"three", b"four"))
    assert await pipe.far.reader.readexactly(15) == b"onetwothreefour"


async def test_close_closes_the_stream_and_wait_closed_waits_until_all_was_flushed(pipe: Pipe) -> None:
    pipe.near.writer.write(BULK)
    pipe.near.writer.close()
    closed = asyncio.create_task(pipe.near.writer.wait_closed())
    await asyncio.sleep(0.05)
    assert not closed.done()
    assert await pipe.far.reader.read() == BULK
    await closed
    with pytest.raises(ConnectionResetError):
        pipe.near.writer.write(b"late")


async def test_wait_closed_waits_for_close(pipe: Pipe) -> None:
    waiting = asyncio.create_task(pipe.near.writer.wait_closed())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pipe.near.writer.close()
    await waiting


async def test_can_write_eof_is_true(pipe: Pipe) -> None:
    assert pipe.near.writer.can_write_eof()


async def test_write_eof_closes_the_write_end_after_the_buffered_data(pipe: Pipe) -> None:
    pipe.near.writer.write(BULK)
    pipe.near.writer.write_eof()
    assert await pipe.far.reader.read() == BULK
    pipe.far.writer.write(b"the other direction")
    assert await pipe.near.reader.readexactly(19) == b"the other direction"


async def test_transport_is_an_asyncio_transport(pipe: Pipe) -> None:
    transport = pipe.near.writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.writelines([b"by ", b"transport"])
    transport.write_eof()
    assert await pipe.far.reader.read() == b"by transport"
    with pytest.raises(NotImplementedError):
        transport.set_protocol(asyncio.Protocol())


async def test_get_extra_info_accesses_optional_information(pipe: Pipe) -> None:
    near, far = pipe.near.writer, pipe.far.writer
    assert near.get_extra_info("peername") == far.get_extra_info("sockname") == (pipe.there.address, 0, 0, 0)
    assert near.get_extra_info("sockname") == far.get_extra_info("peername") == (pipe.here.address, 0, 0, 0)
    assert (near.get_extra_info("peer"), far.get_extra_info("peer")) == (pipe.there.id, pipe.here.id)
    assert near.transport.get_extra_info("service") == "keep"
    assert (near.get_extra_info("socket"), near.get_extra_info("cipher", "none")) == (None, "none")


async def test_drain_blocks_above_the_high_watermark_until_the_low_one(pipe: Pipe) -> None:
    writer, transport = pipe.near.writer, pipe.near.writer.transport
    assert transport.get_write_buffer_limits() == (STREAM_LOW_WATER, STREAM_HIGH_WATER)
    writer.write(BULK)
    draining = asyncio.create_task(writer.drain())
    await asyncio.sleep(0.05)
    assert not draining.done()
    got = 0
    while not draining.done() and got < len(BULK):
        got += len(await pipe.far.reader.read(65_536))
    assert got > 0, "it was waiting for the reader"
    await draining
    assert transport.get_write_buffer_size() <= STREAM_LOW_WATER


async def test_the_watermarks_can_be_set(pipe: Pipe) -> None:
    writer, transport = pipe.near.writer, pipe.near.writer.transport
    transport.set_write_buffer_limits(high=0)
    assert transport.get_write_buffer_limits() == (0, 0)
    writer.write(b"x" * 1000)
    await writer.drain()
    assert transport.get_write_buffer_size() == 0
    transport.set_write_buffer_limits(low=100)
    assert transport.get_write_buffer_limits() == (100, 400)
    with pytest.raises(ValueError, match="low"):
        transport.set_write_buffer_limits(high=1, low=2)


async def test_with_nothing_to_wait_for_drain_returns_immediately(pipe: Pipe) -> None:
    draining = pipe.near.writer.drain()
    with pytest.raises(StopIteration):
        draining.send(None)


async def test_start_tls_says_what_it_is_not(pipe: Pipe) -> None:
    with pytest.raises(Unsupported, match="encrypted"):
        await pipe.near.writer.start_tls(ssl.create_default_context())
    pipe.near.writer.write(b"goes on")
    assert await pipe.far.reader.readexactly(7) == b"goes on"


async def test_is_closing_once_it_is_closed_or_about_to_be(pipe: Pipe) -> None:
    assert not pipe.near.writer.is_closing()
    pipe.near.writer.close()
    assert pipe.near.writer.is_closing()
    pipe.far.writer.reset()
    assert pipe.far.writer.is_closing()


# ---- what asyncio does and does not say


@pytest.mark.parametrize("call", ["read", "readline", "readuntil", "readexactly"])
async def test_two_readers_at_once_are_a_runtime_error(pipe: Pipe, call: str) -> None:
    arguments = (5,) if call == "readexactly" else ()
    first = asyncio.create_task(pipe.far.reader.read(5))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another coroutine") as error:
        await getattr(pipe.far.reader, call)(*arguments)
    assert isinstance(error.value, StreamMisused)
    pipe.near.writer.write(b"first")
    assert await first == b"first"


@pytest.mark.parametrize("call", ["read", "readline", "readuntil", "readexactly"])
async def test_a_read_that_is_cancelled_loses_nothing_and_blocks_none(pipe: Pipe, call: str) -> None:
    reader = pipe.far.reader
    pipe.near.writer.write(b"beg")
    await pipe.arrived(3)
    arguments = {"read": (-1,), "readexactly": (10,)}.get(call, ())
    if call == "read":
        assert await reader.readexactly(3) == b"beg"
    for _ in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await getattr(reader, call)(*arguments)
    pipe.near.writer.write(b"inning\n")
    assert await reader.readline() == (b"inning\n" if call == "read" else b"beginning\n")
    assert not reader._signal._writers


async def test_readers_end_when_the_writer_is_closed_and_keep_what_has_come(pipe: Pipe) -> None:
    waiting = asyncio.create_task(pipe.near.reader.read(10))
    await asyncio.sleep(0)
    pipe.near.writer.close()
    assert await waiting == b""
    pipe.near.writer.write_eof()
    await pipe.near.writer.wait_closed()
    assert pipe.near.reader.at_eof()


async def test_what_had_arrived_is_read_after_close(pipe: Pipe) -> None:
    pipe.near.writer.write(b"before")
    await pipe.arrived(6)
    pipe.far.writer.close()
    assert [await pipe.far.reader.read(3), await pipe.far.reader.read(), await pipe.far.reader.read()] == [
        b"bef",
        b"ore",
        b"",
    ]


async def test_a_line_over_the_limit_is_a_value_error_and_the_next_one_is_read(pipe: Pipe) -> None:
    pipe.near.writer.write(b"x" * 70_000 + b"\nnext\n")
    await pipe.arrived(70_006)
    with pytest.raises(ValueError, match="limit"):
        await pipe.far.reader.readline()
    assert await pipe.far.reader.readline() == b"next\n"


async def test_a_write_after_write_eof_is_a_runtime_error(pipe: Pipe) -> None:
    pipe.near.writer.write_eof()
    for end in (pipe.near.writer, pipe.near.writer.transport):
        with pytest.raises(RuntimeError, match="write_eof"):
            end.write(b"late")


@pytest.mark.parametrize("data", ["text", 5, [1, 2], None])
async def test_only_bytes_are_written(pipe: Pipe, data: Any) -> None:
    for end in (pipe.near.writer, pipe.near.writer.transport):
        with pytest.raises(TypeError, match="bytes"):
            end.write(data)
    with pytest.raises(TypeError):
        pipe.near.writer.writelines(data)


async def _reset(pipe: Pipe) -> None:
    pipe.far.writer.reset()


async def _abort(pipe: Pipe) -> None:
    pipe.far.writer.transport.abort()


async def _close_node(pipe: Pipe) -> None:
    await pipe.there.close()


@pytest.mark.parametrize("end", [_reset, _abort, _close_node])
async def test_an_abnormal_end_raises_in_all_that_wait_and_in_all_that_come(
    pipe: Pipe, end: Callable[[Pipe], Awaitable[None]]
) -> None:
    reader, writer = pipe.near
    pipe.far.writer.write(b"part")
    writer.write(BULK)
    assert await reader.read(4) == b"part"
    waiting = [asyncio.create_task(work) for work in (reader.readexactly(9), writer.drain(), writer.wait_closed())]
    await asyncio.sleep(0)
    await end(pipe)
    assert [type(error).__mro__[:2] for error in await asyncio.gather(*waiting, return_exceptions=True)] == [
        ConnectionLost.__mro__[:2]
    ] * 3
    assert isinstance(reader.exception(), ConnectionLost)
    for call in (reader.read, reader.readline, reader.readuntil, writer.drain, writer.wait_closed):
        with pytest.raises(ConnectionResetError):
            await call()


async def test_an_end_of_ones_own_making_is_no_error_of_wait_closed(pipe: Pipe) -> None:
    pipe.near.writer.write(BULK)
    pipe.near.writer.reset()
    await pipe.near.writer.wait_closed()
    assert not pipe.near.reader.at_eof()


def _drop_near(pipe: Pipe) -> None:
    pipe.near = pipe.far
    gc.collect()


async def test_a_writer_that_is_dropped_resets_its_stream_and_warns(pipe: Pipe) -> None:
    pipe.near.writer.write(b"half of it")
    with pytest.warns(ResourceWarning, match="unclosed <MeshWriter to 'keep'"):
        _drop_near(pipe)
    with pytest.raises(ConnectionLost):
        await pipe.far.reader.read()


@pytest.mark.filterwarnings("error")
async def test_a_writer_whose_stream_is_over_is_dropped_in_silence(pipe: Pipe) -> None:
    pipe.near.writer.write_eof()
    pipe.far.writer.write_eof()
    assert await pipe.near.reader.read() == await pipe.far.reader.read() == b""
    _drop_near(pipe)


# ---- what a mesh stream adds


async def test_a_block_closes_the_stream_at_its_end(pipe: Pipe) -> None:
    async with pipe.near as (_, writer):
        writer.write(b"all of it")
    assert await pipe.far.reader.read() == b"all of it"
    async with pipe.far as (reader, _):
        assert reader.at_eof()
    assert pipe.far.writer.is_closing()


async def test_a_block_that_raises_resets_the_stream(pipe: Pipe) -> None:
    async def fail() -> None:
        async with pipe.near.writer as writer:
            writer.write(b"half of it")
            raise KeyError("of the block")

    with pytest.raises(KeyError):
        await fail()
    with pytest.raises(ConnectionLost):
        await pipe.far.reader.read()


async def test_handlers_for_asyncios_streams_serve(pipe: Pipe) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: NodeId) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()

    async with pipe.there.serve("upper", upper, allow=pipe.here.id):
        reader, writer = await pipe.here.open(pipe.there.id, "upper")
        async with writer:
            writer.write(b"hello\n")
            assert await reader.read() == b"HELLO\n"
    with pytest.raises(meshnode.ServiceNotFound):
        await pipe.here.open(pipe.there.id, "upper")


async def test_accepting_twice_or_at_the_wrong_end_adds_nothing_to_the_data(make_node: MakeNode) -> None:
    async def handler(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        writer.accept()
        writer.accept()
        await echo(reader, writer, peer)

    there = await make_node()
    here = await make_node(seed=there)
    there.serve("x", handler, allow=["any"], accept=False)
    reader, writer = await here.open(there.id, "x")
    writer.accept()
    writer.write(b"data")
    writer.write_eof()
    assert await reader.read() == b"data"
