"""The whole node without I/O: datagrams, timers and commands in; datagrams and events out.

The asyncio node (``node.py``) and the simulator drive this same class. It owns the demultiplexer, the
connection-id table, one Session per peer, the resolver and the DHT, and wires their effects together;
none of them imports another. See docs/explanation/architecture.md.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from meshnode.address import Addr, is_dialable
from meshnode.clock import Clock, Entropy
from meshnode.discovery.dht import (
    FIRST_KIND,
    LAST_KIND,
    ContactsChanged,
    Dht,
    Found,
    LookupDone,
    RecordPushed,
    SendSealed,
)
from meshnode.discovery.resolver import Resolution, Resolver
from meshnode.driver import probe
from meshnode.driver.session import HeldInitial, OnConnect, Session
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
from meshnode.identity import Identity, NodeId
from meshnode.limits import (
    DIAL_REFRESH_S,
    HANDSHAKE_TIMEOUT_S,
    HELD_INITIAL_S,
    MAX_ARRIVALS_PER_PEER,
    MAX_DATAGRAM,
    MAX_SESSIONS,
    RETRY_LOOKUP_S,
)
from meshnode.metrics import Metrics
from meshnode.paths.effects import (
    MtuChanged,
    NeedRecord,
    Resumed,
    SendProbe,
    Suspended,
    Switched,
    Validated,
)
from meshnode.paths.peer import PeerPaths
from meshnode.quic import packets
from meshnode.quic.connection import Connection, State
from meshnode.quic.engine import Engine, EngineFactory
from meshnode.quic.hello import BOOT_LENGTH, CloseCode, Hello
from meshnode.quic.stream import Stream
from meshnode.record import Endpoint, EndpointRecord, sign_record
from meshnode.sealing import SEAL_OVERHEAD, Sealer

QUIC_BIT = 0x40  # RFC 9443: set in every QUIC packet, clear in everything of ours
SEALED = 0x01


class Link(Protocol):
    """Where datagrams go. Returns False when the system refused (no route, say)."""

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool: ...


class MeshEvents(Protocol):
    """What the mesh tells its host, synchronously."""

    def on_stream(self, connection: Connection, stream: Stream) -> None: ...
    def on_connection(self, connection: Connection, up: bool) -> None: ...
    def on_path(self, peer: NodeId, old: Addr | None, new: Addr | None, why: str) -> None: ...
    def on_record(self, record: EndpointRecord) -> None: ...
    def on_contacts(self) -> None: ...
    def on_dirty(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pinged:
    """The outcome of one echo: round trip in seconds (None: lost) and the kind of path it took."""

    rtt: float | None
    path: str


@dataclass(slots=True)
class _Echo:
    sent: float
    deadline: float
    path: str
    answer: Callable[[Pinged], None]


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What a mesh needs to know of its configuration."""

    idle_timeout: float = 600.0
    record_ttl: int = 7200
    seed_role: bool = False
    dht: bool = True
    capabilities: tuple[str, ...] = ()
    path_mtu: int = 1452


class Mesh:
    """One node's protocol state. Every method is synchronous; ``now`` is monotonic seconds."""

    def __init__(
        self,
        identity: Identity,
        sealer: Sealer,
        link: Link,
        events: MeshEvents,
        engines: EngineFactory,
        *,
        clock: Clock,
        rng: random.Random,
        entropy: Entropy,
        next_seq: Callable[[], int],
        admit: Callable[[NodeId], bool],
        settings: MeshSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.identity = identity
        self.id = identity.id
        self.settings = settings or MeshSettings()
        self.metrics = metrics or Metrics()
        self.resolver = Resolver(self.metrics)
        self.record: EndpointRecord | None = None
        self.boot = entropy(BOOT_LENGTH)
        self.sessions: dict[NodeId, Session] = {}
        self.hints: dict[NodeId, tuple[Addr, ...]] = {}
        self.observed: dict[NodeId, Addr] = {}
        self.dht = Dht(
            identity.id,
            rng=rng,
            entropy=entropy,
            metrics=self.metrics,
            now=clock.monotonic(),
            wall=clock.wall(),
            seed_role=self.settings.seed_role,
        )
        self._sealer = sealer
        self._link = link
        self._events = events
        self._engines = engines
        self._clock = clock
        self._rng = rng
        self._entropy = entropy
        self._next_seq = next_seq
        self._admit = admit
        self._by_cid: dict[bytes, Connection] = {}
        self._handles: dict[bytes, Connection] = {}
        self._held_cids: dict[bytes, Session] = {}
        self._dirty: dict[Connection, None] = {}
        self._timers: list[tuple[float, int, NodeId]] = []
        self._armed: dict[NodeId, float] = {}
        self._timer_count = 0
        self._echoes: dict[bytes, _Echo] = {}
        self._lookups: dict[int, NodeId] = {}
        self._retries: dict[NodeId, float] = {}
        self._networks: tuple[tuple[str, int], ...] = ()
        self._republish_at: float | None = None
        self._closed = False

    # ---- what the host calls

    def receive(self, batch: Iterable[tuple[bytes, Addr]], now: float) -> None:
        """Take received datagrams; then send what they caused."""
        for data, source in batch:
            self.datagram(data, source, now)
        self.flush(now)

    def datagram(self, data: bytes, source: Addr, now: float) -> None:
        """Demultiplex one datagram on its first byte. Hostile input is dropped and counted."""
        if not data or len(data) > MAX_DATAGRAM:
            self.metrics.count("drop_size")
        elif data[0] & QUIC_BIT:
            self._on_quic(data, source, now)
        elif data[0] == SEALED:
            opened = self._sealer.unseal(data)
            if opened is not None and opened[1]:
                self._on_sealed(opened[0], opened[1], source, len(data), now)
            else:
                self.metrics.count("drop_sealed")
        else:
            self.metrics.count("drop_unknown")

    def next_deadline(self) -> float | None:
        """The next time at which ``tick`` has something to do."""
        timers = self._timers
        while timers and self._armed.get(timers[0][2]) != timers[0][0]:
            heapq.heappop(timers)
        at = _earlier(timers[0][0] if timers else None, self.dht.next_deadline())
        at = _earlier(at, self._republish_at)
        at = _earlier(at, self.resolver.next_deadline())
        for retry in self._retries.values():
            at = _earlier(at, retry)
        for echo in self._echoes.values():
            at = _earlier(at, echo.deadline)
        return at

    def tick(self, now: float) -> None:
        """Let every due timer fire; then send what they caused."""
        timers = self._timers
        due: list[NodeId] = []
        while timers and timers[0][0] <= now:
            at, _, peer = heapq.heappop(timers)
            if self._armed.get(peer) == at:
                del self._armed[peer]
                due.append(peer)
        for peer in due:
            session = self.sessions.get(peer)
            if session is not None:
                self._tick_session(session, now)
        if _due(self.dht.next_deadline(), now):
            self.dht.tick(now, self._clock.wall())
        self.resolver.tick(now)
        for peer, at in list(self._retries.items()):
            if at <= now:
                del self._retries[peer]
                if self.resolver.asked(peer):
                    self._look_up(peer, now)
        if _due(self._republish_at, now):
            self._republish(now)
        for tx, echo in list(self._echoes.items()):
            if echo.deadline <= now:
                del self._echoes[tx]
                echo.answer(Pinged(None, echo.path))
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send everything that is due: DHT effects, path effects, connections' datagrams."""
        for _ in range(8):  # an effect may cause another; more rounds than this would be a loop
            self._drain_dht(now)
            dirty, self._dirty = self._dirty, {}
            for connection in dirty:
                self._transmit(connection, now)
            if not self._dirty:
                break
        self._drain_dht(now)

    def close(self, now: float) -> None:
        """Say goodbye on every connection."""
        self._closed = True
        for session in list(self.sessions.values()):
            for connection in session.connections():
                if connection.state is State.READY:
                    connection.close(CloseCode.SHUTDOWN, "the node is shutting down")
                    self._send(session, connection, connection.engine.transmit(now), now)
                else:
                    connection.abandon(NodeClosed("the node was closed"))
            session.answer(NodeClosed("the node was closed"))

    # ---- addresses and our own record

    def set_addresses(
        self,
        endpoints: tuple[Endpoint, ...],
        networks: tuple[tuple[str, int], ...],
        now: float,
        *,
        moved: bool,
    ) -> None:
        """Our local endpoints are these. When ``moved``, every live peer is probed first, then told."""
        self._networks = networks
        for session in self.sessions.values():
            session.paths.set_local_networks(networks)
            if moved:
                session.paths.local_change(now)
                self._drain_paths(session, now)
        changed = bool(endpoints) and (self.record is None or self.record.endpoints != endpoints)
        if changed:
            self._sign(endpoints, now)
        if moved:
            self.dht.rewatch_all(now)
        if changed:
            self._publish(now)
        if moved:
            self.dht.local_moved(now)
        self.flush(now)

    def _sign(self, endpoints: tuple[Endpoint, ...], now: float) -> None:
        ttl = self.settings.record_ttl
        self.record = sign_record(
            self.identity,
            seq=self._next_seq(),
            issued_ms=int(self._clock.wall() * 1000),
            ttl=ttl,
            endpoints=endpoints,
            capabilities=self.settings.capabilities,
        )
        self._republish_at = now + ttl * self._rng.uniform(0.3, 0.5)
        self._events.on_record(self.record)

    def _publish(self, now: float) -> None:
        if self.record is None:
            return
        for session in self.sessions.values():
            if session.connection is not None:
                session.connection.push_record(self.record.encoded)
        if self.settings.dht:
            self.dht.publish(self.record, now)

    def _republish(self, now: float) -> None:
        self._republish_at = None
        if self.record is not None:
            self._sign(self.record.endpoints, now)
            self._publish(now)

    # ---- discovery

    def add_seed(self, peer: NodeId, addrs: Iterable[Addr], now: float) -> None:
        """A seed or a static contact is said to be at these addresses."""
        known = tuple(a for a in addrs if is_dialable(a))
        if peer == self.id or not known:
            return
        self.hints[peer] = known
        for addr in known:
            self.dht.add_contact_hint(peer, addr, now, seed=True)
        session = self.sessions.get(peer)
        if session is not None and session.waiting and session.dial is None:
            self._dial(session, None, now)
        self.flush(now)

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """A contact from an earlier run."""
        if peer != self.id and is_dialable(addr):
            self.dht.add_contact_hint(peer, addr, now)

    def offer_record(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """A source hands in a record; everything that is concerned learns of it when it is valid and newer."""
        record = self.resolver.offer(encoded, source, now, self._clock.wall())
        if record is None or record.id == self.id:
            return None
        session = self.sessions.get(record.id)
        if session is not None:
            self.dht.note_record(record, now)
            session.paths.peer_record(record, now)
            self._drain_paths(session, now)
        if source == "mdns":
            for endpoint in record.endpoints[:4]:
                self.dht.add_contact_hint(record.id, endpoint.addr, now)
        return record

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolution | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from whichever source is first."""
        if peer == self.id and self.record is not None:
            answer(Resolution(self.record, "self", 0.0))
            return
        cached = self.resolver.get(peer, self._clock.wall())
        if cached is not None:
            answer(Resolution(cached, self.resolver.source(peer), 0.0))
            return
        if self.resolver.ask(peer, now, answer):
            self._look_up(peer, now)

    def _look_up(self, peer: NodeId, now: float) -> None:
        if self.settings.dht and peer not in self._lookups.values():
            self._lookups[self.dht.lookup(peer, now)] = peer
            self._events.on_dirty()

    def _drain_dht(self, now: float) -> None:
        for effect in self.dht.take_effects():
            if isinstance(effect, SendSealed):
                self._send_sealed(effect.peer, effect.addr, effect.body)
            elif isinstance(effect, Found):
                self.offer_record(effect.record.encoded, "dht", now)
            elif isinstance(effect, RecordPushed):
                self.metrics.count("watch_push")
                self.offer_record(effect.record.encoded, "watch", now)
            elif isinstance(effect, LookupDone):
                peer = self._lookups.pop(effect.lookup_id, None)
                if effect.record is not None:
                    self.offer_record(effect.record.encoded, "dht", now)
                elif peer is not None:
                    self._not_in_dht(peer, now)
            elif isinstance(effect, ContactsChanged):
                self._events.on_contacts()

    def _not_in_dht(self, peer: NodeId, now: float) -> None:
        """The DHT knows no record yet; who has just started may be publishing now, so ask again soon."""
        if self.resolver.asked(peer):
            self.metrics.count("lookup_empty")
            self._retries[peer] = now + RETRY_LOOKUP_S

    # ---- connecting

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Give ``answer`` a READY connection to ``peer``, the live one if there is one, or the error."""
        if self._closed:
            answer(NodeClosed("the node was closed"))
            return
        if peer == self.id:
            answer(NoPathError("a node does not connect to itself", hint="use another node's id"))
            return
        session = self._session(peer, now)
        if session is None:
            answer(NoPathError("too many peers at once", hint="close some connections first"))
            return
        if session.connection is not None:
            answer(session.connection)
            return
        session.waiting.append(answer)
        if session.dial is not None or len(session.waiting) > 1:
            return
        cached = self.resolver.get(peer, self._clock.wall())
        if cached is not None or peer in self.hints:
            self._dial(session, cached, now)
            return

        def resolved(result: Resolution | NotFound) -> None:
            current = self.sessions.get(peer)
            if current is None or current.connection is not None or current.dial is not None:
                return
            if isinstance(result, NotFound):
                current.answer(result)
                self._forget_if_idle(current)
            else:
                self._dial(current, result.record, self._clock.monotonic())

        self.resolve(peer, now, resolved)

    def _dial(self, session: Session, record: EndpointRecord | None, now: float) -> None:
        peer = session.peer
        try:
            self.identity.shared_key(peer)
        except InvalidId as error:
            session.answer(error)
            self._forget_if_idle(session)
            return
        engine = self._engines.dial(
            self.identity,
            peer,
            lambda odcid: self._sealer.knock(peer, odcid),
            self.settings.idle_timeout,
            now,
        )
        connection = self._new_connection(engine, peer, dialler=True, now=now)
        session.dial = connection
        self._handles[_handle(connection)] = connection  # the listener is ready before us, and may probe already
        session.refreshed = False
        if record is not None:
            session.paths.peer_record(record, now)
        if peer in self.hints:
            session.paths.add_candidates([(addr, "seed") for addr in self.hints[peer]], now)
        best = session.paths.best_guess()
        if best is None:
            connection.abandon(NoPathError(f"{peer.short} has published no usable address"))
            return
        session.paths.begin(best, now)
        self.metrics.count("dials")
        self._dirty[connection] = None
        self._drain_paths(session, now)
        self._events.on_dirty()

    def _new_connection(self, engine: Engine, peer: NodeId, *, dialler: bool, now: float) -> Connection:
        record = self.record.encoded if self.record is not None else b""
        connection = Connection(
            engine, self.identity, peer, self, dialler=dialler, boot=self.boot, record=record, now=now
        )
        self._by_cid[engine.host_cid] = connection
        if not dialler:
            self._by_cid[engine.odcid] = connection
        return connection

    def _session(self, peer: NodeId, now: float) -> Session | None:
        session = self.sessions.get(peer)
        if session is None:
            if len(self.sessions) >= MAX_SESSIONS:
                self.metrics.count("drop_sessions_full")
                return None
            paths = PeerPaths(peer, rng=self._rng, entropy=self._entropy, now=now, mtu_ceiling=self.settings.path_mtu)
            paths.set_local_networks(self._networks)
            session = self.sessions[peer] = Session(peer, paths)
        return session

    def _forget_if_idle(self, session: Session) -> None:
        if session.idle and self.sessions.get(session.peer) is session:
            del self.sessions[session.peer]
            self._armed.pop(session.peer, None)
            self.dht.unwatch(session.peer, self._clock.monotonic())

    # ---- QUIC in

    def _on_quic(self, data: bytes, source: Addr, now: float) -> None:
        cid = packets.dcid_of(data)
        connection = self._by_cid.get(cid) if cid is not None else None
        if connection is None:
            if cid is not None and cid not in self._held_cids:
                self._on_initial(data, cid, source, now)
            return
        if not packets.acceptable(data):
            self.metrics.count("drop_quic_kind")
            return
        newest = connection.receive(data, now)
        session = self.sessions.get(connection.peer)
        if (session is not None and connection is not session.connection and connection not in session.arrivals) or (
            session is not None and connection is session.connection
        ):
            session.paths.on_received(source, len(data), newest, now)
        elif session is not None:
            session.arrivals[connection] = source
        self._dirty[connection] = None

    def _on_initial(self, data: bytes, odcid: bytes, source: Addr, now: float) -> None:
        token = packets.initial_token(data) if packets.is_v1_initial(data) else None
        if token is None:
            self.metrics.count("drop_no_connection")
            return
        peer = self._sealer.check_knock(token, odcid)
        if peer is None or peer == self.id:
            self.metrics.count("drop_knock")
            return
        session = self._session(peer, now)
        if session is None:
            return
        if session.dial is not None and self.id < peer and session.held is None:
            # Both dial at once: the smaller id's dial lives. Keep theirs for a moment, in case ours gets nowhere.
            session.held = HeldInitial(data, odcid, source, now + HELD_INITIAL_S)
            self._held_cids[odcid] = session
            self.metrics.count("simultaneous_dial_held")
            self._arm(session)
            return
        self._accept(session, data, odcid, source, now)

    def _accept(self, session: Session, data: bytes, odcid: bytes, source: Addr, now: float) -> None:
        if len(session.arrivals) >= MAX_ARRIVALS_PER_PEER:
            self.metrics.count("drop_arrivals_full")
            return
        engine = self._engines.accept(self.identity, odcid, self.settings.idle_timeout, now)
        connection = self._new_connection(engine, session.peer, dialler=False, now=now)
        session.arrivals[connection] = source
        self.metrics.count("accepts")
        connection.receive(data, now)
        self._dirty[connection] = None
        self._arm(session)

    # ---- QUIC out

    def _transmit(self, connection: Connection, now: float) -> None:
        session = self.sessions.get(connection.peer)
        if session is None:
            return
        datagrams = connection.transmit(now)
        if connection is session.connection:
            session.paths.set_in_flight(connection.engine.in_flight(), now)
        if datagrams:
            self._send(session, connection, datagrams, now)
        if session.connection is connection or session.dial is connection:
            self._drain_paths(session, now)
        self._arm(session)

    def _send(self, session: Session, connection: Connection, datagrams: list[bytes], now: float) -> None:
        if not datagrams:
            return
        source = session.arrivals.get(connection)
        if source is not None:
            self._link.send(source, datagrams)  # the engine itself holds the 3x limit until the handshake
            return
        paths = session.paths
        active = paths.active
        if active is None:
            return
        size = sum(map(len, datagrams))
        budget = paths.budget(now)
        if budget is not None and size > budget:
            kept, size = [], 0
            for datagram in datagrams:
                if size + len(datagram) > budget:
                    break
                kept.append(datagram)
                size += len(datagram)
            self.metrics.count("held_by_amplification", len(datagrams) - len(kept))
            datagrams = kept
            if not datagrams:
                return
        paths.note_sent(size, now)
        if not self._link.send(active, datagrams):
            self.metrics.count("send_errors")

    def _arm(self, session: Session) -> None:
        """Keep one timer per session, at the earliest of everything it waits for."""
        at = session.paths.next_deadline()
        for connection in session.connections():
            at = _earlier(at, connection.engine.next_timer())
            if connection.state is State.HANDSHAKE:
                at = _earlier(at, connection.started + HANDSHAKE_TIMEOUT_S)
                if connection is session.dial and not session.refreshed:
                    at = _earlier(at, connection.started + DIAL_REFRESH_S)
        if session.held is not None:
            at = _earlier(at, session.held.deadline)
        if at is None:
            self._armed.pop(session.peer, None)
            return
        if self._armed.get(session.peer) != at:
            self._armed[session.peer] = at
            self._timer_count += 1
            heapq.heappush(self._timers, (at, self._timer_count, session.peer))

    def _tick_session(self, session: Session, now: float) -> None:
        for connection in session.connections():
            at = connection.engine.next_timer()
            if at is not None and at <= now:
                connection.on_timer(now)
                self._dirty[connection] = None
            if connection.state is State.HANDSHAKE:
                if now >= connection.started + HANDSHAKE_TIMEOUT_S:
                    self._handshake_timeout(session, connection)
                elif connection is session.dial and now >= connection.started + DIAL_REFRESH_S:
                    session.refreshed = True
                    self._look_up(session.peer, now)  # our record may be stale: the peer may have moved
        held = session.held
        if held is not None and held.deadline <= now:
            self._release_held(session)
            dial = session.dial
            if session.connection is None and (dial is None or dial.bytes_in == 0):
                self._accept(session, held.datagram, held.odcid, held.source, now)
        if _due(session.paths.next_deadline(), now):
            session.paths.tick(now)
        self._drain_paths(session, now)
        self._forget_if_idle(session)
        if not session.idle:
            self._arm(session)

    def _release_held(self, session: Session) -> None:
        if session.held is not None:
            self._held_cids.pop(session.held.odcid, None)
            session.held = None

    def _handshake_timeout(self, session: Session, connection: Connection) -> None:
        self.metrics.count("handshake_timeouts")
        if connection is session.dial:
            attempts = [(str(a), "no answer") for a in session.paths.addresses()]
            heard = connection.bytes_in > 0
            text = "stopped answering during the handshake" if heard else "did not answer"
            error: MeshError = (HandshakeTimeout if heard else NoPathError)(
                f"{session.peer.short} {text} at {', '.join(a for a, _ in attempts) or 'any address'}",
                hint="is it running and reachable from here? `meshnode resolve` shows what it published",
            )
            if isinstance(error, NoPathError):
                error.attempts = attempts
        else:
            error = HandshakeTimeout("the dialler never finished its handshake")
        connection.abandon(error)

    # ---- paths

    def _drain_paths(self, session: Session, now: float) -> None:
        connection = session.connection or session.dial
        for effect in session.paths.take_effects():
            if isinstance(effect, SendProbe):
                handle = _handle(connection) if connection is session.connection else probe.NO_HANDLE
                body = probe.encode_ping(
                    probe.Ping(effect.flags, effect.tx, handle), max(probe.MIN_PING, effect.pad_to - SEAL_OVERHEAD)
                )
                self._send_sealed(session.peer, effect.addr, body)
            elif isinstance(effect, Switched):
                self.metrics.count("path_switches")
                self._events.on_path(session.peer, effect.old, effect.new, effect.why)
                if connection is not None and effect.nudge:
                    connection.engine.nudge(now)
                    self._dirty[connection] = None
            elif isinstance(effect, Resumed):
                self._events.on_path(session.peer, None, session.paths.active, "resumed")
                if connection is not None:
                    connection.engine.nudge(now)
                    self._dirty[connection] = None
            elif isinstance(effect, Suspended):
                self.metrics.count("suspended")
                self._events.on_path(session.peer, session.paths.active, None, "suspended")
            elif isinstance(effect, Validated):
                if connection is not None:
                    self._dirty[connection] = None
            elif isinstance(effect, MtuChanged):
                if connection is not None:
                    connection.engine.set_datagram_size(effect.size)
            elif isinstance(effect, NeedRecord):
                self.dht.rewatch(session.peer, now)
                self._look_up(session.peer, now)

    def _send_sealed(self, peer: NodeId, addr: Addr, body: bytes) -> None:
        try:
            datagram = self._sealer.seal(peer, body)
        except InvalidId:  # a lying contact: 32 bytes that are no point of the curve
            self.metrics.count("drop_weak_id")
            return
        if not self._link.send(addr, [datagram]):
            self.metrics.count("send_errors")

    def _on_sealed(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        kind = body[0]
        if kind == probe.PING:
            self._on_ping(sender, body, source, now)
        elif kind == probe.PONG:
            self._on_pong(sender, body, source, size, now)
        elif FIRST_KIND <= kind <= LAST_KIND and self.settings.dht:
            self.dht.handle(sender, body, source, size, now, self._clock.wall())
        else:
            self.metrics.count("drop_sealed_kind")

    def _on_ping(self, sender: NodeId, body: bytes, source: Addr, now: float) -> None:
        ping = probe.decode_ping(body)
        if ping is None:
            self.metrics.count("drop_ping")
            return
        session = self.sessions.get(sender)
        connection = self._handles.get(ping.handle)
        known = connection is not None and connection.peer == sender
        flags = 0 if known or ping.handle == probe.NO_HANDLE else probe.NO_CONN
        pong = probe.encode_pong(probe.Pong(flags, ping.tx, source))
        self._send_sealed(sender, source, pong)
        if session is not None and known:
            session.paths.on_ping(source, ping.flags, now)
            self._drain_paths(session, now)
            self._arm(session)

    def _on_pong(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        pong = probe.decode_pong(body)
        if pong is None:
            self.metrics.count("drop_pong")
            return
        if pong.observed is not None:
            self.observed[sender] = pong.observed
            while len(self.observed) > MAX_SESSIONS:
                del self.observed[next(iter(self.observed))]
        echo = self._echoes.pop(pong.tx, None)
        session = self.sessions.get(sender)
        if echo is not None:
            gone = pong.flags & probe.NO_CONN and session is not None and session.connection is not None
            if session is not None:
                session.paths.on_answer(now)
            echo.answer(Pinged(None if gone else now - echo.sent, echo.path))
            if gone and session is not None:
                self._peer_restarted(session)
            return
        if session is None:
            return
        asked = session.paths.on_pong(pong.tx, source, now, size)
        if asked and pong.flags & probe.NO_CONN and session.connection is not None:
            self._peer_restarted(session)
        self._drain_paths(session, now)
        self._arm(session)

    def _peer_restarted(self, session: Session) -> None:
        self.metrics.count("peer_restarted")
        if session.connection is not None:
            error = PeerRestarted(f"{session.peer.short} has restarted and knows nothing of us")
            session.connection.abandon(error)

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path."""
        session = self.sessions.get(connection.peer)
        active = session.paths.active if session is not None else None
        if session is None or active is None:
            answer(Pinged(None, "none"))
            return
        tx = self._entropy(probe.TX_LENGTH)
        self._echoes[tx] = _Echo(now, now + timeout, session.paths.path_kind(active), answer)
        session.paths.expect_answer(now)
        self._arm(session)
        body = probe.encode_ping(probe.Ping(probe.ECHO, tx, _handle(connection)))
        self._send_sealed(connection.peer, active, body)
        self._events.on_dirty()

    # ---- what connections tell us (ConnectionEvents)

    def on_cid(self, connection: Connection, cid: bytes, issued: bool) -> None:
        """A connection issued or retired one of our connection ids."""
        if issued:
            self._by_cid[cid] = connection
        elif self._by_cid.get(cid) is connection:
            del self._by_cid[cid]

    def on_hello(self, connection: Connection, hello: Hello) -> None:
        """The dialler has proven its key: is it welcome?"""
        session = self.sessions.get(connection.peer)
        if session is None or self._closed:
            connection.abandon(NodeClosed("the node was closed"))
            return
        if not self._admit(connection.peer):
            self.metrics.count("refused_policy")
            connection.close(CloseCode.POLICY_DENIED, "not allowed here")
            return
        old = session.connection
        if old is not None:
            if old.peer_boot == hello.boot and old.dialler and self.id < connection.peer:
                connection.close(CloseCode.DUPLICATE, "another connection lives")
                return
            restarted = old.peer_boot != hello.boot
            kind = PeerRestarted if restarted else ConnectionLost
            old.abandon(kind(f"{connection.peer.short} {'has restarted' if restarted else 'connected anew'}"))
        connection.admit()

    def on_ready(self, connection: Connection) -> None:
        """Both keys are proven and policy agrees: this is the peer's connection now."""
        peer = connection.peer
        now = self._clock.monotonic()
        session = self._session(peer, now)
        if session is None:
            return
        source = session.arrivals.pop(connection, None)
        session.connection = connection
        self._handles[_handle(connection)] = connection
        if not connection.dialler:
            self.on_cid(connection, connection.engine.odcid, False)
            if source is not None:
                session.paths.accept(source, now)
        elif session.paths.active is not None:
            session.paths.accept(session.paths.active, now)
        dial, session.dial = session.dial, None
        if dial is not None and dial is not connection:
            dial.abandon(ConnectionLost("the peer's own dial was faster"))
        self._release_held(session)
        if connection.peer_record:
            self.offer_record(connection.peer_record, "connection", now)
        if self.settings.dht:
            cached = self.resolver.get(peer, self._clock.wall())
            self.dht.watch(peer, now, known_seq=cached.seq if cached is not None else 0)
        self.metrics.count("connections")
        self._dirty[connection] = None
        session.answer(connection)
        self._events.on_connection(connection, True)

    def on_record(self, connection: Connection, encoded: bytes) -> None:
        """A live peer pushed its newest record."""
        self.offer_record(encoded, "connection", self._clock.monotonic())

    def on_stream(self, connection: Connection, stream: Stream) -> None:
        """The peer opened a stream and said for which service."""
        self._events.on_stream(connection, stream)

    def on_stream_data(self, connection: Connection) -> None:
        """Application bytes arrived: more are to be expected."""
        session = self.sessions.get(connection.peer)
        if session is not None:
            session.paths.note_stream_data(self._clock.monotonic())

    def on_closed(self, connection: Connection, error: MeshError) -> None:
        """A connection is over, for whatever reason."""
        for cid in [c for c, owner in self._by_cid.items() if owner is connection]:
            del self._by_cid[cid]
        handle = _handle(connection)
        if self._handles.get(handle) is connection:
            del self._handles[handle]
        session = self.sessions.get(connection.peer)
        if session is None:
            return
        now = self._clock.monotonic()
        self._send(session, connection, connection.engine.transmit(now), now)
        session.arrivals.pop(connection, None)
        if session.dial is connection:
            session.dial = None
            if session.connection is None and not (
                session.arrivals and isinstance(error, ConnectionLost) and not isinstance(error, PolicyDenied)
            ):
                session.answer(error)
        if session.connection is connection:
            session.connection = None
            self._events.on_connection(connection, False)
        self._forget_if_idle(session)

    def on_dirty(self, connection: Connection) -> None:
        """A connection has something to send."""
        self._dirty[connection] = None
        self._events.on_dirty()


def _handle(connection: Connection | None) -> bytes:
    """The 8 bytes by which both ends name one connection in probes."""
    if connection is None:
        return probe.NO_HANDLE
    return hashlib.blake2b(connection.engine.odcid, digest_size=probe.HANDLE_LENGTH, person=b"mesh-handle").digest()


def _due(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline <= now


def _earlier(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return a if a < b else b
