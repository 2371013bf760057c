"""Which offers of a node gossip tells, and what becomes of those that it does not."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import OFFERS_TOLD
from meshnode.base.metrics import Metrics
from meshnode.gossip import Changed, Gossip, Kind
from meshnode.gossip.dissemination import telling
from meshnode.gossip.entry import Entry, sign_entry
from meshnode.identity.keys import Identity

WALL = 1_800_000_000.0
NODE = Identity(bytes([7]) * 32)


def _node(*, dht: bool = True) -> Gossip:
    core = Gossip(NODE, rng=random.Random(1), metrics=Metrics(), now=0.0, wall=WALL)
    if dht:
        core.own_entries.telling.elsewhere = lambda entry: entry.kind == Kind.SERVICE
    return core


def _hear(core: Gossip, count: int, first: int = 0) -> None:
    """Have gossip told of so many services of other nodes."""
    for number in range(first, first + count):
        origin = Identity(number.to_bytes(32, "little"))
        core.store.put(_entry(origin, f"s{number}", 1))


def _entry(origin: Identity, name: str, age: int, value: bytes | None = b"x") -> Entry:
    ms = int(WALL * 1_000) - 1_000 * age
    return sign_entry(origin, kind=Kind.SERVICE, name=name, seq=ms, issued_ms=ms, ttl=3_600, value=value)


def _told(core: Gossip, name: str) -> bool:
    return core.store.get((NODE.id, Kind.SERVICE, name)) is not None


def _offer(core: Gossip, name: str = "mine", value: bytes | None = b"y", now: float = 1.0) -> Entry:
    entry = core.publish(Kind.SERVICE, name, value, 3_600, now)
    changes = [effect for effect in core.take_effects() if isinstance(effect, Changed)]
    assert entry in [change.entry for change in changes], "the layers above hear of it, told or not"
    return entry


def test_an_offer_is_told_while_few_are_known() -> None:
    core = _node()
    _hear(core, OFFERS_TOLD - 1)
    _offer(core)
    assert _told(core, "mine")


def test_an_offer_without_a_place_is_told_to_none_and_lists_its_node_nowhere() -> None:
    core = _node()
    _hear(core, OFFERS_TOLD)
    first = _offer(core)
    assert not _told(core, "mine")
    assert not core.own_entries.listing.listed
    second = _offer(core, value=b"z", now=2.0)
    assert second.seq > first.seq
    assert not _told(core, "mine")
    withdrawn = _offer(core, value=None, now=3.0)
    assert withdrawn.seq > second.seq
    assert withdrawn.expires >= second.expires, "it outlives what it withdraws"
    assert not _told(core, "mine")


def test_a_place_that_gets_free_is_taken_at_the_next_renewal() -> None:
    core = _node()
    _hear(core, OFFERS_TOLD)
    _offer(core)
    core.store.drop(core.store.get((Identity(bytes(32)).id, Kind.SERVICE, "s0")) or pytest.fail("it is there"))
    _offer(core, now=2.0)
    assert _told(core, "mine")
    assert core.own_entries.listing.listed


def test_an_offer_that_has_a_place_keeps_it_and_its_withdrawal_is_told() -> None:
    core = _node()
    _offer(core)
    _hear(core, int(telling.CROWDED * OFFERS_TOLD) - 1)
    for number in range(20):
        renewed = _offer(core, now=2.0 + number / 100)
        assert core.store.get(renewed.key) is renewed
    _hear(core, 500, first=5_000)
    gone = _offer(core, value=None, now=3.0)
    assert core.store.get(gone.key) is gone


def test_after_a_storm_as_many_keep_their_places_as_there_are() -> None:
    kept = 0
    for seed in range(60):
        core = _node()
        core.own_entries.telling._rng = random.Random(seed)
        _offer(core)
        _hear(core, 3 * OFFERS_TOLD)
        renewed = _offer(core, now=2.0)
        kept += core.store.get(renewed.key) is renewed
        if core.store.get(renewed.key) is not renewed:
            again = _offer(core, now=3.0)
            assert core.store.get(again.key) is not again, "it does not throw the dice again"
    assert 10 <= kept <= 32


def test_what_is_found_nowhere_else_is_always_told() -> None:
    core = _node(dht=False)
    _hear(core, 2 * OFFERS_TOLD)
    _offer(core)
    assert _told(core, "mine")


def test_an_offer_of_an_earlier_run_that_comes_back_is_replaced_by_the_present_one_and_not_withdrawn() -> None:
    core = _node()
    _hear(core, OFFERS_TOLD)
    mine = _offer(core)
    core._on_own_entry(_entry(NODE, "mine", 60), True, 2.0)
    replaced = core.store.get(mine.key)
    assert replaced is None or replaced.value == b"y"
    longer = sign_entry(
        NODE, kind=Kind.SERVICE, name="mine", seq=1, issued_ms=int(WALL * 1_000), ttl=9_000, value=b"old"
    )
    core._on_own_entry(longer, True, 3.0)
    replaced = core.store.get(mine.key)
    assert replaced is not None
    assert (replaced.value, replaced.seq > mine.seq) == (b"y", True)
