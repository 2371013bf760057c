"""The whole node without I/O: datagrams, timers and commands in; datagrams and events out.

The asyncio runtime and the simulator run this same class. It is the composition root of ``meshnode.stack``: it makes
the components, in one list, and gives them one ``Context``. See docs/explanation/architecture.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from meshnode.base.address import Addr
from meshnode.base.clock import Clock, Entropy
from meshnode.base.limits import MAX_DATAGRAM
from meshnode.base.metrics import Metrics, describe
from meshnode.base.path import Path, ViaTunnel
from meshnode.base.timers import NEVER, RETRY_S, OnError, reraise
from meshnode.discovery.dht import ANSWERS, Dht
from meshnode.discovery.resolver import Resolved
from meshnode.discovery.source import RecordSource
from meshnode.errors import NotFound
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord
from meshnode.identity.sealing import SEALED, Sealer
from meshnode.nat.local_networks import is_loopback
from meshnode.nat.view import NatView
from meshnode.paths.seeking import Connectivity
from meshnode.quic.connection import Connection
from meshnode.quic.seam import EngineFactory
from meshnode.relay.frames import RELAYED
from meshnode.stack.access import Access
from meshnode.stack.address_credit import OF_CONNECTION, OF_STRANGER
from meshnode.stack.admission import Admission
from meshnode.stack.clock_watch import ClockWatch
from meshnode.stack.component import Component, Hooks
from meshnode.stack.connections import Connections
from meshnode.stack.context import Context, StackEvents, StackSettings
from meshnode.stack.dialing import Dialing
from meshnode.stack.fencing import Fencing
from meshnode.stack.junk import Junk
from meshnode.stack.key_twins import make_boot
from meshnode.stack.lateness import Lateness
from meshnode.stack.mesh_key_link import MeshKeyLink
from meshnode.stack.own_record import OwnRecord
from meshnode.stack.path_probes import PathProbes
from meshnode.stack.policy_link import PolicyLink
from meshnode.stack.port_search import PortSearch
from meshnode.stack.probe import PONG, Pinged
from meshnode.stack.reception import Reception
from meshnode.stack.relay_client import RelayClient
from meshnode.stack.relay_service import RelayService
from meshnode.stack.renewal import Renewal
from meshnode.stack.resolution import Resolution
from meshnode.stack.revocation_link import RevocationLink
from meshnode.stack.sender import Sender, Transport
from meshnode.stack.session import OnConnect, Session
from meshnode.stack.standings import Standings
from meshnode.stack.unread import UnreadBytes
from meshnode.trust.chain import Chain
from meshnode.trust.guard import Guard

if TYPE_CHECKING:
    from meshnode.stack.directory_link import DirectoryLink
    from meshnode.stack.gossip_link import GossipLink
    from meshnode.stack.topic_link import TopicLink

FLUSH_ROUNDS = 8  # what one component sends may give another something to send; more rounds than this are a loop

BAD_SIZE = describe("drop_size", "datagrams that are empty or too long")
BAD_SEAL = describe("drop_sealed", "sealed datagrams that do not open")
UNKNOWN = describe("drop_unknown", "datagrams that are neither QUIC nor sealed")
REVOKED = describe("drop_sealed_revoked", "sealed datagrams of keys that are revoked")
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
        guard: Guard | None = None,
        grants: Chain = (),
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
            guard or Guard(identity.id),
            settings or StackSettings(),
            self.metrics,
        )
        context.grants = grants
        context.timers.on_error = on_error
        context.junk = Junk(context.credit.proven, context.peers.paths_in_use, context.timers)
        self.own_record = context.own = OwnRecord(context)
        self.resolution = context.records = Resolution(context)
        self.probing = context.probes = PathProbes(context)
        self.relaying = context.relays = RelayClient(context)
        context.serving = relay_service = RelayService(context)
        self.connections = context.links = Connections(context)
        self.gossip: GossipLink | None = None
        self.registry: DirectoryLink | None = None
        self.topic_link: TopicLink | None = None
        if context.settings.gossip:  # a node without it loads none of this: a ninth of the time of its start
            from meshnode.stack.directory_link import DirectoryLink
            from meshnode.stack.gossip_link import GossipLink
            from meshnode.stack.topic_link import TopicLink

            self.gossip = GossipLink(context)
            context.gossip, context.use = self.gossip.entries, self.gossip.use
            self.registry = DirectoryLink(context, self.gossip.entries)
            self.topic_link = TopicLink(context, self.gossip.entries)
        dialing = context.dials = Dialing(context)
        context.boot = make_boot(next_seq(), context.settings.first_stays, entropy(1))
        context.fencing = fencing = Fencing(context)
        context.admission = admission = Admission(context)
        context.standings = standings = Standings(context)
        renewal = Renewal(context)
        context.mesh_keys = mesh_keys = MeshKeyLink(context)
        redemptions, roles = _spread_trust(context) if context.gossip is not None else (None, None)
        access = Access(context)
        context.policies = policies = PolicyLink(context)
        context.revoking = revoking = RevocationLink(context)
        # The order in which components hear of what happens to all of them:
        # - a newer record, or a seed: relays that it names become candidates, before a dial begins at the best one;
        # - a path that was left: a search ends before the relay is asked whether it lives;
        # - this node's new record: live peers, which wait for it, then gossip, then the DHT, which takes seconds;
        # - a connection: relays and searches, which it carries, then gossip, then what stands on gossip's members;
        # - a stream: topics take those of their service before the application is asked;
        # - the end: in reverse, so that what stands on connections says goodbye before they close.
        # - a revocation ends connections before anything is served on them, so its component is the first of all.
        parts: list[Component | None] = [
            revoking,
            self.own_record,
            PortSearch(context),
            relay_service,
            self.relaying,
            dialing,
            admission,
            fencing,
            standings,
            renewal,
            mesh_keys,
            redemptions,
            roles,
            access,
            policies,
            self.probing,
            self.connections,
            self.gossip,
            self.resolution,
            self.registry,
            self.topic_link,
        ]
        context.hooks = Hooks([part for part in parts if part is not None])
        feed, other = self.connections.on_packets, self._datagram
        reception = Reception(context.peers.by_cid, feed, dialing.on_initial, other, self.metrics, context.timers)
        self.take = reception.take  # what was received in one turn; ``flush`` is to follow
        context.deliver = reception.deliver
        watches = ClockWatch(context), UnreadBytes(context), Lateness(context)
        self.looks: list[Callable[[float], None]] = [watch.look for watch in watches]  # called whenever time has passed
        sealer.senders.is_linked = lambda peer: context.peers.connection(peer) is not None
        sealer.senders.home_of = self.resolution.home_of
        sealer.doubt.answers = frozenset((PONG, *ANSWERS))
        context.sender = Sender(
            link,
            sealer,
            self.metrics,
            self.relaying.wrap,
            context.nat.filters,
            context.credit,
            clock.monotonic,
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
    def refused(self) -> Collection[Path]:
        """Return the sources whose datagrams are to be dropped unread now.

        The container stays the same.
        """
        return self.context.junk.refused

    @property
    def refused_tunnels(self) -> Collection[Path]:
        """Return the members' WebSockets that are to be closed, for they bring junk.

        The container stays the same.
        """
        return self.context.junk.tunnels

    def may_dial(self, tunnel: ViaTunnel) -> bool:
        """Spend one attempt to open a tunnel; False when there were too many and no node has answered there."""
        if any(tunnel in paths for paths in self.resolution.hints.values()):
            return True
        return self.context.credit.tunnels.take(tunnel, self.context.clock.monotonic())

    @property
    def dht(self) -> Dht:
        """Return the DHT's core."""
        return self.resolution.dht.dht

    # ---- what the runtime calls

    def receive(self, batch: Iterable[tuple[bytes, Path]], now: float) -> None:
        """Take received datagrams, each with the address that it came from; then send what they caused.

        Those that were read together share one time, and their answers share packets. Never raises for what a peer
        sends: hostile input is dropped and counted.
        """
        self.take([([data], source) for data, source in batch], now)
        self.flush(now)

    def _datagram(self, data: bytes, source: Path, now: float) -> None:
        """Demultiplex a datagram that is not QUIC's on its first byte."""
        if not data or len(data) > MAX_DATAGRAM:
            self.context.junk.note(source, now)
            self.metrics.count(BAD_SIZE)
        elif data[0] == SEALED:
            self._on_sealed(data, source, now)
        elif data[0] == RELAYED:
            self.relaying.on_relayed(data, source, now)
        else:
            self.context.junk.note(source, now)
            self.metrics.count(UNKNOWN)

    def _on_sealed(self, data: bytes, source: Path, now: float) -> None:
        context = self.context
        opened = context.sealer.unseal(data, source)
        if opened is None or not opened[1]:
            context.nat.filters.stray(source, now)
            context.junk.note(source, now, excess=context.sealer.slowed)
            self.metrics.count(BAD_SEAL)
            repeated = context.peers.sessions.get(context.sealer.repeated or self.id)
            if repeated is not None:
                repeated.paths.book.on_duplicate(source)
            return
        sender, body = opened
        if context.is_barred(sender):
            self.metrics.count(REVOKED)
            return
        context.nat.filters.heard(source, now)
        if source not in context.credit.proven:
            factor = OF_CONNECTION if context.peers.is_linked(sender) else OF_STRANGER
            context.credit.earn(source, len(data), factor, now)
        if isinstance(source, Addr) and is_loopback(source):
            context.own.hear_loopback()
        hook = self.context.hooks.sealed.get(body[0])
        if hook is not None:
            hook(sender, body, source, len(data), now)
        else:
            self.metrics.count(UNKNOWN_KIND)

    def tick(self, now: float) -> None:
        """Let every due timer fire; then send what they caused.

        To be called at ``next_deadline()``, or later: a late call shows gossip that the process was held up.
        """
        for look in self.looks:  # as ``tell`` does, without a call more for each packet that a timer sends
            try:
                look(now)
            except Exception as error:
                self.context.timers.on_error(error)
        self.context.timers.run(now)
        self.flush(now)

    def flush(self, now: float) -> None:
        """Let the components send that have something to send.

        One that raises stops no other: it is asked again after ``RETRY_S``, and the error goes to ``on_error``.
        """
        dirty = self.context.dirty
        for _ in range(FLUSH_ROUNDS):
            if not dirty:
                break
            for component in tuple(dirty):
                del dirty[component]
                try:
                    component.flush(now)
                except Exception as error:
                    self.context.timers.at(now + RETRY_S, partial(self._flush_again, component))
                    self.context.timers.on_error(error)
        due, context = self.next_deadline(), self.context
        # one that is overdue keeps its time; one that was past when it was set is awaited since now
        context.awaited = NEVER if due is None else due if due > now else min(context.awaited, now)

    def _flush_again(self, component: Component, _: float) -> None:
        self.context.dirty[component] = None

    def close(self, now: float) -> None:
        """Say goodbye to the mesh, then on every connection.

        All goodbyes are sent when this returns. The stack is not to be used afterwards.
        """
        for hook in self.context.hooks.close:
            try:
                hook(now)
            except Exception as error:  # the others say goodbye all the same
                self.context.timers.on_error(error)
            self.flush(now)

    # ---- addresses and discovery

    def set_addresses(
        self, endpoints: tuple[Endpoint, ...], networks: tuple[tuple[str, int], ...], now: float, *, moved: bool
    ) -> None:
        """Take these as the local endpoints; ``networks`` are address and prefix length of each local network.

        When ``moved``, every live peer is probed from the new address first; then the new record is signed, and told.
        """
        if self.context.uplinks is None and _has_uplinks(endpoints):
            from meshnode.stack.uplinks import Uplinks  # few hosts have several addresses of a family

            self.context.uplinks = Uplinks(self.context)
            self.context.hooks.add(self.context.uplinks)
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
        peer = _current(self.context, peer)
        if peer == self.id and self.record is not None:
            answer(Resolved(self.record, "self", 0.0))
        else:
            self.resolution.resolve(peer, now, answer)

    # ---- peers

    def hears(self, peer: NodeId) -> bool:
        """Return whether a peer answers: on its connection unless that is suspended, else as a contact of the DHT.

        One that gossip believes to be gone, or that has left, does not.
        """
        session = self.context.peers.sessions.get(peer)
        if session is not None and session.connection is not None:
            return session.paths.seeking.connectivity is not Connectivity.SUSPENDED
        if self.gossip is not None and self.gossip.status(peer).is_away:
            return False
        return any(peer == contact for contact, _ in self.dht.contacts(good=True))

    def connect(self, peer: NodeId, now: float, answer: OnConnect) -> None:
        """Give ``answer`` a READY connection to ``peer``, or the error.

        The live one is given at once, before this returns. From then on the connection counts as used by the
        application, so gossip does not close it.
        """
        peer = _current(self.context, peer)
        if self.gossip is not None:
            self.gossip.use.add(peer)
        self.context.dials.connect(peer, now, answer)

    def ping(self, connection: Connection, timeout: float, now: float, answer: Callable[[Pinged], None]) -> None:
        """Send one echo over the peer's active path."""
        self.probing.ping(connection, timeout, now, answer)


def _current(context: Context, peer: NodeId) -> NodeId:
    """Return the key that has replaced a peer's, unless it is connected with the old one."""
    return peer if context.peers.is_linked(peer) else context.successors.of(peer)


def _has_uplinks(endpoints: Iterable[Endpoint]) -> bool:
    hosts = [endpoint.addr.host for endpoint in endpoints if endpoint.kind is EndpointKind.HOST]
    return len(hosts) > len({":" in host for host in hosts})


def _spread_trust(context: Context) -> tuple[Component, Component]:
    """Make what tells all members of uses of invitations and of roles."""
    from meshnode.stack.redemption_link import RedemptionLink
    from meshnode.stack.role_link import RoleLink

    assert context.gossip is not None
    return RedemptionLink(context, context.gossip), RoleLink(context, context.gossip)
