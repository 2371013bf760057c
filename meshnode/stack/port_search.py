"""Port search in a node: which end takes which part, with the other's consent, and the use of the extra sockets.

The end behind a symmetric NAT asks (control frame SEARCH, end to end over the relayed connection); the other end
complies only when a relay that it uses has just introduced the two, and the asker's own signed record names the host
that the relay saw: neither a lying peer nor a lying relay alone can aim the probes. One search at a time in each
part, pauses between those for one peer and at one host. ``SEARCH_TRIES`` unsuccessful ones a connection, and at one
host in ``SEARCH_REST_S`` whichever peers ask, for those that conspire have as many ids as they like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import (
    MAX_SEARCH_BOOK,
    MAX_SIDES_KEPT,
    SEARCH_AFTER_S,
    SEARCH_AGAIN_S,
    SEARCH_FRESH_S,
    SEARCH_PROBES,
    SEARCH_REST_S,
    SEARCH_SIDES,
    SEARCH_TRIES,
    SEARCH_WAIT_S,
)
from meshnode.base.metrics import describe
from meshnode.base.path import ViaRelay, ViaSocket, udp_address
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointKind
from meshnode.identity.sealing import SEAL_OVERHEAD
from meshnode.nat.local_networks import is_loopback
from meshnode.nat.port_search import SPREAD_STEP, Search, spray, spread
from meshnode.paths.effects import Switched
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Frame as Control
from meshnode.stack import probe
from meshnode.stack.component import Component
from meshnode.stack.context import SYMMETRIC, Context
from meshnode.stack.session import Session

CLOSE_GAP_S = 0.02  # between the handfuls in which the sockets that did not win are closed

SPREADS = describe("port_searches_spread", "port searches in which this node, behind a symmetric NAT, opened sockets")
SPRAYS = describe("port_searches_sprayed", "port searches in which this node tried a peer's ports")
FOUND = describe("port_searches_won", "port searches that ended with a direct path of this node")
REFUSED = describe("port_searches_refused", "port searches asked for and refused: no fresh introduction, or too often")
PROBES = describe("port_search_probes", "probes sent in port searches")


@state
class _Running:
    peer: NodeId
    search: Search
    until: float
    sides: list[int] = field(default_factory=list)


class PortSearch(Component):
    """Both parts of port searches."""

    frames = (Control.SEARCH,)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._timer = context.timers.timer(self._tick)
        self._begin: BoundedDict[NodeId, float] = BoundedDict(MAX_SEARCH_BOOK)  # when to ask for a search
        # of a peer or a host: its last search
        self._last: BoundedDict[NodeId | str, float] = BoundedDict(MAX_SEARCH_BOOK)
        self._tries: BoundedDict[NodeId | str, int] = BoundedDict(MAX_SEARCH_BOOK)  # of them, without a result
        self._spread: _Running | None = None
        self._spray: _Running | None = None
        self._kept: BoundedDict[int, NodeId] = BoundedDict(MAX_SIDES_KEPT)
        self._closing: list[int] = []  # at most two searches' worth
        self._close_at: float | None = None

    def on_introduced(self, session: Session, begin: float, now: float) -> None:
        """Plan to ask for a search ``SEARCH_AFTER_S`` after the ordinary probes begin.

        Only the end with a symmetric NAT asks, and only a peer without one.
        """
        if self._ours_to_ask(session, now):
            self._begin[session.peer] = begin + SEARCH_AFTER_S
            self._arm()

    def _ours_to_ask(self, session: Session, now: float) -> bool:
        record = self._context.records.cached(session.peer)
        return record is not None and SYMMETRIC not in record.capabilities and self._context.nat.mappings.symmetric(now)

    def _target(self, session: Session, now: float) -> Addr | None:
        """Return where a search for this peer may go, when one may begin now."""
        known, active = session.introduction, session.paths.active
        if known is None or now - known.at > SEARCH_FRESH_S or session.connection is None:
            return None
        if not isinstance(active, ViaRelay) or ":" in known.addr.host or is_loopback(known.addr):
            return None
        may = self._is_named(session.peer, known.addr.host) and self._may_search(session.peer, known.addr.host, now)
        return known.addr if may else None

    def _may_search(self, peer: NodeId, host: str, now: float) -> bool:
        """Return whether the last search, for the peer or the host, is long ago, and both had few."""
        if now - self._last.get(host, float("-inf")) > SEARCH_REST_S:
            self._tries.pop(host, None)
        last = max(self._last.get(key, float("-inf")) for key in (peer, host))
        most = max(self._tries.get(key, 0) for key in (peer, host))
        return most < SEARCH_TRIES and now - last >= SEARCH_AGAIN_S

    def _is_named(self, peer: NodeId, host: str) -> bool:
        """Return whether the peer's own signed record names that host: a relay alone cannot aim a search."""
        record = self._context.records.cached(peer)
        return record is not None and any(
            e.addr.host == host for e in record.endpoints if e.kind is not EndpointKind.RELAY
        )

    def _begin_at(self, session: Session, target: Addr, probes: int, now: float) -> None:
        size = probe.MIN_PING + SEAL_OVERHEAD
        self._context.credit.grant(target, probes * size, now)
        for key in (session.peer, target.host):
            self._tries.put(key, self._tries.get(key, 0) + 1)
            self._last.put(key, now)

    # ---- the symmetric side

    def _ask(self, session: Session, now: float) -> None:
        target = self._target(session, now)
        if target is None or self._spread is not None or session.connection is None:
            return
        self._begin_at(session, target, SEARCH_SIDES, now)
        self._context.metrics.count(SPREADS)
        self._close_kept(session.peer)
        session.connection.send_frame(Control.SEARCH)
        sides: list[int] = []
        self._spread = _Running(session.peer, spread(target, self._open(sides), now), now + SEARCH_WAIT_S, sides)

    def _open(self, sides: list[int]) -> Iterator[int]:
        """Open the sockets as the search comes to them: all at once would hold up a stream for 20 ms."""
        while len(sides) < SEARCH_SIDES:
            opened = self._context.link.open_sides(min(SPREAD_STEP, SEARCH_SIDES - len(sides)))
            if not opened:
                return
            sides += opened
            yield from opened

    # ---- the other side

    def on_control(self, connection: Connection, fields: list[object], now: float) -> None:
        """Try the peer's ports, as it asks.

        Refused, and counted, when a search runs, this node's NAT is symmetric too, or no signed record names the host.
        """
        session = self._context.peers.sessions.get(connection.peer)
        target = self._target(session, now) if session is not None else None
        if session is None or target is None or self._spray is not None or self._context.nat.mappings.symmetric(now):
            self._context.metrics.count(REFUSED)
            return
        self._begin_at(session, target, SEARCH_PROBES, now)
        self._context.metrics.count(SPRAYS)
        self._spray = _Running(session.peer, spray(target, self._context.rng, now), now + SEARCH_WAIT_S)
        self._arm()

    # ---- what happens

    def on_switched(self, session: Session, switched: Switched, now: float) -> None:
        """End the search when there is a direct path; the socket that found it is kept."""
        new = switched.new
        addr = udp_address(new)
        if addr is None:
            return
        side = new.socket if isinstance(new, ViaSocket) else None
        for running in (self._spread, self._spray):
            if running is not None and running.peer == session.peer:
                self._context.metrics.count(FOUND)
                self._tries.pop(session.peer, None)  # it works: after a move there may be another
                if addr in self._context.credit.proven:  # not where it only says to have moved
                    self._tries.pop(addr.host, None)
                if side is not None and side in running.sides:
                    running.sides.remove(side)
                    pushed_out = self._kept.put(side, session.peer)
                    if pushed_out is not None:
                        self._close(*pushed_out)
                self._end(running)

    def on_link(self, connection: Connection, up: bool, now: float) -> None:
        """End what concerns a peer whose connection is over."""
        if up:
            return
        peer = connection.peer
        self._begin.pop(peer, None)
        self._tries.pop(peer, None)
        for running in (self._spread, self._spray):
            if running is not None and running.peer == peer:
                self._end(running)
        self._close_kept(peer)

    def _end(self, running: _Running) -> None:
        if running is self._spread:
            self._spread = None
        else:
            self._spray = None
        session = self._context.peers.sessions.get(running.peer)
        if session is not None and running.sides:
            gone = dict.fromkeys(running.sides)
            for path in session.paths.book.paths():
                if isinstance(path, ViaSocket) and path.socket in gone:
                    session.paths.book.drop(path)
        self._closing += running.sides
        self._close_at = self._context.clock.monotonic() + CLOSE_GAP_S
        self._arm()

    def _close_kept(self, peer: NodeId) -> None:
        for side in [side for side, owner in self._kept.items() if owner == peer]:
            del self._kept[side]
            self._close(side, peer)

    def _close(self, side: int, peer: NodeId) -> None:
        session = self._context.peers.sessions.get(peer)
        for path in session.paths.book.paths() if session is not None else ():
            if isinstance(path, ViaSocket) and path.socket == side and session is not None:
                session.paths.book.drop(path)
        self._context.link.close_side(side)

    # ---- time

    def _arm(self) -> None:
        waits: list[float | None] = [self._close_at, *self._begin.values()]
        for running in (self._spread, self._spray):
            if running is not None:
                waits += running.search.at, running.until
        self._timer.set(min((at for at in waits if at is not None), default=None))

    def _tick(self, now: float) -> None:
        """Send what is due, begin and end what is due."""
        if self._close_at is not None and self._close_at <= now:
            self._close_some(now)
        for peer in [peer for peer, begin in self._begin.items() if begin <= now]:
            del self._begin[peer]
            session = self._context.peers.sessions.get(peer)
            if session is not None and self._ours_to_ask(session, now):
                self._ask(session, now)
        for running in (self._spread, self._spray):
            if running is not None:
                self._go_on(running, now)
        self._arm()

    def _close_some(self, now: float) -> None:
        for side in self._closing[:SPREAD_STEP]:
            self._context.link.close_side(side)
        del self._closing[:SPREAD_STEP]
        self._close_at = now + CLOSE_GAP_S if self._closing else None

    def _go_on(self, running: _Running, now: float) -> None:
        if running.until <= now:
            self._end(running)
        elif running.search.at is not None and running.search.at <= now:
            self._probe(running, now)

    def _probe(self, running: _Running, now: float) -> None:
        session = self._context.peers.sessions.get(running.peer)
        for path in running.search.step(now):
            self._context.metrics.count(PROBES)
            if session is not None:
                self._context.probes.ping_once(session, path)
