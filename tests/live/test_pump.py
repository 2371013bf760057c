"""A socket and a stream, joined: system calls, what is held where, tolls, ends and errors."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from meshnode.errors import ConnectionLost
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import Stream
from meshnode.sdk.pump import Guard, Pump, Toll
from meshnode.sdk.streams import wrap
from meshnode.services.local import connection, detached
from meshnode.services.splice import splice
from tests.given_time import wait_for, within
from tests.stream_table import Table

DEADLINE_S = 10.0


class Counting(socket.socket):
    """Counts its writes."""

    calls = 0

    def sendmsg(self, *args: Any) -> int:
        self.calls += 1
        return super().sendmsg(*args)


class Joined:
    """A program, a stream, and a pump between them."""

    def __init__(self) -> None:
        inner, self.program = socket.socketpair()
        self.program.settimeout(DEADLINE_S)
        self.socket = Counting(fileno=inner.detach())
        self.socket.setblocking(False)
        self.table = Table()
        self.stream = Stream(cast("Any", self.table), 0, opener=True)
        self.stream.feed(bytes([StreamStatus.ACCEPTED]), False)
        self.table.granted = 0
        self.pump: Pump

    def begin(self, tolls: tuple[Toll, Toll] | None = None, guard: Guard | None = None, sent: bytes = b"") -> None:
        self.pump = Pump(self.socket, self.stream, *([tolls] if tolls else []), guard=guard)
        self.pump.begin(sent)

    def received(self) -> bytes:
        self.program.setblocking(False)
        found = b""
        try:
            while data := self.program.recv(1 << 20):
                found += data
        except BlockingIOError:
            pass
        return found


async def until(true: Callable[[], object]) -> None:
    async with within(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - nothing announces what a socket has
            await asyncio.sleep(0.001)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def joined() -> AsyncIterator[Joined]:
    found = Joined()
    yield found
    found.pump.close()
    found.socket.close()
    found.program.close()


async def test_many_pieces_are_one_system_call_and_give_credit_when_the_socket_has_them(joined: Joined) -> None:
    joined.begin()
    for number in range(20):
        joined.stream.feed(bytes([number]) * 1_000, False)
    assert joined.table.granted == 0
    await turns()
    assert joined.socket.calls == 1
    assert joined.table.granted == 20_000
    assert joined.received() == b"".join(bytes([number]) * 1_000 for number in range(20))


async def test_a_piece_that_the_socket_takes_whole_costs_one_turn(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned: list[None] = []
    joined.begin()
    await turns()
    turn = joined.pump._turn
    monkeypatch.setattr(joined.pump, "_turn", lambda: (turned.append(None), turn()))
    for number in range(3):
        joined.stream.feed(bytes([number]), False)
        await turns()
    assert (len(turned), joined.received()) == (3, b"\0\1\2")
    joined.stream.feed(b"last", True)
    await turns()
    assert joined.pump.told.done()
    assert joined.received() == b"last"


async def test_what_a_full_socket_does_not_take_waits_in_the_stream(joined: Joined) -> None:
    joined.begin()
    sent = bytes(range(256)) * 8_192
    for at in range(0, len(sent), 1 << 16):
        joined.stream.feed(sent[at : at + (1 << 16)], False)
    await turns()
    held = joined.stream.buffered
    assert 0 < held < len(sent)
    assert joined.table.granted + held == len(sent)
    calls = joined.socket.calls
    await turns()
    assert joined.socket.calls == calls  # it waits for room
    got = b""
    async with within(DEADLINE_S):
        while len(got) < len(sent):
            got += joined.received()
            await asyncio.sleep(0)
    assert got == sent
    await turns()
    assert (joined.stream.buffered, joined.table.granted) == (0, len(sent))


async def test_a_program_is_not_read_between_a_full_queue_and_a_low_one(joined: Joined) -> None:
    joined.begin()
    low, high = joined.stream.marks
    joined.program.sendall(b"first")
    joined.table.queue = high + 1
    await until(lambda: joined.table.pauses)
    joined.program.sendall(b"second")
    for queue in (high, low + 1):
        joined.table.queue = queue
        joined.stream.on_change()
        await asyncio.sleep(0.01)
        assert joined.table.sent == b"first"
    joined.table.queue = low
    joined.stream.on_change()
    await until(lambda: joined.table.sent == b"firstsecond")


async def test_bytes_wait_for_their_toll_in_both_directions_and_pay_it_once(joined: Joined) -> None:
    paid: dict[str, list[int]] = {"in": [], "out": []}
    closed = {"in", "out"}

    def toll(way: str) -> Callable[[int], float]:
        def ask(size: int) -> float:
            if way in closed:
                return 0.001
            paid[way].append(size)
            return 0.0

        return ask

    joined.begin((toll("in"), toll("out")))
    large = bytes(1 << 20)
    joined.stream.feed(large, False)
    joined.program.sendall(b"up")
    await asyncio.sleep(0.02)
    assert (joined.received(), bytes(joined.table.sent)) == (b"", b"")
    closed.clear()
    got = 0
    async with within(DEADLINE_S):
        while got < len(large):
            got += len(joined.received())
            await asyncio.sleep(0)
    await until(lambda: joined.table.sent == b"up")
    assert (sum(paid["in"]), paid["out"]) == (len(large), [2])


async def test_each_end_is_passed_on_behind_all_bytes_and_the_other_direction_goes_on(joined: Joined) -> None:
    joined.begin(sent=b"ahead ")
    joined.program.sendall(b"request")
    joined.program.shutdown(socket.SHUT_WR)
    await wait_for(joined.pump.heard, DEADLINE_S)
    assert (joined.table.sent, joined.table.is_ended) == (b"ahead request", True)
    assert not joined.pump.told.done()
    joined.stream.feed(b"response", True)
    await wait_for(joined.pump.told, DEADLINE_S)
    assert joined.program.recv(100) == b"response"
    assert joined.program.recv(100) == b""


async def test_a_stream_that_is_lost_ends_both_directions(joined: Joined) -> None:
    joined.begin()
    joined.stream.fail(ConnectionLost("the peer reset the stream"))
    with pytest.raises(ConnectionLost):
        await wait_for(joined.pump.told, DEADLINE_S)
    await wait_for(joined.pump.heard, DEADLINE_S)
    assert isinstance(joined.pump.refused, ConnectionLost)


async def test_an_answer_that_is_whole_is_passed_on_though_the_stream_is_lost(joined: Joined) -> None:
    joined.begin()
    await asyncio.to_thread(joined.program.sendall, b"request")
    await until(lambda: joined.table.sent == b"request")
    answer = bytes(range(256)) * 8_192  # more than the pair of sockets holds
    joined.stream.feed(answer, True)
    await turns()
    joined.stream.fail(ConnectionLost("nothing was heard of it"))
    await asyncio.to_thread(joined.program.sendall, b"more")
    await turns()
    got = b""
    async with within(DEADLINE_S):
        while len(got) < len(answer):
            got += joined.received()
            await asyncio.sleep(0)
    assert got == answer
    await wait_for(joined.pump.told, DEADLINE_S)
    joined.program.setblocking(True)
    assert joined.program.recv(100) == b"", "and its end is"
    await wait_for(joined.pump.heard, DEADLINE_S)
    assert isinstance(joined.pump.refused, ConnectionLost)


async def test_a_program_that_is_gone_has_the_peer_stop(joined: Joined) -> None:
    joined.begin()
    joined.program.close()
    await wait_for(joined.pump.heard, DEADLINE_S)
    assert not joined.stream.stopped
    joined.stream.feed(b"late", False)
    await wait_for(joined.pump.told, DEADLINE_S)
    assert joined.stream.stopped


class Refusing:
    """Lets nothing pass that has a 2."""

    is_decided = False

    def feed(self, data: bytes) -> bytes:
        if b"2" in data:
            raise ConnectionResetError("no")
        return b""


async def test_a_guard_keeps_bytes_back_until_it_is_decided(joined: Joined) -> None:
    joined.begin(guard=Refusing(), sent=b"1")
    joined.program.sendall(b"1")
    await turns()
    joined.program.sendall(b"2")
    with pytest.raises(ConnectionResetError):
        await wait_for(joined.pump.told, DEADLINE_S)
    assert not joined.table.sent


async def test_a_connection_gives_its_socket_away_with_what_it_has_read() -> None:
    inner, program = socket.socketpair()
    inner.setblocking(False)
    program.settimeout(DEADLINE_S)
    with program:
        local = await connection(inner)
        program.sendall(b"read already")
        await until(lambda: local[0]._unread)
        local[1].write(b"written")
        sock, unread = await detached(local)
        with sock:
            await turns()
            assert (unread, program.recv(100)) == (b"read already", b"written")
            sock.send(b"open")
            assert program.recv(100) == b"open"


ANSWER = bytes(range(256)) * 2_048  # more than one turn reads


async def test_what_a_program_has_said_before_it_closed_on_unread_bytes_reaches_the_peer_and_then_its_reset(
    joined: Joined,
) -> None:
    joined.socket.send(b"unread")
    joined.program.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    joined.program.sendall(ANSWER)
    joined.program.close()
    joined.stream.feed(b"an upload that goes on", False)
    joined.begin()
    with pytest.raises(ConnectionResetError):
        await wait_for(joined.pump.heard, DEADLINE_S)
    assert joined.table.sent == ANSWER
    assert not joined.table.is_ended, "a reset is no end"
    assert joined.stream.stopped, "the peer is asked to stop"


async def test_a_program_that_ended_before_it_refused_more_has_ended_in_order(joined: Joined) -> None:
    joined.program.sendall(b"answer")
    joined.program.close()
    joined.stream.feed(b"an upload that goes on", False)
    joined.begin()
    await wait_for(joined.pump.told, DEADLINE_S)
    await wait_for(joined.pump.heard, DEADLINE_S)
    assert (joined.table.sent, joined.table.is_ended, joined.stream.stopped) == (b"answer", True, True)


async def test_a_tcp_program_whose_reset_a_write_has_met_has_not_ended_in_order(joined: Joined) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        joined.socket.close()
        joined.socket = Counting(socket.AF_INET, socket.SOCK_STREAM)
        joined.socket.connect(listener.getsockname())
        joined.socket.setblocking(False)
        program = listener.accept()[0]
    joined.socket.send(b"unread")
    await until(lambda: program.recv(10, socket.MSG_PEEK))
    program.sendall(b"answer")
    program.close()
    joined.stream.feed(b"an upload that goes on", False)
    joined.begin()
    await wait_for(joined.pump.told, DEADLINE_S)  # the write has taken the error, and reads tell an EOF
    with pytest.raises(ConnectionResetError):
        await wait_for(joined.pump.heard, DEADLINE_S)
    assert (joined.table.sent, joined.table.is_ended) == (b"answer", False)


async def test_what_has_come_of_a_stream_that_is_lost_reaches_the_program_before_its_end(joined: Joined) -> None:
    joined.begin()
    for at in range(0, len(ANSWER), 1 << 16):
        joined.stream.feed(ANSWER[at : at + (1 << 16)], False)
    joined.stream.fail(ConnectionLost("the peer reset the stream"))
    await wait_for(joined.pump.heard, DEADLINE_S)
    got = b""
    async with within(DEADLINE_S):
        while not joined.pump.told.done():
            got += joined.received()
            await asyncio.sleep(0)
    assert got + joined.received() == ANSWER
    with pytest.raises(ConnectionLost):
        joined.pump.told.result()


async def test_a_reader_has_what_a_program_said_before_it_closed_on_unread_bytes() -> None:
    inner, program = socket.socketpair()
    inner.setblocking(False)
    reader, writer = await connection(inner)
    writer.write(b"unread")
    program.sendall(b"answer")
    program.close()
    writer.write(b"more")  # which has asyncio drop the connection before it has read
    assert await wait_for(reader.read(), DEADLINE_S) == b"answer"
    with pytest.raises(OSError):
        await wait_for(reader.read(), DEADLINE_S)


async def test_what_a_program_drops_unread_of_a_lost_stream_holds_no_other_back() -> None:
    table: Any = Table()
    stream = Stream(table, 0, opener=True)
    stream.feed(bytes([StreamStatus.ACCEPTED]), False)
    table.granted = 0
    opened = wrap(stream, cast("Any", (None, None)))
    stream.feed(b"answer", False)
    stream.fail(ConnectionLost("the peer reset the stream"))
    assert await opened.reader.read(3) == b"ans"
    del opened
    gc.collect()
    await turns()
    assert table.granted == 6


async def test_a_program_that_takes_nothing_of_a_stream_that_is_lost_is_given_up(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.services.splice.GONE_S", 0.05)
    size = 20 * len(ANSWER)  # more than the pair of sockets holds
    carrying = asyncio.ensure_future(splice(joined.socket, wrap(joined.stream, cast("Any", (None, None)))))
    for _ in range(20):
        joined.stream.feed(ANSWER, False)
        await asyncio.sleep(0)
    assert joined.stream.buffered
    joined.stream.fail(ConnectionLost("the peer reset the stream"))
    await wait_for(carrying, DEADLINE_S)
    assert joined.table.granted == size, "what it has not taken holds no other stream back"
    joined.pump = Pump(joined.socket, joined.stream)
