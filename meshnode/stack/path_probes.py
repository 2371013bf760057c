"""Sealed probes: carries out the effects of path cores, keeps the one table of unanswered PINGs, answers PINGs.

Here are the PINGs of this node that are about a peer: echoes, which the application and dials await, and gossip's
signs of life. Those about one path of a peer are that peer's path core's, which chose the path and the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import BASE_MTU, MAX_UNANSWERED_PINGS
from meshnode.base.metrics import describe
from meshnode.base.path import Path, udp_address
from meshnode.base.path_reason import PathReason
from meshnode.base.timers import Timer
from meshnode.base.value import state
from meshnode.errors import PeerRestarted
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.paths.effects import (
    EXPAND,
    MOVED,
    Answered,
    Effect,
    FellSilent,
    MtuChanged,
    NeedIntroduction,
    NeedRecord,
    Nudge,
    Resumed,
    SendProbe,
    Suspended,
    Switched,
    Validated,
)
from meshnode.quic.connection import Connection, State
from meshnode.stack import probe
from meshnode.stack.address_credit import Cause
from meshnode.stack.component import Component, tell
from meshnode.stack.context import Context
from meshnode.stack.probe import Pinged
from meshnode.stack.session import Session

SWITCHES = describe("path_switches", "times that a peer's packets were sent another way")
SUSPENDED = describe("suspended", "connections left without any working path")
RESTARTED = describe("peer_restarted", "connections given up because the peer said that it does not know them")
BAD_PING = describe("drop_ping", "malformed PINGs of members")
OF_TWIN = describe("drop_pong_of_twin", "PONGs dropped: of another host that uses the key of a connected peer")
BAD_PONG = describe("drop_pong", "malformed PONGs of members")

OTHER_TIMERS_S = 1.0  # within which a connection's timers are due, but for that of its idle time
ASK_S = 10.0  # a later answer to one of gossip's PINGs is no sign of life


@state
class _Unanswered:
    """A PING; ``done`` is called once: with True when the peer does not know the connection, None when it is lost."""

    peer: NodeId
    tag: bytes
    path: Path
    is_echo: bool
    done: Callable[[bool | None, float], None]
    timer: Timer

    def end(self, unknown: bool | None, now: float) -> None:
        """Tell what came of it; None: no answer."""
        self.timer.cancel()
        self.done(unknown, now)


class PathProbes(Component):
    """Carries out path effects; answers PINGs; matches PONGs."""

    kinds = (probe.PING, probe.PONG)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._peers = context.peers
        self._unanswered: BoundedDict[bytes, _Unanswered] = BoundedDict(MAX_UNANSWERED_PINGS)

    # ---- effects of path cores

    def settle(self, session: Session, now: float) -> None:
        """Carry out what the session's paths want done, and set its timer.

        To be called after each call to its paths that does not end in a flush of its connection.
        """
        self.drain(session, now)
        self._context.links.arm(session)

    def drain(self, session: Session, now: float) -> None:
        """Carry out what the session's paths want done."""
        effects = session.paths.take_effects()
        if effects:
            self.carry_out(session, effects, now)

    def carry_out(self, session: Session, effects: Sequence[Effect], now: float) -> None:
        """Carry out effects of the session's paths."""
        nudge = False
        for effect in effects:
            if isinstance(effect, SendProbe):
                self._send_probe(session, effect)
            elif isinstance(effect, Switched):
                self._switched(session, effect, now)
                nudge = nudge or effect.failed
            elif isinstance(effect, Nudge):
                self._context.events.on_path(session.peer, effect.path, effect.path, effect.reason)
                nudge = True
            elif isinstance(effect, Resumed):
                self._context.events.on_path(session.peer, None, session.paths.active, PathReason.RESUMED)
                nudge = True
            else:
                self._carry(session, effect, now)
        connection = session.connection or session.dial
        if nudge and connection is not None:
            connection.engine.nudge(now)
            self._context.links.touch(connection)

    def _carry(self, session: Session, effect: Effect, now: float) -> None:
        context = self._context
        connection = session.connection or session.dial
        if isinstance(effect, Suspended):
            context.metrics.count(SUSPENDED)
            context.events.on_path(session.peer, session.paths.active, None, PathReason.SUSPENDED)
        elif isinstance(effect, Validated | MtuChanged):
            if connection is not None:
                self._tell_connection(connection, effect)
        elif isinstance(effect, FellSilent | Answered):
            silent = isinstance(effect, FellSilent)
            tell(context.hooks.silence, context.timers.on_error, session.peer, silent, now)
        elif isinstance(effect, NeedRecord):
            context.records.seek(session.peer, now)
        elif isinstance(effect, NeedIntroduction):
            context.relays.ask_introduction(session)

    def _tell_connection(self, connection: Connection, effect: Validated | MtuChanged) -> None:
        if isinstance(effect, MtuChanged):
            connection.engine.set_datagram_size(effect.size)
        else:
            self._context.links.touch(connection)

    def _send_probe(self, session: Session, effect: SendProbe) -> None:
        ping = probe.Ping(effect.flags, effect.tx, probe.connection_tag(session.connection))
        body = probe.encode_ping(ping, max(probe.MIN_PING, effect.pad_to - SEAL_OVERHEAD))
        cause = Cause.PROBE if effect.named else Cause.ANSWER
        sent = self._context.sender.send_sealed(session.peer, effect.path, body, cause)
        if not sent and effect.pad_to and effect.flags & MOVED:  # it may be short where there is no credit for a packet
            sent = self._context.sender.send_sealed(session.peer, effect.path, body[: probe.MIN_PING], cause)
        if not sent:
            session.paths.unsent(effect.tx)

    def _switched(self, session: Session, switched: Switched, now: float) -> None:
        if switched.old not in (None, switched.new):
            self._context.metrics.count(SWITCHES)
            session.attempt.strayed = True
        tell(self._context.hooks.switched, self._context.timers.on_error, session, switched, now)
        self._context.events.on_path(session.peer, switched.old, switched.new, switched.reason)

    # ---- PINGs of this node

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path.

        ``answer`` gets the round trip, or None for it when no answer came within ``timeout`` seconds, or the peer does
        not know the connection; the latter ends the connection.
        """
        peer = connection.peer
        session = self._peers.sessions.get(peer)
        active = session.paths.active if session is not None else None
        if session is None or active is None:
            answer(Pinged(None, "none"))
            return
        kind, tag = session.paths.book.kind(active), probe.connection_tag(connection)

        def done(unknown: bool | None, then: float) -> None:
            if unknown is not None and (heard := self._peers.sessions.get(peer)) is not None:
                heard.paths.on_answer(then)
            answer(Pinged(then - now if unknown is False else None, kind, active))
            if unknown:
                self._forgotten(tag)

        tx = self._expect(peer, tag, active, now + timeout, done, is_echo=True)
        session.paths.watchdog.expect(now)
        self._context.links.arm(session)
        body = probe.encode_ping(probe.Ping(probe.ECHO, tx, tag))
        self._context.sender.send_sealed(peer, active, body, Cause.DIAL if connection is session.dial else Cause.ANSWER)
        self._context.events.on_dirty()

    def ask(
        self, peer: NodeId, connection: Connection | None, paths: Sequence[Path], now: float, alive: Callable[[], None]
    ) -> None:
        """Send a PING to each address; ``alive`` is called for each one that the peer answers within ``ASK_S``.

        ``connection`` is the one to that peer, if any: when the peer does not know it, it is given up.
        """
        tag = probe.connection_tag(connection)

        def done(unknown: bool | None, then: float) -> None:
            if unknown is not None:
                alive()
            if unknown:  # a neighbour that is none: it has restarted, or its goodbye was lost
                self._forgotten(tag)

        for path in paths:
            tx = self._expect(peer, tag, path, now + ASK_S, done, is_echo=False)
            self._context.sender.send_sealed(peer, path, probe.encode_ping(probe.Ping(0, tx, tag)), Cause.PROBE)

    def ping_once(self, session: Session, path: Path) -> None:
        """Send one probe of a port search.

        Its answer is ignored: a peer that gets it probes this node in turn.
        """
        tag = probe.connection_tag(session.connection)
        ping = probe.Ping(0, self._context.entropy(probe.TX_LENGTH), tag)
        self._context.sender.send_sealed(session.peer, path, probe.encode_ping(ping), Cause.SEARCH)

    def _expect(
        self,
        peer: NodeId,
        tag: bytes,
        path: Path,
        deadline: float,
        done: Callable[[bool | None, float], None],
        *,
        is_echo: bool,
    ) -> bytes:
        tx = self._context.entropy(probe.TX_LENGTH)
        timer = self._context.timers.at(deadline, lambda now: self._end(tx, None, now))
        pushed_out = self._unanswered.put(tx, _Unanswered(peer, tag, path, is_echo, done, timer))
        if pushed_out is not None:
            pushed_out[1].end(None, self._context.clock.monotonic())
        return tx

    def _end(self, tx: bytes, unknown: bool | None, now: float) -> None:
        ping = self._unanswered.pop(tx, None)
        if ping is not None:
            ping.end(unknown, now)

    def on_closed(self, connection: Connection, now: float) -> None:
        """Give up echoes on a connection that is over: none comes back."""
        tag = probe.connection_tag(connection)
        for tx in [tx for tx, ping in self._unanswered.items() if ping.is_echo and ping.tag == tag]:
            self._end(tx, None, now)

    # ---- PINGs and PONGs of others

    def on_sealed(self, sender: NodeId, body: bytes, source: Path, size: int, now: float) -> None:
        """Handle a PING or a PONG."""
        if body[0] == probe.PING:
            self.on_ping(sender, body, source, now)
        else:
            self.on_pong(sender, body, source, size, now)

    def on_ping(self, sender: NodeId, body: bytes, source: Path, now: float) -> None:
        """Answer the PING of a member with a PONG to where it came from, whether or not there is a session.

        The PONG says when this node does not know the connection that the PING names.
        """
        context = self._context
        ping = probe.decode_ping(body)
        if ping is None:
            context.metrics.count(BAD_PING)
            return
        connection = self._peers.by_tag.get(ping.handle)
        known = connection is not None and connection.peer == sender
        flags = 0 if known or ping.handle == probe.NO_HANDLE else probe.NO_CONN
        size = min(len(body), BASE_MTU - SEAL_OVERHEAD) if ping.flags & EXPAND else 0
        pong = probe.encode_pong(probe.Pong(flags, ping.tx, udp_address(source)), size)
        context.sender.send_sealed(sender, source, pong)
        tell(context.hooks.probed, context.timers.on_error, sender, now)
        session = self._peers.sessions.get(sender)
        if session is None:
            return
        if known:
            session.paths.on_ping(source, ping.flags, now)
            self.settle(session, now)
            if session.outbox and session.connection is not None:  # it has earned some of what is held
                context.links.touch(session.connection)
        elif ping.flags & MOVED:  # in the middle of its dial
            for arrival in session.arrivals.values():
                arrival.follow(source, True)

    def on_pong(self, sender: NodeId, body: bytes, source: Path, size: int, now: float) -> None:
        """Match a member's answer with the PING of this node that it answers.

        Its observed address is evidence of this node's NAT mapping, if it was asked. When it says that the peer does
        not know the connection, that is given up, unless the PING is older than the connection.
        """
        pong = probe.decode_pong(body)
        if pong is None:
            self._context.metrics.count(BAD_PONG)
            return
        unknown = bool(pong.flags & probe.NO_CONN)
        if unknown and self._is_of_twin(sender, now):
            self._context.metrics.count(OF_TWIN)
            return
        ping = self._unanswered.get(pong.tx)
        if ping is not None and ping.peer == sender:
            if pong.observed is not None:
                self._context.own.seen_as(sender, source, pong.observed, now)
            self._context.credit.answered(ping.path, now)
            self._context.sealer.doubt.settle()
            self._end(pong.tx, unknown, now)
            return
        session = self._peers.sessions.get(sender)
        if session is None:
            return
        answered = session.paths.on_pong(pong.tx, now)
        if answered is not None:
            if pong.observed is not None:
                self._context.own.seen_as(sender, source, pong.observed, now)
                session.paths.keepalive.answered(pong.observed)
            self._context.credit.answered(answered.path, now)
            self._context.sealer.doubt.settle()
        connection = session.connection
        if answered is not None and unknown and connection is not None and answered.sent >= session.ready_at:
            self._forgotten(probe.connection_tag(connection))  # not for a late answer about the one before
        elif answered is not None and connection is not None and connection.state is State.READY:
            _keep_open(self._context, session, connection, now)
        self.settle(session, now)

    def _is_of_twin(self, sender: NodeId, now: float) -> bool:
        """Return whether a PONG may be of another host with the same key: it knows nothing of what is with this one."""
        session = self._peers.sessions.get(sender)
        if session is None or session.connection is None or not self._peers.twins.is_twice(sender, now):
            return False
        return session.is_heard(now)

    def _forgotten(self, tag: bytes) -> None:
        """Give up a connection that the peer does not know: it has restarted, or its goodbye was lost."""
        connection = self._peers.by_tag.get(tag)
        if connection is None or connection.state is State.CLOSED:
            return
        self._context.metrics.count(RESTARTED)
        connection.abandon(PeerRestarted(f"{connection.peer.short} has restarted and knows nothing of us"))
        session = self._peers.sessions.get(connection.peer)
        if session is not None:
            self._context.admission.resume(session)


def _keep_open(context: Context, session: Session, connection: Connection, now: float) -> None:
    """Ask for a packet of a connection whose idle time is half over: sealed PINGs do not count for QUIC.

    So one whose peer answers lasts while there are streams on it, or a reservation needs it.
    """
    most = max(context.settings.idle_timeout / 2, 2 * session.paths.keepalive.every_s)
    at = connection.engine.next_timer()  # that of the idle time, where no other is set
    if at is None or not OTHER_TIMERS_S < at - now < most:
        return
    if len(connection.streams) or context.relays.uses(connection.peer):
        connection.engine.ping()
        context.links.touch(connection)
