"""The store is a set that merges, whatever the order; the tree delivers, whatever is lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.limits import GOSSIP_PLACES_OF_STANDING
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.entry_store import EntryStore, Put
from meshnode.gossip.dissemination.places import Places
from meshnode.gossip.dissemination.plumtree import Plumtree
from meshnode.gossip.entry import Entry, sign_entry
from meshnode.gossip.messages import Eager, Graft, IHave, Prune
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from tests.sim.gossip_sim import build

WALL_MS = 1_800_000_000_000
ORIGINS = [Identity(bytes(31) + bytes([n])) for n in range(1, 5)]
quick = settings(max_examples=60, derandomize=True)


def _entry(origin: int, name: int, seq: int, value: int, ttl: int = 3600) -> Entry:
    return sign_entry(
        ORIGINS[origin],
        kind=8,
        name=f"n{name}",
        seq=WALL_MS + seq,
        issued_ms=WALL_MS,
        ttl=ttl,
        value=bytes([value]),
    )


entries = st.lists(
    st.builds(_entry, st.integers(0, 3), st.integers(0, 4), st.integers(0, 6), st.integers(0, 2)), max_size=40
)


def _ids(store: EntryStore) -> list[bytes]:
    return sorted(entry.id for entry in store.entries(8))


@given(entries, st.randoms(use_true_random=False))
@quick
def test_the_order_of_arrival_does_not_matter(found: list[Entry], rng: random.Random) -> None:
    one, other = EntryStore(Metrics()), EntryStore(Metrics())
    for entry in found:
        one.put(entry)
    mixed = found + found[:5]
    rng.shuffle(mixed)
    for entry in mixed:
        other.put(entry)
    assert _ids(one) == _ids(other)
    assert one.buckets.prints == other.buckets.prints


@given(entries, st.randoms(use_true_random=False))
@quick
def test_two_that_exchange_what_does_not_fit_come_to_an_end(found: list[Entry], rng: random.Random) -> None:
    one, other = EntryStore(Metrics(), limit=6), EntryStore(Metrics(), limit=6)
    for entry in found:
        rng.choice((one, other)).put(entry)
    for _ in range(12):
        moved = 0
        for here, there in ((one, other), (other, one)):
            for entry in list(here.entries(8)):
                moved += there.lacks(entry.id) and there.put(entry) is Put.NEW
        assert max(len(one), len(other)) <= 6
    assert moved == 0, "nothing goes back and forth for ever"


PEERS = [NodeId(bytes(31) + bytes([n])) for n in range(1, 5)]
LIMIT = 32
flood = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 2**40)), max_size=200)


@given(st.integers(1, LIMIT // 2), flood)
@quick
def test_whatever_is_sent_later_takes_nothing_from_what_was_here_first(
    honest: int, later: list[tuple[int, int, int]]
) -> None:
    places = Places(LIMIT, lambda link: bytes(link)[-1] % 2)
    first = [b"first%03d" % n for n in range(honest)]
    kept = dict.fromkeys(first)
    for item in first:
        places.add(item, PEERS[0], 0)
    for n, (held, link, _) in enumerate(later):
        _put(places, kept, b"later%03d" % n, PEERS[link], held)
    assert set(first) <= set(kept)
    assert len(places) == len(kept) <= LIMIT


@given(st.integers(0, 300))
@quick
def test_a_newcomer_over_a_quiet_link_stays_whatever_comes_over_a_busy_one(many: int) -> None:
    places, kept = Places(LIMIT, lambda link: None), {}
    for n in range(many):
        _put(places, kept, b"busy%04d" % n, PEERS[0], 0)
        if n == many // 2:
            _put(places, kept, b"quiet", PEERS[1], 0)
    assert many == 0 or b"quiet" in kept


@given(st.integers(0, 300))
@quick
def test_a_network_with_many_links_takes_no_more_than_one_with_a_single_link(many: int) -> None:
    places, kept = Places(LIMIT, lambda link: "one" if link == PEERS[0] else "crowd"), {}
    for n in range(LIMIT):
        _put(places, kept, b"old%05d" % n, PEERS[1 + n % 3], 0)
    for n in range(4):
        _put(places, kept, b"one%05d" % n, PEERS[0], 0)
    for n in range(many):
        _put(places, kept, b"new%05d" % n, PEERS[1 + n % 3], 0)
    assert all(b"one%05d" % n in kept for n in range(4))


@given(st.integers(0, 200), st.integers(0, 2 * GOSSIP_PLACES_OF_STANDING))
@quick
def test_an_origin_with_standing_has_places_when_all_others_are_taken(crowd: int, own: int) -> None:
    places, kept = Places(256, lambda link: None), {}
    for n in range(crowd + 256):
        _put(places, kept, b"before%03d" % n, PEERS[0], 0)
    for n in range(own):
        _put(places, kept, b"known%03d" % n, PEERS[0], n, standing=True)
    for n in range(256):
        _put(places, kept, b"after%03d" % n, PEERS[0], 0)
    assert all(b"known%03d" % n in kept for n in range(min(own, GOSSIP_PLACES_OF_STANDING)))


def _put(places: Places, kept: dict[bytes, None], item: bytes, link: NodeId, held: int, standing: bool = False) -> None:
    while places.is_full:
        victim = places.victim()
        assert victim is not None
        places.discard(victim)
        del kept[victim]
    places.add(item, link, held, standing=standing)
    kept[item] = None


@given(entries)
@quick
def test_no_seq_goes_back_not_even_after_expiry(found: list[Entry]) -> None:
    store = EntryStore(Metrics())
    newest: dict[object, int] = {}
    for number, entry in enumerate(found):
        if store.put(entry) is Put.NEW:
            assert entry.seq >= newest.get(entry.key, 0)
            newest[entry.key] = entry.seq
        if number == len(found) // 2:
            store.expire(WALL_MS / 1000 + 4000)
            assert len(store) == 0


@given(entries)
@quick
def test_fingerprints_are_those_of_what_is_stored(found: list[Entry]) -> None:
    store = EntryStore(Metrics())
    for entry in found:
        store.put(entry)
    expected = [0] * 256
    for entry in store.entries(8):
        expected[entry.id[0]] ^= int.from_bytes(entry.id, "big")
    assert store.buckets.prints == expected
    assert store.buckets.folded(1)[0] == _xor(expected)
    assert sum(len(store.buckets.bucket(index, 16)) for index in range(16)) == len(store)


def _xor(parts: list[int]) -> int:
    together = 0
    for part in parts:
        together ^= part
    return together


class Trees:
    """A few ``Plumtree`` cores on a random connected graph, over links that lose whole messages."""

    def __init__(self, count: int, rng: random.Random, loss: float) -> None:
        self.rng = rng
        self.loss = loss
        self.ids = [NodeId(bytes(31) + bytes([n])) for n in range(count)]
        self.timers = [Timers() for _ in range(count)]
        self.trees = [Plumtree(rng, self.timers[n], Metrics(), 0.0) for n in range(count)]
        self.got: list[dict[bytes, int]] = [{} for _ in range(count)]
        self.now = 0.0
        for n in range(1, count):
            self._link(n, rng.randrange(n))
        for _ in range(count):
            self._link(*rng.sample(range(count), 2))

    def _link(self, a: int, b: int) -> None:
        self.trees[a].add(self.ids[b])
        self.trees[b].add(self.ids[a])

    def publish(self, n: int, payload: bytes) -> None:
        """Broadcast from one of them."""
        self.got[n][payload] = 1
        self.trees[n].publish(payload, payload, self.now)

    def run(self, seconds: float) -> None:
        """Rounds of 50 ms: what was sent in one arrives in the next."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            sent = [(n, effect) for n, tree in enumerate(self.trees) for effect in tree.take_effects()]
            for n, effect in sent:
                # payloads may be lost (a link that broke in between); the rest comes through
                if isinstance(effect.message, Eager) and self.rng.random() < self.loss:
                    continue
                self._deliver(n, self.ids.index(effect.peer), effect.message)
            for timers in self.timers:
                timers.run(self.now)

    def _deliver(self, source: int, to: int, message: object) -> None:
        tree, peer = self.trees[to], self.ids[source]
        if isinstance(message, Eager):
            for hops, payload in message.items:
                if payload in tree.seen:
                    tree.on_duplicate(peer, payload, self.now)
                else:
                    self.got[to][payload] = self.got[to].get(payload, 0) + 1
                    tree.on_payload(peer, payload, payload, hops, self.now)
        elif isinstance(message, IHave):
            tree.on_ihave(peer, message, self.now)
        elif isinstance(message, Graft):
            tree.on_graft(peer, message, self.now)
        else:
            tree.on_prune(peer, Prune(b""), self.now)


@given(st.integers(2, 12), st.randoms(use_true_random=False))
@quick
def test_without_loss_every_payload_comes_everywhere_once(count: int, rng: random.Random) -> None:
    trees = Trees(count, rng, 0.0)
    for number in range(6):
        trees.publish(rng.randrange(count), b"payload%d" % number)
        trees.run(1.5)
    for got in trees.got:
        assert len(got) == 6
        assert set(got.values()) == {1}
    for n, tree in enumerate(trees.trees):  # what is eager on one end is so on the other
        for peer in tree.eager:
            other = trees.trees[trees.ids.index(peer)]
            assert trees.ids[n] in other.eager


@given(st.integers(3, 12), st.integers(0, 10_000))
@quick
def test_a_lost_payload_is_asked_for(count: int, seed: int) -> None:
    """Not a promise of Plumtree alone where a node has a single link: the rest is reconciliation's."""
    rng = random.Random(seed)
    trees = Trees(count, rng, 0.0)
    trees.publish(0, b"first...")
    trees.run(2.0)
    trees.loss = 0.15
    reached = 0
    for number in range(10):
        trees.publish(rng.randrange(count), b"payload%d" % number)
        trees.run(3.0)
        reached += sum(b"payload%d" % number in got for got in trees.got)
    assert reached >= 0.5 * 10 * count


@given(st.integers(0, 1000))
@settings(max_examples=5, derandomize=True)
def test_whole_cores_deliver_everything_at_ten_percent_loss(seed: int) -> None:
    net = build(12, seed, loss=0.1, every=0.05, settle=3.0, strict=True)
    entries = [net.publish(net.rng.choice(net.nodes), f"n{number}", b"x") for number in range(10)]
    net.run(15.0)
    for node in net.nodes:
        for entry in entries:
            assert node.gossip.store.by_id(entry.id) is not None
