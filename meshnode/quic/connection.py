"""A connection to one peer over an engine: control stream, Hello and Welcome, application streams. Sans-IO.

States: HANDSHAKE (keys not proven yet) -> READY (both proven, policy has admitted the peer) -> CLOSED.
Nothing of the application is delivered or written before READY. Which address packets use is not known
here: that is ``paths/``. Whether the peer is allowed is not decided here either, but in ``on_hello``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Protocol

from meshnode.base.wire import WireError
from meshnode.errors import ConnectionLost, MeshError, PeerIdentityError, PolicyDenied
from meshnode.identity.node_id import NodeId
from meshnode.quic.hello import (
    CloseCode,
    Frame,
    FrameReader,
    Hello,
    LocalEnd,
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
from meshnode.quic.stream import OnOpened, Stream, StreamTable

UNIDIRECTIONAL = 2  # the bit of a stream id, RFC 9000 section 2.1: nothing could be answered there
CONTROL_STREAM = 0  # RFC 9000 section 2.1: the first client-initiated bidirectional stream


class State(Enum):
    """State of a connection; it only ever moves downward."""

    HANDSHAKE = auto()
    READY = auto()
    CLOSED = auto()


class ConnectionEvents(Protocol):
    """Callbacks of a connection, called synchronously."""

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """Route datagrams with ``cid`` to the connection, or (not ``issued``) no longer."""

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """Decide about a dialler whose key is proven: ``admit`` it, now or later, or ``close``."""

    def on_ready(self, connection: Connection) -> None:
        """Note that both keys are proven and streams may be opened."""

    def on_record(self, connection: Connection, encoded: bytes) -> None:
        """Take the peer's newest record, which is not verified yet."""

    def on_frame(self, connection: Connection, fields: list[object]) -> None:
        """Take any other control frame of a READY connection.

        ``fields`` begins with the kind, an integer that may be unknown; the rest is not checked. A WireError raised
        here closes the connection.
        """

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """Accept or refuse a stream of the peer, whose header is complete."""

    def on_stream_data(self, connection: Connection) -> None:
        """Note that data of a stream that is not ``background`` came: the peer is alive."""

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """Drop the connection; called once, after all its streams have failed."""

    def on_dirty(self, connection: Connection) -> None:
        """Call ``transmit`` soon: there is something to send."""


class Connection:
    """One authenticated connection: it is fed datagrams and timers, and what ``transmit`` returns is sent."""

    def __init__(
        self,
        engine: Engine,
        local: LocalEnd,
        peer: NodeId,
        events: ConnectionEvents,
        *,
        dialler: bool,
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
        self.streams = StreamTable(
            engine,
            dialler=dialler,
            opened=partial(events.on_stream, self),
            received=partial(events.on_stream_data, self),
            dirty=partial(events.on_dirty, self),
        )
        self.bytes_in = 0  # of datagrams
        self._local = local
        self._events = events
        self._frames = FrameReader()
        self._early: list[StreamData] = []

    # ---- driving the engine

    def receive(self, data: bytes, now: float) -> bool:
        """Feed one datagram and deliver what it brings.

        Returns True when it carried the newest authenticated 1-RTT packet so far, as ``Engine.receive``.
        """
        self.bytes_in += len(data)
        newest = self.engine.receive(data, now)
        if events := self.engine.events():
            self._take(events)
        if self.streams.openers:
            self.streams.open_granted()
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
        if self.streams.draining:
            self.streams.wake_writers()
        return datagrams

    def _take(self, events: Sequence[EngineEvent]) -> None:
        """Handle the engine's events, in their order."""
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
                self._on_reset(event.stream_id)
            elif type(event) is StopSending:
                self.streams.on_stop(event.stream_id)
            elif type(event) is Terminated:
                self._on_terminated(event)

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
        local = self._local
        hello = make_hello(local.identity, self.peer, self.engine.odcid, key, boot=local.boot, record=local.record)
        self.engine.send(CONTROL_STREAM, hello)
        self._events.on_dirty(self)

    def _refuse_key(self) -> None:
        self.engine.abandon()
        self._close(
            PeerIdentityError(
                f"the node at that address is not {self.peer.short}: it proved another key",
                hint="the address now belongs to another node; check the id, or wait for a newer record",
            )
        )

    def _on_control(self, event: StreamData) -> None:
        if event.fin:
            raise WireError("the control stream was ended")
        self.engine.consumed(CONTROL_STREAM, len(event.data))
        for fields in self._frames.feed(event.data):
            if self.state is State.CLOSED:
                return
            if self.state is State.HANDSHAKE:
                self._on_handshake_frame(fields)
            elif fields[0] == Frame.RECORD:
                if len(fields) != 2 or not isinstance(fields[1], bytes):
                    raise WireError("record frame malformed")
                self._events.on_record(self, fields[1])
            else:
                self._events.on_frame(self, fields)

    def _on_handshake_frame(self, fields: list[object]) -> None:
        if fields[0] == Frame.HELLO and not self.dialler and not self.peer_boot:
            hello = open_hello(fields, self._local.identity.id, self.peer, self.engine.odcid)
            self.peer_boot, self.peer_record = hello.boot, hello.record
            self._events.on_hello(self, hello)
        elif fields[0] == Frame.WELCOME and self.dialler:
            welcome = open_welcome(fields)
            self.peer_boot, self.peer_record = welcome.boot, welcome.record
            self._become_ready()
        else:
            raise WireError("control frame out of order")

    def admit(self) -> None:
        """Send the Welcome (a listener, in or after ``on_hello``).

        The connection is READY from now on: ``on_ready`` is called, then what came early on streams is delivered.
        """
        self.engine.send(CONTROL_STREAM, make_welcome(self._local.boot, self._local.record))
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
            if event.stream_id == CONTROL_STREAM:
                self._on_control(event)
            elif event.stream_id & UNIDIRECTIONAL:
                raise WireError("a unidirectional stream, which this protocol does not have")
            elif self.state is State.HANDSHAKE:
                self._early.append(event)  # bounded: the stream windows hold the peer back
            else:
                self.streams.on_data(event)
        except WireError as error:
            self.close(CloseCode.PROTOCOL, str(error))

    def _on_reset(self, stream_id: int) -> None:
        if stream_id == CONTROL_STREAM:
            self.close(CloseCode.PROTOCOL, "the control stream was reset")
        else:
            self.streams.on_reset(stream_id)

    def open(self, service: str) -> Stream:
        """Open a stream to ``service`` of the peer.

        Raises ConnectionLost when the connection is not READY, StreamLimitError when the peer grants no more streams,
        ValueError for an impossible name.
        """
        if self.state is not State.READY:
            raise self.error or ConnectionLost("the connection is not ready")
        return self.streams.open(service)

    def open_when_granted(self, service: str, answer: OnOpened) -> None:
        """Open a stream as soon as the peer grants one, in the order of asking; ``answer`` gets it, or the error.

        Raises as ``open``, but for StreamLimitError: the caller bounds the wait, with ``streams.give_up``.
        """
        if self.state is not State.READY:
            raise self.error or ConnectionLost("the connection is not ready")
        self.streams.open_when_granted(service, answer)

    # ---- control

    def push_record(self, encoded: bytes) -> None:
        """Send this node's newest record to the peer; before READY it goes into the Hello or Welcome instead."""
        self._local = replace(self._local, record=encoded)
        self.send_frame(Frame.RECORD, encoded)

    def send_frame(self, kind: Frame, *fields: object) -> None:
        """Send one control frame; does nothing unless the connection is READY.

        ``fields`` are those that ``hello.FIELDS`` names for ``kind``.
        """
        if self.state is State.READY:
            self.engine.send(CONTROL_STREAM, frame(kind, *fields))
            self._events.on_dirty(self)

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Close with a code and a reason that the peer sees, without waiting for it.

        All streams fail with ConnectionLost, ``on_closed`` is called, and one datagram is left to transmit. Does
        nothing when CLOSED.
        """
        if self.state is State.CLOSED:
            return
        self.engine.close(int(code), reason)
        self._close(ConnectionLost(f"closed here: {reason or code.name.lower()}"))
        self._events.on_dirty(self)

    def abandon(self, error: MeshError) -> None:
        """Forget the connection without sending a byte; streams and ``on_closed`` get ``error``.

        For a peer that must not learn that this node exists, and for one that has restarted and knows nothing of it.
        """
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
        self.streams.close(error)
        self._events.on_closed(self, error)
