"""QUIC in and out: routes packets to connections by connection id, sends what connections have for their paths.

Connections report here (``ConnectionEvents``). Each session has one timer, at the earliest of everything that it
waits for. How connections begin is in ``dialing.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice

from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import Groups
from meshnode.base.limits import MAX_HELD_DATAGRAMS, MAX_SESSIONS, SMALL_BACKLOG
from meshnode.base.metrics import describe
from meshnode.base.path import Path
from meshnode.base.timers import RETRY_S, phase_of
from meshnode.errors import ConnectionLost, MeshError, NodeClosed, PeerSilent
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.paths.peer import PeerPaths, look_for_silence_at
from meshnode.quic.connection import Connection, KeyInUse, State
from meshnode.quic.hello import CloseCode, Hello
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import Stream
from meshnode.stack.address_credit import OF_CONNECTION, Cause
from meshnode.stack.component import Component, tell
from meshnode.stack.context import Context
from meshnode.stack.hoards import Hoards
from meshnode.stack.session import Arrival, Session
from meshnode.trust.policy import Act

CONNECTIONS = describe("connections", "connections whose two keys were proven")
SESSIONS_FULL = describe("drop_sessions_full", "peers turned away: too many at once")
HELD_BACK = describe("held_by_amplification", "datagrams held until their address was validated")
REFUSED_SERVICE = describe("refused_service_policy", "streams of peers that may not use the service")
REFUSED_STREAM = describe(
    "refused_stream_policy", "streams of peers that policy does not admit, on this node's own dials"
)
FRAMES_MANY = describe("control_frames_many", "connections ended: their peer sent too many control frames")
NO_KNOCK = describe("drop_initial_knock", "Initials of a half-open handshake that lack its knock")
HELD_LOST = describe("held_lost", "held datagrams dropped: too many")


class Connections(Component):
    """All sessions' packets and timers."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers = context.peers
        self._monotonic = context.clock.monotonic
        self._proven = context.credit.proven
        self.count = context.metrics.count
        self._dirty: dict[Connection, None] = {}
        self._is_answer_due = False  # of all that is dirty: not for one packet of data, which an application may answer
        self._hoards = Hoards(context.peers.groups_of, context.metrics)
        self.closed = False
        self._phase = phase_of(bytes(context.identity.id))
        self.awaited: dict[NodeId, Callable[[float], object]] = {}  # told that a packet of a peer came

    # ---- sessions

    def session(self, peer: NodeId, now: float) -> Session | None:
        """Return the peer's session, a new one when there is none.

        None when there are ``MAX_SESSIONS``.
        """
        sessions = self._peers.sessions
        found = sessions.get(peer)
        if found is None:
            context = self._context
            if len(sessions) >= MAX_SESSIONS:
                context.metrics.count(SESSIONS_FULL)
                return None
            settings = context.settings
            paths = PeerPaths(
                peer,
                rng=context.rng,
                entropy=context.entropy,
                now=now,
                mtu_ceiling=settings.path_mtu,
                loopback_mtu=settings.loopback_mtu,
                leaf=settings.leaf,
                phase=self._phase,
                idle=settings.idle_timeout,
            )
            paths.book.here = self._peers.here
            found = sessions[peer] = Session(peer, paths, context.timers, self._tick)
        return found

    def forget_if_idle(self, session: Session) -> None:
        """Drop a session of which nothing is worth keeping, with its paths and timer.

        Components that keep something for the peer hear of it.
        """
        if session.idle and self._peers.sessions.get(session.peer) is session:
            del self._peers.sessions[session.peer]
            session.timer.cancel()
            tell(self._context.hooks.session_gone, self._context.timers.on_error, session, self._monotonic())

    def close(self, now: float) -> None:
        """Say goodbye on every connection; those that wait for one are told ``NodeClosed``.

        Nothing is waited for: the goodbye may be lost.
        """
        self.closed = True
        for session in list(self._peers.sessions.values()):
            try:
                for connection in session.connections():
                    if connection.state is State.READY:
                        connection.close(CloseCode.SHUTDOWN, "the node is shutting down")
                    else:
                        connection.abandon(NodeClosed("the node was closed"))
                session.answer(NodeClosed("the node was closed"))
            except Exception as error:  # the others end all the same
                self._context.timers.on_error(error)

    # ---- QUIC in

    def on_packets(self, connection: Connection, datagrams: list[bytes], source: Path, now: float) -> None:
        """Feed a connection what came for it from one source.

        A source that is new to the connection becomes a candidate, and is not used before it is validated (RFC 9000
        section 9.3).
        """
        session = self._peers.session_of.get(connection)
        arrival = session.arrivals.get(connection) if session is not None and session.arrivals else None
        if arrival is not None and not (datagrams := _knocked(self._context, arrival, datagrams, source, now)):
            return
        newest = connection.receive(datagrams, now)
        if (backlog := connection.engine.backlog) > SMALL_BACKLOG or self._hoards.sizes:
            self._hoards.note(connection, backlog)
        if session is not None:
            if not connection.streams.has_come or len(datagrams) > 1:
                self._is_answer_due = True
            if connection.streams.has_come:  # bytes for the application: more are to be expected
                connection.streams.has_come = False
                session.paths.watchdog.data_at = now
            # of a half-open connection only what its dialler alone can make moves it
            earns = newest if arrival is None else arrival.follow(source, newest)
            if earns and source not in self._proven:
                self._context.credit.earn(source, sum(map(len, datagrams)), OF_CONNECTION, now)
            if arrival is None:
                proven = connection is session.dial and self._context.dials.is_answered(session, source, now)
                session.paths.on_received(source, newest, now, proven=proven)
                if newest and self.awaited and (heard := self.awaited.get(session.peer)) is not None:
                    heard(now)
        self._dirty[connection] = None
        self._context.dirty[self] = None

    # ---- QUIC out

    def touch(self, connection: Connection) -> None:
        """Have the connection send at the next flush, if it has anything."""
        self._is_answer_due = True
        self._dirty[connection] = None
        self._context.dirty[self] = None

    def _touch_again(self, connection: Connection, _: float) -> None:
        self.touch(connection)

    def may_wait(self, now: float) -> bool:
        """Return whether all that the stack has to send is ACKs that are not due: an application's answer carries them.

        With something in flight that is not known: what has come may have made room for what waits to be sent.
        """
        if self._is_answer_due or not self._dirty or len(self._context.dirty) > 1:
            return False
        for connection in self._dirty:
            at = connection.engine.next_timer()
            if at is None or at <= now or connection.engine.in_flight():
                return False
        return True

    def flush(self, now: float) -> None:
        """Send what is due.

        When a connection raises, the others go in the next round, and it is tried again after ``RETRY_S``.
        """
        dirty, self._dirty, self._is_answer_due = self._dirty, {}, False
        done = 0
        try:
            for connection in dirty:
                done += 1
                session = self._peers.session_of.get(connection)
                if session is not None:
                    self._transmit(session, connection, now)
        except Exception:  # the others' turn is the next round, that of the one that failed comes later
            self._context.timers.at(now + RETRY_S, partial(self._touch_again, connection))
            for waiting in islice(dirty, done, None):
                self.touch(waiting)
            raise

    def _transmit(self, session: Session, connection: Connection, now: float) -> None:
        datagrams = connection.transmit(now)
        paths = session.paths
        if connection is session.connection and ((flying := connection.engine.in_flight()) or paths.watchdog.in_flight):
            paths.set_in_flight(flying, now)
        if datagrams or session.outbox:
            self._send(session, connection, datagrams, now)
        if (session.connection is connection or session.dial is connection) and (effects := paths.take_effects()):
            self._context.probes.carry_out(session, effects, now)
        elif session.connection is connection:
            # All that packets move is the engine's deadline and that of silence, for which the watchdog has a bound: to
            # ask the paths costs more than a packet.
            at = connection.engine.next_timer()
            due = min(paths.due, look_for_silence_at(paths, now))
            session.timer.set(due if at is None or due < at else at)
            return
        self.arm(session)

    def _send(self, session: Session, connection: Connection, datagrams: list[bytes], now: float) -> None:
        sender = self._context.sender
        if session.arrivals and (arrival := session.arrivals.get(connection)) is not None:
            if datagrams:
                sender.send(session.peer, arrival.source, datagrams)
            return
        paths = session.paths
        active = paths.active
        if active is None:
            return
        if session.outbox:
            datagrams = [*session.outbox, *datagrams]
            session.outbox.clear()
        if datagrams:
            cause = Cause.DIAL if connection is session.dial else Cause.ANSWER
            sent = sender.send(session.peer, active, datagrams, cause)
            if sent < len(datagrams):
                self._hold_back(session, datagrams[sent:])

    def _hold_back(self, session: Session, rest: list[bytes]) -> None:
        """Keep what the address may not be sent yet until it is validated, or has earned more."""
        metrics = self._context.metrics
        metrics.count(HELD_BACK, len(rest))
        if len(rest) > MAX_HELD_DATAGRAMS:
            metrics.count(HELD_LOST, len(rest) - MAX_HELD_DATAGRAMS)
        session.outbox.extend(rest)
        del session.outbox[:-MAX_HELD_DATAGRAMS]

    # ---- time

    def arm(self, session: Session) -> None:
        """Set the session's timer to the earliest of everything that it waits for.

        To be called after any change of its paths, connections or dials.
        """
        at = session.paths.next_deadline()
        if session.connection is None or session.arrivals or session.held is not None:
            dial = self._context.dials.deadline(session)
            if dial is not None:
                session.paths.due = min(session.paths.due, dial)
                at = dial if at is None or dial < at else at
        for connection in filter(None, (session.connection, session.dial, *session.arrivals)):
            timer = connection.engine.next_timer()
            if timer is not None and (at is None or timer < at):
                at = timer
        session.timer.set(at)

    def _tick(self, session: Session, now: float) -> None:
        failed: Exception | None = None
        for connection in session.connections():
            try:
                at = connection.engine.next_timer()
                if at is not None and at <= now:
                    connection.on_timer(now)
                    self.touch(connection)
            except Exception as error:  # one that fails keeps no handshake from its end, and no path from its time
                failed = error
        self._context.dials.tick(session, now)
        at = session.paths.next_deadline()
        if at is not None and at <= now:
            session.paths.tick(now, self._context.late_by)
        self._context.probes.drain(session, now)
        if failed is not None:
            _end_if_silent(self._context, session, now)
        self.forget_if_idle(session)
        self.arm(session)
        if failed is not None:
            session.timer.set(now + RETRY_S)
            raise failed

    # ---- what connections tell (ConnectionEvents)

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """Route a connection id that this node has issued, or one no more that was retired."""
        if issued:
            self._peers.by_cid[cid] = connection
        else:
            self._peers.retire_cid(connection, cid)

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """Decide about an arrival, or a dial, whose peer has proven its key."""
        self._context.admission.on_hello(connection, hello)

    def on_ready(self, connection: Connection) -> None:
        """Make a connection the peer's: both keys are proven and policy agrees.

        A dial that runs still is given up, and those that wait for a connection get this one.
        """
        context, peer = self._context, connection.peer
        now = self._monotonic()
        session = self._peers.session_of.get(connection)
        if session is None:
            return
        arrival = session.arrivals.pop(connection, None)
        self._peers.half_open.discard(connection)
        session.deferred = None
        session.connection, session.ready_at = connection, now
        if not connection.dialler:
            self._peers.retire_cid(connection, connection.engine.odcid)
            if arrival is not None:
                self._accept(session, arrival.source, now, round_trip=not arrival.moved)
        elif session.paths.active is not None:
            self._accept(session, session.paths.active, now, round_trip=not session.attempt.strayed)
        connection.engine.set_datagram_size(session.paths.mtu.size)
        dial, session.dial = session.dial, None
        if dial is not None and dial is not connection:
            dial.abandon(ConnectionLost("the peer's own dial was faster"))
        context.dials.release_held(session)
        try:
            if connection.peer_record:
                context.records.offer(connection.peer_record, "connection", now)
            if connection.dialler:  # one of the two is enough to find the other, and a relay need not watch its clients
                context.records.watch_if_used(peer, now)
            context.metrics.count(CONNECTIONS)
            context.sealer.keep_key(peer)
            self.touch(connection)
        finally:  # none of this keeps those that wait from what is there
            session.answer(connection)
        _tell_of_link(context, connection, True, now)

    def _accept(self, session: Session, path: Path, now: float, *, round_trip: bool) -> None:
        if round_trip:
            self._context.credit.answered(path, now)
        session.paths.accept(path, now, round_trip=round_trip)

    def on_record(self, connection: Connection, encoded: bytes) -> None:
        """Take the newest record of a live peer, which pushed it."""
        self._context.records.pushed(connection.peer, encoded, self._monotonic())

    def on_frame(self, connection: Connection, fields: list[object]) -> None:
        """Give a control frame to the component that owns it.

        Unknown ones are ignored, for later versions may add some. A peer that sends too many loses its connection.
        """
        kind, now = fields[0], self._monotonic()
        session = self._peers.session_of.get(connection)
        if session is not None and not session.frames.take(1, now):
            self._context.metrics.count(FRAMES_MANY)
            connection.close(CloseCode.PROTOCOL, "too many control frames")
            return
        hook = self._context.hooks.control.get(kind) if isinstance(kind, int) else None
        if hook is not None:
            hook(connection, fields, now)

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """Offer a stream, whose peer named a service, to the components, then to the application.

        A peer that policy does not admit may be connected because this node dialled it: it gets no service.
        """
        for hook in self._context.hooks.stream:
            if hook(connection, stream):
                return
        context, peer, service = self._context, connection.peer, stream.service
        decision = context.guard.ask(Act.SERVICE, peer, service)
        if decision.allowed:
            context.events.on_stream(connection, stream)
        else:
            context.metrics.count(REFUSED_SERVICE if context.guard.admits(peer) else REFUSED_STREAM)
            context.events.on_refused(peer, Act.SERVICE, service, decision)
            stream.refuse(StreamStatus.DENIED, decision.told)

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """Clear up after a connection that is over, for whatever reason.

        A failed dial may be followed by another; a peer's ready connection is not made again unless it is asked for.
        """
        session = self._peers.remove(connection)
        if session is None:
            return
        context, now = self._context, self._monotonic()
        self._hoards.forget(connection)
        context.probes.on_closed(connection, now)
        try:
            self._send(session, connection, connection.engine.transmit(now), now)
        except Exception as failure:  # an end that cannot be told to the peer is one all the same
            context.timers.on_error(failure)
        session.arrivals.pop(connection, None)
        if isinstance(error, KeyInUse) and connection in (session.connection, session.dial):
            was_ready = connection is session.connection
            context.fencing.on_proof(session.peer, error.proof, now, was_ready=was_ready)
        if session.deferred is not None and session.deferred[0] is connection:
            session.deferred = None
        if session.dial is connection:
            session.dial = None
            context.dials.on_dial_over(session, error, now)
        if session.connection is connection:
            session.connection = session.introduction = None
            session.outbox.clear()
            _tell_of_link(context, connection, False, now)
        connection.release()
        self.forget_if_idle(session)

    def source_of(self, connection: Connection) -> Groups:
        """Return the groups of where a connection's peer is now (``path_shares``)."""
        session = self._peers.session_of.get(connection)
        active = session.paths.active if session is not None else None
        return path_shares(active) if active is not None else (connection.peer,) * 3

    def on_dirty(self, connection: Connection) -> None:
        """Note that a connection has something to send."""
        self._is_answer_due = True
        self._dirty[connection] = None
        self._context.dirty[self] = None
        self._context.events.on_dirty()

    # ---- hooks

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Tell every live peer this node's newest record."""
        for session in list(self._peers.sessions.values()):
            if session.connection is not None:
                session.connection.push_record(record.encoded)


def _end_if_silent(context: Context, session: Session, now: float) -> None:
    """End a connection whose engine fails to: nothing was heard of the peer for the idle timeout."""
    connection, heard = session.connection, max(session.ready_at, session.heard_at())
    if connection is not None and now - heard >= context.settings.idle_timeout:
        connection.abandon(PeerSilent(f"nothing was heard of {session.peer.short} for the idle timeout"))


def _tell_of_link(context: Context, connection: Connection, up: bool, now: float) -> None:
    tell((context.events.on_connection,), context.timers.on_error, connection, up)
    tell(context.hooks.link, context.timers.on_error, connection, up, now)


def _knocked(context: Context, arrival: Arrival, datagrams: list[bytes], source: Path, now: float) -> list[bytes]:
    """Return the part of a half-open handshake that may be fed; an Initial without its knock is dropped and counted."""
    found = arrival.knocked(datagrams)
    for _ in range(len(datagrams) - len(found)):
        context.metrics.count(NO_KNOCK)
        context.junk.note(source, now)
    return found
