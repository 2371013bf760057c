"""Searches for offers in the DHT, and the publication of a node's own: what is asked for, taken, and stored again."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import DHT_MAX_OFFERS_FOUND, GOSSIP_MAX_STORED_ENTRY, MAX_OFFER_SEARCHES, OFFERS_BY_GOSSIP
from meshnode.base.metrics import Metrics
from meshnode.directory.announcement import Offer
from meshnode.directory.bundle import dht_key_of, make_bundle, open_bundle
from meshnode.directory.offer_publisher import PAUSE_S, REPUBLISH_S, SPREAD_S, YOUNG_S, OfferPublisher, Publish
from meshnode.directory.offer_search import AGAIN_S, Ended, Forget, OfferSearch, Search, Take
from meshnode.gossip.entry import Entry, Kind, sign_entry
from meshnode.identity.keys import Identity

WALL = 1_700_000_000.0
OWN, OTHER, THIRD = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
KEY = dht_key_of(Kind.SERVICE, "db")


def signed(identity: Identity = OTHER, name: str = "db", *, seq: int = 1, ttl: int = 3600, over: bool = False) -> Entry:
    value = None if over else Offer().encoded()
    issued = int(WALL * 1000)
    return sign_entry(identity, kind=Kind.SERVICE, name=name, seq=seq, issued_ms=issued, ttl=ttl, value=value)


class Asker:
    """A search and what gossip knows beside it."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.told: dict[bytes, None] = {}
        self.barred = False
        self.core = OfferSearch(
            OWN.id, self.metrics, lambda entry: entry.id not in self.told, lambda origin: self.barred
        )

    def seek(self, name: str = "db", now: float = 0.0, wall: float = WALL) -> bool:
        return self.core.seek(Kind.SERVICE, name, now, wall)

    def answer(self, *entries: Entry, key: bytes = KEY) -> bool:
        return self.core.on_answer(key, make_bundle([entry.encoded for entry in entries]), WALL)

    def taken(self) -> list[Entry]:
        return [effect.entry for effect in self.core.take_effects() if isinstance(effect, Take)]


def test_one_search_serves_all_that_ask_and_none_follows_it_at_once() -> None:
    asker = Asker()
    assert asker.seek()
    assert asker.seek(now=0.1)
    assert asker.core.take_effects() == [Search(Kind.SERVICE, "db", KEY)]
    asker.core.on_end(KEY, 1.0)
    assert asker.core.take_effects() == [Ended()]
    assert not asker.seek(now=1.0 + AGAIN_S / 2)
    assert asker.seek(now=1.1 + AGAIN_S)


def test_so_many_names_are_looked_for_at_once_and_no_more() -> None:
    asker = Asker()
    assert sum(asker.seek(f"s{number}") for number in range(2 * MAX_OFFER_SEARCHES)) == MAX_OFFER_SEARCHES
    assert asker.metrics.counters["offer_searches_full"] == MAX_OFFER_SEARCHES


def test_what_is_found_is_taken_once_and_the_newest_counts() -> None:
    asker = Asker()
    asker.seek()
    first, second, gone = signed(), signed(seq=2), signed(seq=3, over=True)
    assert asker.answer(first)
    assert asker.answer(first, second)
    assert asker.answer(gone)
    assert asker.answer(second), "one that missed the withdrawal is no liar"
    assert asker.taken() == [first, second, gone]


def test_what_gossip_has_is_left_to_gossip() -> None:
    asker = Asker()
    asker.seek()
    entry = signed()
    asker.told[entry.id] = None
    assert asker.answer(entry)
    assert asker.answer(signed(OWN))
    asker.barred = True
    assert asker.answer(signed(THIRD))
    assert asker.taken() == []


def test_no_lie_is_taken() -> None:
    asker = Asker()
    asker.seek()
    forged = signed().encoded[:-1] + b"\x01"
    assert not asker.core.on_answer(KEY, make_bundle([forged]), WALL)
    assert not asker.answer(signed(name="web")), "of another key"
    assert not asker.core.on_answer(KEY, bytes(64) + b"\x81\x40", WALL)
    assert not asker.core.on_answer(KEY, make_bundle([bytes(100)]), WALL)
    assert asker.answer(signed(ttl=1)), "clocks differ"
    assert asker.core.on_answer(KEY, make_bundle([signed(seq=2**52).encoded]), WALL), "clocks differ"
    assert asker.taken() == [signed(ttl=1)]
    asker.core.on_end(KEY, 1.0)
    assert asker.core.on_answer(KEY, make_bundle([forged]), WALL), "nothing is read when the search is over"


def test_what_has_expired_is_forgotten_and_what_a_revoked_key_offers() -> None:
    asker = Asker()
    asker.seek()
    brief, long, third = signed(ttl=60), signed(THIRD), signed(Identity(b"4" * 32))
    asker.answer(brief, long, third)
    asker.core.on_end(KEY, 1.0)
    asker.core.take_effects()
    asker.core.on_barred(third.origin)
    assert asker.core.take_effects() == [Forget(third)]
    asker.seek(now=100.0, wall=WALL + 61)
    assert asker.core.take_effects() == [Forget(brief), Search(Kind.SERVICE, "db", KEY)]
    assert asker.core.found(Kind.SERVICE) == [long]
    asker.core.on_gossip(long)
    assert asker.core.found(Kind.SERVICE) == [], "from now on gossip says when it ends"
    assert asker.core.take_effects() == []


def test_one_search_pushes_out_at_most_half_of_what_others_found() -> None:
    asker = Asker()
    issued = int(WALL * 1000)
    entries = [
        sign_entry(OTHER, kind=Kind.SERVICE, name=f"s{n}", seq=n + 1, issued_ms=issued, ttl=60, value=None)
        for n in range(DHT_MAX_OFFERS_FOUND)
    ]
    for number, entry in enumerate(entries):
        asker.seek(f"s{number}")
        asker.answer(entry, key=dht_key_of(Kind.SERVICE, f"s{number}"))
        asker.core.on_end(dht_key_of(Kind.SERVICE, f"s{number}"), 0.0)
    asker.core.take_effects()
    asker.seek()
    for number in range(DHT_MAX_OFFERS_FOUND):
        asker.answer(signed(Identity(number.to_bytes(32, "big"))))
    found = asker.core.found(Kind.SERVICE)
    assert len(found) == DHT_MAX_OFFERS_FOUND
    assert sum(entry in found for entry in entries) == DHT_MAX_OFFERS_FOUND // 2
    assert sum(isinstance(effect, Forget) for effect in asker.core.take_effects()) == DHT_MAX_OFFERS_FOUND // 2


# ---- this node's own


class Owner:
    """A publisher in a mesh of a size that can be set."""

    def __init__(self) -> None:
        self.known = 0
        self.metrics = Metrics()
        self.core = OfferPublisher(random.Random(1), self.metrics, lambda kind: self.known, 0.0)

    def run(self, now: float, wall: float | None = None) -> list[Entry]:
        """What is published until then."""
        found: list[Publish] = []
        while (at := self.core.next_deadline()) is not None and at <= now:
            self.core.tick(at, WALL + at if wall is None else wall)
            found += self.core.take_effects()
        for effect in found:
            assert open_bundle(effect.encoded) == [effect.entry.encoded]
            assert effect.key == dht_key_of(Kind.SERVICE, effect.entry.name)
        return [effect.entry for effect in found]


def test_nothing_is_published_while_gossip_tells_all() -> None:
    owner = Owner()
    owner.known = OFFERS_BY_GOSSIP
    owner.core.on_size(0.0)
    owner.core.on_own(signed(OWN), 0.0)
    assert owner.run(10_000.0) == []
    owner.core.on_own(signed(OWN, seq=2, over=True), 0.0)
    assert owner.run(10_000.0) == []
    assert owner.core.next_deadline() is None, "nor does a timer run"


def test_all_begin_when_the_mesh_has_become_large_each_at_a_time_of_its_own() -> None:
    owner, begun = Owner(), 2 * YOUNG_S
    entries = [signed(OWN, f"s{number}") for number in range(10)]
    for entry in entries:
        owner.core.on_own(entry, 0.0)
    owner.run(1.0)
    assert not owner.core.asks(Kind.SERVICE)
    owner.known = OFFERS_BY_GOSSIP // 2 + 1
    owner.core.on_size(begun)
    assert owner.core.asks(Kind.SERVICE), "some may publish already"
    assert owner.run(begun + SPREAD_S) == []
    owner.known = OFFERS_BY_GOSSIP + 1
    owner.core.on_size(begun)
    early = owner.run(begun + SPREAD_S / 2)
    assert 0 < len(early) < 10
    assert len(owner.run(begun + SPREAD_S)) == 10 - len(early)
    owner.known = OFFERS_BY_GOSSIP - 1
    owner.core.on_size(begun)
    assert owner.core.asks(Kind.SERVICE)
    later = signed(OWN, "later")
    owner.core.on_own(later, begun)
    assert owner.run(begun + SPREAD_S) == [later], "a little smaller is large still"


def _published(owner: Owner, entry: Entry, now: float) -> None:
    owner.known = OFFERS_BY_GOSSIP + 1
    owner.core.on_size(now)
    owner.core.on_own(entry, now)
    assert owner.run(now + 2.0) == [entry]


def test_an_offer_is_stored_again_and_soon_where_few_have_taken_it() -> None:
    owner, entry = Owner(), signed(OWN)
    _published(owner, entry, 0.0)
    owner.core.on_published(entry, 3, 16, 2.0)
    assert owner.metrics.counters["offers_refused"] == 13
    assert owner.run(6.9) == []
    assert owner.run(7.1) == [entry]
    owner.core.on_published(entry, 0, 0, 7.1)
    assert owner.run(17.0) == []
    assert owner.run(17.2) == [entry], "after twice the time, for no node was there"
    owner.core.on_published(entry, 14, 16, 17.2)
    assert owner.run(17.2 + 0.7 * REPUBLISH_S) == []
    assert owner.run(17.2 + 1.3 * REPUBLISH_S) == [entry]


def test_a_withdrawal_goes_out_at_once_and_a_load_that_changes_each_second_seldom() -> None:
    owner = Owner()
    _published(owner, signed(OWN), 0.0)
    owner.core.on_published(signed(OWN), 16, 16, 2.0)
    for second in range(3, 20):
        owner.core.on_own(signed(OWN, seq=second), float(second))
    assert owner.run(20.0) == []
    assert [entry.seq for entry in owner.run(PAUSE_S + 2.0)] == [19]
    gone = signed(OWN, seq=50, over=True)
    owner.core.on_own(gone, 40.0)
    assert owner.run(40.0) == [gone]
    owner.core.on_published(gone, 16, 16, 40.0)
    assert owner.run(40.0 + 1.3 * REPUBLISH_S) == [gone]
    owner.core.on_published(gone, 16, 16, 1_600.0)
    assert owner.run(10_000.0, WALL + 4_000) == []
    assert owner.core.next_deadline() is None, "it is over, and forgotten"


def test_what_is_too_long_for_the_dht_is_counted_and_left_to_gossip() -> None:
    owner = Owner()
    issued = int(WALL * 1000)
    value = bytes(GOSSIP_MAX_STORED_ENTRY - 300)
    entry = sign_entry(OWN, kind=Kind.SERVICE, name="db", seq=1, issued_ms=issued, ttl=60, value=value)
    owner.known = OFFERS_BY_GOSSIP + 1
    owner.core.on_size(0.0)
    owner.core.on_own(entry, 0.0)
    assert owner.run(100.0) == []
    assert owner.metrics.counters["offers_too_long"] == 1
    assert owner.core.too_long == ["db"]
    owner.core.on_own(signed(OWN, seq=2), 101.0)
    assert owner.core.too_long == []


def test_an_offer_that_is_too_long_is_named_where_the_dht_would_have_it_alone() -> None:
    owner = Owner()
    value = bytes(GOSSIP_MAX_STORED_ENTRY - 300)
    issued = int(WALL * 1000)
    entry = sign_entry(OWN, kind=Kind.SERVICE, name="db", seq=1, issued_ms=issued, ttl=60, value=value)
    owner.core.on_own(entry, 0.0)
    assert owner.core.too_long == [], "gossip tells all of a small mesh"
    owner.known = OFFERS_BY_GOSSIP + 1
    owner.core.on_size(1.0)
    assert owner.core.too_long == ["db"]


@pytest.mark.parametrize("taken", [0, 16])
def test_what_was_published_before_a_change_says_nothing_of_it(taken: int) -> None:
    owner, first, second = Owner(), signed(OWN), signed(OWN, seq=2)
    _published(owner, first, 0.0)
    owner.core.on_own(second, 2.0)
    owner.core.on_published(first, taken, 16, 2.1)
    assert owner.run(PAUSE_S + 2.0) == [second]
