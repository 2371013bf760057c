"""Services and names in the DHT: what a node holds for others, publishes itself, and finds that gossip has not told.

Three cores without I/O (``offer_store.py``, ``offer_publisher.py`` and ``offer_search.py`` of ``directory/``), wired to
the DHT and to gossip. In a mesh of which gossip tells all, this does nothing but compare a number when an offer comes.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.limits import DHT_MAX_OFFERS, DHT_MAX_OFFERS_SEED
from meshnode.directory.announcement import is_service_name
from meshnode.directory.bundle import KINDS, fits, is_bundle, open_bundle
from meshnode.directory.offer_publisher import OfferPublisher
from meshnode.directory.offer_search import FITS, Ended, OfferSearch, Search, Take
from meshnode.directory.offer_store import OfferStore, Put, Storer
from meshnode.discovery.dht.kept import Source, statement_rate
from meshnode.discovery.dht.messages import Status
from meshnode.gossip import Changed, Entry, Kind
from meshnode.gossip.entry import EntryReject, open_entry
from meshnode.identity.node_id import NodeId, is_label
from meshnode.identity.price import has_price
from meshnode.stack.component import Spread
from meshnode.stack.context import Context

RATE = 5.0  # times that of revocations: an offer costs one signature and the test of an id's price, 0.1 ms
STATUS = {Put.TAKEN: Status.OK, Put.OLD: Status.HAVE_NEWER, Put.FULL: Status.FULL}

OnEntry = Callable[[Entry, float], None]


def _ignore() -> None:
    return None


class DhtOffers:
    """The DHT's view of services and names. ``take`` and ``forget`` do what follows from what was found."""

    def __init__(self, context: Context, gossip: Spread, take: OnEntry, forget: OnEntry) -> None:
        self.rate = statement_rate(RATE)
        self.on_end: Callable[[], None] = _ignore  # a search has ended
        self.on_withdrawn: Callable[[], None] = _ignore  # no withdrawal of this node is on its way any more
        self._context = context
        self._dht = context.records.statements
        self._take = take
        self._forget = forget
        limit = DHT_MAX_OFFERS_SEED if context.settings.seed_role else DHT_MAX_OFFERS
        self.held = OfferStore(limit, context.rng)
        self.held.is_barred = lambda peer: context.is_barred(peer)  # it is replaced later
        self.search = OfferSearch(context.identity.id, context.metrics, gossip.is_news, self.held.is_barred)
        now = context.clock.monotonic()
        self.publisher = OfferPublisher(context.rng, context.metrics, gossip.count, now)
        self._timer = context.timers.timer(self._tick)
        gossip.on_barred(self._on_barred)
        if self._dht is not None:
            self._dht.keep_statements(self)
            gossip.found_elsewhere(lambda entry: entry.kind in KINDS and fits(entry))

    # ---- what the DHT asks and brings

    def is_statement(self, encoded: bytes) -> bool:
        """Return whether bytes are laid out like a bundle of offers."""
        return is_bundle(encoded)

    def find(self, key: bytes) -> bytes:
        """Return some of the offers of a key that are held."""
        return self.held.bundle(key, self._context.clock.wall())

    def put(self, encoded: bytes, key: bytes) -> bool:
        """Take the offers of an answer; False when no honest node gives them."""
        good = self.search.on_answer(key, encoded, self._context.clock.wall())
        self._drain(self._context.clock.monotonic())
        return good

    def store(self, encoded: bytes, source: Source) -> Status:
        """Hold an offer that its own node stores here: of others it would be a way to have it pushed out."""
        wall, found = self._context.clock.wall(), open_bundle(encoded)
        entry = open_entry(found[0], wall) if len(found) == 1 else EntryReject.MALFORMED
        if isinstance(entry, EntryReject) or entry.origin != source.id:
            return Status.INVALID
        if entry.kind not in FITS or not FITS[entry.kind](entry):
            return Status.INVALID
        is_strong = source.is_established or has_price(source.id)
        return STATUS[self.held.put(entry, Storer(source.host, is_strong), wall)]

    # ---- what gossip tells

    def on_entry(self, change: Changed, now: float) -> None:
        """Note an entry that gossip has: this node's own is to be published where the mesh is large."""
        if self._dht is None:
            return
        self.search.on_gossip(change.entry)
        self.publisher.on_size(now)
        if change.via is None:
            self.publisher.on_own(change.entry, now)
        self._arm()

    def _on_barred(self, peer: NodeId, now: float) -> None:
        self.search.on_barred(peer)
        self._drain(now)

    # ---- searches

    def seek(self, kind: Kind, name: str, now: float) -> bool:
        """Look for offers in the DHT, if gossip may not have told all; return whether a search of them runs.

        ``on_end`` is called when it has ended; what it found is in the directory by then.
        """
        is_name = is_service_name if kind is Kind.SERVICE else is_label
        if not self.asks(kind) or not is_name(name):
            return False
        if not self.search.seek(kind, name, now, self._context.clock.wall()):
            return False
        self._drain(now)
        self._context.events.on_dirty()
        return True

    def asks(self, kind: Kind) -> bool:
        """Return whether the DHT may have what gossip has not told."""
        return self._dht is not None and self.publisher.asks(kind)

    def summary(self) -> dict[str, object]:
        """Return what is held, published and found, for status pages."""
        found = sum(len(self.search.found(kind)) for kind in (Kind.SERVICE, Kind.NAME))
        published, too_long = self.publisher.published, self.publisher.too_long
        return {"held": len(self.held), "published": published, "found": found, "too_long": too_long}

    # ---- inside

    def _arm(self) -> None:
        self._timer.set(self.publisher.next_deadline())

    def _tick(self, now: float) -> None:
        self.publisher.tick(now, self._context.clock.wall())
        dht = self._dht
        assert dht is not None
        for wanted in self.publisher.take_effects():
            entry = wanted.entry
            dht.publish_statement(wanted.key, wanted.encoded, now, self._told(entry))
        self._arm()

    def _told(self, entry: Entry) -> Callable[[int, int, float], None]:
        def done(taken: int, asked: int, now: float) -> None:
            self.publisher.on_published(entry, taken, asked, now)
            if not self.publisher.is_withdrawing:
                self.on_withdrawn()
            self._arm()

        return done

    def _drain(self, now: float) -> None:
        for effect in self.search.take_effects():
            if isinstance(effect, Search):
                self._begin(effect, now)
            elif isinstance(effect, Ended):
                self.on_end()
            elif isinstance(effect, Take):
                self._take(effect.entry, now)
            else:
                self._forget(effect.entry, now)

    def _begin(self, search: Search, now: float) -> None:
        def done(then: float) -> None:
            self.search.on_end(search.key, then)
            self._drain(then)

        assert self._dht is not None
        self._dht.find_statement(search.key, now, done)
