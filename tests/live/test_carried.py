"""A stream over the control socket, either end: frames however they are cut, bounds, and how it ended."""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import termios
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from meshnode.daemon.attached.carried import HELD, ControlSocket
from meshnode.daemon.carry import Carried, carry
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE, frame
from meshnode.errors import ConnectionLost
from meshnode.identity.keys import Identity
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import Stream
from meshnode.sdk.streams import MeshStream, wrap
from tests.given_time import wait_for, within
from tests.stream_table import Table

DEADLINE_S = 10.0
ENDS = (Identity(bytes(32)).id, Identity(bytes(range(32))).id)
TOLD = {"peer": str(ENDS[1]), "service": "echo"}


async def until(true: Callable[[], object]) -> None:
    async with within(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - nothing announces what a socket has
            await asyncio.sleep(0.001)


class Program:
    """The program's end of a stream, and the node's socket."""

    def __init__(self) -> None:
        inner, self.node = socket.socketpair()
        inner.setblocking(False)
        self.node.setblocking(False)
        self.control = ControlSocket(inner)
        self.stream = wrap(self.control.begin(TOLD), ENDS)


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    found = Program()
    yield found
    found.stream.writer.reset()
    found.node.close()


async def test_frames_are_whole_however_they_are_cut(program: Program) -> None:
    reader, writer = program.stream
    for piece in bytes(frame(b"one") + frame(b"two") + END):
        program.node.send(bytes([piece]))
        await asyncio.sleep(0)
    assert await wait_for(reader.read(), DEADLINE_S) == b"onetwo"
    writer.write(b"back")
    writer.write_eof()
    await until(lambda: len(program.node.recv(100, socket.MSG_PEEK)) >= 12)
    assert program.node.recv(100) == frame(b"back") + END
    program.node.send(WHOLE)
    await wait_for(writer.wait_closed(), DEADLINE_S)


async def test_a_close_is_over_when_the_node_says_so_and_raises_what_it_says(program: Program) -> None:
    writer = program.stream.writer
    writer.close()
    closing = asyncio.ensure_future(writer.wait_closed())
    await until(lambda: program.node.recv(100, socket.MSG_PEEK) == END + WHOLE)
    await asyncio.sleep(0.01)
    assert not closing.done()
    error = BROKEN + json.dumps(ConnectionLost("the peer has gone").to_json()).encode() + b"\n"
    program.node.send(error[:9])
    program.node.send(error[9:])
    with pytest.raises(ConnectionLost, match="the peer has gone"):
        await wait_for(closing, DEADLINE_S)


async def test_what_is_written_behind_the_end_of_the_whole_is_an_error(program: Program) -> None:
    reader, writer = program.stream
    program.node.send(frame(b"answer") + END + WHOLE)
    assert await wait_for(reader.read(), DEADLINE_S) == b"answer"
    with pytest.raises(ConnectionLost, match="the peer closed the stream"):
        writer.write(b"late")
    writer.close()
    await wait_for(writer.wait_closed(), DEADLINE_S)


async def test_a_node_that_stops_has_not_ended_the_stream(program: Program) -> None:
    program.node.send(frame(b"a part"))
    assert await wait_for(program.stream.reader.read(100), DEADLINE_S) == b"a part"
    program.node.close()
    with pytest.raises(ConnectionLost, match="not the whole"):
        await wait_for(program.stream.reader.read(100), DEADLINE_S)


async def test_a_program_that_does_not_read_holds_the_node_back(program: Program) -> None:
    def fill() -> bool:
        try:
            program.node.send(frame(bytes(1_000)))
        except BlockingIOError:
            return True
        return False

    sent = 0
    stream = program.control.stream
    async with within(DEADLINE_S):
        while not fill() or stream.unread.size <= HELD:
            sent += 1
            await asyncio.sleep(0)
    assert HELD < stream.unread.size <= HELD + MAX_FRAME
    held = stream.unread.size
    assert len(await program.stream.reader.read(held)) > 0
    while stream.unread.size > HELD // 2:
        await program.stream.reader.read(held)
    await until(lambda: not fill())


async def test_what_the_node_does_not_take_counts_as_queued_and_a_writer_waits_for_it(program: Program) -> None:
    writer, size = program.stream.writer, 4 << 20
    writer.write(bytes(size))
    queued = program.control.stream.queued
    assert size // 2 < queued < size
    draining = asyncio.ensure_future(writer.drain())
    got = b""
    async with within(DEADLINE_S):
        while len(got) < size + size // MAX_FRAME * LENGTH.size:
            try:
                got += program.node.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
    await wait_for(draining, DEADLINE_S)
    assert program.control.stream.queued == 0
    assert got[: LENGTH.size] == LENGTH.pack(MAX_FRAME)


# ---- the node's end


class Node:
    """The node's end of a stream, and the client's socket."""

    def __init__(self) -> None:
        inner, self.client = socket.socketpair()
        inner.setblocking(False)
        self.client.setblocking(False)
        self.table = Table()
        self.stream = Stream(cast("Any", self.table), 0, opener=True)
        self.stream.feed(bytes([StreamStatus.ACCEPTED]), False)
        self.mesh: MeshStream = wrap(self.stream, ENDS)
        self.carrying = asyncio.ensure_future(carry(inner, b"", Carried(*self.mesh)))
        self.inner = inner

    async def received(self, count: int) -> bytes:
        found = b""
        async with within(DEADLINE_S):
            while len(found) < count:
                try:
                    found += self.client.recv(1 << 20)
                except BlockingIOError:
                    await asyncio.sleep(0)
        return found


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    found = Node()
    yield found
    found.client.close()
    await wait_for(found.carrying, DEADLINE_S)
    found.inner.close()


async def test_a_frame_that_was_begun_is_finished_before_the_error_behind_it(node: Node) -> None:
    size = 0
    while not (node.stream.buffered and size > 4 << 20):  # the socket is full
        node.stream.feed(bytes(MAX_FRAME), False)
        size += MAX_FRAME
        await asyncio.sleep(0)
    node.stream.discard()
    node.stream.fail(ConnectionLost("the peer reset the stream"))
    found = b""
    while BROKEN not in found:
        found += await node.received(1)
    whole, _, error = found.partition(BROKEN)
    while not error.endswith(b"\n"):
        error += await node.received(1)
    assert len(whole) % (MAX_FRAME + LENGTH.size) == 0
    assert json.loads(error)["error"]["message"] == "the peer reset the stream"


async def test_a_client_that_goes_behind_its_end_resets_the_stream(node: Node) -> None:
    node.client.send(frame(b"request") + END)
    await until(lambda: node.table.is_ended)
    assert node.table.sent == b"request"
    assert not node.table.is_reset
    node.client.close()
    await until(lambda: node.table.is_reset)


@pytest.mark.parametrize("bad", [LENGTH.pack(MAX_FRAME + 1), END + frame(b"late"), frame(b"half")[:-1]])
async def test_frames_that_are_none_reset_the_stream(node: Node, bad: bytes) -> None:
    node.client.send(bad)
    node.client.shutdown(socket.SHUT_WR)
    await until(lambda: node.table.is_reset)


async def test_what_the_peer_sends_after_it_reads_no_more_arrives_and_the_client_is_told_behind_it(node: Node) -> None:
    node.client.send(frame(b"taken"))
    await until(lambda: node.table.sent == b"taken")
    node.stream.write_end = "the peer closed the stream"
    node.client.send(frame(b"refused"))
    await until(lambda: not fcntl.ioctl(node.inner, termios.FIONREAD, bytes(4)).strip(b"\0"))
    node.stream.feed(b"answer", True)
    found = b""
    while not found.endswith(b"\n"):
        found += await node.received(1)
    answer, _, error = found.partition(BROKEN)
    assert answer == frame(b"answer") + END
    assert json.loads(error)["error"]["message"] == "the peer closed the stream"
    assert node.table.sent == b"taken"


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_connection_that_is_lost_behind_a_whole_answer_is_no_whole_end(node: Node, at_once: bool) -> None:
    node.client.send(frame(b"request"))
    await until(lambda: node.table.sent == b"request")
    node.stream.feed(b"answer", True)
    answer = frame(b"answer") + END
    found = b"" if at_once else await node.received(len(answer))
    node.stream.fail(ConnectionLost("nothing was heard of it"))
    while not found.endswith(b"\n"):
        found += await node.received(1)
    assert found.startswith(answer + BROKEN)


async def test_a_client_that_reads_no_more_ends_both_directions(node: Node) -> None:
    node.client.send(frame(b"all") + WHOLE)
    assert await node.received(2 * LENGTH.size) == END + WHOLE
    assert (node.table.sent, node.table.is_ended, node.table.is_reset) == (b"all", True, False)


async def test_a_large_frame_is_read_in_one_turn_of_the_loop() -> None:
    ours, its = socket.socketpair()
    ours.setblocking(False)
    control = ControlSocket(ours)
    stream = control.begin({"service": "s"})
    its.sendall(frame(bytes(100_000)))
    control._read()
    assert stream.buffered == 100_000
    control.close()
    its.close()
