"""Sealed probes: what a peer's path core wants done, and the PINGs and PONGs that come in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.base.address import Addr
from meshnode.base.metrics import describe
from meshnode.errors import PeerRestarted
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.paths.effects import (
    Answered,
    FellSilent,
    MtuChanged,
    NeedIntroduction,
    NeedRecord,
    Resumed,
    SendProbe,
    Suspended,
    Switched,
    Validated,
)
from meshnode.quic.connection import Connection, State
from meshnode.stack import probe
from meshnode.stack.deadlines import earlier
from meshnode.stack.session import Session

if TYPE_CHECKING:
    from meshnode.stack.peer_table import PeerTable

SWITCHES = describe("path_switches", "times that a peer's packets were sent another way")
SUSPENDED = describe("suspended", "connections left without any working path")
RESTARTED = describe("peer_restarted", "connections given up because the peer said that it does not know them")
BAD_PING = describe("drop_ping", "malformed PINGs of members")
BAD_PONG = describe("drop_pong", "malformed PONGs of members")


@dataclass(frozen=True, slots=True)
class Pinged:
    """The outcome of one echo: round trip in seconds (None: lost), the kind of path it took, and where to."""

    rtt: float | None
    path: str
    endpoint: Addr | None = None


@dataclass(slots=True)
class _Echo:
    sent: float
    deadline: float
    path: str
    addr: Addr
    connection: Connection
    answer: Callable[[Pinged], None]


class PathProbes:
    """Carries out path effects; answers PINGs; matches PONGs."""

    def __init__(self, peers: PeerTable) -> None:
        self._peers = peers
        self._ports = peers.ports
        self._echoes: dict[bytes, _Echo] = {}

    # ---- out

    def drain(self, session: Session, now: float) -> None:
        """Carry out what the session's paths want done."""
        connection = session.connection or session.dial
        events, metrics = self._ports.events, self._ports.metrics
        nudge = False
        for effect in session.paths.take_effects():
            if isinstance(effect, SendProbe):
                handle = connection_tag(connection) if connection is session.connection else probe.NO_HANDLE
                ping = probe.Ping(effect.flags, effect.tx, handle)
                body = probe.encode_ping(ping, max(probe.MIN_PING, effect.pad_to - SEAL_OVERHEAD))
                self._peers.outlet.send_sealed(session.peer, effect.addr, body)
            elif isinstance(effect, Switched):
                metrics.count(SWITCHES)
                self._peers.searching.on_switched(session, effect.new)
                events.on_path(session.peer, effect.old, effect.new, effect.why)
                nudge = nudge or effect.nudge
                if effect.nudge and effect.new != effect.old:
                    self._peers.relaying.suspect(effect.old, now)
            elif isinstance(effect, Resumed):
                events.on_path(session.peer, None, session.paths.active, "resumed")
                nudge = True
            elif isinstance(effect, Suspended):
                metrics.count(SUSPENDED)
                events.on_path(session.peer, session.paths.active, None, "suspended")
            elif isinstance(effect, Validated):
                if connection is not None:
                    self._peers.touch(connection)
            elif isinstance(effect, MtuChanged):
                if connection is not None:
                    connection.engine.set_datagram_size(effect.size)
            elif isinstance(effect, FellSilent | Answered):
                self._peers.on_silence(session.peer, isinstance(effect, FellSilent), now)
            elif isinstance(effect, NeedRecord):
                self._peers.finder.seek(session.peer, now)
            elif isinstance(effect, NeedIntroduction):
                self._peers.relaying.ask_introduction(session)
        if nudge and connection is not None:
            connection.engine.nudge(now)
            self._peers.touch(connection)

    def ping_once(self, session: Session, addr: Addr) -> None:
        """Send one probe whose answer says nothing new: whoever gets it probes us in turn."""
        ping = probe.Ping(0, self._ports.entropy(probe.TX_LENGTH), connection_tag(session.connection))
        self._peers.outlet.send_sealed(session.peer, addr, probe.encode_ping(ping))

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path."""
        session = self._peers.sessions.get(connection.peer)
        active = session.paths.active if session is not None else None
        if session is None or active is None:
            answer(Pinged(None, "none"))
            return
        tx = self._ports.entropy(probe.TX_LENGTH)
        self._echoes[tx] = _Echo(now, now + timeout, session.paths.path_kind(active), active, connection, answer)
        session.paths.expect_answer(now)
        self._peers.arm(session)
        body = probe.encode_ping(probe.Ping(probe.ECHO, tx, connection_tag(connection)))
        self._peers.outlet.send_sealed(connection.peer, active, body)
        self._ports.events.on_dirty()

    # ---- in

    def on_ping(self, sender: NodeId, body: bytes, source: Addr, now: float) -> None:
        """A member probes us."""
        ping = probe.decode_ping(body)
        if ping is None:
            self._ports.metrics.count(BAD_PING)
            return
        connection = self._peers.handles.get(ping.handle)
        known = connection is not None and connection.peer == sender
        flags = 0 if known or ping.handle == probe.NO_HANDLE else probe.NO_CONN
        pong = probe.encode_pong(probe.Pong(flags, ping.tx, source))
        self._peers.outlet.send_sealed(sender, source, pong)
        if self._peers.gossip is not None:
            self._peers.gossip.on_ping(sender, now)
        session = self._peers.sessions.get(sender)
        if session is not None and known:
            session.paths.on_ping(source, ping.flags, now)
            self.drain(session, now)
            self._peers.arm(session)

    def on_pong(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        """A member answers a probe, perhaps ours."""
        pong = probe.decode_pong(body)
        if pong is None:
            self._ports.metrics.count(BAD_PONG)
            return
        session = self._peers.sessions.get(sender)
        if pong.observed is not None:
            self._peers.seen_as(sender, source, pong.observed, now)
        unknown = bool(pong.flags & probe.NO_CONN)
        echo = self._echoes.pop(pong.tx, None)
        if echo is not None:
            if session is not None:
                session.paths.on_answer(now)
            echo.answer(Pinged(None if unknown else now - echo.sent, echo.path, echo.addr))
            if unknown:
                self.forgotten(echo.connection, now)
            return
        if self._peers.gossip is not None and self._peers.gossip.on_pong(sender, pong.tx, unknown, now):
            return
        if session is None:
            return
        sent = session.paths.on_pong(pong.tx, source, now, size)
        connection = session.connection
        if sent is not None and unknown and connection is not None and sent >= session.ready_at:
            self.forgotten(connection, now)  # not for an answer that comes late, about the one before
        self.drain(session, now)
        self._peers.arm(session)

    def forgotten(self, connection: Connection, now: float) -> None:
        """The peer does not know a connection of ours: it has restarted, or its goodbye was lost."""
        if connection.state is State.CLOSED:
            return
        self._ports.metrics.count(RESTARTED)
        connection.abandon(PeerRestarted(f"{connection.peer.short} has restarted and knows nothing of us"))
        session = self._peers.sessions.get(connection.peer)
        if session is not None:
            self._peers.meeting.resume(session)

    def on_closed(self, connection: Connection) -> None:
        """No echo comes back about a connection that is over: whoever waits may try the next one."""
        for tx, echo in [(tx, echo) for tx, echo in self._echoes.items() if echo.connection is connection]:
            if self._echoes.pop(tx, None) is not None:
                echo.answer(Pinged(None, echo.path, echo.addr))

    # ---- time

    def next_deadline(self) -> float | None:
        """When the first echo is lost."""
        at: float | None = None
        for echo in self._echoes.values():
            at = earlier(at, echo.deadline)
        return at

    def tick(self, now: float) -> None:
        """Give up echoes that were not answered in time."""
        for tx, echo in list(self._echoes.items()):
            if echo.deadline <= now:
                del self._echoes[tx]
                echo.answer(Pinged(None, echo.path, echo.addr))


def connection_tag(connection: Connection | None) -> bytes:
    """The 8 bytes by which both ends name one connection in probes."""
    if connection is None:
        return probe.NO_HANDLE
    return hashlib.blake2b(connection.engine.odcid, digest_size=probe.HANDLE_LENGTH, person=b"mesh-handle").digest()
