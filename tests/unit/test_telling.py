"""Which offers of a node gossip tells, and what becomes of those that it does not."""

from __future__ import annotations

import random
from functools import cache

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import OFFERS_TOLD, SERVICE_MAX_OWN
from meshnode.base.metrics import Metrics
from meshnode.gossip import Changed, Gossip, Kind, Probe
from meshnode.gossip.dissemination import telling
from meshnode.gossip.dissemination.roll import ASKED
from meshnode.gossip.entry import Entry, sign_entry
from meshnode.gossip.kinds import Member
from meshnode.identity.keys import Identity
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record

WALL = 1_800_000_000.0
NODE = Identity(bytes([7]) * 32)


def _node(*, dht: bool = True, seed: int = 1) -> Gossip:
    core = Gossip(NODE, rng=random.Random(seed), metrics=Metrics(), now=0.0, wall=WALL)
    if dht:
        core.own_entries.telling.elsewhere = lambda entry: entry.kind == Kind.SERVICE
    return core


def _hear(core: Gossip, count: int, first: int = 0) -> None:
    """Have gossip told of so many services of other nodes."""
    for number in range(first, first + count):
        core.store.put(_service(number))


@cache
def _service(number: int) -> Entry:
    return _entry(Identity(number.to_bytes(32, "little")), f"s{number}", 1)


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


def test_withdrawals_of_ever_new_names_that_have_no_place_are_forgotten_and_offers_are_not() -> None:
    core = _node()
    _hear(core, OFFERS_TOLD)
    kept = _offer(core, "kept")
    last = None
    for number in range(3 * SERVICE_MAX_OWN):
        _offer(core, f"job{number}", now=2.0 + number)
        last = _offer(core, f"job{number}", value=None, now=2.5 + number)
    telling = core.own_entries.telling
    assert len(telling._untold) == SERVICE_MAX_OWN + 1
    assert telling.is_untold(kept)
    assert last is not None
    assert telling.is_untold(last)


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
        core = _node(seed=seed)
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


# ---- who could take the places of others


def _record(origin: Identity, host: str) -> EndpointRecord:
    ms = int(WALL * 1_000)
    return sign_record(origin, seq=ms, issued_ms=ms, ttl=7_200, endpoints=(Endpoint(Addr(host, 4000)),))


def _member(origin: Identity, host: str) -> Entry:
    ms = int(WALL * 1_000)
    value = Member(False, _record(origin, host).encoded).encoded()
    return sign_entry(origin, kind=Kind.MEMBER, name="", seq=ms, issued_ms=ms, ttl=7_200, value=value)


def _crowd(core: Gossip, count: int, host: str) -> None:
    """Have one member offer so many services, each of an id that says to be at this address."""
    _hear(core, count)
    for number in range(count):
        core.store.put(_member(Identity(number.to_bytes(32, "little")), host))


def test_a_crowd_that_comes_later_takes_no_place_of_an_established_offer() -> None:
    core = _node()
    _offer(core)
    _offer(core, now=2.0 + telling.CROWD_S)
    _hear(core, 3 * OFFERS_TOLD)
    for number in range(100):
        renewed = _offer(core, now=100.0 + 10 * number)
        assert core.store.get(renewed.key) is renewed


def test_an_offer_is_not_established_before_its_crowd_is_known() -> None:
    kept = 0
    for seed in range(20):
        core = _node(seed=seed)
        _offer(core)
        _offer(core, now=2.0)
        _hear(core, 3 * OFFERS_TOLD)
        renewed = _offer(core, now=2.0 + telling.CROWD_S)
        kept += core.store.get(renewed.key) is renewed
    assert kept < 15


def test_a_withdrawn_offer_is_as_new_when_it_comes_again() -> None:
    core = _node()
    _offer(core)
    _offer(core, now=2.0 + telling.CROWD_S)
    _offer(core, value=None, now=90.0)
    _hear(core, OFFERS_TOLD)
    again = _offer(core, now=100.0)
    assert core.store.get(again.key) is not again


@pytest.mark.parametrize(("host", "told"), [("203.0.113.7", True), ("198.51.100.200", False)])
def test_a_crowd_of_one_network_that_takes_all_places_leaves_other_networks_their_share(host: str, told: bool) -> None:
    core = _node()
    core.announce(_record(NODE, host).encoded, 0.5)
    _crowd(core, 3 * OFFERS_TOLD, "198.51.100.7")
    assert _told_now(core) is told


def _told_now(core: Gossip, now: float = 1.0) -> bool:
    entry = core.publish(Kind.SERVICE, "mine", b"y", 3_600, now)
    core.take_effects()
    return core.store.get(entry.key) is entry


def test_a_full_mesh_is_counted_once_a_minute_and_some_are_asked_whether_they_live() -> None:
    core = _node()
    core.announce(_record(NODE, "198.51.100.200").encoded, 0.5)
    _crowd(core, OFFERS_TOLD, "198.51.100.7")
    core.publish(Kind.SERVICE, "one", b"y", 3_600, 1.0)
    asked = [effect for effect in core.take_effects() if isinstance(effect, Probe)]
    assert 1 <= len(asked) <= ASKED
    core.publish(Kind.SERVICE, "two", b"y", 3_600, 1.0 + telling.LOOK_AGAIN_S / 2)
    assert not [effect for effect in core.take_effects() if isinstance(effect, Probe)]
    core.publish(Kind.SERVICE, "two", b"z", 3_600, 2.0 + telling.LOOK_AGAIN_S)
    assert [effect for effect in core.take_effects() if isinstance(effect, Probe)]
