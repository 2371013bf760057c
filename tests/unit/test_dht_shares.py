"""What a node keeps for others is shared by source network: no flood of ids takes what honest ones have."""

from __future__ import annotations

import random

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import (
    DHT_MAX_STORED,
    DHT_MAX_WATCHES,
    DHT_MAX_WATCHES_PER_KEY,
    DHT_MAX_WATCHES_PER_SENDER,
    DHT_STORE_TURNOVER,
)
from meshnode.base.token_bucket import TokenBucket
from meshnode.discovery.dht import store as store_module
from meshnode.discovery.dht import watchers as module
from meshnode.discovery.dht.messages import Status, Store, Stored, Watch, Watched, decode_message, encode_message
from meshnode.discovery.dht.store import Put, RecordStore
from meshnode.discovery.dht.watchers import Watcher, Watchers
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from tests.unit.test_dht_parts import TX, Net, SimNode, _identity, _record, _tell

WALL = 1_700_000_000.0
OWN = bytes(20)


def fake(number: int, seq: int = 1, ttl: int = 7200) -> EndpointRecord:
    """A record without a signature, which the store does not look at."""
    raw = number.to_bytes(32, "big")
    return EndpointRecord(NodeId(raw), seq, int(WALL * 1000), ttl, (), encoded=raw + seq.to_bytes(8, "big"))


def is_held(store: RecordStore, number: int, wall: float = WALL) -> bool:
    """True when the record of ``fake(number)`` is there."""
    return store.fresh(fake(number).id.dht_key, wall) is not None


HONEST = [f"{10 + n % 200}.{n // 200}.7.1" for n in range(500)]
ATTACKERS = {
    "one /64": lambda n: f"2001:db8:1:2::{n:x}",
    "one /48, a /64 for each": lambda n: f"2001:db8:1:{n % 65_536:x}::1",
    "one IPv4 /24": lambda n: f"198.51.100.{n % 256}",
    "one address": lambda n: "198.51.100.7",
    "a hundred IPv6 /48": lambda n: f"2001:db8:{n % 100:x}::1",
}


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_all_honest_records_stay_when_few_networks_store_ten_thousand(attacker: str) -> None:
    store = RecordStore(OWN, DHT_MAX_STORED)
    for number, host in enumerate(HONEST):
        assert store.put(fake(number), host, 0.0, WALL) is Put.NEW
    for number in range(10_000):
        store.put(fake(1_000 + number), ATTACKERS[attacker](number), 0.0, WALL)
    assert sum(is_held(store, number) for number in range(len(HONEST))) == len(HONEST)
    assert len(store) == DHT_MAX_STORED


def test_honest_records_enter_a_store_that_a_flood_has_filled_and_stay() -> None:
    store = RecordStore(OWN, DHT_MAX_STORED)
    for number in range(5_000):
        store.put(fake(1_000 + number), f"2001:db8::{number:x}", 0.0, WALL)
    for number, host in enumerate(HONEST):
        assert store.put(fake(number), host, 0.0, WALL) is Put.NEW
        store.put(fake(10_000 + number), "2001:db8::1", 0.0, WALL)
    assert all(is_held(store, number) for number in range(len(HONEST)))


def test_a_host_in_the_network_of_a_flood_keeps_its_own_share() -> None:
    store = RecordStore(OWN, 256)
    store.put(fake(1), "198.51.100.1", 0.0, WALL)
    store.put(fake(2), "2001:db8:1:1::1", 0.0, WALL)
    for number in range(2_000):
        store.put(fake(1_000 + number), "198.51.100.9", 0.0, WALL)
        store.put(fake(10_000 + number), f"2001:db8:1:2::{number:x}", 0.0, WALL)
    assert is_held(store, 1)
    assert is_held(store, 2)


def test_established_owners_keep_their_places_though_every_newcomer_has_a_network_of_its_own() -> None:
    established = {fake(number).id for number in range(50)}
    store = RecordStore(OWN, 256, lambda peer: peer in established)
    for number in range(50):
        store.put(fake(number), "198.51.100.7", 0.0, WALL)
    late = fake(99)
    store.put(late, "198.51.100.7", 0.0, WALL)
    store.keep(late.id)  # it has become a contact
    for number in range(2_000):
        store.put(fake(1_000 + number), f"{1 + number // 250}.{number % 250}.1.1", 0.0, WALL)
    assert all(is_held(store, number) for number in [*range(50), 99])
    assert len(store) == 256


def test_established_owners_take_half_of_the_places_at_most() -> None:
    store = RecordStore(OWN, 256, lambda peer: int.from_bytes(peer.raw, "big") >= 1_000)
    for number in range(100):
        store.put(fake(number), f"{number + 1}.1.1.1", 0.0, WALL)
    for number in range(2_000):
        store.put(fake(1_000 + number), f"198.51.100.{number % 9}", 0.0, WALL)
    assert all(is_held(store, number) for number in range(100))


def test_this_nodes_own_record_is_never_displaced() -> None:
    own = fake(7)
    store = RecordStore(own.id.dht_key, 64)
    store.put(own, "", 0.0, WALL)
    for number in range(1_000):
        store.put(fake(1_000 + number), f"{1 + number // 250}.{number % 250}.1.1", 0.0, WALL)
    assert is_held(store, 7)


def test_a_key_takes_a_burst_of_updates_and_then_a_rate() -> None:
    store = RecordStore(OWN, 200)
    store.put(fake(1), "x", 0.0, WALL)
    burst = [store.put(fake(1, seq), "x", 0.0, WALL) for seq in range(2, 40)]
    assert burst.count(Put.NEWER) == 32
    assert burst[-1] is Put.QUOTA
    assert store.put(fake(1, 99), "x", 10.0, WALL) is Put.NEWER
    assert store.put(fake(1, 99), "x", 10.0, WALL) is Put.SAME
    assert store.put(fake(1, 98), "x", 10.0, WALL) is Put.OLD


def test_a_record_that_is_stored_again_goes_last_of_its_share() -> None:
    store = RecordStore(OWN, 4)
    for number in range(4):
        store.put(fake(number), "198.51.100.7", 0.0, WALL)
    store.put(fake(0), "198.51.100.7", 0.0, WALL)
    store.put(fake(9), "198.51.100.7", 0.0, WALL)
    assert [number for number in (0, 1, 2, 3, 9) if is_held(store, number)] == [0, 2, 3, 9]


def test_what_has_expired_is_dropped_with_its_place() -> None:
    store = RecordStore(OWN, 8)
    for number in range(8):
        store.put(fake(number, ttl=60 if number < 6 else 7200), f"{number + 1}.1.1.1", 0.0, WALL)
    assert not is_held(store, 0, WALL + 125)
    store.cull(WALL + 125)
    assert len(store) == 2
    for number in range(20, 26):
        store.put(fake(number), "198.51.100.7", 0.0, WALL + 125)
    assert all(is_held(store, number, WALL + 125) for number in [6, 7, *range(20, 26)])


def test_what_has_expired_makes_room_before_anything_else_goes() -> None:
    store = RecordStore(OWN, 8)
    for number in range(8):
        store.put(fake(number, ttl=60 if number < 6 else 7200), f"{number + 1}.1.1.1", 0.0, WALL)
    for number in range(20, 23):
        store.put(fake(number), "198.51.100.7", 0.0, WALL + 125)
    assert len(store) == 5, "two expired ones go with each that comes"
    assert all(is_held(store, number, WALL + 125) for number in [6, 7, 20, 21, 22])


def test_a_newer_record_lasts_as_long_as_it_says_itself() -> None:
    store = RecordStore(OWN, 8)
    store.put(fake(1, ttl=60), "9.9.9.9", 0.0, WALL)
    store.put(fake(1, seq=2), "9.9.9.9", 0.0, WALL)
    store.cull(WALL + 125)
    assert is_held(store, 1, WALL + 125)


def test_a_cull_stops_after_so_many_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CULLED_AT_ONCE", 5)
    store = RecordStore(OWN, 20)
    for number in range(12):
        store.put(fake(number, ttl=60), "9.9.9.9", 0.0, WALL)
    sizes = []
    for _ in range(3):
        store.cull(WALL + 125)
        sizes.append(len(store))
    assert sizes == [7, 2, 0]


def test_the_host_with_most_of_a_full_store_is_refused_after_some_and_no_other_is() -> None:
    store = RecordStore(OWN, 256)
    for number in range(20):
        store.put(fake(number), HONEST[number], 0.0, WALL)
    flooded = "198.51.100.7"
    for number in range(300):
        assert not store.refuses(flooded, 0.0) or number >= DHT_STORE_TURNOVER + 236
        store.put(fake(1_000 + number), flooded, 0.0, WALL)
    refused = sum(store.refuses(flooded, 0.0) for _ in range(1_000))
    assert refused == 1_000 - (DHT_STORE_TURNOVER - 64)
    assert not store.refuses("198.51.100.8", 0.0), "another host of that network"
    assert not store.refuses("203.0.113.7", 0.0), "another network"
    assert not store.refuses(HONEST[3], 0.0), "one that has less"
    assert not store.refuses(flooded, 1.0), "one more after a while"


def test_every_record_has_one_place_whatever_happens() -> None:
    rng = random.Random(3)
    established: set[NodeId] = set()
    store = RecordStore(OWN, 20, lambda peer: peer in established)
    for step in range(20_000):
        record = fake(rng.randrange(60), seq=step, ttl=rng.choice([10, 7200]))
        action = rng.random()
        if action < 0.8:
            store.put(record, f"{rng.randrange(1, 9)}.1.{rng.randrange(3)}.{rng.randrange(3)}", 0.0, WALL)
        elif action < 0.9:
            established.symmetric_difference_update({record.id})
            store.keep(record.id)
        elif action < 0.99:
            store.fresh(record.id.dht_key, WALL + 11)
        else:
            store.cull(WALL + 11)
        assert len(store._items) == len(store._kept) + len(store._guests) <= 20
        assert sum(len(keys) for keys in store._expiring.values()) == len(store)
        assert sorted(store._minutes) == sorted(store._expiring)
        assert len(store._kept) <= 10


def watch(number: int, host: str, until: float = 90.0) -> Watcher:
    """A watch of a peer."""
    return Watcher(NodeId(number.to_bytes(32, "big")), Addr(host, 4242), until, 0, proven=True, credit=0)


def key(number: int) -> bytes:
    """A DHT key."""
    return number.to_bytes(20, "big")


@pytest.mark.parametrize("attacker", ["one /64", "one /48, a /64 for each", "one IPv4 /24", "one address"])
def test_all_honest_watches_stay_when_many_ids_of_one_network_watch_all_they_may(attacker: str) -> None:
    watchers = Watchers()
    for number, host in enumerate(HONEST):
        assert watchers.add(key(number), watch(number, host), 0.0)
    for ids in range(64):
        for number in range(DHT_MAX_WATCHES_PER_SENDER):
            watchers.add(key(10_000 + number), watch(1_000 + ids, ATTACKERS[attacker](ids)), 0.0)
    assert all(watchers.get(key(n), watch(n, host).id) for n, host in enumerate(HONEST))
    assert watchers.add(key(9_999), watch(9_999, "9.9.9.9"), 0.0), "a newcomer from elsewhere"
    assert len(watchers) <= DHT_MAX_WATCHES


def test_a_keys_places_are_not_taken_by_one_network() -> None:
    watchers = Watchers()
    for number in range(20):
        assert watchers.add(key(1), watch(number, HONEST[number]), 0.0)
    for number in range(1_000):
        watchers.add(key(1), watch(1_000 + number, f"2001:db8::{number:x}"), 0.0)
    assert watchers.add(key(1), watch(77, "9.9.9.9"), 0.0)
    assert all(watchers.get(key(1), watch(n, HONEST[n]).id) for n in range(20))
    assert len(watchers.waiting(key(1), 5, 0.0)) == DHT_MAX_WATCHES_PER_KEY


def test_watchers_that_have_a_place_renew_it_however_many_others_come() -> None:
    watchers = Watchers(per_key=8)
    for number in range(8):
        assert watchers.add(key(1), watch(number, f"{number + 1}.1.1.1"), 0.0)
    for number in range(100):
        assert not watchers.add(key(1), watch(100 + number, f"{number + 20}.1.1.1"), 1.0), "no network has more"
        assert watchers.add(key(1), watch(number % 8, f"{number % 8 + 1}.1.1.1"), 2.0)


def test_a_full_table_refuses_the_newest_of_equal_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DHT_MAX_WATCHES", 20)
    watchers = Watchers()
    for number in range(20):
        assert watchers.add(key(number), watch(number, f"{number + 1}.1.1.1"), 0.0)
    assert not watchers.add(key(50), watch(50, "50.1.1.1"), 0.0)
    assert all(watchers.get(key(number), watch(number, "x").id) for number in range(20))


def test_established_watchers_keep_their_places_in_a_key_and_in_all() -> None:
    watchers = Watchers(per_key=8, is_established=lambda peer: int.from_bytes(peer.raw, "big") < 10)
    for number in range(6):
        watchers.add(key(1), watch(number, "198.51.100.7"), 0.0)
    for number in range(300):
        watchers.add(key(1), watch(1_000 + number, f"{number % 200 + 1}.1.1.1"), 0.0)
    assert all(watchers.get(key(1), watch(n, "x").id) for n in range(6))
    assert watchers.add(key(1), watch(8, "198.51.100.7"), 0.0)
    assert watchers.add(key(1), watch(9, "198.51.100.7"), 0.0)
    assert not watchers.add(key(1), watch(5_000, "5.5.5.5"), 0.0), "eight established ones fill it"
    for number in range(2 * DHT_MAX_WATCHES):
        sender = watch(2_000 + number, f"{number % 200 + 1}.{number // 200}.1.1")
        watchers.add(key(100 + number), sender, 0.0)
    assert all(watchers.get(key(1), watch(n, "x").id) for n in (0, 1, 2, 3, 4, 5, 8, 9))
    assert len(watchers) == DHT_MAX_WATCHES


def test_watches_of_a_key_that_have_run_out_make_room_first() -> None:
    watchers = Watchers(per_key=4)
    for number in range(4):
        watchers.add(key(1), watch(number, HONEST[number], until=50.0 if number == 2 else 90.0), 0.0)
    assert watchers.add(key(1), watch(9, "9.9.9.9", until=150.0), 60.0)
    assert watchers.get(key(1), watch(2, "x").id) is None
    watchers.cull(91.0)
    assert len(watchers) == 1


def test_every_watch_has_one_place_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DHT_MAX_WATCHES", 20)
    monkeypatch.setattr(module, "DHT_MAX_WATCHES_PER_SENDER", 5)
    rng = random.Random(4)
    established: set[NodeId] = set()
    watchers = Watchers(4, lambda peer: peer in established)
    for step in range(20_000):
        watcher = watch(rng.randrange(20), f"{rng.randrange(1, 9)}.1.{rng.randrange(3)}.1", step + rng.randrange(1, 99))
        action = rng.random()
        if action < 0.8:
            added = watchers.add(key(rng.randrange(20)), watcher, float(step))
            assert added or len(watchers) > 0
        elif action < 0.9:
            watchers.remove(key(rng.randrange(20)), watcher.id)
        elif action < 0.99:
            established.symmetric_difference_update({watcher.id})
        else:
            watchers.cull(float(step))
        by_key = {(k, peer) for k, each in watchers._by_key.items() for peer in each}
        assert by_key == {(k, peer) for peer, keys in watchers._by_sender.items() for k in keys}
        assert len(by_key) == len(watchers) <= 20
        assert all(entry in watchers._kept or entry in watchers._guests for entry in by_key)
        assert all(len(each) <= 4 for each in watchers._by_key.values())
        assert all(len(keys) <= 5 for keys in watchers._by_sender.values())


def test_a_renewal_keeps_the_proof_of_the_same_address_only() -> None:
    watchers = Watchers()
    watchers.add(key(1), watch(1, "9.9.9.9"), 0.0)
    unproven = Watcher(watch(1, "x").id, Addr("9.9.9.9", 4242), 200.0, 0, proven=False, credit=5)
    assert watchers.add(key(1), unproven, 0.0)
    assert unproven.proven
    moved = Watcher(watch(1, "x").id, Addr("9.9.9.8", 4242), 200.0, 0, proven=False, credit=5)
    assert watchers.add(key(1), moved, 0.0)
    assert not moved.proven
    assert len(watchers) == 1


# ---- one node, by its messages


def store_by(net: Net, node: SimNode, owner: Identity, src: Addr) -> Status:
    """Have a node store the owner's record, handed in from ``src`` with its token; what it answers."""
    token = node.dht._holder.token(owner.id, src, net.now)
    body = encode_message(Store(TX, token, _record(owner, 5, wall=net.wall()).encoded))
    (reply,) = (decode_message(each) for each in _tell(net, node, owner, body, src))
    assert isinstance(reply, Stored)
    return reply.status


def test_a_contact_that_answers_and_a_linked_peer_are_established_and_an_id_is_not() -> None:
    net = Net(71)
    node = net.add()
    shared = node.dht._shared
    contact, linked, seed, stranger = (_identity(n) for n in (1, 2, 3, 4))
    node.dht._table.answered(contact.id, net.fresh_addr())
    shared._is_linked = lambda peer: peer == linked.id
    shared.seeds[seed.id] = net.fresh_addr()
    assert [shared.is_established(one.id) for one in (contact, linked, seed, stranger)] == [True, True, True, False]
    node.dht._table.failed(contact.id, evict=False)
    assert not shared.is_established(contact.id)


def test_an_owner_that_becomes_a_contact_keeps_the_record_that_it_stored_before() -> None:
    net = Net(72)
    node, owner, src = net.add(), _identity(9), net.fresh_addr()
    node.dht._shared.store.put(_record(owner, 5, wall=net.wall()), src.host, net.now, net.wall())
    assert owner.id.dht_key in node.dht._shared.store._guests
    node.dht._contacts.answered(owner.id, src, b"", net.now, net.now)
    assert owner.id.dht_key in node.dht._shared.store._kept


def test_an_owner_that_stores_with_its_token_is_a_contact() -> None:
    net = Net(72)
    node, owner, src = net.add(), _identity(9), net.fresh_addr()
    assert store_by(net, node, owner, src) is Status.OK
    assert dict(node.dht.contacts()) == {owner.id: src}
    assert owner.id.dht_key in node.dht._shared.store._kept


def test_a_full_store_still_answers_ok_and_counts_what_gave_way() -> None:
    net = Net(73)
    node = net.add()
    node.dht._shared.store._limit = 10
    source = Addr("45.1.2.3", 4242)
    assert [store_by(net, node, _identity(n), source) for n in range(20, 40)] == [Status.OK] * 20
    assert node.metrics.counters["dht_store_full"] == 10


def test_a_flood_of_one_host_is_refused_unread_and_what_it_holds_is_still_renewed() -> None:
    net = Net(75)
    node, source, contact = net.add(), Addr("45.1.2.3", 4242), _identity(9)
    store = node.dht._shared.store
    store._limit = 10
    store._turnover = TokenBucket(1.0, 5.0, net.now)
    node.dht._table.answered(contact.id, source)
    statuses = [store_by(net, node, _identity(n), source) for n in range(20, 60)]
    assert statuses == [Status.OK] * 15 + [Status.FULL] * 25
    assert node.metrics.counters["dht_store_refused_full"] == 25
    body = encode_message(Store(TX, b"", b"junk"))
    (reply,) = (decode_message(each) for each in _tell(net, node, _identity(60), body, source))
    assert isinstance(reply, Stored)
    assert reply.status is Status.FULL, "not even parsed"
    assert not reply.token, "no longer than the shortest request"
    held = next(n for n in range(20, 60) if _identity(n).id.dht_key in store)
    assert store_by(net, node, _identity(held), source) is Status.OK
    assert store_by(net, node, _identity(99), Addr("46.1.2.3", 4242)) is Status.OK
    assert store_by(net, node, contact, source) is Status.OK, "a contact"


def test_a_watch_without_a_place_is_answered_full() -> None:
    net = Net(74)
    node = net.add()
    node.dht._holder.watchers._per_key = 1
    shared = node.dht._shared
    shared._is_linked = lambda peer: peer == _identity(1).id
    statuses = []
    for n in (1, 2):
        token = node.dht._holder.token(_identity(n).id, Addr("45.1.2.3", 9), net.now)
        body = encode_message(Watch(TX, token, key(5), 0, 90))
        (reply,) = (decode_message(each) for each in _tell(net, node, _identity(n), body, Addr("45.1.2.3", 9)))
        assert isinstance(reply, Watched)
        statuses.append(reply.status)
    assert statuses == [Status.OK, Status.FULL]
