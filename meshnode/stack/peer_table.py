"""The peers that a node has state for: QUIC in and out, one timer each. How connections begin is in ``meeting``.

Connections report here (``ConnectionEvents``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_HELD_DATAGRAMS, MAX_SESSIONS
from meshnode.base.metrics import describe
from meshnode.errors import (
    ConnectionLost,
    MeshError,
    NodeClosed,
    PeerRestarted,
    PolicyDenied,
)
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.nat.local_networks import LocalNetworks, is_loopback, on_networks
from meshnode.nat.mapping import NatView
from meshnode.paths.peer import PeerPaths
from meshnode.quic import packets
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import CloseCode, Frame, Hello
from meshnode.quic.stream import Stream
from meshnode.stack.context import Context
from meshnode.stack.deadlines import Deadlines, earlier, is_due
from meshnode.stack.dialing import Dialing
from meshnode.stack.directory_link import DirectoryLink
from meshnode.stack.gossip_link import GossipLink
from meshnode.stack.path_probes import PathProbes, connection_tag
from meshnode.stack.port_search import PortSearch
from meshnode.stack.relay_client import RelayClient
from meshnode.stack.resolution import Resolution
from meshnode.stack.sender import Sender
from meshnode.stack.session import OnConnect, Session

CONNECTIONS = describe("connections", "connections whose two keys were proven")
BAD_KIND = describe("drop_quic_kind", "QUIC packets of other versions, Version Negotiation, Retry")
SESSIONS_FULL = describe("drop_sessions_full", "peers turned away: too many at once")
HELD_BACK = describe("held_by_amplification", "datagrams held until their address was validated")
HELD_LOST = describe("held_lost", "held datagrams dropped: too many")


class PeerTable:
    """All sessions. ``own_record`` returns our encoded record, b"" while there is none."""

    def __init__(
        self,
        ports: Context,
        outlet: Sender,
        finder: Resolution,
        own_record: Callable[[], bytes],
        self_changed: Callable[[float], None],
        deliver: Callable[[bytes, Addr, float], None],
        next_seq: Callable[[], int],
    ) -> None:
        self.ports = ports
        self.outlet = outlet
        self.finder = finder
        self.sessions: dict[NodeId, Session] = {}
        self.handles: dict[bytes, Connection] = {}
        self.nat = NatView()
        self.probing = PathProbes(self)
        self.relaying = RelayClient(self, deliver)
        self.searching = PortSearch(self)
        self.gossip = GossipLink(self, next_seq) if ports.settings.gossip else None
        self.registry = DirectoryLink(self, self.gossip) if self.gossip is not None else None
        self.meeting = Dialing(self, own_record)
        self.here = LocalNetworks()
        self._self_changed = self_changed
        self._id = ports.identity.id
        self._by_cid: dict[bytes, Connection] = {}
        self._dirty: dict[Connection, None] = {}
        self._deadlines = Deadlines()
        self.closed = False

    # ---- sessions

    def session(self, peer: NodeId, now: float) -> Session | None:
        """Return the peer's session, a new one when there is none; None when there are too many."""
        found = self.sessions.get(peer)
        if found is None:
            if len(self.sessions) >= MAX_SESSIONS:
                self.ports.metrics.count(SESSIONS_FULL)
                return None
            ports = self.ports
            paths = PeerPaths(peer, rng=ports.rng, entropy=ports.entropy, now=now, mtu_ceiling=ports.settings.path_mtu)
            paths.set_here(self.here)
            found = self.sessions[peer] = Session(peer, paths)
        return found

    def forget_if_idle(self, session: Session) -> None:
        """Keep no session of which nothing is worth keeping."""
        if session.idle and self.sessions.get(session.peer) is session:
            del self.sessions[session.peer]
            self._deadlines.set(session.peer, None)
            self.finder.dht.unwatch(session.peer, self.ports.clock.monotonic())

    def on_newer_record(self, record: EndpointRecord, now: float) -> bool:
        """A valid newer record: its peer's paths learn of it. False when we have no state for that peer."""
        session = self.sessions.get(record.id)
        if session is None:
            return False
        session.paths.peer_record(record, now)
        self.relaying.offer(session, now)
        self.meeting.begin(session, now)
        self.probing.drain(session, now)
        return True

    def moved(self, now: float) -> None:
        """Our own addresses changed: probe every live peer, at once."""
        for session in self.sessions.values():
            session.paths.set_here(self.here)
            session.paths.local_change(now)
            self.probing.drain(session, now)

    def settle_here(self, networks: tuple[tuple[str, int], ...], own: frozenset[Addr]) -> None:
        """Our networks and addresses are these now."""
        hinted = any(is_loopback(addr) for addrs in self.finder.hints.values() for addr in addrs)
        near = self.here.loopback or hinted or any(is_loopback(addr) for addr in own)
        self.here = LocalNetworks(networks, own, near)
        for session in self.sessions.values():
            session.paths.set_here(self.here)

    def heard_on_loopback(self) -> None:
        """A member of our mesh is on this host: its peers' loopback addresses mean something."""
        if not self.here.loopback:
            self.here = replace(self.here, loopback=True)
            for session in self.sessions.values():
                session.paths.set_here(self.here)

    def seen_as(self, peer: NodeId, source: Addr, seen: Addr, now: float) -> None:
        """A member at ``source`` saw us as ``seen``. Only those whom we chose to talk to have a say."""
        session = self.sessions.get(peer)
        chosen = peer in self.finder.hints or (session is not None and session.connection is not None)
        if not chosen or not source.is_udp or source.side is not None or on_networks(source, self.here.networks):
            return
        if self.nat.observed(peer, source, seen, now):
            self._self_changed(now)

    def push_record(self, encoded: bytes) -> None:
        """Tell every live peer our newest record."""
        for session in self.sessions.values():
            if session.connection is not None:
                session.connection.push_record(encoded)

    def close(self, now: float) -> None:
        """Say goodbye on every connection."""
        self.closed = True
        for session in list(self.sessions.values()):
            for connection in session.connections():
                if connection.state is State.READY:
                    connection.close(CloseCode.SHUTDOWN, "the node is shutting down")
                    self._send(session, connection, connection.engine.transmit(now), now)
                else:
                    connection.abandon(NodeClosed("the node was closed"))
            session.answer(NodeClosed("the node was closed"))

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Give ``answer`` a READY connection to ``peer``, the live one if there is one, or the error."""
        self.meeting.connect(peer, now, answer)

    # ---- QUIC in

    def on_quic(self, data: bytes, source: Addr, now: float) -> None:
        """Route a QUIC datagram to its connection by connection id, whatever its source."""
        cid = packets.dcid_of(data)
        connection = self._by_cid.get(cid) if cid is not None else None
        if connection is None:
            self.meeting.on_initial(data, cid, source, now)
            return
        if not packets.acceptable(data):
            self.ports.metrics.count(BAD_KIND)
            return
        newest = connection.receive(data, now)
        session = self.sessions.get(connection.peer)
        if session is not None:
            if connection in session.arrivals:
                session.arrivals[connection] = source
            else:
                session.paths.on_received(source, len(data), newest, now)
        self._dirty[connection] = None

    # ---- QUIC out

    def touch(self, connection: Connection) -> None:
        """The connection may have something to send at the next flush."""
        self._dirty[connection] = None

    def flush(self, now: float) -> bool:
        """Send what is due; False when there was nothing."""
        dirty, self._dirty = self._dirty, {}
        for connection in dirty:
            self._transmit(connection, now)
        return bool(self._dirty)

    def _transmit(self, connection: Connection, now: float) -> None:
        session = self.sessions.get(connection.peer)
        if session is None:
            return
        datagrams = connection.transmit(now)
        if connection is session.connection:
            session.paths.set_in_flight(connection.engine.in_flight(), now)
        if datagrams or session.outbox:
            self._send(session, connection, datagrams, now)
        if session.connection is connection or session.dial is connection:
            self.probing.drain(session, now)
        self.arm(session)

    def _send(self, session: Session, connection: Connection, datagrams: list[bytes], now: float) -> None:
        source = session.arrivals.get(connection)
        if source is not None:
            if datagrams:  # the engine itself holds the 3x limit until the handshake
                self.outlet.send(session.peer, source, datagrams)
            return
        paths = session.paths
        active = paths.active
        if active is None:
            return
        if session.outbox:
            datagrams = [*session.outbox, *datagrams]
            session.outbox.clear()
        size = sum(map(len, datagrams))
        budget = paths.budget(now)
        if budget is not None and size > budget:
            datagrams, size = self._hold_back(session, datagrams, budget)
        if datagrams:
            paths.note_sent(size, now)
            self.outlet.send(session.peer, active, datagrams)

    def _hold_back(self, session: Session, datagrams: list[bytes], budget: int) -> tuple[list[bytes], int]:
        """Return what the budget allows; the rest waits until the address is validated (RFC 9000 section 8)."""
        size = count = 0
        while size + len(datagrams[count]) <= budget:
            size += len(datagrams[count])
            count += 1
        rest = datagrams[count:]
        self.ports.metrics.count(HELD_BACK, len(rest))
        if len(rest) > MAX_HELD_DATAGRAMS:
            self.ports.metrics.count(HELD_LOST, len(rest) - MAX_HELD_DATAGRAMS)
        session.outbox.extend(rest)
        return datagrams[:count], size

    # ---- time

    def arm(self, session: Session) -> None:
        """Keep one timer per session, at the earliest of everything it waits for."""
        at = session.paths.next_deadline()
        for connection in session.connections():
            at = earlier(at, connection.engine.next_timer())
        if session.dials or session.arrivals or session.held is not None:
            at = earlier(at, self.meeting.deadline(session))
        self._deadlines.set(session.peer, at)

    def next_deadline(self) -> float | None:
        """The first timer of all sessions."""
        at = earlier(self._deadlines.earliest(), self.probing.next_deadline())
        return earlier(at, self.searching.next_deadline())

    def tick(self, now: float) -> None:
        """Let due timers fire."""
        for peer in self._deadlines.take_due(now):
            session = self.sessions.get(peer)
            if session is not None:
                self._tick(session, now)
        self.probing.tick(now)
        self.searching.tick(now)

    def _tick(self, session: Session, now: float) -> None:
        for connection in session.connections():
            at = connection.engine.next_timer()
            if at is not None and at <= now:
                connection.on_timer(now)
                self._dirty[connection] = None
        self.meeting.tick(session, now)
        if is_due(session.paths.next_deadline(), now):
            session.paths.tick(now)
        self.probing.drain(session, now)
        self.forget_if_idle(session)
        if not session.idle:
            self.arm(session)

    # ---- what connections tell us (ConnectionEvents)

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """A connection issued or retired one of our connection ids."""
        if issued:
            self._by_cid[cid] = connection
        elif self._by_cid.get(cid) is connection:
            del self._by_cid[cid]

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """The dialler has proven its key."""
        self.meeting.on_hello(connection, hello)

    def on_ready(self, connection: Connection) -> None:
        """Both keys are proven and policy agrees: this is the peer's connection now."""
        peer = connection.peer
        now = self.ports.clock.monotonic()
        session = self.session(peer, now)
        if session is None:
            return
        source = session.arrivals.pop(connection, None)
        session.deferred = None
        session.connection, session.ready_at = connection, now
        if not connection.dialler:
            self.on_cid(connection, connection.engine.odcid, False)
            if source is not None:
                session.paths.accept(source, now)
        elif session.paths.active is not None:
            session.paths.accept(session.paths.active, now)
        dial, session.dial = session.dial, None
        if dial is not None and dial is not connection:
            dial.abandon(ConnectionLost("the peer's own dial was faster"))
        self.meeting.release_held(session)
        if connection.peer_record:
            self.finder.offer(connection.peer_record, "connection", now)
        if connection.dialler:  # one of the two is enough to find the other, and a relay need not watch all its clients
            self.watch(peer, now)
        self.ports.metrics.count(CONNECTIONS)
        self._dirty[connection] = None
        self.relaying.wake(now)
        session.answer(connection)
        self.ports.events.on_connection(connection, True)
        if self.gossip is not None:
            self.gossip.on_link(peer, True, now)
        if self.registry is not None:
            self.registry.on_link(peer, True, now)

    def on_record(self, connection: Connection, encoded: bytes) -> None:
        """A live peer pushed its newest record."""
        self.finder.offer(encoded, "connection", self.ports.clock.monotonic())

    def on_frame(self, connection: Connection, fields: list[object]) -> None:
        """A control frame that is not the connection's own business."""
        now = self.ports.clock.monotonic()
        if fields[0] == Frame.SEARCH:
            self.searching.on_control(connection, now)
        elif self.gossip is None or not self.gossip.on_frame(connection, fields, now):
            self.relaying.on_control(connection, fields, now)

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """The peer opened a stream and said for which service."""
        self.finder.watch(connection.peer, self.ports.clock.monotonic())
        if self.registry is None or not self.registry.on_stream(connection, stream):
            self.ports.events.on_stream(connection, stream)

    def on_silence(self, peer: NodeId, silent: bool, now: float) -> None:
        """Something that was expected of ``peer`` did not come, or it answers again."""
        if self.registry is not None:
            self.registry.on_silence(peer, silent, now)

    def on_stream_data(self, connection: Connection) -> None:
        """Application bytes arrived: more are to be expected."""
        session = self.sessions.get(connection.peer)
        if session is not None:
            session.paths.note_stream_data(self.ports.clock.monotonic())

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """A connection is over, for whatever reason."""
        for cid in [c for c, owner in self._by_cid.items() if owner is connection]:
            del self._by_cid[cid]
        handle = connection_tag(connection)
        if self.handles.get(handle) is connection:
            del self.handles[handle]
        session = self.sessions.get(connection.peer)
        if session is None:
            return
        now = self.ports.clock.monotonic()
        self.probing.on_closed(connection)
        self._send(session, connection, connection.engine.transmit(now), now)
        session.arrivals.pop(connection, None)
        if session.deferred is not None and session.deferred[0] is connection:
            session.deferred = None
        if session.dial is connection:
            session.dial = None
            self.meeting.resume(session)  # ours came to nothing: the peer's, then
            if session.connection is None and not self._goes_on(session, error, now):
                session.answer(error)
        if session.connection is connection:
            session.connection = None
            session.outbox.clear()
            self.relaying.on_closed(connection.peer, now)
            self.searching.on_closed(connection.peer)
            self.ports.events.on_connection(connection, False)
            if self.gossip is not None:
                self.gossip.on_link(connection.peer, False, now)
            if self.registry is not None:
                self.registry.on_link(connection.peer, False, now)
        self.forget_if_idle(session)

    def watch(self, peer: NodeId, now: float) -> None:
        """Hear of newer records of ``peer``, unless gossip alone has use for it: that need not watch its neighbours."""
        if self.gossip is None or self.gossip.is_used(peer):
            self.finder.watch(peer, now)

    def _goes_on(self, session: Session, error: MeshError, now: float) -> bool:
        """True when the end of a dial is not yet the answer for those who wait for a connection."""
        if session.arrivals and isinstance(error, ConnectionLost) and not isinstance(error, PolicyDenied):
            return True
        return isinstance(error, PeerRestarted) and self.meeting.redial(session, now)

    def on_dirty(self, connection: Connection) -> None:
        """A connection has something to send."""
        self._dirty[connection] = None
        self.ports.events.on_dirty()
