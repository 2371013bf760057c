"""Offers that a node holds for others in the DHT: the newest counts, and a crowd takes nothing from others."""

from __future__ import annotations

import random

import pytest

from meshnode.base import limits
from meshnode.base.limits import DHT_OFFER_BUNDLE, DHT_OFFERS_OF_KEY, DHT_OFFERS_OF_ORIGIN, MAX_RECORD
from meshnode.directory import bundle
from meshnode.directory.bundle import MOST, dht_key_of, is_bundle, make_bundle, open_bundle
from meshnode.directory.offer_store import OfferStore, Put, Storer
from meshnode.gossip.entry import Entry, Kind, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.trust.revocation import is_revocation

WALL = 1_700_000_000.0
HERE = Storer("192.0.2.1", is_strong=False)
PAID = Storer("192.0.2.1", is_strong=True)
KEY = dht_key_of(Kind.SERVICE, "db")


def offer(
    number: int, name: str = "db", *, seq: int = 1, ttl: int = 3600, over: bool = False, size: int = 140
) -> Entry:
    """An entry of that many bytes without a signature, which the store does not look at."""
    origin = NodeId(number.to_bytes(32, "big"))
    encoded = (origin.raw + seq.to_bytes(8, "big") + name.encode()).ljust(64, b"s") + bytes(size - 64)
    value = None if over else 6
    return Entry(origin, Kind.SERVICE, name, seq, int(WALL * 1000), ttl, value, encoded, b"")


def store(limit: int = limits.DHT_MAX_OFFERS) -> OfferStore:
    return OfferStore(limit, random.Random(1))


def told(held: OfferStore, key: bytes = KEY, answers: int = 1, wall: float = WALL) -> set[int]:
    """The numbers of the origins in so many answers."""
    found = [entry for _ in range(answers) for entry in open_bundle(held.bundle(key, wall))]
    return {int.from_bytes(entry[:32], "big") for entry in found}


# ---- bundles


def test_a_bundle_of_real_entries_comes_back_and_is_neither_a_record_nor_a_revocation() -> None:
    entries = [
        sign_entry(
            Identity(bytes([n]) * 32), kind=Kind.SERVICE, name="db", seq=n, issued_ms=n, ttl=60, value=b"\x84\0\0\0\xa0"
        ).encoded
        for n in range(1, MOST + 1)
    ]
    for count in range(1, MOST + 1):
        made = make_bundle(entries[:count])
        assert open_bundle(made) == entries[:count]
        assert is_bundle(made)
        assert not is_revocation(made)
        assert made[64] != 0x88
    assert len(make_bundle(entries[:1])) <= len(entries[0]) + bundle.OVERHEAD
    assert 2 * len(make_bundle(entries[:2])) < DHT_OFFER_BUNDLE, "four fit an answer"


@pytest.mark.parametrize("data", [b"", bytes(64), bytes(64) + b"\x80", bytes(64) + b"\x81\x40", bytes(1001)])
def test_what_is_no_bundle_has_no_entries(data: bytes) -> None:
    assert open_bundle(data) == []


def test_services_and_names_have_keys_of_their_own() -> None:
    keys = {dht_key_of(kind, name) for kind in (Kind.SERVICE, Kind.NAME) for name in ("a", "b")}
    assert {len(key) for key in keys} == {20}
    assert len(keys) == 4


# ---- one key


def test_the_newest_of_an_origin_counts() -> None:
    held = store()
    first, second = offer(1, seq=1), offer(1, seq=2)
    assert held.put(first, HERE, WALL) is Put.TAKEN
    assert held.put(second, HERE, WALL) is Put.TAKEN
    assert held.put(first, HERE, WALL) is Put.OLD
    assert open_bundle(held.bundle(KEY, WALL)) == [second.encoded]
    assert len(held) == 1


def test_a_withdrawal_stays_and_the_offer_does_not_come_back() -> None:
    held = store()
    held.put(offer(1, seq=1), HERE, WALL)
    gone = offer(1, seq=2, over=True)
    assert held.put(gone, HERE, WALL) is Put.TAKEN
    assert held.put(offer(1, seq=1), HERE, WALL) is Put.OLD
    assert open_bundle(held.bundle(KEY, WALL)) == [gone.encoded], "others learn of it"


def test_what_has_expired_is_given_to_none_and_makes_room() -> None:
    held = store(8)
    for number in range(1, 9):
        held.put(offer(number, f"s{number}", ttl=10), HERE, WALL)
    assert told(held, dht_key_of(Kind.SERVICE, "s1"), wall=WALL + 11) == set()
    for number in range(9, 13):
        held.put(offer(number), Storer(f"10.{number}.0.1", is_strong=False), WALL + 11)
    assert len(held) == 4, "two that have expired go with each that comes"


def test_an_origin_that_renews_without_end_takes_no_memory() -> None:
    held = store()
    for seq in range(2_000):
        held.put(offer(1, seq=seq, ttl=3600 + seq), HERE, WALL)
    assert len(held) == 1
    assert len(held._expiry) < 100


def test_nothing_of_a_revoked_key_is_given() -> None:
    held = store()
    held.put(offer(1), HERE, WALL)
    held.is_barred = lambda origin: True
    assert held.bundle(KEY, WALL) == b""


def test_sixteen_answers_tell_of_most_that_offer_a_service() -> None:
    held = store()
    for number in range(1, 41):
        held.put(offer(number), Storer(f"10.{number}.0.1", is_strong=number % 2 == 0), WALL)
    assert len(held.bundle(KEY, WALL)) <= DHT_OFFER_BUNDLE
    assert len(told(held)) == 4
    assert len(told(held, answers=16)) >= 25


def test_a_withdrawal_takes_no_room_from_an_offer() -> None:
    held = store()
    for number in range(1, 31):
        held.put(offer(number, over=True), HERE, WALL)
    for number in range(31, 35):
        held.put(offer(number), HERE, WALL)
    assert told(held) == {31, 32, 33, 34}


def test_an_offer_that_is_longer_than_an_answer_of_several_is_told_alone() -> None:
    held = store()
    longest = MAX_RECORD - bundle.OVERHEAD
    held.put(offer(1, size=longest), HERE, WALL)
    assert len(held.bundle(KEY, WALL)) <= MAX_RECORD
    assert told(held) == {1}
    held.put(offer(2), PAID, WALL)
    assert told(held, answers=40) == {1, 2}, "nor does it hide another one"


# ---- crowds


def test_a_crowd_of_free_ids_at_a_key_hides_no_origin_with_a_price() -> None:
    held = store()
    for number in range(1, 5):
        held.put(offer(number), Storer(f"10.{number}.0.1", is_strong=True), WALL)
    for number in range(1_000):
        host = f"{11 + number % 100}.{number // 100}.0.1"
        held.put(offer(100 + number, size=900), Storer(host, is_strong=False), WALL)
    assert sum(len(named) for named in held._keys.values()) <= DHT_OFFERS_OF_KEY
    assert {1, 2, 3, 4} <= told(held, answers=16), "half of what is told is for them"
    assert sum(bool(told(held) & {1, 2, 3, 4}) for _ in range(400)) > 150


def test_a_crowd_of_one_network_at_a_key_pushes_out_only_its_own() -> None:
    held = store()
    for number in range(1, 21):
        held.put(offer(number), Storer(f"10.{number}.0.1", is_strong=number % 2 == 0), WALL)
    for number in range(1_000):
        held.put(offer(100 + number), Storer(f"198.51.100.{number % 256}", is_strong=number % 2 == 0), WALL)
    assert set(range(1, 21)) <= {int.from_bytes(origin.raw, "big") for origin in held._keys[KEY]}


def test_of_one_host_the_oldest_goes_and_of_many_networks_the_newest() -> None:
    held = store()
    for number in range(1, DHT_OFFERS_OF_KEY + 2):
        assert held.put(offer(number), HERE, WALL) is Put.TAKEN, "new ids of a host take the places of its old ones"
    assert told(held, answers=300) == set(range(2, DHT_OFFERS_OF_KEY + 2))
    held = store()
    for number in range(1, DHT_OFFERS_OF_KEY + 1):
        held.put(offer(number), Storer(f"10.{number}.0.1", is_strong=False), WALL)
    late = DHT_OFFERS_OF_KEY + 1
    assert held.put(offer(late), Storer("11.0.0.1", is_strong=False), WALL) is Put.FULL, "who was there first stays"
    assert held.put(offer(late), Storer("11.0.0.1", is_strong=True), WALL) is Put.TAKEN


@pytest.mark.parametrize("strong", [False, True])
def test_a_flood_of_names_from_one_network_takes_nothing_from_other_names(strong: bool) -> None:
    held = store(1_024)
    for number in range(1, 201):
        held.put(offer(number, f"s{number}"), Storer(f"10.{number}.0.1", is_strong=number % 2 == 0), WALL)
    for number in range(5_000):
        entry = offer(1_000 + number % 500, f"f{number}")
        held.put(entry, Storer(f"198.51.100.{number % 256}", is_strong=strong), WALL)
    assert len(held) <= 1_024
    found = [number for number in range(1, 201) if told(held, dht_key_of(Kind.SERVICE, f"s{number}")) == {number}]
    assert len(found) == 200


def test_a_flood_of_free_ids_from_a_thousand_networks_leaves_those_with_a_price() -> None:
    held = store(1_024)
    for number in range(1, 201):
        held.put(offer(number, f"s{number}"), Storer(f"10.{number}.0.1", is_strong=True), WALL)
    for number in range(5_000):
        host = f"{11 + number % 100}.{number % 1_000 // 100}.0.1"
        held.put(offer(1_000 + number, f"f{number}"), Storer(host, is_strong=False), WALL)
    assert all(told(held, dht_key_of(Kind.SERVICE, f"s{number}")) == {number} for number in range(1, 201))


def test_an_origin_has_a_bounded_number_of_places_and_renews_what_it_has() -> None:
    held = store()
    puts = [held.put(offer(1, f"s{number}"), PAID, WALL) for number in range(DHT_OFFERS_OF_ORIGIN + 5)]
    assert puts.count(Put.FULL) == 5
    assert held.put(offer(1, "s0", seq=2, over=True), PAID, WALL) is Put.TAKEN


def test_what_the_store_counts_is_what_it_holds() -> None:
    held, rng = store(64), random.Random(2)
    for number in range(3_000):
        entry = offer(rng.randrange(1, 90), f"s{rng.randrange(4)}", seq=rng.randrange(9), ttl=rng.randrange(1, 60))
        host = f"10.{rng.randrange(5)}.0.{rng.randrange(4)}"
        held.put(entry, Storer(host, is_strong=rng.random() < 0.3), WALL + number / 20)
        places = {(key, origin) for key, named in held._keys.items() for origin in named}
        assert len(held) == len(places) <= 64
        assert sum(held._of_origin.values()) == len(places)
        assert all(named for named in held._keys.values())
