"""Where is X: the resolver and the DHT, wired to each other and to the live peers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.address import Addr, is_dialable
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SOUGHT, RETRY_LOOKUP_S, SEEK_S
from meshnode.base.metrics import describe
from meshnode.discovery.dht import ContactsChanged, Dht, Found, LookupDone, RecordPushed, SendSealed
from meshnode.discovery.resolver import Resolved, Resolver
from meshnode.errors import NotFound
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.stack.context import Context
from meshnode.stack.deadlines import earlier, is_due

WATCH_PUSH = describe("watch_push", "newer records that a watch brought")
LOOKUP_EMPTY = describe("lookup_empty", "lookups that found no record, to be repeated while somebody waits")


class Resolution:
    """All sources of records; each hands in hints, and whoever is concerned learns of a valid newer one."""

    def __init__(
        self,
        ports: Context,
        send_sealed: Callable[[NodeId, Addr, bytes], None],
        on_newer: Callable[[EndpointRecord, float], bool],
    ) -> None:
        """``on_newer`` is told of every valid newer record; True when it belongs to a peer with state here."""
        self.resolver = Resolver(ports.metrics)
        self.hints: dict[NodeId, tuple[Addr, ...]] = {}
        self.dht = Dht(
            ports.identity.id,
            rng=ports.rng,
            entropy=ports.entropy,
            metrics=ports.metrics,
            now=ports.clock.monotonic(),
            wall=ports.clock.wall(),
            seed_role=ports.settings.seed_role,
        )
        self._ports = ports
        self._id = ports.identity.id
        self._send_sealed = send_sealed
        self._on_newer = on_newer
        self._lookups: dict[int, NodeId] = {}
        self._retries: dict[NodeId, float] = {}
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
        return True

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """A contact from an earlier run."""
        if peer != self._id and is_dialable(addr):
            self.dht.add_contact_hint(peer, addr, now)

    def offer(self, encoded: bytes, source: str, now: float) -> EndpointRecord | None:
        """A source hands in a record; returned when it is valid, newer and not our own."""
        record = self.resolver.offer(encoded, source, now, self._ports.clock.wall())
        if record is None or record.id == self._id:
            return None
        if self._on_newer(record, now):
            self.dht.note_record(record, now)
        if source == "mdns":
            for endpoint in record.endpoints[:4]:
                self.dht.add_contact_hint(record.id, endpoint.addr, now)
        return record

    # ---- questions

    def cached(self, peer: NodeId) -> EndpointRecord | None:
        """The newest valid record that we hold."""
        return self.resolver.get(peer, self._ports.clock.wall())

    def resolve(self, peer: NodeId, now: float, answer: Callable[[Resolved | NotFound], None]) -> None:
        """Find the record of ``peer``: from the cache at once, else from whichever source is first."""
        cached = self.cached(peer)
        if cached is not None:
            answer(Resolved(cached, self.resolver.source(peer), 0.0))
        elif self.resolver.ask(peer, now, answer):
            self.look_up(peer, now)

    def look_up(self, peer: NodeId, now: float) -> None:
        """Ask the DHT, whatever the cache holds."""
        if self._ports.settings.dht and peer not in self._lookups.values():
            self._lookups[self.dht.lookup(peer, now)] = peer
            self._ports.events.on_dirty()

    def watch(self, peer: NodeId, now: float) -> None:
        """Have newer records of ``peer`` pushed to us from now on."""
        if self._ports.settings.dht:
            cached = self.cached(peer)
            self.dht.watch(peer, now, known_seq=cached.seq if cached is not None else 0)

    def seek(self, peer: NodeId, now: float) -> None:
        """Nothing that we know of ``peer`` answers: renew the watches, and look it up now and then."""
        self.dht.rewatch(peer, now)
        if now - self._sought.get(peer, float("-inf")) >= SEEK_S:
            self._sought.put(peer, now)
            self.look_up(peer, now)

    # ---- pumping

    def next_deadline(self) -> float | None:
        """When ``tick`` has something to do."""
        at = earlier(self.dht.next_deadline(), self.resolver.next_deadline())
        for retry in self._retries.values():
            at = earlier(at, retry)
        return at

    def tick(self, now: float) -> None:
        """Let due timers fire."""
        if is_due(self.dht.next_deadline(), now):
            self.dht.tick(now, self._ports.clock.wall())
        self.resolver.tick(now)
        for peer, at in list(self._retries.items()):
            if at <= now:
                del self._retries[peer]
                if self.resolver.asked(peer):
                    self.look_up(peer, now)

    def drain(self, now: float) -> None:
        """Carry out what the DHT wants done."""
        for effect in self.dht.take_effects():
            if isinstance(effect, SendSealed):
                self._send_sealed(effect.peer, effect.addr, effect.body)
            elif isinstance(effect, Found):
                self.offer(effect.record.encoded, "dht", now)
            elif isinstance(effect, RecordPushed):
                self._ports.metrics.count(WATCH_PUSH)
                self.offer(effect.record.encoded, "watch", now)
            elif isinstance(effect, LookupDone):
                peer = self._lookups.pop(effect.lookup_id, None)
                if effect.record is not None:
                    self.offer(effect.record.encoded, "dht", now)
                elif peer is not None and self.resolver.asked(peer):
                    # who has just started may be publishing at this very moment: ask again soon
                    self._ports.metrics.count(LOOKUP_EMPTY)
                    self._retries[peer] = now + RETRY_LOOKUP_S
            elif isinstance(effect, ContactsChanged):
                self._ports.events.on_contacts()
