"""What belongs to no connection while more comes than a node has CPU for: the newest first, and signs of life."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_QUEUED_S, MAX_UNCONNECTED, PACE_TURN_S, PACED_FROM
from meshnode.base.metrics import Metrics
from meshnode.quic.engines import pick_engine
from meshnode.runtime.driver import BEHIND, Driver
from meshnode.runtime.faults import Faults
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.newest_first import SIGN_OF_LIFE, NewestFirst
from meshnode.stack.reception import Run

PROVEN, STRANGER = Addr("198.18.0.1", 1), Addr("198.18.0.2", 2)
SIGN, REQUEST = bytes([1]) * SIGN_OF_LIFE, bytes([1]) * (SIGN_OF_LIFE + 1)


class Node:
    """A backlog whose datagrams each cost ``cost`` of CPU."""

    def __init__(self, cost: float = PACE_TURN_S / 2) -> None:
        self.spent = 0.0
        self.cost = cost
        self.taken: list[tuple[bytes, object]] = []
        self.backlog = NewestFirst(lambda source: source != STRANGER, lambda: self.spent)

    def put(self, *datagrams: bytes, source: Addr = PROVEN, now: float = 0.0) -> None:
        self.backlog.put([(list(datagrams), source)], now)

    def take(self, runs: Sequence[Run]) -> None:
        for datagrams, source in runs:
            self.taken += [(data, source) for data in datagrams]
            self.spent += self.cost

    def turn(self, now: float = 0.0) -> None:
        self.backlog.turn(self.take, now)


def test_the_newest_goes_first_and_a_turn_has_an_end() -> None:
    node = Node()
    node.put(*(REQUEST + bytes([n]) for n in range(5)))
    node.turn()
    assert [data[-1] for data, _ in node.taken] == [4, 3]
    assert node.backlog.waiting == 3
    node.put(REQUEST + bytes([9]))
    node.turn()
    assert [data[-1] for data, _ in node.taken] == [4, 3, 9, 2]


def test_signs_of_life_go_before_all_else_of_proven_sources() -> None:
    node = Node()
    node.put(SIGN, REQUEST, bytes([0x41]) * 20)
    node.turn()
    node.turn()
    assert [data for data, _ in node.taken] == [SIGN, bytes([0x41]) * 20, REQUEST], "a QUIC packet is no sign of life"


def test_a_flood_of_forged_sources_takes_half_of_the_turns_and_no_place_of_others() -> None:
    node = Node(cost=PACE_TURN_S / 20)
    node.put(*[REQUEST] * 30)
    node.put(*[SIGN] * (3 * MAX_UNCONNECTED), source=STRANGER)
    assert node.backlog.waiting == 30 + MAX_UNCONNECTED
    assert node.backlog.dropped == 2 * MAX_UNCONNECTED
    node.turn()
    assert sum(source == PROVEN for _, source in node.taken) == len(node.taken) / 2 >= 10


def test_what_has_waited_too_long_is_dropped_unread() -> None:
    node = Node(cost=0.0)
    for n, source in enumerate((PROVEN, STRANGER)):
        node.put(SIGN, REQUEST, source=source, now=n * MAX_QUEUED_S)
    node.turn(MAX_QUEUED_S + 0.1)
    assert {source for _, source in node.taken} == {STRANGER}
    assert node.backlog.dropped == 2
    assert node.backlog.waiting == 0


def test_where_there_is_no_room_the_oldest_goes() -> None:
    node = Node(cost=0.0)
    node.put(*(REQUEST + n.to_bytes(2, "big") for n in range(MAX_UNCONNECTED + 10)))
    node.turn()
    assert len(node.taken) == MAX_UNCONNECTED
    assert node.taken[-1][0] == REQUEST + (10).to_bytes(2, "big")


OTHERS = {
    "of its network": Addr("198.18.0.77", 1),
    "of another": Addr("203.0.113.5", 1),
    "IPv6": Addr("2001:db8:1::5", 1),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("before", [True, False])
def test_a_proven_source_that_floods_delays_no_other_and_takes_no_place_of_it(other: Addr, before: bool) -> None:
    node = Node(cost=PACE_TURN_S / 20)
    if before:
        node.put(REQUEST, REQUEST, source=other)
    node.put(*[REQUEST] * (3 * MAX_UNCONNECTED))
    if not before:
        node.put(REQUEST, REQUEST, source=other)
    node.put(*[REQUEST] * (3 * MAX_UNCONNECTED))
    node.turn()
    assert [source for _, source in node.taken[:4]].count(other) == 2
    assert node.backlog.waiting == MAX_UNCONNECTED - len(node.taken)


def test_many_sources_of_one_network_have_the_turns_of_one() -> None:
    node = Node(cost=PACE_TURN_S / 20)
    for number in range(40):
        node.put(REQUEST, REQUEST, source=Addr(f"198.18.0.{number}", 1))
        node.put(REQUEST, REQUEST, source=Addr(f"2001:db8:{number}::1", 1))
    far = Addr("203.0.113.5", 1)
    node.put(*[REQUEST] * 5, source=far)
    node.turn()
    assert sum(source == far for _, source in node.taken[:15]) == 5, "one in three"


def test_what_is_dropped_and_taken_in_any_order_leaves_nothing_behind() -> None:
    node = Node(cost=PACE_TURN_S / 7)
    for step in range(200):
        for number in range(0, step % 23):
            node.put(REQUEST, SIGN, source=Addr(f"198.18.{number % 5}.{number}", 1), now=step / 10)
        node.turn(step / 10)
    node.turn(1e9)
    assert node.backlog.waiting == 0
    assert not any(
        queue._waiting or queue._turns or queue._shares or queue._turns._parts
        for queue in (node.backlog._signs, node.backlog._known, node.backlog._others)
    )


async def test_a_node_that_is_sent_more_than_it_can_take_answers_the_newest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = SimNode(World(1, Weather()), "10.0.0.1", pick_engine("aioquic"))
    clock = node.mesh.context.clock
    made = Driver(asyncio.get_running_loop(), clock, Faults(Metrics()))
    made.stack = node.mesh
    spent = 0.0
    monkeypatch.setattr(made.backlog, "_cpu", lambda: spent)
    taken: list[bytes] = []

    def take(runs: Sequence[Run], now: float) -> None:
        nonlocal spent
        spent += PACE_TURN_S / 4
        taken.extend(data for datagrams, _ in runs for data in datagrams)

    monkeypatch.setattr(node.mesh, "take", take)
    sent = [REQUEST + bytes([n]) for n in range(PACED_FROM)]
    made.on_batch([([data], STRANGER) for data in sent])
    assert taken == sent[::-1][:4]
    now = clock.monotonic() + MAX_QUEUED_S + 1
    monkeypatch.setattr(made, "_clock", SimpleNamespace(monotonic=lambda: now))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert taken == sent[::-1][:4], "the others have waited too long"
    assert node.mesh.metrics.counters[BEHIND] == PACED_FROM - 4
    made.close()
