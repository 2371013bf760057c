"""Which members all others are told of, and what becomes of those that are not."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import GOSSIP_LISTED
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.listing import AGAIN_S, CROWDED, RENEWED_S, SPREAD_S, Listing


class Bench:
    """One node's listing in a mesh of which ``known`` members are listed."""

    def __init__(self, known: int = 0, *, always: bool = False, seed: int = 1) -> None:
        self.known = known
        self.published: list[float] = []
        self.timers = Timers()
        self.core = Listing(random.Random(seed), self.timers, lambda: self.known, self.published.append, always=always)

    def run(self, until: float) -> None:
        while (at := self.timers.next_deadline()) is not None and at <= until:
            self.timers.run(at)


def test_a_node_is_listed_when_it_knows_that_the_mesh_is_small_and_not_before() -> None:
    bench = Bench()
    assert not bench.core.announces(0.0)
    assert bench.published == []
    bench.core.on_reconciled(1.0)
    assert bench.core.listed
    assert bench.published == [1.0]
    assert bench.core.announces(2.0), "from then on each record is published"
    bench.core.on_reconciled(3.0)
    assert bench.published == [1.0]


def test_a_node_without_a_record_is_not_published() -> None:
    bench = Bench()
    bench.core.on_reconciled(1.0)
    assert bench.published == []


def test_where_some_are_listed_already_nodes_that_join_together_decide_apart() -> None:
    times = []
    for seed in range(20):
        bench = Bench(GOSSIP_LISTED - 1, seed=seed)
        bench.core.announces(0.0)
        bench.core.on_reconciled(1.0)
        bench.core.on_reconciled(1.5)
        assert not bench.core.listed
        bench.run(1.0 + SPREAD_S)
        times += bench.published
    assert len(times) == 20
    assert max(times) - min(times) > SPREAD_S / 2


def test_where_enough_are_listed_a_node_is_not_until_a_place_gets_free() -> None:
    bench = Bench(GOSSIP_LISTED)
    bench.core.announces(0.0)
    bench.core.on_reconciled(1.0)
    bench.run(10 * AGAIN_S)
    assert not bench.core.announces(10 * AGAIN_S)
    assert bench.published == []
    bench.known -= 1
    bench.run(12 * AGAIN_S)
    assert bench.core.listed
    assert len(bench.published) == 1


def test_what_others_have_to_know_is_listed_however_many_are() -> None:
    bench = Bench(10 * GOSSIP_LISTED, always=True)
    assert all(bench.core.announces(float(now), 3_600.0) for now in range(100))
    other = Bench(10 * GOSSIP_LISTED)
    other.core.announces(0.0)
    other.core.must(5.0)
    assert other.published == [5.0]
    assert all(other.core.announces(float(now), 3_600.0) for now in range(10, 100))


def test_a_node_that_must_be_listed_publishes_nothing_before_it_has_a_record() -> None:
    bench = Bench()
    bench.core.must(1.0)
    assert bench.published == []
    assert bench.core.announces(2.0)


@pytest.mark.parametrize("times", [2, 5])
def test_where_too_many_are_listed_so_many_give_their_place_up(times: int) -> None:
    stay = 0
    for seed in range(400):
        bench = Bench(seed=seed)
        bench.core.announces(0.0)
        bench.core.on_reconciled(0.0)
        bench.known = times * GOSSIP_LISTED
        assert bench.core.announces(50.0, 50.0), "a node that moves corrects what others have"
        stay += bench.core.announces(2_000.0, RENEWED_S + 1.0)
    assert stay == pytest.approx(400 / times, rel=0.3)
    bench = Bench()
    bench.core.announces(0.0)
    bench.core.on_reconciled(0.0)
    bench.known = int(CROWDED * GOSSIP_LISTED)
    assert all(bench.core.announces(float(now), 3_600.0) for now in range(100)), "a few too many are not worth it"


def test_a_node_that_gave_its_place_up_takes_a_free_one_later() -> None:
    bench = Bench()
    bench.core.announces(0.0)
    bench.core.on_reconciled(0.0)
    bench.known = 1_000 * GOSSIP_LISTED
    while bench.core.announces(1.0, 3_600.0):
        pass
    assert not bench.core.announces(2.0, 3_601.0)
    bench.known = 0
    bench.run(2 * AGAIN_S)
    assert bench.core.listed
    assert len(bench.published) == 2
