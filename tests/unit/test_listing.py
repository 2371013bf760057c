"""Which members all others are told of, and what becomes of those that are not."""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import GOSSIP_LISTED
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.listing import (
    AGAIN_S,
    ANSWERED_S,
    CROWDED,
    LOOK_S,
    MAX_AGAIN_S,
    RENEWED_S,
    SPREAD_S,
    Listing,
)
from meshnode.gossip.dissemination.roll import HIDDEN, Listed, Roll, networks_in
from meshnode.gossip.messages import Contact
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord

ID = Identity(bytes(32)).id


@cache
def at(host: str) -> EndpointRecord:
    """A record of a host, or of several with commas between them."""
    endpoints = tuple(Endpoint(Addr(one, 4000)) for one in host.split(","))
    return EndpointRecord(ID, 1, 1, 1, endpoints, encoded=host.encode())


class Bench:
    """One node's listing in a mesh of which ``known`` members are listed that it cannot ask, and ``others`` besides.

    These are told by their hosts, of which those at 10.x answer; the node itself is at ``host``, and has ``met`` so
    many nodes of which so many are listed.
    """

    def __init__(
        self,
        known: int = 0,
        *,
        always: bool = False,
        seed: int = 1,
        host: str = "",
        met: tuple[int, int] = (0, 0),
    ) -> None:
        self.known = known
        self.others: list[str] = []
        self.asked: list[str] = []
        self.published: list[float] = []
        self.timers = Timers()
        own = at(host) if host else None
        roll = Roll(random.Random(-seed), self.listed, lambda: own, self.probe)
        self.core = Listing(
            random.Random(seed), self.timers, roll, self.published.append, always=always, met=lambda: met
        )

    def listed(self) -> Iterator[Listed]:
        yield from [Listed(ID, None, False)] * self.known
        yield from (Listed(ID, at(host), host.startswith("192.0.2.")) for host in self.others)

    def probe(self, contact: Contact, now: float, answer: Callable[[bool, float], None]) -> bool:
        host = contact.record.decode()
        self.asked.append(host)
        self.timers.at(now + 0.4, lambda now: answer(any(one.startswith("10.") for one in host.split(",")), now))
        return True

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
    bench.run(10 * AGAIN_S + 1.5 * MAX_AGAIN_S)
    assert bench.core.listed
    assert len(bench.published) == 1


class Crowd:
    """Nodes that join ``every`` so many seconds, have met a dozen others, and hear of a place half a second after."""

    def __init__(self, count: int, every: float) -> None:
        self.timers = Timers()
        self.published: list[float] = []
        self.joined = 0
        self.now = 0.0
        for number in range(count):
            rng = random.Random(number)
            roll = Roll(rng, lambda: [Listed(ID, None, False)] * self.known, lambda: None, lambda *asked: False)
            core = Listing(rng, self.timers, roll, self.published.append, met=self.met)
            self.timers.at(number * every, partial(self.join, core))

    @property
    def known(self) -> int:
        return bisect(self.published, self.now - 0.5)

    def met(self) -> tuple[int, int]:
        met = min(12, self.joined - 1)
        return met, round(met * self.known / self.joined)

    def join(self, core: Listing, now: float) -> None:
        self.joined += 1
        core.announces(now)
        core.on_reconciled(now)

    def run(self, until: float) -> int:
        while (at := self.timers.next_deadline()) is not None and at <= until:
            self.now = at
            self.timers.run(at)
        return len(self.published)


@pytest.mark.parametrize(("count", "every"), [(300, 0.0), (300, 0.02), (600, 0.0), (1_000, 0.004), (1_000, 0.02)])
def test_of_a_crowd_about_as_many_are_listed_as_there_are_places(count: int, every: float) -> None:
    crowd = Crowd(count, every)
    assert 0.9 * GOSSIP_LISTED < crowd.run(count * every + 20.0) < 1.15 * GOSSIP_LISTED


@pytest.mark.parametrize("count", [3, 10, 40, 100])
def test_of_a_crowd_that_is_smaller_than_the_list_all_are_listed_soon(count: int) -> None:
    assert Crowd(count, 0.01).run(8.0) == count


def test_a_node_that_has_met_few_that_are_listed_takes_no_place_at_once_and_one_that_has_met_more_does() -> None:
    for met, at_once in (((3, 1), False), ((2, 1), True), ((8, 2), False), ((8, 3), True)):
        bench = Bench(60, met=met)
        bench.core.announces(0.0)
        bench.core.on_reconciled(0.0)
        assert bench.core.listed is at_once


def test_ids_that_are_never_listed_keep_a_node_from_a_free_place_for_a_dozen_looks_at_most() -> None:
    for seed in range(20):
        bench = Bench(GOSSIP_LISTED - 1, seed=seed, met=(30, 0))
        bench.core.announces(0.0)
        bench.core.on_reconciled(0.0)
        bench.run(SPREAD_S + 12 * 1.2 * LOOK_S)
        assert bench.core.listed


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


def _networks(count: int, first: str = "10.0") -> list[str]:
    """So many hosts, each in a network of its own."""
    return [f"{first}.{number % 256}.1" for number in range(count)]


def _joins(bench: Bench, until: float = SPREAD_S + ANSWERED_S + 1.0) -> bool:
    """Let a node join, and tell whether it has a place soon."""
    bench.core.announces(0.0)
    bench.core.on_reconciled(0.0)
    bench.run(until)
    return bench.core.listed


def test_ids_that_run_nowhere_take_no_place_whatever_networks_their_records_name() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = _networks(GOSSIP_LISTED, "203.7") * 4
    assert _joins(bench)
    assert len(bench.asked) == 4, "a few are asked, and not all"


def test_where_those_asked_answer_a_full_list_is_full() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = _networks(GOSSIP_LISTED)
    assert not _joins(bench, 10 * AGAIN_S)
    assert 4 < len(bench.asked) <= 100, "a few each time"


def test_a_node_without_a_place_asks_ever_more_rarely() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = _networks(GOSSIP_LISTED)
    assert not _joins(bench, 86_400.0)
    assert 4 * 10 < len(bench.asked) < 4 * 30, "in a day, of them four in the first ten minutes"


def test_a_few_that_do_not_answer_free_no_place() -> None:
    for seed in range(20):
        bench = Bench(host="10.9.9.9", seed=seed)
        bench.others = _networks(240) + _networks(16, "203.7")
        assert not _joins(bench, 2 * AGAIN_S)


def test_ids_of_one_network_take_the_places_of_that_network_only() -> None:
    newcomer, neighbour = Bench(host="10.9.9.9"), Bench(host="10.0.0.77")
    for bench in (newcomer, neighbour):
        bench.others = ["10.0.0.1"] * GOSSIP_LISTED
    assert _joins(newcomer)
    assert not _joins(neighbour, 10 * AGAIN_S), "it competes with them"


def test_a_network_has_an_equal_share_and_takes_no_more_when_all_places_are_taken() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = ["10.0.0.1"] * (GOSSIP_LISTED - 10) + ["10.9.9.1"] * 10
    assert _joins(bench)
    bench = Bench(host="10.9.9.9")
    bench.others = ["10.0.0.1"] * (GOSSIP_LISTED // 2) + ["10.9.9.1"] * (GOSSIP_LISTED // 2)
    assert not _joins(bench, 2 * AGAIN_S)


def test_a_crowd_on_one_host_is_one_network_whatever_else_its_records_name() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = [f"{host},10.0.0.1" for host in _networks(GOSSIP_LISTED, "203.7")]
    assert _joins(bench), "they answer, and have half of the places"
    bench = Bench(host="10.9.9.9")
    bench.others = [f"10.9.9.{number % 256},10.0.0.1" for number in range(GOSSIP_LISTED)]
    assert _joins(bench), "they name its network, too"


def test_a_listed_node_gives_no_place_up_to_a_crowd_on_one_host_that_names_its_network() -> None:
    for seed in range(50):
        bench = Bench(host="10.9.9.9", seed=seed)
        assert _joins(bench)
        bench.others = ["10.9.9.1"] * 20 + [f"10.9.9.{number % 256},10.0.0.1" for number in range(5 * GOSSIP_LISTED)]
        assert _renews(bench)


def test_networks_count_that_are_public_or_not_as_those_of_this_node_are() -> None:
    both = at("192.168.1.7,5.0.0.1,5.0.0.2")
    assert networks_in(both) == networks_in(at("5.0.0.9"))
    assert networks_in(both, public=False) == networks_in(at("192.168.1.1"))
    assert networks_in(at("192.168.1.7")) == networks_in(at("192.168.1.7"), public=False)


def test_ipv6_networks_of_one_allocation_are_one_and_those_behind_relays_too() -> None:
    bench = Bench(host="2001:db8:7::1")
    bench.others = [f"2001:db8:{number:x}::1" for number in range(GOSSIP_LISTED)]
    assert networks_in(at("2001:db8:1::1")) == networks_in(at("2001:db8:2::1")) != networks_in(at("2001:db9:2::1"))
    relayed = EndpointRecord(ID, 1, 1, 1, (Endpoint(Addr("10.9.9.9", 1)),), relays=(NodeId(bytes(ID)),))
    assert networks_in(relayed) == networks_in(None) == HIDDEN


def _renews(bench: Bench, times: int = 2) -> bool:
    """Let a listed node renew its entry so often, and tell whether it has kept its place."""
    for number in range(times):
        now = (number + 1) * (RENEWED_S + 1.0)
        if not bench.core.announces(now, RENEWED_S + 1.0):
            return False
        bench.run(now + ANSWERED_S)
    return True


def test_a_listed_node_gives_no_place_up_to_ids_that_run_nowhere() -> None:
    for seed in range(50):
        bench = Bench(host="10.9.9.9", seed=seed)
        assert _joins(bench)
        bench.others = ["10.9.9.1"] * 20 + _networks(GOSSIP_LISTED, "203.7") * 5
        assert _renews(bench)


def test_where_there_are_too_many_those_of_the_largest_networks_give_theirs_up() -> None:
    stayed: Counter[str] = Counter()
    for seed in range(100):
        for host in ("10.0.0.9", "10.9.9.9"):
            bench = Bench(host=host, seed=seed)
            assert _joins(bench)
            bench.others = ["10.0.0.1"] * (4 * GOSSIP_LISTED) + ["10.9.9.1"] * 20
            stayed[host] += _renews(bench)
    assert stayed["10.9.9.9"] == 100
    assert stayed["10.0.0.9"] == pytest.approx(100 * 236 / 1024, abs=12)


def test_a_member_known_by_more_than_hearsay_is_not_asked() -> None:
    bench = Bench(host="10.9.9.9")
    bench.others = ["192.0.2.1"] * GOSSIP_LISTED
    assert _joins(bench), "of another network"
    bench = Bench(host="192.0.2.77")
    bench.others = ["192.0.2.1"] * GOSSIP_LISTED
    assert not _joins(bench)
    assert bench.asked == []
