"""A connection to one peer over an engine: control stream, Hello and Welcome, application streams. Sans-IO.

States: HANDSHAKE (keys not proven yet) -> READY (both proven, policy has admitted the peer) -> CLOSED.
Nothing of the application is delivered or written before READY. Which address packets use is not known
here: that is ``paths/``. Who is allowed is not known here either: the driver decides in ``on_hello``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Protocol

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_GONE_STREAMS
from meshnode.base.wire import WireError
from meshnode.errors import ConnectionLost, MeshError, PeerIdentityError, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.hello import (
    CloseCode,
    Frame,
    FrameReader,
    Hello,
    frame,
    make_hello,
    make_welcome,
    open_hello,
    open_welcome,
)
from meshnode.quic.seam import (
    WRONG_KEY,
    CidIssued,
    CidRetired,
    Engine,
    EngineEvent,
    HandshakeDone,
    StopSending,
    StreamData,
    StreamReset,
    Terminated,
)
from meshnode.quic.stream import Stream, encode_header

UNIDIRECTIONAL = 2  # the bit of a stream id, RFC 9000 section 2.1: nothing could be answered there
CONTROL_STREAM = 0  # RFC 9000 section 2.1: the first client-initiated bidirectional stream


class State(Enum):
    """Where a connection stands; only ever moves downward."""

    HANDSHAKE = auto()
    READY = auto()
    CLOSED = auto()


class ConnectionEvents(Protocol):
    """What a connection tells its driver, synchronously."""

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None: ...
    def on_hello(self, connection: Connection, hello: Hello) -> None: ...
    def on_ready(self, connection: Connection) -> None: ...
    def on_record(self, connection: Connection, encoded: bytes) -> None: ...
    def on_frame(self, connection: Connection, fields: list[object]) -> None: ...
    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_stream_data(self, connection: Connection) -> None: ...
    def on_closed(self, connection: Connection, error: MeshError) -> None: ...
    def on_dirty(self, connection: Connection) -> None: ...


class Connection:
    """One authenticated connection. The driver feeds datagrams and timers, and sends what ``transmit`` returns."""

    def __init__(
        self,
        engine: Engine,
        me: Identity,
        peer: NodeId,
        events: ConnectionEvents,
        *,
        dialler: bool,
        boot: bytes,
        record: bytes,
        now: float,
    ) -> None:
        self.engine = engine
        self.peer = peer
        self.dialler = dialler
        self.state = State.HANDSHAKE
        self.peer_boot = b""
        self.peer_record = b""
        self.error: MeshError | None = None
        self.started = now
        self.streams: dict[int, Stream] = {}
        self.bytes_in = 0
        self.bytes_out = 0
        self._me = me
        self._events = events
        self._boot = boot
        self._record = record
        self._frames = FrameReader()
        self._early: list[StreamData] = []
        self._draining: dict[int, Stream] = {}
        # the peer's streams that we gave up before it had ended them
        self._gone: BoundedDict[int, None] = BoundedDict(MAX_GONE_STREAMS)

    # ---- driving the engine

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram; True when it carried the newest authenticated packet so far."""
        self.bytes_in += len(data)
        newest = self.engine.receive(data, now)
        if events := self.engine.events():
            self._take(events)
        return newest

    def on_timer(self, now: float) -> None:
        """Let the engine's loss, pacing and idle timers fire."""
        self.engine.on_timer(now)
        if events := self.engine.events():
            self._take(events)

    def transmit(self, now: float) -> list[bytes]:
        """Return the datagrams to send now."""
        datagrams = self.engine.transmit(now)
        if events := self.engine.events():
            self._take(events)
        if self._draining:
            self._wake_writers()
        return datagrams

    def _take(self, events: Sequence[EngineEvent]) -> None:
        """Handle what the engine has to say."""
        for event in events:
            if type(event) is StreamData:
                self._on_data(event)
            elif type(event) is CidIssued:
                self._events.on_cid(self, event.cid, True)
            elif type(event) is CidRetired:
                self._events.on_cid(self, event.cid, False)
            elif type(event) is HandshakeDone:
                self._on_handshake()
            elif type(event) is StreamReset:
                self._fail_stream(event.stream_id, "the peer reset the stream")
            elif type(event) is StopSending:
                self._on_stop(event.stream_id)
            elif type(event) is Terminated:
                self._on_terminated(event)

    def _wake_writers(self) -> None:
        for stream_id, stream in list(self._draining.items()):
            if stream.low:
                del self._draining[stream_id]
                stream.on_change()

    # ---- authentication

    def _on_handshake(self) -> None:
        if not self.dialler:
            return
        key = self.engine.peer_certificate_key
        if key != bytes(self.peer):
            self._refuse_key()
            return
        stream_id = self.engine.open_stream()
        assert stream_id == CONTROL_STREAM
        hello = make_hello(self._me, self.peer, self.engine.odcid, key, boot=self._boot, record=self._record)
        self.engine.send(CONTROL_STREAM, hello)
        self._events.on_dirty(self)

    def _refuse_key(self) -> None:
        self.engine.abandon()
        self._close(
            PeerIdentityError(
                f"the node at that address is not {self.peer.short}: it proved another key",
                hint="the address now belongs to somebody else; check the id, or wait for a newer record",
            )
        )

    def _on_control(self, data: bytes) -> None:
        self.engine.consumed(CONTROL_STREAM, len(data))
        for fields in self._frames.feed(data):
            kind = fields[0]
            if self.state is State.CLOSED:
                return
            if self.state is State.HANDSHAKE:
                if kind == Frame.HELLO and not self.dialler and not self.peer_boot:
                    hello = open_hello(fields, self._me.id, self.peer, self.engine.odcid)
                    self.peer_boot, self.peer_record = hello.boot, hello.record
                    self._events.on_hello(self, hello)
                elif kind == Frame.WELCOME and self.dialler:
                    welcome = open_welcome(fields)
                    self.peer_boot, self.peer_record = welcome.boot, welcome.record
                    self._become_ready()
                else:
                    raise WireError("control frame out of order")
            elif kind == Frame.RECORD:
                if len(fields) != 2 or not isinstance(fields[1], bytes):
                    raise WireError("record frame malformed")
                self._events.on_record(self, fields[1])
            else:
                self._events.on_frame(self, fields)

    def admit(self) -> None:
        """Listener only, after ``on_hello``: send the Welcome; streams are delivered from now on."""
        self.engine.send(CONTROL_STREAM, make_welcome(self._boot, self._record))
        self._become_ready()

    def _become_ready(self) -> None:
        self.state = State.READY
        self._events.on_ready(self)
        early, self._early = self._early, []
        for event in early:
            self._on_data(event)
        self._events.on_dirty(self)

    # ---- streams

    def _on_data(self, event: StreamData) -> None:
        if self.state is State.CLOSED:
            return
        try:
            stream_id = event.stream_id
            if stream_id == CONTROL_STREAM:
                if event.fin:
                    raise WireError("the control stream was ended")
                self._on_control(event.data)
                return
            if stream_id & UNIDIRECTIONAL:
                raise WireError("a unidirectional stream, which this protocol does not have")
            if self.state is State.HANDSHAKE:
                self._early.append(event)  # bounded: the stream windows hold the peer back
                return
            stream = self.streams.get(stream_id)
            if stream is None:
                if (stream_id & 1 == 0) == self.dialler or stream_id in self._gone:
                    self.stream_consumed(stream_id, len(event.data))  # sent before the peer heard that we gave it up
                    if event.fin:
                        self._gone.pop(stream_id, None)
                    return
                stream = self.streams[stream_id] = Stream(self, stream_id, opener=False)
            waiting = not stream.header_complete
            stream.feed(event.data, event.fin)
            if waiting and stream.header_complete:
                self._events.on_stream(self, stream)
            if not stream.background:
                self._events.on_stream_data(self)
        except WireError as error:
            self.close(CloseCode.PROTOCOL, str(error))

    def _fail_stream(self, stream_id: int, why: str) -> None:
        if stream_id == CONTROL_STREAM:
            self.close(CloseCode.PROTOCOL, "the control stream was reset")
            return
        stream = self.streams.pop(stream_id, None)
        self._gone.pop(stream_id, None)
        if stream is not None:
            if not stream.fin_sent and stream.error is None:
                self.engine.reset(stream_id, 0)
            stream.discard()  # nobody reads past an error, and what is unread must not hold back other streams
            stream.fail(ConnectionLost(why))

    def _on_stop(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None and stream.error is None and not stream.fin_sent:
            stream.fin_sent = stream.unwanted = True  # the peer reads no more; what it has sent us stays readable
            stream.on_change()
            if stream.fin_received:
                self.stream_done(stream_id)

    def open(self, service: str) -> Stream:
        """Open a stream to ``service`` of the peer.

        Raises ConnectionLost when the connection is not READY, MeshError (``stream_limit``) when the peer
        grants no more streams, ValueError for an impossible name.
        """
        if self.state is not State.READY:
            raise self.error or ConnectionLost("the connection is not ready")
        header = encode_header(service)
        stream_id = self.engine.open_stream()
        stream = self.streams[stream_id] = Stream(self, stream_id, opener=True)
        stream.service = service
        self.stream_send(stream_id, header, False)
        return stream

    def stream_send(self, stream_id: int, data: bytes, fin: bool) -> None:
        """Queue bytes on a stream (a stream calls this)."""
        if self.state is not State.CLOSED:
            self.bytes_out += len(data)
            self.engine.send(stream_id, data, fin)
            self._events.on_dirty(self)

    def stream_consumed(self, stream_id: int, count: int) -> None:
        """The application has taken ``count`` bytes: grant as many again."""
        if self.state is not State.CLOSED and self.engine.consumed(stream_id, count):
            self._events.on_dirty(self)

    def stream_queued(self, stream_id: int) -> int:
        """Bytes of a stream that are written and not acknowledged."""
        return 0 if self.state is State.CLOSED else self.engine.queued_bytes(stream_id)

    def stream_reset(self, stream_id: int, code: int) -> None:
        """Abort our direction."""
        if self.state is not State.CLOSED:
            self.engine.reset(stream_id, code)
            self._forget(stream_id)
            self._events.on_dirty(self)

    def stream_stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to stop sending."""
        if self.state is not State.CLOSED:
            self.engine.stop(stream_id, code)
            self._events.on_dirty(self)

    def stream_done(self, stream_id: int) -> None:
        """Both directions have ended."""
        self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None and (stream.stopped or not stream.fin_received):
            self._gone[stream_id] = None  # late data must not look like a new stream with a header

    def stream_await_drain(self, stream: Stream) -> None:
        """Call the stream's ``on_change`` when its queue is low again."""
        self._draining[stream.id] = stream

    # ---- control

    def push_record(self, encoded: bytes) -> None:
        """Send our newest record to the peer."""
        self._record = encoded
        self.send_frame(Frame.RECORD, encoded)

    def send_frame(self, kind: Frame, *fields: object) -> None:
        """Send one control frame, when the connection is READY."""
        if self.state is State.READY:
            self.engine.send(CONTROL_STREAM, frame(kind, *fields))
            self._events.on_dirty(self)

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Say goodbye with a reason; at once and without waiting."""
        if self.state is State.CLOSED:
            return
        self.engine.close(int(code), reason)
        self._close(ConnectionLost(f"closed here: {reason or code.name.lower()}"))
        self._events.on_dirty(self)

    def abandon(self, error: MeshError) -> None:
        """Forget the connection without sending a byte."""
        if self.state is not State.CLOSED:
            self.engine.abandon()
            self._close(error)

    def _on_terminated(self, event: Terminated) -> None:
        if event.code == WRONG_KEY and self.dialler:
            self._refuse_key()
        elif event.by_peer and event.code == CloseCode.POLICY_DENIED:
            self._close(
                PolicyDenied(
                    f"{self.peer.short} refuses connections from this node",
                    hint="ask its operator to allow this node's id (`meshnode id`)",
                )
            )
        elif event.by_peer:
            self._close(ConnectionLost(f"{self.peer.short} closed the connection: {event.reason or event.code}"))
        else:
            self._close(ConnectionLost(f"the connection to {self.peer.short} ended: {event.reason or event.code}"))

    def _close(self, error: MeshError) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.error = error
        self._early.clear()
        for stream in list(self.streams.values()):
            stream.fail(error)
        self.streams.clear()
        draining, self._draining = self._draining, {}
        for stream in draining.values():
            stream.on_change()
        self._events.on_closed(self, error)

    def unfinished(self) -> Iterator[Stream]:
        """Streams that still carry data either way."""
        return iter(self.streams.values())
