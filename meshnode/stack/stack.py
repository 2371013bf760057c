"""The whole node without I/O: datagrams, timers and commands in; datagrams and events out.

The asyncio node (``node.py``) and the simulator drive this same class. It demultiplexes, keeps our own
record, and wires the parts to each other: ``peers`` (sessions and connections), ``meeting`` (how connections
begin), ``probing`` (sealed probes), ``finding`` (resolver and DHT), ``outlet`` (the way out).
See docs/explanation/architecture.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from meshnode.base.address import NOWHERE, Addr
from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import MAX_DATAGRAM
from meshnode.base.metrics import Metrics, describe
from meshnode.discovery.dht import FIRST_KIND, LAST_KIND, Dht
from meshnode.discovery.resolver import Resolved
from meshnode.errors import NotFound
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord, sign_record
from meshnode.identity.sealing import SEALED, Sealer
from meshnode.nat.local_networks import is_loopback
from meshnode.nat.mapping import NatView
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.relay.frames import RELAYED
from meshnode.stack import probe
from meshnode.stack.context import Context, StackEvents, StackSettings, Transport
from meshnode.stack.deadlines import earlier, is_due
from meshnode.stack.path_probes import Pinged
from meshnode.stack.peer_table import PeerTable
from meshnode.stack.port_search import SYMMETRIC
from meshnode.stack.relay_client import RelayClient
from meshnode.stack.resolution import Resolution
from meshnode.stack.sender import Sender
from meshnode.stack.session import OnConnect, Session

RENEW_DELAY_S = 0.05
QUIC_BIT = 0x40  # RFC 9443: set in every QUIC packet, clear in everything of ours

BAD_SIZE = describe("drop_size", "datagrams that are empty or too long")
BAD_SEAL = describe("drop_sealed", "sealed datagrams that do not open")
UNKNOWN = describe("drop_unknown", "datagrams that are neither QUIC nor sealed")
UNKNOWN_KIND = describe("drop_sealed_kind", "sealed datagrams of an unknown kind")


class Stack:
    """One node's protocol state. Every method is synchronous; ``now`` is monotonic seconds."""

    def __init__(
        self,
        identity: Identity,
        sealer: Sealer,
        link: Transport,
        events: StackEvents,
        engines: EngineFactory,
        *,
        clock: Clock,
        rng: random.Random,
        entropy: Entropy,
        next_seq: Callable[[], int],
        admit: Callable[[NodeId], bool],
        relay_allow: Callable[[NodeId], bool] | None = None,
        settings: StackSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.id = identity.id
        self.metrics = metrics or Metrics()
        self.record: EndpointRecord | None = None
        self._next_seq = next_seq
        self._ports = Context(
            identity,
            sealer,
            link,
            events,
            engines,
            clock,
            rng,
            entropy,
            admit,
            relay_allow or admit,
            settings or StackSettings(),
            self.metrics,
        )
        self._outlet = Sender(
            self._ports, lambda *out: self._peers.relaying.wrap(*out), lambda addr: self.nat.filters.sent(addr)
        )
        self._finder = Resolution(
            self._ports, self._send_dht, lambda record, now: self._peers.on_newer_record(record, now)
        )
        self._peers = PeerTable(
            self._ports,
            self._outlet,
            self._finder,
            lambda: self.record.encoded if self.record is not None else b"",
            self._self_changed,
            self.datagram,
            next_seq,
        )
        self.gossip = self._peers.gossip
        self.registry = self._peers.registry
        self._endpoints: tuple[Endpoint, ...] = ()
        self._probing = self._peers.probing
        self.nat.filters.begin(clock.monotonic(), fresh_port=self._ports.settings.fresh_port)
        self._republish_at: float | None = None

    # ---- what the host may look at

    @property
    def sessions(self) -> dict[NodeId, Session]:
        """What we keep for each peer."""
        return self._peers.sessions

    @property
    def nat(self) -> NatView:
        """What others see of our address."""
        return self._peers.nat

    @property
    def relaying(self) -> RelayClient:
        """The relays that we use, and those that use us."""
        return self._peers.relaying

    @property
    def dht(self) -> Dht:
        """The DHT core."""
        return self._finder.dht

    # ---- what the host calls

    def receive(self, batch: Iterable[tuple[bytes, Addr]], now: float) -> None:
        """Take received datagrams; then send what they caused."""
        for data, source in batch:
            self.datagram(data, source, now)
        self.flush(now)

    def datagram(self, data: bytes, source: Addr, now: float) -> None:
        """Demultiplex one datagram on its first byte. Hostile input is dropped and counted."""
        if not data or len(data) > MAX_DATAGRAM:
            self.metrics.count(BAD_SIZE)
        elif data[0] & QUIC_BIT:
            self._peers.on_quic(data, source, now)
        elif data[0] == SEALED:
            opened = self._ports.sealer.unseal(data)
            if opened is not None and opened[1]:
                self.nat.filters.heard(source, now)
                self._on_sealed(opened[0], opened[1], source, len(data), now)
            else:
                self.nat.filters.stray(source, now)
                self.metrics.count(BAD_SEAL)
                repeated = self._peers.sessions.get(self._ports.sealer.repeated or self.id)
                if repeated is not None:
                    repeated.paths.on_duplicate(source)
        elif data[0] == RELAYED:
            self.relaying.on_frame(data, now)
        else:
            self.metrics.count(UNKNOWN)

    def _on_sealed(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        if is_loopback(source):
            self._peers.heard_on_loopback()
        kind = body[0]
        if kind == probe.PING:
            self._probing.on_ping(sender, body, source, now)
        elif kind == probe.PONG:
            self._probing.on_pong(sender, body, source, size, now)
        elif FIRST_KIND <= kind <= LAST_KIND and self._ports.settings.dht:
            where = source if source.is_udp and source.side is None else NOWHERE
            self._finder.dht.handle(sender, body, where, size, now, self._ports.clock.wall())
        else:
            self.metrics.count(UNKNOWN_KIND)

    def _send_dht(self, peer: NodeId, addr: Addr, body: bytes) -> None:
        """A DHT message takes the detour by which we talk to that peer, if we do."""
        session = self._peers.sessions.get(peer)
        active = session.paths.active if session is not None and session.connection is not None else None
        if active is not None and (not active.is_udp or active.side is not None):
            addr = active
        if addr != NOWHERE:
            self._outlet.send_sealed(peer, addr, body)

    def next_deadline(self) -> float | None:
        """The next time at which ``tick`` has something to do."""
        at = earlier(self._peers.next_deadline(), self._finder.next_deadline())
        if self.gossip is not None:
            at = earlier(at, self.gossip.next_deadline())
        if self.registry is not None:
            at = earlier(at, self.registry.next_deadline())
        return earlier(earlier(at, self._republish_at), self.relaying.next_deadline())

    def tick(self, now: float) -> None:
        """Let every due timer fire; then send what they caused."""
        self._peers.tick(now)
        self._finder.tick(now)
        if self.gossip is not None:
            self.gossip.tick(now)
        if self.registry is not None:
            self.registry.tick(now)
        if self.relaying.tick(now):
            self._self_changed(now)
        if is_due(self._republish_at, now):
            self._renew(now)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send everything that is due: DHT effects, path effects, connections' datagrams."""
        for _ in range(8):  # an effect may cause another; more rounds than this would be a loop
            self._finder.drain(now)
            if not self._peers.flush(now):
                break
        self._finder.drain(now)
        self.relaying.flush()

    def close(self, now: float) -> None:
        """Say goodbye on every connection."""
        if self.gossip is not None:
            self.gossip.close(now)
            self.flush(now)
        self._peers.close(now)

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
        self._peers.settle_here(networks, frozenset(endpoint.addr for endpoint in endpoints))
        if moved:
            self._peers.moved(now)
            self._peers.flush(now)  # what was in flight goes again before a signature, and a file that is synced
        changed = bool(endpoints) and endpoints != self._endpoints
        self._endpoints = endpoints
        # a mapping is the NAT's doing: it neither makes us seen as ourselves, nor spoils what others saw
        self.nat.moved(frozenset(endpoint.addr for endpoint in endpoints if endpoint.kind is EndpointKind.HOST))
        if changed:
            self._sign(now)
        if moved:
            self.dht.rewatch_all(now)
        if changed:
            self._publish(now)
        if moved:
            self.dht.local_moved(now)
        self.nat.filters.moved(frozenset(endpoint.addr for endpoint in endpoints), networks, now, moved=moved)
        self.flush(now)

    def _self_changed(self, now: float) -> None:
        """What our record says of us is outdated: renew it in a moment, together with what else changes now."""
        self._republish_at = earlier(self._republish_at, now + RENEW_DELAY_S)
        self._ports.events.on_dirty()

    def _renew(self, now: float) -> None:
        """Something that our record says has changed, or it grows old: a new one, for everybody."""
        self._republish_at = None
        if self._endpoints:
            self._sign(now)
            self._publish(now)

    def _sign(self, now: float) -> None:
        settings = self._ports.settings
        known = {endpoint.addr for endpoint in self._endpoints}
        seen = tuple(Endpoint(addr, EndpointKind.REFLEXIVE) for addr in self.nat.reflexive(now) if addr not in known)
        capabilities = (*settings.capabilities, SYMMETRIC) if self.nat.symmetric(now) else settings.capabilities
        self.record = sign_record(
            self._ports.identity,
            seq=self._next_seq(),
            issued_ms=int(self._ports.clock.wall() * 1000),
            ttl=settings.record_ttl,
            endpoints=self._endpoints + seen,
            relays=self.relaying.homes,
            capabilities=capabilities,
        )
        self._peers.settle_here(self._peers.here.networks, frozenset(e.addr for e in self.record.endpoints))
        self._republish_at = now + settings.record_ttl * self._ports.rng.uniform(0.3, 0.5)
        self._ports.events.on_record(self.record)

    def _publish(self, now: float) -> None:
        if self.record is not None:
            self._peers.push_record(self.record.encoded)
            if self.gossip is not None:
                self.gossip.announce(self.record, now)
            if self._ports.settings.dht:
                self.dht.publish(self.record, now)

    # ---- discovery

    def add_seed(self, peer: NodeId, addrs: Iterable[Addr], now: float) -> None:
        """A seed or a static contact is said to be at these addresses."""
        addrs = list(addrs)
        if any(is_loopback(addr) for addr in addrs):
            self._peers.heard_on_loopback()
        if self._finder.add_seed(peer, addrs, now):
            self._peers.meeting.hinted(peer, now)
            self.relaying.wake(now)
            if self.gossip is not None:
                self.gossip.add_seed(peer, now)
        self.flush(now)

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """A contact from an earlier run."""
        self._finder.add_contact(peer, addr, now)

    def offer_record(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """A source hands in a record; everything that is concerned learns of it when it is valid and newer."""
        record = self._finder.offer(encoded, source, now)
        if record is not None and self.gossip is not None:
            self.gossip.add_record(record, now)
        return record

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from whichever source is first."""
        if peer == self.id and self.record is not None:
            answer(Resolved(self.record, "self", 0.0))
        else:
            self._finder.resolve(peer, now, answer)

    # ---- peers

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Give ``answer`` a READY connection to ``peer``, the live one if there is one, or the error."""
        self._peers.connect(peer, now, answer)
        if self.gossip is not None:
            self.gossip.used(peer)

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path."""
        self._probing.ping(connection, timeout, now, answer)
