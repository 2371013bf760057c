"""The application streams of a connection, sans-IO: bytes in order, true back-pressure in both directions.

What comes before the application's bytes is in ``preface.py``. Receive credit follows what the application has
consumed, never what has arrived, so a slow reader holds its sender back (measured: 500 MB at 2 MB/s leaves both ends
flat).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_GONE_STREAMS
from meshnode.base.wire import WireError
from meshnode.errors import ConnectionLost, MeshError, PolicyDenied, StreamLimitError
from meshnode.quic.buffers import DEFAULT_MARKS, Unread
from meshnode.quic.flows import FlowTable
from meshnode.quic.preface import HeaderReader, Preface, Purpose, StreamStatus, encode_header, purpose_of, refusal_error
from meshnode.quic.seam import Engine, StreamData

KEPT_UNREAD = 1 << 18  # bytes of a reset stream, for a program that reads late: an answer, no transfer
ENDED_HERE = "this end has closed the stream"


def _nothing(*_: object) -> None:
    return None


class Stream:
    """One stream. ``on_change`` is called whenever a waiting reader, writer or opener may go on."""

    __slots__ = (
        "__weakref__",
        "_awaits",
        "_done",
        "_table",
        "background",
        "error",
        "fin_received",
        "id",
        "marks",
        "named",
        "on_change",
        "status",
        "stopped",
        "unread",
        "write_end",
    )

    def __init__(self, table: StreamTable, stream_id: int, *, opener: bool) -> None:
        self._table = table
        self.id = stream_id
        self.named = ""  # in its header
        self.status: StreamStatus | None = None
        self.error: MeshError | None = None
        self.fin_received = False
        self.write_end = ""  # why nothing more may be written; "" while it may
        self.stopped = False  # we read no more, but what the peer has sent before it heard so still arrives
        self.unread = Unread()
        self.marks = DEFAULT_MARKS
        self.background = False  # what comes says nothing of when more will: its absence is no silence of the path
        self.on_change: Callable[[], None] = _nothing
        self._awaits: HeaderReader | Preface = Preface.STATUS if opener else HeaderReader()
        self._done = False

    # ---- what arrives

    def feed(self, data: bytes, fin: bool) -> None:
        """Take received bytes, in order, and ``fin``, the end of the peer's direction.

        The header or status that comes first is taken out; its credit goes back at once, that of the rest when it
        is read. A refusal becomes ``error``. Raises WireError when the header or status is junk.
        """
        if self._awaits is not Preface.NOTHING:
            data = self._take_preface(data)
        if data and self.stopped:
            self._table.consume(self.id, len(data))
        elif data:
            self.unread.append(data)
            self.unread.size += len(data)
        if fin:
            self.fin_received = True
            if self._awaits is Preface.STATUS and self.error is None:
                self.error = ConnectionLost("the peer ended the stream before it accepted it")
            self._finish()
        self.on_change()

    def _take_preface(self, data: bytes) -> bytes:
        """Return the application data behind the header or status; b"" while that is incomplete."""
        if self._awaits is Preface.STATUS:
            return self._take_status(data) if data else data
        assert isinstance(self._awaits, HeaderReader)
        found = self._awaits.feed(data)
        if found is None:
            return b""
        self.named, size, rest = found
        self._awaits = Preface.NOTHING
        self._table.consume(self.id, size)
        return rest

    def _take_status(self, data: bytes) -> bytes:
        try:
            self.status = StreamStatus(data[0])
        except ValueError as error:
            raise WireError("stream status unknown") from error
        self._table.consume(self.id, 1)
        self._awaits = Preface.NOTHING
        if self.status is StreamStatus.ACCEPTED:
            return data[1:]
        self._table.consume(self.id, len(data) - 1)
        self.error = self.error or refusal_error(self.status, self.service, data[1:])
        return b""

    def fail(self, error: MeshError) -> None:
        """End the stream without its ends: it was reset, or its connection is gone. The first error stays."""
        if self.error is None:
            self.error = error
        self._done = True
        self.on_change()

    # ---- what the application does

    def accept(self) -> None:
        """Tell the opener that its stream has a handler (acceptor only, before anything is written).

        Does nothing when it was told, or refused: the status is the first byte, and another would be data.
        """
        if self.status is None:
            self.status = StreamStatus.ACCEPTED
            self._table.send(self.id, bytes([StreamStatus.ACCEPTED]), False)

    def refuse(self, status: StreamStatus, told: str = "") -> None:
        """Answer with the reason and end both directions (acceptor only); ``told`` is the rule that the peer may know.

        What the peer has sent before it heard so is dropped, and its credit goes back.
        """
        self.status = status
        self.write_end = ENDED_HERE
        self.stopped = True
        self._table.send(self.id, bytes([status]) + told.encode(), True)
        self._table.stop(self.id, int(status))
        self.discard()

    def read(self, limit: int = -1) -> bytes:
        """Take up to ``limit`` received bytes (all when negative) without waiting.

        Credit for them goes back to the sender. b"" when nothing is there: ``at_eof`` tells the end from a pause. With
        a limit it may return less than is buffered, one received piece at a time, which spares copying.
        """
        unread = self.unread
        if not unread:
            return b""
        if len(unread) == 1 and not 0 <= limit < unread.size:
            data = unread.pop()
            unread.size = 0
        else:
            data = unread.take(limit)
        self._table.consume(self.id, len(data))
        return data

    def taken(self, count: int) -> None:
        """Forget ``count`` received bytes, which were used where they are (``unread``), as ``read`` does."""
        self.unread.drop(count)
        self._table.consume(self.id, count)

    @property
    def service(self) -> str:
        """The service's name."""
        return purpose_of(self.named)[1] if self.named[:1] == "\0" else self.named

    @property
    def purpose(self) -> Purpose:
        """What the stream is for."""
        return purpose_of(self.named)[0] if self.named[:1] == "\0" else Purpose.USE

    @property
    def buffered(self) -> int:
        """Received bytes that the application has not taken."""
        return self.unread.size

    @property
    def at_eof(self) -> bool:
        """True when the peer has ended its direction and everything was read."""
        return self.fin_received and not self.unread

    def write(self, data: bytes | memoryview, fin: bool = False) -> None:
        """Queue bytes, which are copied, ``fin`` with the last.

        There is no bound here: a writer waits until ``drained``. Raises the stream's error, or ConnectionLost after an
        end was written.
        """
        if self.error is not None:
            raise self.error
        if self.write_end:
            raise ConnectionLost(self.write_end)
        if fin:
            self.write_end = ENDED_HERE
        self._table.send(self.id, data, fin)
        if fin:
            self._finish()

    @property
    def fin_sent(self) -> bool:
        """True when our direction has ended, by us or because the peer reads no more."""
        return self.write_end != ""

    @property
    def queued(self) -> int:
        """Bytes written that the peer has not acknowledged yet."""
        return self._table.queued(self.id)

    def drained(self) -> bool:
        """Return whether a writer may go on: at most ``marks.high`` bytes are unacknowledged, or the stream has failed.

        Otherwise ``on_change`` will be called once they have fallen to ``marks.low``.
        """
        if self.error is not None or self.queued <= self.marks.high:
            return True
        self._table.await_drain(self)
        return False

    @property
    def over(self) -> bool:
        """True when both directions have ended, or it failed."""
        return self._done or self.error is not None

    def await_low(self) -> None:
        """Have ``on_change`` called when (some of) the send queue is acknowledged."""
        self._table.await_drain(self)

    @property
    def low(self) -> bool:
        """True when the send queue is short enough to wake a writer that waited."""
        return self.queued <= self.marks.low

    def reset(self, code: int = 0, error: MeshError | None = None, *, ended: bool = False) -> None:
        """Drop both directions at once, with an application code; the peer's reader sees ConnectionLost.

        With ``StreamStatus.DENIED`` it sees PolicyDenied. What is unread is dropped too. After both directions have
        ended only that happens, but with ``ended`` what has not arrived never does. ``error`` is what this end's reader
        sees.
        """
        if self._done or (self.stopped and self.write_end):  # ended here already, refused say: the end must arrive
            self.discard()
            if ended:
                self._table.reset(self.id, code)
            return
        self._table.reset(self.id, code)
        self._table.stop(self.id, code)
        self.discard()
        self.fail(error or ConnectionLost("the stream was reset here"))

    def stop_reading(self) -> None:
        """Read no more: give the credit back and ask the peer to stop.

        Our own direction goes on. What the peer still sends is dropped, and its credit goes back as it comes.
        """
        if not self.fin_received and not self._done:
            self._table.stop(self.id, 0)
            self.fin_received = self.stopped = True
            self._finish()
        self.discard()

    def discard(self) -> None:
        """Drop what is unread and give its credit back."""
        if self.unread:
            unread, self.unread = self.unread, Unread()
            self._table.consume(self.id, unread.size)

    def _finish(self) -> None:
        if self.fin_received and self.write_end and not self._done:
            self._done = True
            self._table.forget(self.id)


OnOpened = Callable[[Stream | MeshError], None]


class StreamTable:
    """The streams of one connection, by id; how many there are is bounded by what the engines grant each other."""

    def __init__(
        self,
        engine: Engine,
        *,
        dialler: bool,
        opened: Callable[[Stream], None],
        dirty: Callable[[], None],
        dropped: Callable[[str], None],
    ) -> None:
        """Make an empty table.

        ``opened`` is called with a stream of the peer's when its header is complete, ``dirty`` when the engine has
        something to send, ``dropped`` with the counter of a datagram that is dropped.
        """
        self.flows = FlowTable(engine, dirty=dirty, dropped=dropped)
        self.bytes_out = 0  # of application streams
        self.engine = engine
        self.draining: dict[int, Stream] = {}  # those that await a low queue
        self._own_bit = 0 if dialler else 1  # RFC 9000 section 2.1: the lowest bit of the ids of our own streams
        self.is_touched = False  # ``dirty`` was called for bytes that wait; the connection's ``transmit`` takes it back
        self.has_come = False  # data of a flow, or of a stream that is not ``background``; who notes it takes it back
        self._opened = opened
        self._dirty = dirty
        self._closed = False
        self._streams: dict[int, Stream] = {}
        self.openers: OrderedDict[OnOpened, str] | None = None  # with their services; they await a grant
        self._gone: BoundedDict[int, None] | None = None  # the peer's that we gave up before it had ended them
        self.undelivered: WeakValueDictionary[int, Stream] | None = None  # ended before the peer had all

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    # ---- what the connection tells

    def open(self, service: str) -> Stream:
        """Open a stream to ``service``: reserve its id and send its header.

        Raises ValueError for a name that no service can have, StreamLimitError when the peer grants no more streams.
        """
        header = encode_header(service)
        stream_id = self.engine.open_stream()
        stream = self._streams[stream_id] = Stream(self, stream_id, opener=True)
        stream.named = service
        self.send(stream_id, header, False)
        return stream

    def open_when_granted(self, service: str, answer: OnOpened) -> None:
        """Open a stream as soon as the peer grants one, in the order of asking; ``answer`` gets it, or the error.

        Raises ValueError for a name that no service can have.
        """
        encode_header(service)
        self.openers = self.openers or OrderedDict()
        self.openers[answer] = service
        self.open_granted()

    def give_up(self, answer: OnOpened) -> None:
        """Take back what waits for a grant."""
        (self.openers or dict[OnOpened, str]()).pop(answer, None)

    def open_granted(self) -> None:
        """Open what waits, as far as the peer grants streams."""
        while self.openers and not self._closed:
            answer, service = next(iter(self.openers.items()))
            try:
                stream = self.open(service)
            except StreamLimitError:
                return
            del self.openers[answer]
            answer(stream)

    def on_data(self, event: StreamData) -> None:
        """Take data of an application stream.

        Raises WireError when its header or status is junk.
        """
        stream = self._streams.get(event.stream_id)
        if stream is None:
            if self._is_given_up(event):
                return
            stream = self._streams[event.stream_id] = Stream(self, event.stream_id, opener=False)
        waiting = type(stream._awaits) is HeaderReader
        stream.feed(event.data, event.fin)
        if waiting and type(stream._awaits) is not HeaderReader:
            self._opened(stream)
        if not stream.background:
            self.has_come = True

    def _is_given_up(self, event: StreamData) -> bool:
        """Return whether data without a stream was sent before the peer heard that we gave the stream up."""
        if event.stream_id & 1 != self._own_bit and event.stream_id not in (self._gone or ()):
            return False
        self.consume(event.stream_id, len(event.data))
        if event.fin and self._gone:
            self._gone.pop(event.stream_id, None)
        return True

    def accepted(self) -> list[Stream]:
        """Return the streams that the peer opened and that were accepted here."""
        return [s for s in self if s.id & 1 != self._own_bit and s.status is StreamStatus.ACCEPTED]

    def on_reset(self, stream_id: int, code: int = 0) -> None:
        """End a stream that the peer reset: what had come before stays readable, as far as a program may take it late.

        More than ``KEPT_UNREAD`` is dropped, for it holds back the other streams of the connection.
        """
        stream = self._streams.get(stream_id)
        if stream is not None and stream.stopped and not stream.write_end:
            return  # it does as it was asked to, and our own direction goes on
        self._streams.pop(stream_id, None)
        (self._gone or dict[int, None]()).pop(stream_id, None)
        self.flows.end(stream_id)
        if stream is not None:
            if stream.unread.size > KEPT_UNREAD:
                stream.discard()
            if not stream.write_end and stream.error is None:
                self.engine.reset(stream_id, 0)
            if code == StreamStatus.DENIED and stream_id & 1 == self._own_bit:
                hint = "ask its operator; `meshnode policy explain` there says why"
                stream.fail(PolicyDenied("the peer allows this node to use the service no longer", hint=hint))
            else:
                stream.fail(ConnectionLost("the peer reset the stream"))

    def on_stop(self, stream_id: int) -> None:
        """End our direction, which the peer reads no more; what it has sent stays readable, and more may come."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.write_end:
            stream.write_end = "the peer closed the stream"
            stream._finish()
            stream.on_change()

    def wake_writers(self) -> None:
        """Call ``on_change`` of the streams that await it and whose queue is low again.

        To be called after every ``transmit`` while ``draining`` is not empty; each stream is called once.
        """
        for stream_id, stream in list(self.draining.items()):
            if stream.low:
                del self.draining[stream_id]
                stream.on_change()

    def close(self, error: MeshError) -> None:
        """Fail every stream with ``error``; from now on nothing reaches the engine."""
        lost = [*self._streams.values(), *(self.undelivered or dict[int, Stream]()).values()]
        self._closed = True
        self.flows.close()
        for stream in lost:
            stream.fail(error)
        self._streams.clear()
        openers, self.openers = self.openers, None
        for answer in openers or ():
            answer(error)
        draining, self.draining = self.draining, {}
        for stream in draining.values():
            stream.on_change()
        self._opened = self._dirty = _nothing  # they refer to the connection, which refers to this

    # ---- what a stream asks

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool) -> None:
        """Queue bytes on a stream."""
        if not self._closed:
            self.bytes_out += len(data)
            self.engine.send(stream_id, data, fin)
            if not self.is_touched:
                self.is_touched = True
                self._dirty()

    def consume(self, stream_id: int, count: int) -> None:
        """Grant ``count`` bytes again, which the application has taken.

        The peer is told when that moves a window by a quarter of its size, so that credit costs few packets.
        """
        if not self._closed and self.engine.consumed(stream_id, count):
            self._dirty()

    def queued(self, stream_id: int) -> int:
        """Return the bytes of a stream, the control stream included, that are written and not acknowledged."""
        return 0 if self._closed else self.engine.queued_bytes(stream_id)

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction with an application code (RFC 9000 section 19.4) and forget the stream."""
        if not self._closed:
            self.engine.reset(stream_id, code)
            self.forget(stream_id)
            self._dirty()

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to stop sending (RFC 9000 section 19.5)."""
        if not self._closed:
            self.engine.stop(stream_id, code)
            self._dirty()

    def forget(self, stream_id: int) -> None:
        """Forget a stream that is over here.

        A stream that the peer has not ended is remembered as given up: its late data must not look like a new
        stream with a header.
        """
        stream = self._streams.pop(stream_id, None)
        self.flows.end(stream_id)
        if stream is not None and (stream.stopped or not stream.fin_received):
            self._gone = self._gone or BoundedDict(MAX_GONE_STREAMS)
            self._gone[stream_id] = None
        if stream is not None and stream.error is None and self.engine.queued_bytes(stream_id):
            self.undelivered = WeakValueDictionary() if self.undelivered is None else self.undelivered
            self.undelivered[stream_id] = stream

    def await_drain(self, stream: Stream) -> None:
        """Call the stream's ``on_change`` when its queue is low again."""
        self.draining[stream.id] = stream
