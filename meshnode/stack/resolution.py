"""Where peers are: the resolver and the DHT, wired to each other and to the live peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from meshnode.base.address import NOWHERE, Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SOUGHT, RETRY_LOOKUP_S, SEEK_S
from meshnode.base.metrics import describe
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
from meshnode.discovery.resolver import Resolved, Resolver
from meshnode.errors import NotFound
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.stack.component import Component
from meshnode.stack.context import Context
from meshnode.stack.session import Session

WATCH_PUSH = describe("watch_push", "newer records that a watch brought")
LOOKUP_EMPTY = describe("lookup_empty", "lookups that found no record, to be repeated while somebody waits")


class Resolution(Component):
    """All sources of records. Each hands in hints; the components concerned learn of a valid newer record."""

    def __init__(self, context: Context) -> None:
        self.resolver = Resolver(context.metrics)
        self.hints: dict[NodeId, tuple[Addr, ...]] = {}
        self.dht = Dht(
            context.identity.id,
            rng=context.rng,
            entropy=context.entropy,
            metrics=context.metrics,
            now=context.clock.monotonic(),
            wall=context.clock.wall(),
            seed_role=context.settings.seed_role,
        )
        self._context = context
        self._id = context.identity.id
        self._lookups: dict[int, NodeId] = {}
        self._dht_timer = context.timers.timer(self._tick_dht)
        self._resolver_timer = context.timers.timer(self._tick_resolver)
        if context.settings.dht:
            self.kinds = range(FIRST_KIND, LAST_KIND + 1)
        self._touched()
        self._sought: BoundedDict[NodeId, float] = BoundedDict(MAX_SOUGHT)

    # ---- what sources hand in

    def add_seed(self, peer: NodeId, addrs: Iterable[Addr], now: float) -> bool:
        """A seed or a static contact is said to be at these addresses; False when none can be dialled."""
        known = tuple(a for a in addrs if is_dialable(a) or a.is_tunnel)
        if peer == self._id or not known:
            return False
        self.hints[peer] = known
        for addr in filter(is_dialable, known):
            self.dht.add_contact_hint(peer, addr, now, seed=True)
        self._touched()
        return True

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """A contact from an earlier run."""
        if peer != self._id and is_dialable(addr):
            self.dht.add_contact_hint(peer, addr, now)
            self._touched()

    def offer(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """A source hands in a record; returned when it is valid, newer and not our own."""
        record = self.resolver.offer(encoded, source, now, self._context.clock.wall())
        self._resolver_timer.set(self.resolver.next_deadline())
        if record is None or record.id == self._id:
            return None
        session = self._context.peers.sessions.get(record.id)
        if session is not None:
            session.paths.peer_record(record, now)
            for hook in self._context.hooks.newer_record:
                hook(session, record, now)
            self._context.probes.settle(session, now)
            self.dht.note_record(record, now)
        if source == "mdns":
            for endpoint in record.endpoints[:4]:
                self.dht.add_contact_hint(record.id, endpoint.addr, now)
        self._touched()
        return record

    # ---- questions

    def cached(self, peer: NodeId) -> EndpointRecord | None:
        """The newest valid record that we hold."""
        return self.resolver.get(peer, self._context.clock.wall())

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from whichever source is first."""
        cached = self.cached(peer)
        if cached is not None:
            answer(Resolved(cached, self.resolver.source(peer), 0.0))
            return
        first = self.resolver.ask(peer, now, answer)
        self._resolver_timer.set(self.resolver.next_deadline())
        if first:
            self.look_up(peer, now)

    def look_up(self, peer: NodeId, now: float) -> None:
        """Ask the DHT, whatever the cache holds."""
        if self._context.settings.dht and peer not in self._lookups.values():
            self._lookups[self.dht.lookup(peer, now)] = peer
            self._touched()
            self._context.events.on_dirty()

    def watch(self, peer: NodeId, now: float) -> None:
        """Have newer records of ``peer`` pushed to us from now on."""
        if self._context.settings.dht:
            cached = self.cached(peer)
            self.dht.watch(peer, now, known_seq=cached.seq if cached is not None else 0)
            self._touched()

    def watch_if_used(self, peer: NodeId, now: float) -> None:
        """Watch ``peer``, unless gossip alone has use for it: that need not watch its neighbours."""
        gossip = self._context.gossip
        if gossip is None or gossip.is_used(peer):
            self.watch(peer, now)

    def seek(self, peer: NodeId, now: float) -> None:
        """Nothing that we know of ``peer`` answers: renew the watches, and look it up now and then."""
        self.dht.rewatch(peer, now)
        self._touched()
        if now - self._sought.get(peer, float("-inf")) >= SEEK_S:
            self._sought.put(peer, now)
            self.look_up(peer, now)

    def contacts(self) -> list[NodeId]:
        """Return the DHT's contacts; none when it is off."""
        return [peer for peer, _ in self.dht.contacts()] if self._context.settings.dht else []

    # ---- what happens

    def moving(self, now: float) -> None:
        """This node's addresses are others: renew the watches from there, before its new record is out."""
        self.dht.rewatch_all(now)
        self._touched()

    def moved(self, now: float) -> None:
        """The new record is on its way."""
        self.dht.local_moved(now)
        self._touched()

    def on_own_record(self, record: EndpointRecord, now: float) -> None:
        """Store the record in the DHT."""
        if self._context.settings.dht:
            self.dht.publish(record, now)
            self._touched()

    def on_session_gone(self, session: Session, now: float) -> None:
        """Watch that peer no more."""
        self.dht.unwatch(session.peer, now)
        self._touched()

    def takes_stream(self, connection: Connection, stream: Stream) -> bool:
        """Watch a peer that uses this node's services; the stream is not ours."""
        self.watch(connection.peer, self._context.clock.monotonic())
        return False

    def on_sealed(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        """Give a DHT message to the core."""
        where = source if source.is_udp and source.side is None else NOWHERE
        self.dht.handle(sender, body, where, size, now, self._context.clock.wall())
        self._touched()

    def _touched(self) -> None:
        """Have the DHT's effects carried out in the next flush, and its deadline set."""
        self._context.dirty[self] = None
        self._dht_timer.set(self.dht.next_deadline())

    def _tick_dht(self, now: float) -> None:
        self.dht.tick(now, self._context.clock.wall())
        self._touched()

    def _tick_resolver(self, now: float) -> None:
        self.resolver.tick(now)
        self._resolver_timer.set(self.resolver.next_deadline())

    def _send(self, peer: NodeId, addr: Addr, body: bytes) -> None:
        """Send a DHT message by the detour by which we talk to that peer, if we do."""
        session = self._context.peers.sessions.get(peer)
        active = session.paths.active if session is not None and session.connection is not None else None
        if active is not None and (not active.is_udp or active.side is not None):
            addr = active
        if addr != NOWHERE:
            self._context.sender.send_sealed(peer, addr, body)

    def _look_up_again(self, peer: NodeId, now: float) -> None:
        if self.resolver.asked(peer):
            self.look_up(peer, now)

    def flush(self, now: float) -> None:
        """Carry out what the DHT wants done."""
        for effect in self.dht.take_effects():
            if isinstance(effect, SendSealed):
                self._send(effect.peer, effect.addr, effect.body)
            elif isinstance(effect, Found):
                self.offer(effect.record.encoded, "dht", now)
            elif isinstance(effect, RecordPushed):
                self._context.metrics.count(WATCH_PUSH)
                self.offer(effect.record.encoded, "watch", now)
            elif isinstance(effect, LookupDone):
                peer = self._lookups.pop(effect.lookup_id, None)
                if effect.record is not None:
                    self.offer(effect.record.encoded, "dht", now)
                elif peer is not None and self.resolver.asked(peer):
                    # a node that has just started may be publishing at this very moment: ask again soon
                    self._context.metrics.count(LOOKUP_EMPTY)
                    self._context.timers.at(now + RETRY_LOOKUP_S, partial(self._look_up_again, peer))
            elif isinstance(effect, ContactsChanged):
                self._context.events.on_contacts()
        self._dht_timer.set(self.dht.next_deadline())
