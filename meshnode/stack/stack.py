"""The whole node without I/O: datagrams, timers and commands in; datagrams and events out.

The asyncio runtime and the simulator run this same class. It is the composition root of ``meshnode.stack``: it makes
the components, in one list, and gives them one ``Context``. See docs/explanation/architecture.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from meshnode.base.address import Addr
from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import MAX_DATAGRAM
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path, ViaTunnel
from meshnode.base.timers import RETRY_S, OnError, reraise
from meshnode.discovery.dht import Dht
from meshnode.discovery.resolver import Resolved
from meshnode.discovery.source import RecordSource
from meshnode.errors import NotFound
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord
from meshnode.identity.sealing import SEALED, Sealer
from meshnode.nat.local_networks import is_loopback
from meshnode.nat.view import NatView
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.relay.frames import RELAYED
from meshnode.stack.component import Component, Hooks
from meshnode.stack.connections import Connections
from meshnode.stack.context import Context, StackEvents, StackSettings
from meshnode.stack.dialing import Dialing
from meshnode.stack.directory_link import DirectoryLink
from meshnode.stack.gossip_link import GossipLink
from meshnode.stack.own_record import OwnRecord
from meshnode.stack.path_probes import PathProbes
from meshnode.stack.port_search import PortSearch
from meshnode.stack.probe import Pinged
from meshnode.stack.relay_client import RelayClient
from meshnode.stack.relay_service import RelayService
from meshnode.stack.resolution import Resolution
from meshnode.stack.sender import Sender, Transport
from meshnode.stack.session import OnConnect, Session
from meshnode.stack.topic_link import TopicLink

QUIC_BIT = 0x40  # RFC 9443: set in every QUIC packet, clear in all other messages of this protocol
FLUSH_ROUNDS = 8  # what one component sends may give another something to send; more rounds than this are a loop

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
        on_error: OnError = reraise,
    ) -> None:
        self.id = identity.id
        self.metrics = metrics or Metrics()
        self.context = context = Context(
            identity,
            sealer,
            link,
            events,
            engines,
            clock,
            rng,
            entropy,
            next_seq,
            admit,
            relay_allow or admit,
            settings or StackSettings(),
            self.metrics,
        )
        context.timers.on_error = on_error
        self.own_record = context.own = OwnRecord(context)
        self.resolution = context.records = Resolution(context)
        self.probing = context.probes = PathProbes(context)
        self.relaying = context.relays = RelayClient(context)
        self.relay_service = context.serving = RelayService(context)
        self.connections = context.links = Connections(context)
        self.gossip: GossipLink | None = None
        self.registry: DirectoryLink | None = None
        self.topic_link: TopicLink | None = None
        if context.settings.gossip:
            self.gossip = GossipLink(context)
            context.gossip, context.use = self.gossip.entries, self.gossip.use
            self.registry = DirectoryLink(context, self.gossip.entries)
            self.topic_link = TopicLink(context, self.gossip.entries)
        self.dialing = context.dials = Dialing(context)
        # The order in which components hear of what happens to all of them:
        # - a newer record, or a seed: relays that it names become candidates, before a dial begins at the best one;
        # - a path that was left: a search ends before the relay is asked whether it lives;
        # - this node's new record: live peers, which wait for it, then gossip, then the DHT, which takes seconds;
        # - a connection: relays and searches, which it carries, then gossip, then what stands on gossip's members;
        # - a stream: topics take those of their service before the application is asked;
        # - the end: in reverse, so that what stands on connections says goodbye before they close.
        parts: list[Component | None] = [
            self.own_record,
            PortSearch(context),
            self.relay_service,
            self.relaying,
            self.dialing,
            self.probing,
            self.connections,
            self.gossip,
            self.resolution,
            self.registry,
            self.topic_link,
        ]
        context.hooks = Hooks([part for part in parts if part is not None])
        context.deliver = self.datagram
        sealer.is_established = lambda peer: context.peers.connection(peer) is not None
        context.sender = Sender(
            link,
            sealer,
            self.metrics,
            self.relaying.wrap,
            context.nat.filters.sent,
        )
        self.next_deadline = context.timers.next_deadline
        context.nat.filters.begin(clock.monotonic(), fresh_port=context.settings.fresh_port)

    # ---- what the runtime may look at

    @property
    def record(self) -> EndpointRecord | None:
        """Return this node's own record; None until it has an address."""
        return self.context.record

    @property
    def sessions(self) -> dict[NodeId, Session]:
        """Return what is kept for each peer."""
        return self.context.peers.sessions

    @property
    def nat(self) -> NatView:
        """Return what is known of this node's NAT."""
        return self.context.nat

    @property
    def dht(self) -> Dht:
        """Return the DHT's core."""
        return self.resolution.dht.dht

    # ---- what the runtime calls

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        """Take received datagrams, each with the address that it came from; then send what they caused.

        Those that were read together share one time, and their answers share packets.
        """
        for data, source in batch:
            self.datagram(data, source, now)
        self.flush(now)

    def datagram(self, data: bytes, source: Path, now: float) -> None:
        """Demultiplex one datagram on its first byte (RFC 9443).

        Never raises for what a peer sends: hostile input is dropped and counted. ``flush`` is to follow.
        """
        if not data or len(data) > MAX_DATAGRAM:
            self.metrics.count(BAD_SIZE)
        elif data[0] & QUIC_BIT:
            self.connections.on_quic(data, source, now)
        elif data[0] == SEALED:
            self._on_sealed(data, source, now)
        elif data[0] == RELAYED:
            self.relaying.on_relayed(data, now)
        else:
            self.metrics.count(UNKNOWN)

    def _on_sealed(self, data: bytes, source: Path, now: float) -> None:
        context = self.context
        opened = context.sealer.unseal(data)
        if opened is None or not opened[1]:
            context.nat.filters.stray(source, now)
            self.metrics.count(BAD_SEAL)
            repeated = context.peers.sessions.get(context.sealer.repeated or self.id)
            if repeated is not None:
                repeated.paths.book.on_duplicate(source)
            return
        sender, body = opened
        context.nat.filters.heard(source, now)
        if isinstance(source, Addr) and is_loopback(source):
            self.own_record.hear_loopback()
        hook = self.context.hooks.sealed.get(body[0])
        if hook is not None:
            hook(sender, body, source, len(data), now)
        else:
            self.metrics.count(UNKNOWN_KIND)

    def tick(self, now: float) -> None:
        """Let every due timer fire; then send what they caused.

        To be called at ``next_deadline()``, or later: a late call shows gossip that the process was held up.
        """
        self.context.timers.run(now)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Let the components send that have something to send.

        One that raises stops no other: it is asked again after ``RETRY_S``, and the error goes to ``on_error``.
        """
        dirty = self.context.dirty
        for _ in range(FLUSH_ROUNDS):
            if not dirty:
                return
            for component in tuple(dirty):
                del dirty[component]
                try:
                    component.flush(now)
                except Exception as error:
                    self.context.timers.at(now + RETRY_S, partial(self._flush_again, component))
                    self.context.timers.on_error(error)

    def _flush_again(self, component: Component, _: float) -> None:
        self.context.dirty[component] = None

    def close(self, now: float) -> None:
        """Say goodbye to the mesh, then on every connection.

        All goodbyes are sent when this returns. The stack is not to be used afterwards.
        """
        for hook in self.context.hooks.close:
            hook(now)
            self.flush(now)

    # ---- addresses and discovery

    def set_addresses(
        self, endpoints: tuple[Endpoint, ...], networks: tuple[tuple[str, int], ...], now: float, *, moved: bool
    ) -> None:
        """Take these as the local endpoints; ``networks`` are address and prefix length of each local network.

        When ``moved``, every live peer is probed from the new address first; then the new record is signed, and told.
        """
        self.own_record.set_addresses(endpoints, networks, now, moved=moved)
        self.flush(now)

    def add_source(self, source: RecordSource) -> None:
        """Start one more source of records (``discovery/source.py``).

        It may hand in records and seeds from now on, until the stack is closed.
        """
        self.resolution.add_source(source)
        self.context.events.on_dirty()

    @property
    def sources(self) -> Sequence[RecordSource]:
        """Return the sources of records, the DHT among them, in the order in which they were added."""
        return self.resolution.sources

    def add_seed(self, peer: NodeId, paths: Iterable[Addr | ViaTunnel], now: float) -> None:
        """Take configured addresses of a seed or a static contact."""
        self.resolution.add_seed(peer, paths, now)
        self.flush(now)

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Take a DHT contact of an earlier run."""
        self.resolution.add_contact(peer, addr, now)

    def offer_record(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """Take a record that came by none of the sources, as with a ticket.

        ``source`` names where it came from. Returned when it is valid, newer and of another node; else None.
        """
        return self.resolution.introduce(encoded, source, now)

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from the source that is first.

        ``answer`` gets it, or ``NotFound`` when no source has it in time. This node finds its own.
        """
        if peer == self.id and self.record is not None:
            answer(Resolved(self.record, "self", 0.0))
        else:
            self.resolution.resolve(peer, now, answer)

    # ---- peers

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Give ``answer`` a READY connection to ``peer``, or the error.

        The live one is given at once, before this returns. From then on the connection counts as used by the
        application, so gossip does not close it.
        """
        self.dialing.connect(peer, now, answer)
        if self.gossip is not None:
            self.gossip.use.add(peer)

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path."""
        self.probing.ping(connection, timeout, now, answer)
