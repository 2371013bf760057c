"""Searches in the DHT for offers that gossip has not told, and what they found. Sans I/O.

What is found counts as if gossip had brought it, for this node alone: it is given to the directory, never to the
gossip store, and passed on to none. It goes when it expires, when gossip has the same or a newer one, or when more is
found than is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_OFFERS_FOUND, MAX_OFFER_SEARCHES
from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import state, value
from meshnode.directory.announcement import is_offer
from meshnode.directory.bundle import dht_key_of, open_bundle
from meshnode.directory.names import is_claim
from meshnode.gossip.entry import Entry, EntryReject, Key, Kind, is_signed, read_entry
from meshnode.identity.node_id import NodeId

AGAIN_S = 5.0  # after a search, whatever it found, until another one of the same name
CLOCKS = (EntryReject.EXPIRED, EntryReject.FUTURE)  # reasons that are no lie: clocks differ
FITS: dict[int, Callable[[Entry], bool]] = {Kind.SERVICE: is_offer, Kind.NAME: is_claim}

SEARCHES = describe("offer_searches", "searches in the DHT for a service or a name that gossip has not told")
SEARCHES_FULL = describe("offer_searches_full", "such searches not made: too many at once")
FOUND = describe("offers_found", "offers and withdrawals that the DHT told and gossip had not")


@value
class Take:
    """An offer, or a withdrawal, to be handled as if gossip had told it."""

    entry: Entry


@value
class Forget:
    """One that was found counts no longer."""

    entry: Entry


@value
class Search:
    """Look in the DHT for what is offered of ``kind`` under ``name``, and say when that has ended (``on_end``)."""

    kind: Kind
    name: str
    key: bytes


@value
class Ended:
    """The search has ended: what waits for it need wait no longer."""


Effect = Take | Forget | Search | Ended


@state
class _Running:
    kind: Kind
    name: str
    left: int = DHT_MAX_OFFERS_FOUND // 2  # that it may find: liars that answer it push out no more


class OfferSearch:
    """One node's searches. After each call, the caller carries out ``take_effects()``.

    ``is_news`` tells whether gossip has neither an entry nor a newer one of its key; ``is_barred`` of which keys none
    count. ``now`` is monotonic seconds, ``wall`` Unix seconds.
    """

    def __init__(
        self, own: NodeId, metrics: Metrics, is_news: Callable[[Entry], bool], is_barred: Callable[[NodeId], bool]
    ) -> None:
        self._own = own
        self._metrics = metrics
        self._is_news = is_news
        self._is_barred = is_barred
        self._running: dict[bytes, _Running] = {}
        self._ended: BoundedDict[bytes, float] = BoundedDict(DHT_MAX_OFFERS_FOUND)
        self._found: BoundedDict[Key, Entry] = BoundedDict(DHT_MAX_OFFERS_FOUND)
        self._effects: list[Effect] = []

    def take_effects(self) -> list[Effect]:
        """Return everything to do since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    # ---- verbs

    def seek(self, kind: Kind, name: str, now: float, wall: float) -> bool:
        """Look for what is offered of a kind under a name; return whether a search of it runs now.

        None does within ``AGAIN_S`` of the last one, nor when ``MAX_OFFER_SEARCHES`` others run.
        """
        key = dht_key_of(kind, name)
        if key in self._running:
            return True
        if now - self._ended.get(key, float("-inf")) < AGAIN_S:
            return False
        if len(self._running) >= MAX_OFFER_SEARCHES:
            self._metrics.count(SEARCHES_FULL)
            return False
        for entry in [entry for entry in self._found.values() if entry.expires < wall]:
            self._forget(entry)
        self._metrics.count(SEARCHES)
        self._running[key] = _Running(kind, name)
        self._effects.append(Search(kind, name, key))
        return True

    # ---- what happens

    def on_answer(self, key: bytes, encoded: bytes, wall: float) -> bool:
        """Take the bundle of an answer to a search; False when no honest node gives it.

        Each entry that is new costs a signature; of an answer to a search that is over nothing is read.
        """
        searched = self._running.get(key)
        if searched is None:
            return True
        entries = open_bundle(encoded)
        return bool(entries) and all(self._take(entry, searched, wall) for entry in entries)

    def _take(self, encoded: bytes, searched: _Running, wall: float) -> bool:
        entry = read_entry(encoded, wall)
        if isinstance(entry, EntryReject):
            return entry in CLOCKS
        if (entry.kind, entry.name) != (searched.kind, searched.name) or not FITS[entry.kind](entry):
            return False
        known = self._found.get(entry.key)
        if known is not None and (known.seq, known.encoded) >= (entry.seq, entry.encoded):
            return True
        if entry.origin == self._own or self._is_barred(entry.origin) or not self._is_news(entry) or not searched.left:
            return True
        if not is_signed(entry):
            return False
        self._metrics.count(FOUND)
        searched.left -= 1
        pushed_out = self._found.put(entry.key, entry)
        if pushed_out is not None:
            self._effects.append(Forget(pushed_out[1]))
        self._effects.append(Take(entry))
        return True

    def on_end(self, key: bytes, now: float) -> None:
        """Note that a search has ended."""
        if self._running.pop(key, None) is not None:
            self._ended.put(key, now)
            self._effects.append(Ended())

    def on_gossip(self, entry: Entry) -> None:
        """Note what gossip has told: from now on that counts, and ends when gossip says so."""
        known = self._found.get(entry.key)
        if known is not None and known.seq <= entry.seq:
            del self._found[entry.key]

    def on_barred(self, peer: NodeId) -> None:
        """Forget what a node offers whose key is revoked."""
        for entry in [entry for entry in self._found.values() if entry.origin == peer]:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        del self._found[entry.key]
        self._effects.append(Forget(entry))

    # ---- questions

    def found(self, kind: Kind) -> list[Entry]:
        """Return what was found of a kind and counts."""
        return [entry for entry in self._found.values() if entry.kind == kind]
