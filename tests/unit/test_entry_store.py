"""The store of gossip: what it keeps when there is more than fits."""

from __future__ import annotations

from itertools import permutations

from meshnode.base.limits import GOSSIP_MAX_ACCUSERS
from meshnode.base.metrics import Metrics
from meshnode.gossip.dissemination.entry_store import EntryStore, Put
from meshnode.gossip.entry import Entry, Kind, sign_entry
from meshnode.gossip.kinds import Accusation
from meshnode.identity.keys import Identity

WALL_MS = 1_800_000_000_000
PEOPLE = [Identity(bytes([number]) * 32) for number in range(8)]


def _entry(signer: Identity, kind: int, name: str, seq: int, value: bytes | None = b"x") -> Entry:
    return sign_entry(signer, kind=kind, name=name, seq=WALL_MS + seq, issued_ms=WALL_MS, ttl=600, value=value)


def _accusation(signer: Identity, seq: int) -> Entry:
    accused = PEOPLE[0].id
    return _entry(signer, Kind.ACCUSATION, str(accused), seq, Accusation(accused, WALL_MS).encoded())


def test_of_the_accusations_of_one_node_the_same_stay_in_whatever_order_they_come() -> None:
    said = [_accusation(signer, seq) for seq, signer in enumerate(PEOPLE[1:6])]
    for again in range(5):  # a node that accuses again replaces its own accusation, and no other
        kept = set()
        for order in permutations([*said, _accusation(PEOPLE[1 + again], 9)]):
            store = EntryStore(Metrics())
            for entry in order:
                store.put(entry)
            kept.add(frozenset(entry.id for entry in store.entries(Kind.ACCUSATION)))
        assert len(kept) == 1
        assert len(kept.pop()) == GOSSIP_MAX_ACCUSERS


def test_one_more_accusation_than_count_is_not_taken_and_leaves_no_trace() -> None:
    store = EntryStore(Metrics())
    for seq, signer in enumerate(PEOPLE[1:6]):
        store.put(_accusation(signer, seq))
    prints, kept = list(store.buckets.prints), {entry.origin for entry in store.entries(Kind.ACCUSATION)}
    more = _accusation(next(signer for signer in PEOPLE[1:6] if signer.id not in kept), 9)
    assert store.put(more) is Put.FULL
    assert store.buckets.prints == prints
    for entry in list(store.entries(Kind.ACCUSATION)):
        store.drop(entry)
    assert store.put(more) is Put.NEW


def test_a_full_kind_keeps_what_was_there_first_and_the_newest_of_the_rest() -> None:
    store = EntryStore(Metrics(), limit=4)
    entries = [_entry(signer, 8, "s", seq) for seq, signer in enumerate(reversed(PEOPLE))]
    for entry in entries:
        store.put(entry, PEOPLE[0].id)
    assert sorted(entry.seq - WALL_MS for entry in store.entries(8)) == [0, 1, 6, 7]
    assert [effect.entry.seq - WALL_MS for effect in store.take_effects()] == [2, 3, 4, 5]
    assert store.put(entries[2], PEOPLE[0].id) is Put.FULL
    assert not store.lacks(entries[2].id), "what was given up is not asked for"
    for entry in (entries[0], entries[1]):
        store.drop(entry)
    assert store.lacks(entries[2].id)
    assert store.put(entries[2], PEOPLE[0].id) is Put.NEW
    assert store.put(entries[1], PEOPLE[0].id) is Put.STALE, "what was made void does not come back"
    assert len(store) == 3


def test_a_settled_entry_keeps_its_place_when_it_is_renewed_in_a_full_kind() -> None:
    store = EntryStore(Metrics(), limit=4)
    for seq, signer in enumerate(PEOPLE):
        store.put(_entry(signer, 8, "s", seq), PEOPLE[0].id)
    store.put(_entry(PEOPLE[0], 8, "s", 20), PEOPLE[1].id)
    for seq, signer in enumerate(PEOPLE[2:], 30):
        store.put(_entry(signer, 8, "t", seq), PEOPLE[1].id)
    assert store.get((PEOPLE[0].id, 8, "s")) is not None


def test_a_node_that_connects_after_its_entries_came_keeps_them_from_then_on() -> None:
    standing: dict[object, None] = {}
    store = EntryStore(Metrics(), limit=16, has_standing=lambda origin: origin in standing)
    crowd = [Identity(bytes([number]) * 32) for number in range(100, 160)]
    for seq, signer in enumerate(crowd[:16]):
        store.put(_entry(signer, 8, "s", seq), PEOPLE[0].id)
    late = _entry(PEOPLE[1], 8, "late", 0)
    assert store.put(late, PEOPLE[0].id) is Put.NEW
    standing[PEOPLE[1].id] = None
    for seq, signer in enumerate(crowd[16:], 16):
        store.put(_entry(signer, 8, "s", seq), PEOPLE[0].id)
    assert store.by_id(late.id) is late


def test_what_is_stored_is_found_by_key_by_name_and_by_id() -> None:
    store = EntryStore(Metrics())
    one, two, three = (
        _entry(PEOPLE[0], 8, "a", 1),
        _entry(PEOPLE[1], 8, "a", 1, None),
        _entry(PEOPLE[0], 8, "b", 2, b""),
    )
    for entry in (one, two, three):
        store.put(entry)
    assert store.get(two.key) is two
    assert two.value is None
    assert three.value == b""
    assert list(store.named(8, "a")) == [one, two]
    assert store.by_id(three.id) is three
    newer = _entry(PEOPLE[0], 8, "a", 3, b"new")
    assert store.put(newer) is Put.NEW
    assert store.by_id(one.id) is None
    assert newer.value == b"new"
    assert store.put(one) is Put.STALE


def test_what_expires_is_returned_once_and_nothing_else_goes() -> None:
    store = EntryStore(Metrics())
    short = sign_entry(PEOPLE[0], kind=8, name="a", seq=WALL_MS, issued_ms=WALL_MS, ttl=60, value=b"x")
    long = _entry(PEOPLE[1], 8, "a", 1)
    store.put(long)
    store.put(short)
    assert store.next_expiry() == short.expires
    assert store.expire(short.expires) == []
    assert store.expire(short.expires + 1) == [short]
    assert store.expire(short.expires + 2) == []
    assert list(store.entries(8)) == [long]
    assert store.next_expiry() == long.expires
    assert store.put(short) is Put.STALE


def test_an_entry_that_gave_way_comes_back_when_there_is_room_and_no_older_one_of_its_key() -> None:
    store = EntryStore(Metrics(), limit=2)
    first, gave_way, newest = (_entry(signer, 8, "s", seq) for seq, signer in enumerate(PEOPLE[:3], 5))
    for entry in (first, gave_way, newest):
        assert store.put(entry) is Put.NEW
    assert store.by_id(gave_way.id) is None
    assert store.put(gave_way) is Put.FULL
    store.drop(newest)
    assert store.put(_entry(PEOPLE[1], 8, "s", 4)) is Put.STALE
    assert store.put(gave_way) is Put.NEW


def test_of_two_entries_under_one_seq_the_lesser_does_not_take_the_place_that_the_greater_gave_up() -> None:
    store = EntryStore(Metrics(), limit=2)
    twins = [_entry(PEOPLE[1], 8, "s", 6, value) for value in (b"one", b"two")]
    lesser, greater = sorted(twins, key=lambda entry: entry.encoded)
    newest = _entry(PEOPLE[2], 8, "s", 7)
    for entry in (_entry(PEOPLE[0], 8, "s", 5), greater, newest):
        assert store.put(entry) is Put.NEW
    assert store.put(lesser) is Put.STALE, "others have the greater, which is not asked for while there is no room"
    store.drop(newest)
    assert store.put(lesser) is Put.STALE
    assert store.put(greater) is Put.NEW


def test_a_newer_entry_with_the_id_of_another_one_is_not_taken() -> None:
    store = EntryStore(Metrics())
    one, other, newer = (_entry(PEOPLE[0], 8, name, seq) for name, seq in (("a", 1), ("b", 1), ("b", 2)))
    fields = newer.origin, newer.kind, newer.name, newer.seq, newer.issued, newer.ttl, newer.size, newer.encoded
    for entry in (one, other):
        assert store.put(entry) is Put.NEW
    assert store.put(Entry(*fields, id=one.id)) is Put.FULL
    assert store.put(newer) is Put.NEW
    for entry in list(store.entries(8)):
        store.drop(entry)
    assert len(store) == 0
    assert not any(store.buckets.prints)
