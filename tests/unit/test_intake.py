"""Turns of entries: what one link brings costs no other link more than its share."""

from __future__ import annotations

from collections import Counter

from meshnode.base.limits import (
    GOSSIP_INTAKE_BURST,
    GOSSIP_INTAKE_PACE,
    GOSSIP_INTAKE_RATE,
    GOSSIP_INTAKE_STEP,
    GOSSIP_MAX_WAITING,
    GOSSIP_STANDING_BURST,
)
from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.gossip.dissemination.intake import Arrival, Intake, Rank
from meshnode.identity.node_id import NodeId

PEERS = [NodeId(bytes(31) + bytes([n])) for n in range(1, 6)]
BURST, STEP = int(GOSSIP_INTAKE_BURST), int(GOSSIP_INTAKE_STEP)


class Bench:
    """An intake, and the time at which each payload was taken. A payload's first byte is its rank."""

    def __init__(self, networks: dict[NodeId, str] | None = None) -> None:
        self.now, self.taken, self.sent = 0.0, dict[bytes, float](), 0
        self.metrics, self.timers = Metrics(), Timers()
        self.intake = Intake(
            self.timers,
            self.metrics,
            0.0,
            lambda peer, arrival, now: self.taken.setdefault(arrival.payload, now),  # type: ignore[arg-type,return-value]
            lambda payload: Rank(payload[0]),
            lambda peer: (networks or {}).get(peer, ""),
        )

    def send(self, peer: NodeId, count: int = 1, rank: Rank = Rank.NEW) -> list[bytes]:
        """Offer new payloads of a link."""
        made = []
        for _ in range(count):
            self.sent += 1
            payload = bytes([rank]) + self.sent.to_bytes(7, "big")
            self.intake.offer(peer, Arrival(payload, payload, 0), self.now)
            made.append(payload)
        return made

    def spend(self, peer: NodeId) -> None:
        """Spend the burst of the budget; afterwards nothing waits and nothing has been taken."""
        while not self.intake.waiting(peer):
            self.send(peer, STEP)
            self.run(STEP / GOSSIP_INTAKE_PACE)
        self.intake.remove(peer)
        self.taken.clear()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now = round(self.now + 0.01, 9)
            self.timers.run(self.now)


def test_a_burst_is_spread_and_what_follows_is_taken_at_the_rate() -> None:
    bench = Bench()
    bench.send(PEERS[0], 2 * STEP)
    assert len(bench.taken) == STEP
    bench.run(0.1)
    assert STEP < len(bench.taken) <= STEP + 0.1 * GOSSIP_INTAKE_PACE + 1
    for _ in range(700):
        bench.send(PEERS[0], 20)
        bench.run(0.01)
    assert BURST + 0.9 * bench.now * GOSSIP_INTAKE_RATE < len(bench.taken) <= BURST + bench.now * GOSSIP_INTAKE_RATE
    assert bench.metrics.counters["gossip_drop_busy"] > 5_000
    assert bench.intake.waiting(PEERS[0]) <= GOSSIP_MAX_WAITING


def test_an_entry_over_a_quiet_link_waits_for_a_turn_and_not_for_the_flood() -> None:
    bench = Bench()
    bench.spend(PEERS[0])
    bench.send(PEERS[0], 300)
    (quiet,) = bench.send(PEERS[1])
    bench.run(0.05)
    assert quiet in bench.taken


def test_many_links_of_one_network_take_turns_as_one() -> None:
    bench = Bench(dict.fromkeys(PEERS[:4], "crowd"))
    bench.spend(PEERS[4])
    for peer in PEERS[:4]:
        bench.send(peer, 200)
    quiet = bench.send(PEERS[4], 100)
    bench.run(1.1)
    assert sum(payload in bench.taken for payload in quiet) == 100
    crowd = Counter(payload in quiet for payload in list(bench.taken))
    assert abs(crowd[True] - crowd[False]) <= 60


def test_of_one_link_what_is_known_goes_before_what_is_new() -> None:
    bench = Bench()
    bench.spend(PEERS[0])
    bench.send(PEERS[0], 200)
    known = bench.send(PEERS[0], 10, Rank.KNOWN)
    bench.run(0.1)
    assert all(payload in bench.taken for payload in known)


def test_an_origin_with_standing_does_not_wait_at_all() -> None:
    bench = Bench()
    bench.spend(PEERS[0])
    bench.send(PEERS[0], 300)
    moves = bench.send(PEERS[0], int(GOSSIP_STANDING_BURST), Rank.STANDING)
    assert all(payload in bench.taken for payload in moves)
    more = bench.send(PEERS[0], 100, Rank.STANDING)
    assert sum(payload in bench.taken for payload in more) == 0, "that has a bound too"


def test_what_waits_is_not_taken_twice_and_goes_with_its_link() -> None:
    bench = Bench()
    bench.spend(PEERS[0])
    (waits,) = bench.send(PEERS[0])
    bench.intake.offer(PEERS[0], Arrival(waits, waits, 0), bench.now)
    assert bench.intake.waiting(PEERS[0]) == 1
    (other,) = bench.send(PEERS[1])
    bench.intake.remove(PEERS[0])
    bench.run(1.0)
    assert other in bench.taken
    assert waits not in bench.taken
    (again,) = bench.send(PEERS[0])
    assert again in bench.taken


def _waits_on_two_links(bench: Bench) -> bytes:
    """Have one entry wait on a link that brings much of known origins, and on a quiet one."""
    bench.spend(PEERS[0])
    bench.send(PEERS[0], 200, Rank.KNOWN)
    (both,) = bench.send(PEERS[0])
    bench.intake.offer(PEERS[1], Arrival(both, both, 0), bench.now)
    return both


def test_a_link_that_brought_an_entry_first_holds_it_up_on_no_other() -> None:
    bench = Bench()
    both = _waits_on_two_links(bench)
    for _ in range(10):
        bench.send(PEERS[0], 10, Rank.KNOWN)
        bench.run(0.01)
    assert both in bench.taken
    assert bench.intake.waiting(PEERS[1]) == 0
    waiting = [item for queues in bench.intake._queues.values() for queue in queues for item in queue]
    assert waiting
    assert both not in waiting, "it is taken once"


def test_an_entry_that_waits_on_two_links_stays_when_one_is_over() -> None:
    bench = Bench()
    both = _waits_on_two_links(bench)
    bench.intake.remove(PEERS[0])
    bench.run(0.1)
    assert both in bench.taken


def test_an_entry_that_came_otherwise_meanwhile_waits_on_no_link_any_more() -> None:
    bench = Bench()
    bench.spend(PEERS[0])
    bench.send(PEERS[0], int(GOSSIP_STANDING_BURST), Rank.STANDING)
    (waits,) = bench.send(PEERS[0], 1, Rank.STANDING)
    bench.now += 1.0  # the budget of those with standing has some again
    bench.intake.offer(PEERS[1], Arrival(waits, waits, 0), bench.now)
    assert waits in bench.taken
    assert bench.intake.waiting(PEERS[0]) == 0
    bench.run(0.1)
    (other,) = bench.send(PEERS[0])
    bench.run(0.1)
    assert other in bench.taken
