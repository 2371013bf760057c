"""The DHT as a source of records: lookups ask it, watches tell of newer records by themselves.

It carries out the core's effects and sets its deadline in the stack's timers; all else is in ``core``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnode.base.address import Addr
from meshnode.base.clock import Clock
from meshnode.base.limits import RETRY_LOOKUP_S
from meshnode.base.metrics import Metrics, describe
from meshnode.base.timers import Timers
from meshnode.discovery.dht.core import Dht
from meshnode.discovery.dht.effects import ContactsChanged, Effect, Found, LookupDone, Proven, RecordPushed, SendSealed
from meshnode.discovery.dht.kept import Kept
from meshnode.discovery.dht.statements import OnStored, ignore_stored
from meshnode.discovery.source import RecordSource, Sink
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

MAX_MEETING_ADDRS = 4  # addresses of one record that are tried for a contact

WATCH_PUSH = describe("watch_push", "newer records that a watch brought")
LOOKUP_EMPTY = describe("lookup_empty", "lookups that found no record, to be repeated while a caller waits")


class DhtSource(RecordSource):
    """Adapter of the DHT core to the stack: a ``RecordSource``.

    ``send`` seals and sends a body, ``on_proven`` is told of an address that answered, ``on_dirty`` asks for a flush,
    ``on_contacts`` is told that ``Dht.contacts`` has changed (at most every few seconds).
    """

    name = "dht"
    introduces = False  # its contacts are found by the protocol itself

    def __init__(
        self,
        dht: Dht,
        clock: Clock,
        timers: Timers,
        metrics: Metrics,
        send: Callable[[SendSealed, float], None],
        on_proven: Callable[[Proven, float], None],
        on_dirty: Callable[[], None],
        on_contacts: Callable[[], None],
    ) -> None:
        self.dht = dht
        self._clock = clock
        self._timers = timers
        self._metrics = metrics
        self._send = send
        self._on_proven = on_proven
        self._on_dirty = on_dirty
        self._on_contacts = on_contacts
        self._timer = timers.timer(self._tick)
        self._sink: Sink
        self._lookups: dict[int, NodeId] = {}

    # ---- RecordSource

    def start(self, sink: Sink, now: float) -> None:
        """Begin the periodic upkeep."""
        self._sink = sink
        self._touched()

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Store the record at the nodes nearest to its key."""
        self.dht.publish(record, now)
        self._touched()

    def resolve(self, peer: NodeId, now: float) -> None:
        """Start a lookup, unless one of ``peer`` runs; an empty one is repeated while a caller waits.

        The pause between two lookups is ``RETRY_LOOKUP_S``: a node that has just started may be publishing meanwhile.
        """
        if peer not in self._lookups.values():
            self._lookups[self.dht.lookup(peer, now, is_urgent=self._sink.is_wanted(peer))] = peer
            self._touched()

    def moved(self, now: float) -> None:
        """Let the nearest contacts and the seeds hear from the new address."""
        self.dht.local_moved(now)
        self._touched()

    def status(self) -> dict[str, object]:
        """Return the sizes of the table, the store and what is outstanding."""
        return {**self.dht.counts()}

    # ---- what only the DHT has

    def moving(self, now: float) -> None:
        """Renew the watches from this node's new address, before its new record is signed."""
        self.dht.rewatch_all(now)
        self._touched()

    def add_seed(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Ping a configured node, again whenever it is missing."""
        self.dht.add_contact_hint(peer, addr, now, seed=True)
        self._touched()

    def add_contact(self, peer: NodeId, addr: Addr, now: float) -> None:
        """Ping a node that was a contact in an earlier run."""
        self.dht.add_contact_hint(peer, addr, now)
        self._touched()

    def meet(self, record: EndpointRecord, now: float) -> None:
        """Ping a node that another source has found."""
        for endpoint in record.endpoints[:MAX_MEETING_ADDRS]:
            self.dht.add_contact_hint(record.id, endpoint.addr, now)
        self._touched()

    def watch(self, peer: NodeId, known_seq: int, now: float, *, unasked: bool = False) -> None:
        """Have records of ``peer`` newer than ``known_seq`` pushed here until ``unwatch``."""
        self.dht.watch(peer, now, known_seq=known_seq, unasked=unasked)
        self._touched()

    def rewatch(self, peer: NodeId, now: float) -> None:
        """Ask the holders of a watch at once."""
        self.dht.rewatch(peer, now)
        self._touched()

    def unwatch(self, peer: NodeId, now: float) -> None:
        """Watch ``peer`` no more."""
        self.dht.unwatch(peer, now)
        self._touched()

    def note_record(self, record: EndpointRecord, now: float) -> None:
        """Note a record that came by another way: a watch need not tell of it again."""
        self.dht.note_record(record, now)
        self._touched()

    def keep_statements(self, kept: Kept) -> None:
        """Answer questions for what is no record from this set, and put into it what comes."""
        self.dht.statements.keep(kept)

    @property
    def has_room(self) -> bool:
        """Whether ``find_statement`` would ask now."""
        return self.dht.statements.has_room

    def find_statement(self, key: bytes, now: float, done: Callable[[float], None]) -> None:
        """Look for the statement of a key; it is in the set before ``done`` is told that the search has ended."""
        self.dht.statements.find(key, now, done)
        self._touched()

    def publish_statement(self, key: bytes, encoded: bytes, now: float, done: OnStored = ignore_stored) -> None:
        """Store a statement at the nodes nearest to its key and the seeds; ``done`` is told how many have taken it."""
        self.dht.statements.publish(key, encoded, now, done)
        self._touched()

    def handle(self, sender: NodeId, body: bytes, source: Addr, size: int, now: float) -> None:
        """Take the body of a sealed datagram of ``size`` bytes from ``sender``.

        ``source`` is NOWHERE when it came by a relay, a WebSocket or an extra socket: it is answered, but
        makes no contact.
        """
        self.dht.handle(sender, body, source, size, now, self._clock.wall())
        self._touched()

    def flush(self, now: float) -> None:
        """Carry out what the core wants done; an effect that fails keeps no other from that."""
        for effect in self.dht.take_effects():
            try:
                self._carry(effect, now)
            except Exception as error:
                self._timers.on_error(error)
        self._timer.set(self.dht.next_deadline())

    def _carry(self, effect: Effect, now: float) -> None:
        if isinstance(effect, SendSealed):
            self._send(effect, now)
        elif isinstance(effect, Proven):
            self._on_proven(effect, now)
        elif isinstance(effect, Found):
            self._sink.record(effect.record.encoded)
        elif isinstance(effect, RecordPushed):
            self._metrics.count(WATCH_PUSH)
            self._sink.record(effect.record.encoded, "watch")
        elif isinstance(effect, LookupDone):
            self._on_done(effect, now)
        elif isinstance(effect, ContactsChanged):
            self._on_contacts()

    def _on_done(self, done: LookupDone, now: float) -> None:
        peer = self._lookups.pop(done.lookup_id, None)
        if done.record is not None:
            self._sink.record(done.record.encoded)
        elif peer is not None and self._sink.is_wanted(peer):
            # a node that has just started may be publishing at this very moment: ask again soon
            self._metrics.count(LOOKUP_EMPTY)
            self._timers.at(now + RETRY_LOOKUP_S, partial(self._look_up_again, peer))

    def _look_up_again(self, peer: NodeId, now: float) -> None:
        if self._sink.is_wanted(peer):
            self.resolve(peer, now)

    def _touched(self) -> None:
        """Have the effects carried out in the next flush, and set the deadline."""
        self._on_dirty()
        self._timer.set(self.dht.next_deadline())

    def _tick(self, now: float) -> None:
        self.dht.tick(now, self._clock.wall())
        self._touched()
