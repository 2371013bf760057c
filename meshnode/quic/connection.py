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
from weakref import WeakValueDictionary

from meshnode.base.limits import MAX_CONTROL_QUEUE, MAX_EARLY, MAX_RULE_NAME
from meshnode.base.wire import WireError
from meshnode.errors import ConnectionLost, MeshError, PeerIdentityError, PeerSilent, PolicyDenied
from meshnode.identity.node_id import NodeId
from meshnode.quic.ended import EndedEngine
from meshnode.quic.hello import (
    RULE,
    CloseCode,
    Frame,
    FrameReader,
    Hello,
    LocalEnd,
    as_grants,
    frame,
    make_hello,
    make_welcome,
    open_hello,
    open_welcome,
)
from meshnode.quic.seam import (
    IDLE,
    NO_GROUP,
    WRONG_KEY,
    CidIssued,
    CidRetired,
    Datagram,
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
DENIED_HINT = "ask its operator to allow this node's id (`meshnode id`), or for a ticket (`meshnode invite`)"
CONTROL_STREAM = 0  # RFC 9000 section 2.1: the first client-initiated bidirectional stream


class State(Enum):
    """State of a connection; it only ever moves downward."""

    HANDSHAKE = auto()
    READY = auto()
    CLOSED = auto()


class KeyInUse(PolicyDenied):
    """The peer keeps its connection with another host that uses this node's key; ``proof`` is the peer's."""

    def __init__(self, message: str, *, hint: str = "", proof: str = "") -> None:
        super().__init__(message, hint=hint)
        self.proof = proof


class ConnectionEvents(Protocol):
    """Callbacks of a connection, called synchronously."""

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """Route datagrams with ``cid`` to the connection, or (not ``issued``) no longer."""

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """Decide about a peer whose key is proven: ``admit`` it, ``refuse`` it or ``close``.

        A dialler's own Hello has come, and it may be decided later; or a listener's Welcome, with what that says of
        itself in the same form, and it is to be decided at once.
        """

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

    def count(self, counter: str, /) -> None:
        """Count something that was dropped."""

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """Drop the connection; called once, after all its streams have failed."""

    def on_dirty(self, connection: Connection) -> None:
        """Call ``transmit`` soon: there is something to send."""


class Handshake:
    """What comes before both keys are proven: TLS's group, at most ``MAX_EARLY`` bytes of streams, grants."""

    def __init__(self) -> None:
        self.held: list[StreamData] = []
        self.late = 0.0  # seconds of it in which this process did not run
        self.grants: tuple[bytes, ...] = ()
        self.group = ""
        self.binding = b""  # of TLS's secret
        self.size = 0  # of all that ever came

    def add(self, event: StreamData) -> None:
        """Keep a piece. Raises WireError when there are too many bytes."""
        self.size += len(event.data)
        if self.size > MAX_EARLY:
            raise WireError("too much before the Hello")
        self.held.append(event)

    def take(self) -> list[StreamData]:
        """Hand over what was kept, in its order."""
        held, self.held = self.held, []
        return held


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
        self.engine: Engine = engine
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
            dirty=partial(events.on_dirty, self),
            dropped=events.count,
        )
        self.bytes_in = 0  # of datagrams
        self._local = local
        self._events = events
        self._frames = FrameReader()
        self.handshake = Handshake()

    @property
    def own(self) -> NodeId:
        """This node's id."""
        return self._local.identity.id

    # ---- driving the engine

    def receive(self, datagrams: Sequence[bytes], now: float) -> bool:
        """Feed datagrams that came together from one source, and deliver what they bring.

        Returns True when one carried the newest authenticated 1-RTT packet so far, as ``Engine.receive``.
        """
        self.bytes_in += sum(map(len, datagrams))
        newest = self.engine.receive(datagrams, now)
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
        self.streams.is_touched = False
        datagrams = self.engine.transmit(now)
        if events := self.engine.events():
            self._take(events)
        if self.streams.draining:
            self.streams.wake_writers()
        if (undelivered := self.streams.undelivered) and not self.engine.in_flight():
            _forget_delivered(undelivered)
        return datagrams

    def _take(self, events: Sequence[EngineEvent]) -> None:
        """Handle the engine's events, in their order. One that fails takes none of the others along."""
        streams = self.streams
        failed: Exception | None = None
        for event in events:
            try:
                if type(event) is StreamData:
                    stream_id = event.stream_id
                    if stream_id and self.state is State.READY and not stream_id & UNIDIRECTIONAL:
                        try:
                            streams.on_data(event)
                        except WireError as error:
                            self.close(CloseCode.PROTOCOL, str(error))
                    else:
                        self._on_data(event)
                elif type(event) is Datagram:
                    streams.has_come |= streams.flows.on_datagram(event.data)
                elif type(event) is CidIssued:
                    self._events.on_cid(self, event.cid, True)
                elif type(event) is CidRetired:
                    self._events.on_cid(self, event.cid, False)
                elif type(event) is HandshakeDone:
                    self.handshake.group, self.handshake.binding = event.group, event.binding
                    self._on_handshake()
                elif type(event) is StreamReset:
                    self._on_reset(event.stream_id, event.code)
                elif type(event) is StopSending:
                    self.streams.on_stop(event.stream_id)
                elif type(event) is Terminated:
                    self._on_terminated(event)
            except Exception as error:
                failed = error
                _give_up(streams, event)
        if failed is not None:
            raise failed

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
        hello = make_hello(
            local.identity,
            self.peer,
            self.engine.odcid,
            key,
            self.handshake.binding,
            boot=local.boot,
            record=local.record,
            grants=local.grants,
        )
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
            me, binding = self._local.identity.id, self.handshake.binding
            hello = open_hello(fields, me, self.peer, self.engine.odcid, binding)
            self.peer_boot, self.peer_record = hello.boot, hello.record
            if not hello.grants:  # it may be of a version that knows none
                self._local = replace(self._local, grants=())
            self._events.on_hello(self, hello)
        elif fields[0] == Frame.GRANTS and self.dialler:
            self.handshake.grants = as_grants(fields[1] if len(fields) == 2 else None)
        elif fields[0] == Frame.WELCOME and self.dialler:
            welcome = open_welcome(fields)
            self.peer_boot, self.peer_record = welcome.boot, welcome.record
            self._events.on_hello(self, Hello(welcome.boot, welcome.record, self.handshake.grants))
        else:
            raise WireError("control frame out of order")

    def admit(self) -> None:
        """Admit the peer, in or after ``on_hello``; a listener sends its grants and the Welcome.

        The connection is READY from now on: ``on_ready`` is called, then what came early on streams is delivered.
        """
        local = self._local
        if not self.dialler and local.grants:
            self.engine.send(CONTROL_STREAM, frame(Frame.GRANTS, list(local.grants)))
        if not self.dialler:
            self.engine.send(CONTROL_STREAM, make_welcome(local.boot, local.record))
        self._become_ready()

    def _become_ready(self) -> None:
        self.state = State.READY
        self._events.on_ready(self)
        for event in self.handshake.take():
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
                self.handshake.add(event)
            else:
                self.streams.on_data(event)
        except WireError as error:
            self.close(CloseCode.PROTOCOL, str(error))

    def _on_reset(self, stream_id: int, code: int) -> None:
        if stream_id == CONTROL_STREAM:
            self.close(CloseCode.PROTOCOL, "the control stream was reset")
        else:
            self.streams.on_reset(stream_id, code)

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
        """Send this node's newest record to the peer.

        Before READY it goes into the Hello or Welcome instead.
        """
        self._local = replace(self._local, record=encoded)
        self.send_frame(Frame.RECORD, encoded)

    def send_frame(self, kind: Frame, *fields: object) -> None:
        """Send one control frame; does nothing unless the connection is READY.

        ``fields`` are those that ``hello.FIELDS`` names for ``kind``.
        """
        if self.state is not State.READY:
            return
        if self.engine.queued_bytes(CONTROL_STREAM) > MAX_CONTROL_QUEUE:
            self.close(CloseCode.PROTOCOL, "control frames that are not taken")
            return
        self.engine.send(CONTROL_STREAM, frame(kind, *fields))
        self._events.on_dirty(self)

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Close with a code and a reason that the peer sees, without waiting for it.

        All streams fail with ConnectionLost, ``on_closed`` is called, and one datagram is left to transmit. Does
        nothing when CLOSED.
        """
        if self.state is State.CLOSED:
            return
        try:
            self.engine.close(int(code), reason)
        finally:  # whatever becomes of the goodbye
            self._close(ConnectionLost(f"closed here: {reason or code.name.lower()}"))
            self._events.on_dirty(self)

    def refuse(self, reason: str, error: MeshError, code: CloseCode = CloseCode.POLICY_DENIED) -> None:
        """Close because policy, or another process, forbids it: the peer sees ``reason``, streams here ``error``."""
        if self.state is not State.CLOSED:
            try:
                self.engine.close(int(code), reason)
            finally:
                self._close(error)
                self._events.on_dirty(self)

    def abandon(self, error: MeshError) -> None:
        """Forget the connection without sending a byte; streams and ``on_closed`` get ``error``.

        For a peer that must not learn that this node exists, and for one that has restarted and knows nothing of it.
        """
        if self.state is not State.CLOSED:
            try:
                self.engine.abandon()
            finally:
                self._close(error)

    def release(self) -> None:
        """Give the engine's memory back, once CLOSED and after the last ``transmit``; the ids stay."""
        engine = self.engine
        self.engine = self.streams.engine = self.streams.flows.engine = EndedEngine(engine)
        engine.release()

    def _on_terminated(self, event: Terminated) -> None:
        if event.code == WRONG_KEY and self.dialler:
            self._refuse_key()
        elif event.by_peer and event.code == CloseCode.POLICY_DENIED:
            self._close(self._denied(event.reason))
        elif event.by_peer and event.code == CloseCode.KEY_IN_USE:
            self._close(
                KeyInUse(
                    f"{self.peer.short} is connected with another host that uses this node's key",
                    hint="stop one of the two, and give it a key of its own (`meshnode keygen`)",
                    proof=event.reason,
                )
            )
        elif event.by_peer and event.reason == NO_GROUP and self.dialler:
            self._close(
                ConnectionLost(
                    f"{self.peer.short} and this node accept no key exchange in common",
                    hint="set post_quantum to on at the one that has it off",
                )
            )
        elif event.by_peer:
            self._close(ConnectionLost(f"{self.peer.short} closed the connection: {event.reason or event.code}"))
        elif event.code == IDLE:
            self._close(PeerSilent(f"nothing was heard of {self.peer.short} for the idle timeout"))
        else:
            self._close(ConnectionLost(f"the connection to {self.peer.short} ended: {event.reason or event.code}"))

    def _denied(self, reason: str) -> PolicyDenied:
        """Return the error for a peer that refuses this node, with the rule or the reason that it tells."""
        rule = reason[len(RULE) :][:MAX_RULE_NAME] if reason.startswith(RULE) else ""
        why = f" (rule {rule})" if rule else f": {reason}" if reason else ""
        return PolicyDenied(f"{self.peer.short} refuses connections from this node{why}", hint=DENIED_HINT, rule=rule)

    def _close(self, error: MeshError) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.error = error
        self.handshake.take()
        self.streams.close(error)
        self._events.on_closed(self, error)


def _forget_delivered(ended: WeakValueDictionary[int, Stream]) -> None:
    """Let go of the streams that had ended before the peer had everything: all that was sent has arrived."""
    for stream in [*ended.values()]:
        if not stream.queued:
            del ended[stream.id]


def _give_up(streams: StreamTable, event: EngineEvent) -> None:
    """Reset the stream whose data could not be handled, for a fault of this node: its peer must not wait for it."""
    for stream in list(streams):
        if type(event) is StreamData and event.stream_id == stream.id:
            stream.reset()
