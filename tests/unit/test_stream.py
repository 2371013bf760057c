"""Streams and connections over a real engine, without a network: credit, ends, resets, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from meshnode.base.limits import STREAM_LOW_WATER
from meshnode.base.wire import WireError
from meshnode.errors import (
    ConnectionLost,
    MeshError,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
    StreamLimitError,
)
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import CloseCode, Hello, LocalEnd
from meshnode.quic.preface import StreamStatus, encode_header
from meshnode.quic.stream import Stream
from tests.engines import every_engine

DIALLER, LISTENER = Identity(bytes(32)), Identity(bytes(range(32)))


class Ends:
    """What one end's driver would do: admit all peers, keep the streams."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.closed: MeshError | None = None
        self.dropped: Counter[str] = Counter()
        self.handler: Callable[[Stream], None] = Stream.accept

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """Nothing is routed here."""

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """Admit every peer."""
        connection.admit()

    def on_ready(self, connection: Connection) -> None:
        """Nothing to do."""

    def on_record(self, connection: Connection, encoded: bytes) -> None:
        """Nothing to do."""

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """Keep it."""
        self.streams.append(stream)
        self.handler(stream)

    def count(self, counter: str, /) -> None:
        """Count it."""
        self.dropped[counter] += 1

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """Remember why."""
        self.closed = error

    def on_dirty(self, connection: Connection) -> None:
        """The pair is pumped by hand."""


class Pair:
    """Two connected ends and a network without delay between them."""

    def __init__(self, dialler: str = "auto", listener: str = "auto") -> None:
        self.now = 0.0
        self.lose_every = self.carried = 0
        self.here, self.there = Ends(), Ends()
        dial = pick_engine(dialler).dial(DIALLER, LISTENER.id, lambda odcid: bytes(96), 60.0, 0.0)
        accept = pick_engine(listener).accept(LISTENER, dial.odcid, 60.0, 0.0)
        self.dialler = Connection(
            dial, LocalEnd(DIALLER, b"dialler!", b""), LISTENER.id, self.here, dialler=True, now=0.0
        )
        self.listener = Connection(
            accept, LocalEnd(LISTENER, b"listener", b""), DIALLER.id, self.there, dialler=False, now=0.0
        )
        self.run()
        assert self.dialler.state is self.listener.state is State.READY

    def run(self, seconds: float = 1.0) -> None:
        """Carry everything, let every timer fire."""
        end = self.now + seconds
        while self.now < end:
            for one, other in ((self.dialler, self.listener), (self.listener, self.dialler)):
                one.on_timer(self.now)
                for datagram in one.transmit(self.now):
                    self.carried += 1
                    if not self.lose_every or self.carried % self.lose_every:
                        other.receive([datagram], self.now)
            self.now += 0.005

    def open(self, service: str = "s") -> tuple[Stream, Stream]:
        """A stream, seen from both ends."""
        stream = self.dialler.open(service)
        self.run(0.1)
        return stream, self.there.streams[-1]


def test_bytes_arrive_in_order_and_both_ends_end() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    mine.write(b"question", fin=True)
    pair.run(0.1)
    assert (theirs.read(), theirs.at_eof) == (b"question", True)
    theirs.write(b"answer", fin=True)
    pair.run(0.1)
    assert (mine.read(3), mine.read(), mine.at_eof) == (b"ans", b"wer", True)
    assert not pair.dialler.streams
    assert not pair.listener.streams


def test_streams_that_wait_for_a_grant_open_in_the_order_of_asking_as_soon_as_others_end() -> None:
    pair = Pair()
    pair.there.handler = lambda stream: None
    taken: list[Stream] = []
    with pytest.raises(StreamLimitError):
        while True:
            taken.append(pair.dialler.open("first"))
    opened: list[str] = []
    for name in ("a", "b", "c"):
        pair.dialler.open_when_granted(name, lambda answer: opened.append(answer.service))  # type: ignore[union-attr]
    pair.run(0.2)
    assert opened == []
    for stream in taken[: len(taken) // 2]:
        stream.reset()
    pair.run(0.2)
    for theirs in pair.there.streams:
        theirs.reset()
    pair.run(1.0)
    assert opened == ["a", "b", "c"], "each once"


def test_a_refused_stream_says_why() -> None:
    pair = Pair()
    for status, kind in ((StreamStatus.NO_SUCH_SERVICE, ServiceNotFound), (StreamStatus.DENIED, PolicyDenied)):
        pair.there.handler = lambda stream, status=status: stream.refuse(status)  # type: ignore[misc]
        mine, _ = pair.open()
        assert isinstance(mine.error, kind)


@pytest.mark.parametrize("how", ["reset", "refuse", "stop"])
def test_giving_up_one_stream_that_is_still_sent_to_leaves_the_others_alone(how: str) -> None:
    pair = Pair()
    other, their_other = pair.open("other")
    mine, theirs = pair.open("bulk")
    mine.write(bytes(300_000))
    flying = pair.dialler.transmit(pair.now)
    if how == "reset":
        theirs.reset()
    elif how == "refuse":
        theirs.refuse(StreamStatus.DENIED)
    else:
        theirs.stop_reading()
        theirs.write(b"", fin=True)
    for datagram in flying:
        pair.listener.receive([datagram], pair.now)
    pair.run(1.0)
    assert (pair.here.closed, pair.there.closed) == (None, None), "one stream's end is not the connection's"
    other.write(b"still here")
    pair.run(0.1)
    assert their_other.read() == b"still here"


@pytest.mark.parametrize("ending", ["writer", "reader", "reader stops", "writer, unread"])
def test_streams_given_up_in_mid_transfer_return_their_credit(ending: str) -> None:
    pair = Pair()
    for _ in range(10):  # x 1 MB: more than twice what the connection's window holds
        mine, theirs = pair.open("bulk")
        mine.write(bytes(1 << 20))
        pair.lose_every = 5
        pair.run(0.05)
        pair.lose_every = 0
        if ending == "reader":
            theirs.reset()
        elif ending == "reader stops":
            theirs.stop_reading()
            theirs.write(b"", fin=True)
        else:
            theirs.read(-1 if ending == "writer" else 1)
            mine.reset()
        pair.run(0.4)
        theirs.reset()
    mine, theirs = pair.open("after")
    mine.write(bytes(1 << 20), fin=True)
    got = 0
    for _ in range(100):
        pair.run(0.02)
        got += len(theirs.read())
    assert got == 1 << 20
    assert pair.listener.engine.unread() == 0, "not one byte of the connection's window is lost"
    assert len(pair.listener.streams._gone or ()) <= 1


def test_a_reader_that_does_not_read_holds_the_sender_at_one_window() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    mine.write(bytes(8 << 20))
    pair.run(2.0)
    assert theirs.buffered <= 1 << 21
    assert not mine.drained()
    got = 0
    for _ in range(400):
        got += len(theirs.read())
        pair.run(0.02)
        if got == 8 << 20:
            break
    assert got == 8 << 20
    assert mine.drained()


def test_a_reset_is_a_connection_lost_at_the_other_end() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    mine.reset()
    pair.run(0.2)
    assert isinstance(theirs.error, ConnectionLost)
    with pytest.raises(ConnectionLost):
        theirs.write(b"x")


@every_engine
def test_what_had_come_before_a_reset_is_read_and_gives_its_credit_back(engine: str) -> None:
    pair = Pair(engine, engine)
    mine, theirs = pair.open()
    mine.write(bytes(100_000))
    pair.run(1.0)
    mine.reset()
    pair.run(0.2)
    assert isinstance(theirs.error, ConnectionLost)
    assert pair.listener.engine.unread() >= 100_000, "it still counts"
    assert theirs.read() == bytes(100_000)
    assert pair.listener.engine.unread() == 0


def test_nothing_is_written_after_an_end() -> None:
    pair = Pair()
    mine, _ = pair.open()
    mine.write(b"", fin=True)
    with pytest.raises(ConnectionLost):
        mine.write(b"more")


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
def test_an_impossible_service_name_is_refused_here_before_anything_is_sent(name: str) -> None:
    pair = Pair()
    with pytest.raises(ValueError):
        pair.dialler.open(name)
    assert not pair.dialler.streams


@pytest.mark.parametrize("name", ["a", "x" * 255, "é" * 127])
def test_every_possible_service_name_arrives(name: str) -> None:
    _, theirs = Pair().open(name)
    assert theirs.service == name


@pytest.mark.parametrize("junk", [b"\xff\xff", b"\x00\x00", b"\x00\x01\x80", b"\x00\x03\x82ab", b"\x00\x02\x81\x60"])
def test_a_junk_header_ends_the_connection_with_a_reason(junk: bytes) -> None:
    pair = Pair()
    stream_id = pair.dialler.engine.open_stream()
    pair.dialler.engine.send(stream_id, junk + b"rest")
    pair.run(0.2)
    assert pair.listener.state is State.CLOSED
    assert isinstance(pair.here.closed, ConnectionLost)
    assert "closed the connection" in pair.here.closed.message


@every_engine
def test_a_refusal_arrives_though_the_stream_is_reset_right_after_it(engine: str) -> None:
    pair = Pair(engine, engine)

    def refuse(stream: Stream) -> None:
        stream.refuse(StreamStatus.UNAVAILABLE)
        stream.reset()

    pair.there.handler = refuse
    mine = pair.dialler.open("s")
    pair.run(0.1)
    assert isinstance(mine.error, ServiceUnavailable)
    assert not pair.listener.streams


def test_an_end_of_the_connection_fails_every_stream_once() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    pair.dialler.close(CloseCode.NORMAL, "bye")
    pair.run(0.2)
    assert isinstance(mine.error, ConnectionLost)
    assert isinstance(theirs.error, ConnectionLost)
    assert "bye" in theirs.error.message


def test_a_header_that_comes_byte_by_byte_is_a_header() -> None:
    port = Port()
    stream = Stream(port, 0, opener=False)  # type: ignore[arg-type]
    for byte in encode_header("web") + b"hi":
        stream.feed(bytes([byte]), False)
    assert stream.service == "web"
    assert stream.read() == b"hi"
    assert port.consumed == len(encode_header("web")) + 2


def test_an_unknown_status_is_a_wire_error() -> None:
    with pytest.raises(WireError):
        Stream(Ends(), 0, opener=True).feed(b"\x09", False)  # type: ignore[arg-type]


# ---- what a waiting writer or opener is told


def test_a_writer_that_waits_is_woken_when_most_of_what_it_wrote_has_arrived() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    woken: list[int] = []
    mine.on_change = lambda: woken.append(mine.queued)
    mine.write(bytes(2 << 20))
    assert not mine.drained()
    assert mine.queued == 2 << 20
    while theirs.buffered or not woken:
        theirs.read()
        pair.run(0.02)
    assert woken[0] <= STREAM_LOW_WATER
    assert mine.drained()
    woken.clear()
    mine.write(b"little")
    mine.await_low()
    pair.run(0.1)
    assert woken, "it asked to be told"


def test_a_direction_that_the_peer_gave_up_is_given_up_here_too() -> None:
    pair = Pair()
    mine, theirs = pair.open()
    mine.write(b"unread")
    pair.run(0.1)
    changed: list[bool] = []
    mine.on_change = lambda: changed.append(mine.over)
    pair.listener.engine.reset(theirs.id, 7)
    pair.run(0.2)
    assert isinstance(mine.error, ConnectionLost)
    assert changed[-1]
    assert isinstance(theirs.error, ConnectionLost), "what waits there for more hears of it"


@every_engine
def test_a_stream_that_is_read_no_more_is_written_on(engine: str) -> None:
    pair = Pair(engine, engine)
    mine, theirs = pair.open()
    theirs.stop_reading()
    pair.run(0.2)
    assert mine.write_end == "the peer closed the stream"
    theirs.write(b"answer", fin=True)
    pair.run(0.2)
    assert mine.read() == b"answer"
    assert mine.at_eof
    assert (mine.error, theirs.error) == (None, None)
    assert not len(pair.dialler.streams) + len(pair.listener.streams)


@every_engine
def test_a_peer_that_ends_its_direction_and_then_reads_no_more_has_ended_the_stream(engine: str) -> None:
    pair = Pair(engine, engine)
    mine, theirs = pair.open()
    theirs.write(b"answer", fin=True)
    pair.run(0.2)
    assert mine.read() == b"answer"
    theirs.stop_reading()
    pair.run(0.2)
    assert (mine.over, mine.error) == (True, None), "what waits for its end waits no longer"
    assert not len(pair.dialler.streams) + len(pair.listener.streams)


@every_engine
def test_a_refusal_whose_parts_come_apart_leaves_no_stream_behind(engine: str) -> None:
    pair = Pair(engine, engine)
    pair.there.handler = lambda stream: stream._table.send(stream.id, bytes([StreamStatus.DENIED]), True)
    mine = pair.dialler.open("x")
    pair.run(0.2)
    assert isinstance(mine.error, PolicyDenied)
    theirs = pair.there.streams[-1]
    theirs._table.stop(theirs.id, int(StreamStatus.DENIED))  # its packet was lost, and is sent again
    pair.run(0.2)
    assert not len(pair.dialler.streams)


def test_records_and_frames_go_on_far_beyond_one_window_of_the_control_stream() -> None:
    pair = Pair()
    got: list[bytes] = []
    pair.there.on_record = lambda connection, encoded: got.append(encoded)  # type: ignore[method-assign]
    record = bytes(10_000)
    for _ in range(600):
        pair.dialler.push_record(record)
        pair.run(0.01)
    pair.run(1.0)
    assert len(got) == 600
    assert set(got) == {record}
    assert pair.listener.engine.unread() == 0


class Port:
    """What a stream asks of its connection."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.consumed = 0

    def send(self, stream_id: int, data: bytes, fin: bool) -> None:
        self.asked.append(("send", data, fin))

    def consume(self, stream_id: int, count: int) -> None:
        self.consumed += count

    def queued(self, stream_id: int) -> int:
        return 0

    def reset(self, stream_id: int, code: int) -> None:
        self.asked.append(("reset", code))

    def stop(self, stream_id: int, code: int) -> None:
        self.asked.append(("stop", code))

    def forget(self, stream_id: int) -> None:
        self.asked.append(("done",))

    def await_drain(self, stream: Stream) -> None:
        self.asked.append(("drain",))


def test_a_stream_that_ends_before_it_was_accepted_is_an_error_of_its_opener() -> None:
    port = Port()
    stream = Stream(port, 0, opener=True)  # type: ignore[arg-type]
    stream.feed(b"", True)
    assert isinstance(stream.error, ConnectionLost)
    assert stream.over
    with pytest.raises(ConnectionLost):
        stream.write(b"x")
    accepted = Stream(port, 4, opener=True)  # type: ignore[arg-type]
    accepted.feed(b"\x00answer", True)
    assert (accepted.error, accepted.over, accepted.read()) == (None, False, b"answer")


def test_a_stream_that_was_refused_asks_for_nothing_more_and_returns_what_comes() -> None:
    port = Port()
    stream = Stream(port, 0, opener=False)  # type: ignore[arg-type]
    header = encode_header("web")
    stream.feed(header + b"hi", False)
    stream.refuse(StreamStatus.DENIED)
    assert port.asked == [("send", b"\x02", True), ("stop", 2)]
    assert port.consumed == len(header) + 2
    stream.feed(b"more", False)
    assert (stream.buffered, stream.read()) == (0, b"")
    assert port.consumed == len(header) + 6
    with pytest.raises(ConnectionLost):
        stream.write(b"x")
    stream.feed(b"", True)
    assert port.asked[2:] == [("done",)]
    assert stream.over


def test_a_stream_keeps_its_first_error_and_is_reset_once() -> None:
    port = Port()
    stream = Stream(port, 0, opener=True)  # type: ignore[arg-type]
    first = ConnectionLost("first")
    stream.fail(first)
    stream.fail(ConnectionLost("second"))
    assert stream.error is first
    stream.reset()
    assert port.asked == [], "it is over: there is nothing to reset"
    other = Stream(port, 4, opener=True)  # type: ignore[arg-type]
    other.reset(3)
    other.reset(3)
    assert port.asked == [("reset", 3), ("stop", 3)]


def test_a_control_stream_that_is_reset_ends_the_connection_with_a_reason() -> None:
    pair = Pair()
    pair.dialler.engine.reset(0, 0)
    pair.run(0.2)
    assert pair.listener.state is State.CLOSED
    assert isinstance(pair.here.closed, ConnectionLost)
    assert "control stream" in pair.here.closed.message
