"""How two nodes come to have one connection: dialling, accepting, and both at once.

When both ends dial at once, the dial of the smaller id lives; the other is kept aside, in case that one gets nowhere.
"""

from __future__ import annotations

from meshnode.base.limits import (
    BASE_MTU,
    DIAL_REFRESH_S,
    DIAL_WATCH_S,
    HANDSHAKE_TIMEOUT_S,
    HELD_INITIAL_S,
    MAX_ARRIVALS_PER_PEER,
)
from meshnode.base.metrics import describe
from meshnode.base.path import Path, in_words
from meshnode.discovery.resolver import Resolved
from meshnode.errors import (
    ConnectionLost,
    HandshakeTimeout,
    InvalidId,
    MeshError,
    NodeClosed,
    NoPathError,
    NotFound,
    PeerRestarted,
    PolicyDenied,
)
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.quic import packets
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import LocalEnd
from meshnode.quic.seam import Engine
from meshnode.stack.address_credit import OF_CONNECTION
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.session import Arrival, HeldFlight, OnConnect, Session

DIALS = describe("dials", "connections begun here")
ACCEPTS = describe("accepts", "first flights with a valid knock")
HELD = describe("simultaneous_dial_held", "first flights kept aside because this node's own dial has precedence")
TIMEOUTS = describe("handshake_timeouts", "handshakes that were not finished in time")
NOT_DIALLED = describe(
    "not_dialled_policy", "connections to members that gossip or a topic wanted and policy does not admit"
)
NO_CONNECTION = describe("drop_no_connection", "QUIC packets of no connection, without a knock")
BAD_KNOCK = describe("drop_knock", "first flights whose knock does not hold")
ACCEPTS_SLOWED = describe("drop_accepts_slowed", "first flights dropped: too many a second from new peers")
PUSHED_OUT = describe("half_open_pushed_out", "half-open handshakes ended in favour of newer ones")
ARRIVALS_FULL = describe("drop_arrivals_full", "first flights dropped: too many half-open ones of that peer")

MAX_REDIALS = 2


class Dialing(Component):
    """Dials and half-open arrivals."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._id = context.identity.id
        self._held: dict[bytes, Session] = {}

    # ---- dialling

    def connect(self, peer: NodeId, now: float, answer: OnConnect, known_at: Path | None = None) -> None:
        """Give ``answer`` a READY connection to ``peer``, or the error; without a record it is ``known_at`` an address.

        The live one is given at once, before this returns; so are errors that are known then. Else a dial begins, or
        the one that runs is shared, and the answer comes with its end.
        """
        if self._context.links.closed:
            answer(NodeClosed("the node was closed"))
            return
        refusal = self._context.fencing.refusal(peer)
        if refusal is not None:
            answer(refusal)
            return
        if peer == self._id:
            answer(NoPathError("a node does not connect to itself", hint="use another node's id"))
            return
        session = self._context.links.session(peer, now)
        if session is None:
            answer(NoPathError("too many peers at once", hint="close some connections first"))
            return
        if session.connection is not None:
            answer(session.connection)
            return
        session.waiting.append(answer)
        session.attempt.redials = 0
        if session.dial is None and len(session.waiting) == 1:
            self._find(session, now, known_at)

    def connect_member(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Connect to a peer for the mesh's sake, as ``connect``: not to one that may not connect here.

        A configured seed is dialled all the same; what it asks for on the connection is refused. One without a record
        is dialled where it answers the DHT: a lookup is some 60 datagrams, and its Hello brings the record.
        """
        context = self._context
        if context.guard.may_admit(peer) or peer in context.records.hints:
            self.connect(peer, now, answer, context.records.contact_at(peer, now))
        else:
            self._context.metrics.count(NOT_DIALLED)
            answer(PolicyDenied(f"{peer.short} may not connect here", hint="allow its id"))

    def _find(self, session: Session, now: float, known_at: Path | None) -> None:
        """Dial the peer once there is an address of it."""
        peer = session.peer
        cached = self._context.records.cached(peer)
        if cached is not None or peer in self._context.records.hints:
            self._dial(session, cached, now)
            return
        if known_at is not None:
            session.paths.add_candidates([(known_at, "contact")], now)
            self._dial(session, None, now)
            return

        def resolved(result: Resolved | NotFound) -> None:
            current = self._context.peers.sessions.get(peer)
            if current is None or current.connection is not None or current.dial is not None:
                return
            if isinstance(result, NotFound):
                current.answer(result)
                self._context.links.forget_if_idle(current)
            else:
                self._dial(current, result.record, self._context.clock.monotonic())

        session.attempt.check_at = now + DIAL_WATCH_S
        self._context.links.arm(session)
        self._context.records.resolve(peer, now, resolved)

    def on_seed(self, peer: NodeId, now: float) -> None:
        """Begin a dial that waited for an address; else the configured ones join those by which a peer is sought."""
        session = self._context.peers.sessions.get(peer)
        if session is None:
            return
        if session.waiting and session.dial is None:
            self._dial(session, None, now)
            return
        session.paths.add_candidates([(path, "seed") for path in self._context.records.hints[peer]], now)
        self.begin(session, now)
        self._context.probes.settle(session, now)

    def _dial(self, session: Session, record: EndpointRecord | None, now: float) -> None:
        context, peer = self._context, session.peer
        try:
            context.identity.shared_key(peer)
        except InvalidId as error:
            session.answer(error)
            self._context.links.forget_if_idle(session)
            return
        try:
            engine = context.engines.dial(
                context.identity,
                peer,
                lambda odcid: context.sealer.knock(peer, odcid),
                context.settings.idle_timeout,
                now,
                self._size(session, record),
            )
        except Exception as error:
            session.answer(ConnectionLost(f"this node's own QUIC engine failed: {error!r}"[:200]))
            self._context.links.forget_if_idle(session)
            context.timers.on_error(error)
            return
        connection = self._new_connection(session, engine, dialler=True, now=now)
        session.dial = connection
        session.attempt.begun = False
        session.attempt.check_at = now + DIAL_WATCH_S
        if record is not None:
            session.paths.peer_record(record, now)
            self._context.relays.offer(session, now)
        if peer in self._context.records.hints:
            session.paths.add_candidates([(path, "seed") for path in self._context.records.hints[peer]], now)
        context.metrics.count(DIALS)
        self.begin(session, now)
        if not session.attempt.begun:
            self._context.records.look_up(peer, now)  # what we know of it names nowhere to go: an old record, perhaps
        self._context.links.arm(session)  # also where the engine fails to send: the dial ends in time

    def _size(self, session: Session, record: EndpointRecord | None) -> int:
        """Return the size that datagrams may have from the start, by the best way that is known to the peer."""
        known: list[Path] = [endpoint.addr for endpoint in record.endpoints] if record is not None else []
        known += self._context.records.hints.get(session.peer, ())
        known += [candidate.path for candidate in session.paths.book]
        return max(map(session.paths.book.floor_of, known), default=BASE_MTU)

    def on_newer_record(self, session: Session, record: EndpointRecord, now: float) -> None:
        """Begin a dial that waited for an address."""
        self.begin(session, now)

    def begin(self, session: Session, now: float) -> None:
        """Send a dial's first flight to the most promising address, once there is one.

        Nothing happens when it was sent already.
        """
        dial = session.dial
        if dial is None or session.attempt.begun:
            return
        best = session.paths.book.best_guess()
        if best is None:
            return
        session.attempt.begun, session.attempt.strayed = True, False
        session.paths.begin(best, now)
        self._context.links.touch(dial)
        self._context.probes.drain(session, now)
        self._context.events.on_dirty()

    def is_answered(self, session: Session, source: Path, now: float) -> bool:
        """Return whether the listener's flight came from where the dial's went, and all of that went there.

        It holds keys that nothing without the first flight can make, so the address is the listener's (RFC 9000 section
        8.1), a round trip before its Welcome. The address is credited.
        """
        dial = session.dial
        if dial is None or dial.engine.peer_certificate_key is None:
            return False
        if session.attempt.strayed or source != session.paths.active:
            return False
        self._context.credit.answered(source, now)
        return True

    def _new_connection(self, session: Session, engine: Engine, *, dialler: bool, now: float) -> Connection:
        context = self._context
        record = context.record.encoded if context.record is not None else b""
        local = LocalEnd(context.identity, self._context.boot, record, context.grants)
        connection = Connection(engine, local, session.peer, context.links, dialler=dialler, now=now)
        context.peers.add(session, connection)
        return connection

    def _handshake_timeout(self, session: Session, connection: Connection) -> None:
        self._context.metrics.count(TIMEOUTS)
        if connection is session.dial:
            tried = list(session.paths.book)
            attempts = [(str(each.path), each.outcome) for each in tried]
            places = ", ".join(dict.fromkeys(in_words(each.path) for each in tried))
            heard = connection.bytes_in > 0
            text = "stopped answering during the handshake" if heard else "did not answer"
            at = f"{text} at {places}" if places else "has published no usable address"
            error: MeshError = (HandshakeTimeout if heard else NoPathError)(
                f"{session.peer.short} {at}",
                hint="is it running and reachable from here? `meshnode resolve` shows what it published",
            )
            if isinstance(error, NoPathError | HandshakeTimeout):
                error.attempts = attempts
        else:
            error = HandshakeTimeout("the dialler never finished its handshake")
        connection.abandon(error)

    def on_initial(self, data: bytes, odcid: bytes | None, source: Path, now: float) -> None:
        """Take a QUIC packet of no connection: it may begin one.

        It does when it is an Initial whose token is a valid knock, else it is dropped and counted. ``odcid`` is its
        destination connection id.
        """
        if odcid is None:
            self._context.junk.note(source, now)
            self._context.metrics.count(NO_CONNECTION)
            return
        if self._context.fencing.stood_down:
            return
        if odcid in self._held:
            self._hold_more(self._held[odcid], data, source, now)
            return
        peer = self._knocker(data, odcid, source, now)
        if peer is None:
            return
        self._context.nat.filters.heard(source, now)
        self._context.credit.earn(source, len(data), OF_CONNECTION, now)
        linked, home = self._context.sealer.senders.standing(peer)
        if not linked and not self._context.peers.half_open.take(source, peer, home, now):
            self._context.metrics.count(ACCEPTS_SLOWED)
            return
        session = self._context.links.session(peer, now)
        if session is None:
            return
        if session.dial is not None and self._id < peer and session.held is None:
            # Both dial at once: the smaller id's dial lives. Keep the other for a moment, in case it gets no answer.
            knock = packets.initial_token(data) or b""
            session.held = HeldFlight(data, knock, odcid, source, now + HELD_INITIAL_S)
            self._held[odcid] = session
            self._context.metrics.count(HELD)
            self._context.links.arm(session)
            return
        self._accept(session, [data], odcid, source, now)

    def _hold_more(self, session: Session, data: bytes, source: Path, now: float) -> None:
        """Keep the rest of a first flight that is kept aside."""
        if session.held is not None and session.held.add(data):
            self._context.credit.earn(source, len(data), OF_CONNECTION, now)

    def _knocker(self, data: bytes, odcid: bytes, source: Path, now: float) -> NodeId | None:
        """Return the peer whose valid knock a first flight bears; else drop and count it."""
        context = self._context
        token = packets.initial_token(data) if packets.is_v1_initial(data) else None
        if token is None:
            context.metrics.count(NO_CONNECTION)
            context.nat.filters.stray(source, now)
            context.junk.note(source, now)
            return None
        if not self._has_token(token, source, now):
            context.metrics.count(ACCEPTS_SLOWED)
            context.junk.note(source, now, excess=True)
            return None
        peer = context.sealer.check_knock(token, odcid, source)
        if peer is None or peer == self._id:
            context.metrics.count(BAD_KNOCK)
            context.nat.filters.stray(source, now)
            context.junk.note(source, now, excess=context.sealer.slowed)
            return None
        return peer

    def _has_token(self, token: bytes, source: Path, now: float) -> bool:
        """True when a first flight is not too many of where it came from, or names a peer that is established."""
        if self._context.peers.half_open.has_token(source, now):
            return True
        claimed = self._context.sealer.claimed_sender(token)
        return claimed is not None and self._context.sealer.senders.standing(claimed) != (False, None)

    def _accept(self, session: Session, flight: list[bytes], odcid: bytes, source: Path, now: float) -> None:
        if len(session.arrivals) >= MAX_ARRIVALS_PER_PEER:
            self._context.metrics.count(ARRIVALS_FULL)
            return
        context = self._context
        size = session.paths.book.floor_of(source)
        try:
            engine = context.engines.accept(context.identity, odcid, context.settings.idle_timeout, now, size)
        except Exception:
            self._context.links.forget_if_idle(session)
            raise
        connection = self._new_connection(session, engine, dialler=False, now=now)
        session.arrivals[connection] = Arrival(source, packets.initial_token(flight[0]) or b"")
        if session.connection is None:
            pushed_out = self._context.peers.half_open.add(connection, source)
            if pushed_out is not None:
                self._context.metrics.count(PUSHED_OUT)
                pushed_out.abandon(HandshakeTimeout("pushed out by newer handshakes of its network"))
        self._context.metrics.count(ACCEPTS)
        try:
            connection.receive(flight, now)
        except Exception:
            connection.abandon(ConnectionLost("this node's own QUIC engine failed"))
            raise
        self._context.links.touch(connection)
        self._context.links.arm(session)

    def release_held(self, session: Session) -> None:
        """Forget the first flight that was kept aside."""
        if session.held is not None:
            self._held.pop(session.held.odcid, None)
            session.held = None

    def on_dial_over(self, session: Session, error: MeshError, now: float) -> None:
        """Go on after this node's own dial failed: with the peer's dial or a second one, else with the error."""
        self._context.admission.resume(session)
        if session.connection is None and not self._goes_on(session, error, now):
            session.answer(error)

    def _goes_on(self, session: Session, error: MeshError, now: float) -> bool:
        if session.arrivals and isinstance(error, ConnectionLost) and not isinstance(error, PolicyDenied):
            return True
        return isinstance(error, PeerRestarted) and self._redial(session, now)

    def _redial(self, session: Session, now: float) -> bool:
        """Dial a peer again that restarted in the middle of a dial. False after a few times."""
        session.attempt.redials += 1
        if not session.waiting or session.attempt.redials > MAX_REDIALS:
            return False
        self._dial(session, self._context.records.cached(session.peer), now)
        return True

    def _check(self, session: Session, now: float) -> None:
        """Refresh a slow dial: watch for a newer record; abandon it when the peer has restarted.

        A peer that has restarted rejects knocks that are older than its start.
        """
        dial = session.dial
        late = self._context.late_by
        session.attempt.check_at = now + max(DIAL_REFRESH_S, late)
        is_early = dial is None or now < dial.started + DIAL_REFRESH_S
        if dial is None or not is_early or not dial.bytes_in:
            # a peer that moved, or starts, or waits for a relay, publishes only later
            self._context.records.watch_if_used(session.peer, now, dialling=True)
        if dial is None or is_early:
            return
        self._context.records.seek(session.peer, now)
        if dial.bytes_in:
            self._context.admission.ask_of(dial)
            return
        in_use = session.paths.book.current
        if in_use is not None and in_use.answered >= dial.started and not in_use.mtu.carries:
            return  # it may be too small for a first flight, which is being found out
        for path in session.paths.book:
            ran = now - dial.started - dial.handshake.late
            waited = ran >= max(2 * DIAL_REFRESH_S, 3 * (path.rtt or 0.0), 2 * late)
            if path.answered >= dial.started and waited and session.attempt.redials < MAX_REDIALS:
                dial.abandon(PeerRestarted(f"{session.peer.short} answers, but not our first flight"))
                return

    # ---- time

    def deadline(self, session: Session) -> float | None:
        """Return when ``tick`` is wanted for this peer, in monotonic seconds; None when nothing is awaited.

        That is the first of: a handshake's timeout, the refresh of a slow dial, the end of a first flight kept aside.
        """
        waits = [session.held.deadline] if session.held is not None else []
        if session.dials:
            waits.append(session.attempt.check_at)
        for connection in session.connections():
            if connection.state is State.HANDSHAKE:
                waits.append(_handshake_ends(connection))
        return min(waits, default=None)

    def tick(self, session: Session, now: float) -> None:
        """Give up handshakes over ``HANDSHAKE_TIMEOUT_S``, refresh a slow dial, accept a flight kept aside."""
        for connection in session.connections():
            if connection.state is State.HANDSHAKE and now >= _handshake_ends(connection):
                self._handshake_timeout(session, connection)
        if session.dials and now >= session.attempt.check_at:
            self._check(session, now)
        if session.held is not None and session.held.deadline <= now:
            self._accept_held(session, session.held, now)

    def _accept_held(self, session: Session, held: HeldFlight, now: float) -> None:
        """Accept the first flight kept aside when this node's own dial got no answer."""
        self.release_held(session)
        dial = session.dial
        if session.connection is None and (dial is None or dial.bytes_in == 0):
            self._accept(session, held.datagrams, held.odcid, held.source, now)


def _handshake_ends(connection: Connection) -> float:
    """Return when an unfinished handshake is given up: time in which this process did not run does not count."""
    return connection.started + HANDSHAKE_TIMEOUT_S + connection.handshake.late


def live_connection(context: Context, peer: NodeId) -> Connection | None:
    """Return the ready connection to ``peer``, which the application uses from now on.

    None when it must be dialled, and where that is refused: ``Dialing.connect`` says why.
    """
    connection = context.peers.connection(peer)
    if connection is None or context.links.closed or context.fencing.refusal(peer) is not None:
        return None
    if context.use is not None:
        context.use.add(peer)
    return connection
