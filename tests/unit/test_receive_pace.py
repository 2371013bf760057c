"""Peers take turns by what their datagrams cost, when more come than a node can take."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import (
    DEAR_DATAGRAM_S,
    DEAR_DATAGRAMS,
    MAX_PACED,
    MAX_SEALED_S,
    PACE_QUANTUM_S,
    PACE_TURN_S,
)
from meshnode.base.metrics import Metrics
from meshnode.base.path import Path
from meshnode.quic.connection import State
from meshnode.quic.engines import pick_engine
from meshnode.quic.packets import FIXED
from meshnode.relay.frames import DOWN, make_frame
from meshnode.runtime.driver import MEASURED, Driver
from meshnode.runtime.faults import Faults
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.receive_pace import KEPT, ReceivePace, pace_of
from meshnode.stack.reception import Run

SOURCE = Addr("192.0.2.1", 1)
ORDINARY, SMALL_FRAMES = 1e-4, 1e-3


def one(data: bytes) -> Run:
    return [data], SOURCE


class Node:
    """What a pace is part of: datagrams begin with their peer's letter, and each costs what its peer costs."""

    def __init__(self, costs: dict[str, float], networks: dict[str, str] | None = None) -> None:
        self.costs = costs
        self.answers: dict[str, float] = {}  # what it costs to send what a peer's datagram asks for
        self.to_send = 0.0
        self.spent = self.now = 0.0
        self.of: Counter[str] = Counter()
        self.taken: list[bytes] = []
        self.flushes = self.longest = 0  # datagrams of a run that was handed on at once
        self.ended: list[str] = []
        self._networks = networks or {}
        self.pace: ReceivePace[str] = ReceivePace(self._owner, self._network, lambda: self.spent, self.ended.append)

    def _owner(self, data: bytes, source: Path) -> str | None:
        letter = chr(data[0])
        return None if letter == "-" else letter

    def _network(self, owner: str) -> Hashable:
        return self._networks.get(owner, owner)

    def take(self, runs: Sequence[Run]) -> None:
        self.longest = max(self.longest, sum(len(datagrams) for datagrams, _ in runs))
        for data in (data for datagrams, _ in runs for data in datagrams):
            letter = chr(data[0])
            self.spent += self.costs[letter]
            self.of[letter] += 1
            self.taken.append(data)
            self.to_send += self.answers.get(letter, 0.0)

    def flush(self) -> None:
        self.flushes += 1
        self.spent, self.to_send = self.spent + self.to_send, 0.0

    def offer(self, letter: str, count: int) -> None:
        self.pace.offer([one(letter.encode() + bytes([n % 256])) for n in range(count)], self.now)

    def run(self, turns: int, **rates: int) -> None:
        """Take turns, before each of which so many datagrams of each peer arrive."""
        for _ in range(turns):
            for letter, count in rates.items():
                self.offer(letter, count)
            self.pace.turn(self.take, self.flush, self.now)


def test_peers_take_turns_of_equal_cost_whatever_their_datagrams_cost() -> None:
    node = Node({"a": ORDINARY, "b": ORDINARY / 10})
    node.run(300, a=200, b=2_000)
    share = node.of["b"] * ORDINARY / 10 / node.spent
    assert 0.45 < share < 0.55


def test_a_peer_whose_datagrams_are_dear_has_a_quarter_of_a_turn() -> None:
    node = Node({"a": SMALL_FRAMES, "b": ORDINARY})
    node.run(300, a=200, b=200)
    share = node.of["b"] * ORDINARY / node.spent
    assert 0.75 < share < 0.85


def test_what_a_peer_makes_this_node_send_is_part_of_its_cost() -> None:
    node = Node({"a": ORDINARY, "b": ORDINARY})
    node.answers["a"] = 9 * ORDINARY
    node.run(300, a=200, b=200)
    assert 0.45 < node.of["b"] * ORDINARY / node.spent < 0.55


def test_a_peer_that_needs_less_than_its_share_waits_for_one_turn_and_loses_nothing() -> None:
    node = Node({"a": SMALL_FRAMES, "b": ORDINARY})
    node.run(20, a=500)
    for turn in range(100):
        node.run(1, a=200, b=2)
        assert node.of["b"] == 2 * (turn + 1)


def test_one_peer_alone_has_everything_that_a_turn_allows() -> None:
    node = Node({"a": ORDINARY})
    node.run(10, a=40)
    assert node.spent >= 10 * PACE_TURN_S
    assert node.pace.dropped == 0


def test_one_peer_alone_sends_once_a_turn_and_is_measured_as_often_as_beside_others() -> None:
    """With each quantum it sent an acknowledgement, in more quanta the slower the machine was: a quarter of its CPU."""
    node = Node({"a": 2 * ORDINARY})
    node.run(10, a=40)
    assert node.flushes == 10
    assert node.longest <= PACE_QUANTUM_S / ORDINARY


def test_a_peer_that_was_alone_has_its_share_alone_when_another_one_comes() -> None:
    node = Node({"a": ORDINARY, "b": ORDINARY})
    node.run(10, a=400)
    node.spent = 0.0
    node.run(100, a=200, b=200)
    assert 0.45 < node.of["b"] * ORDINARY / node.spent < 0.55


def test_peers_of_one_network_share_its_turns() -> None:
    many = {chr(ord("c") + n): SMALL_FRAMES for n in range(10)}
    node = Node(many | {"a": ORDINARY}, dict.fromkeys(many, "one network"))
    node.run(300, a=200, **dict.fromkeys(many, 50))
    assert node.of["a"] * ORDINARY / node.spent > 0.45


def test_the_order_of_a_peers_datagrams_stays() -> None:
    node = Node({"a": ORDINARY, "b": ORDINARY})
    node.run(30, a=7, b=7)
    for letter in b"ab":
        mine = [data for data in node.taken if data[0] == letter]
        assert mine == [bytes([letter, n]) for n in range(7)] * (len(mine) // 7)


@pytest.mark.parametrize("letter", ["!", "a"])
def test_a_sealed_datagram_that_has_waited_too_long_is_dropped_and_a_quic_packet_waits_on(letter: str) -> None:
    """First in, first out without an end would serve each sealed one later than its sender waits for an answer."""
    node = Node({letter: SMALL_FRAMES})
    waits = []
    for tenth in range(100):
        node.now = tenth / 10
        node.pace.offer([one(letter.encode() + bytes([tenth]))] * 20, node.now)
        node.pace.turn(node.take, node.flush, node.now)
        waits.append(tenth - node.taken[-1][1])
    is_sealed = not ord(letter) & FIXED
    assert (max(waits) <= 10 * MAX_SEALED_S) is is_sealed
    assert (node.pace.dropped > 0) is is_sealed
    assert node.of[letter] + node.pace.dropped + node.pace.waiting == 2_000


def test_what_is_of_no_connection_does_not_wait() -> None:
    node = Node({"a": ORDINARY})
    others = node.pace.offer([one(b"-1"), one(b"a1"), one(b"-2")], node.now)
    assert others == [one(b"-1"), one(b"-2")]
    assert node.pace.waiting == 1


def test_segments_of_one_reception_take_turns_as_single_datagrams_do() -> None:
    node = Node({"a": SMALL_FRAMES, "b": ORDINARY, "-": 0.0})
    run = [b"a" + bytes([n]) for n in range(54)], SOURCE
    for _ in range(20):
        node.pace.offer([run], node.now)
        node.pace.turn(node.take, node.flush, node.now)
    for turn in range(100):
        node.pace.offer([run, ([b"-", b"b1", b"b2"], SOURCE)], node.now)
        node.pace.turn(node.take, node.flush, node.now)
        assert node.of["b"] == 2 * (turn + 1)
    mine = [data for data in node.taken if data[:1] == b"a"]
    assert mine == [b"a" + bytes([n % 54]) for n in range(len(mine))], "cut runs keep their order"


def test_what_waits_is_bounded_for_each_peer_and_in_all() -> None:
    node = Node({})
    node.offer("a", 2 * MAX_PACED)
    assert node.pace.waiting == MAX_PACED
    assert node.pace.dropped == MAX_PACED
    for letter in map(chr, range(256)):
        if letter != "-":
            node.pace.offer([one(bytes([ord(letter)]))] * 1_000, node.now)
    assert node.pace.waiting <= MAX_PACED + 256 * KEPT


def test_a_debt_is_paid_before_the_next_turn_though_the_queue_was_empty() -> None:
    node = Node({"a": 20 * SMALL_FRAMES, "b": ORDINARY})
    node.run(100, a=1, b=100)
    assert node.of["b"] * ORDINARY / node.spent > 0.4


@pytest.mark.parametrize("paced", [True, False])
def test_a_peer_whose_datagrams_are_all_far_too_dear_is_ended_and_others_are_not(paced: bool) -> None:
    node = Node({"a": 2 * DEAR_DATAGRAM_S, "b": 0.9 * DEAR_DATAGRAM_S, "c": ORDINARY})
    for count in range(2 * int(DEAR_DATAGRAMS)):
        for letter in "abc":
            batch = [one(letter.encode())]
            if paced:
                node.pace.offer(batch, node.now)
                while node.pace.waiting:
                    node.pace.turn(node.take, node.flush, node.now)
            else:
                node.take(batch)
                node.pace.spent(batch, 1, node.costs[letter])
        if count < DEAR_DATAGRAMS:
            assert not node.ended
    assert node.ended == ["a"]


def test_a_dear_datagram_now_and_then_ends_nothing() -> None:
    node = Node({"a": ORDINARY})
    for number in range(20_000):
        node.costs["a"] = 3 * DEAR_DATAGRAM_S if number % 4_000 == 0 else ORDINARY
        node.offer("a", 1)
        while node.pace.waiting:
            node.pace.turn(node.take, node.flush, node.now)
    assert node.ended == []


def test_what_was_looked_at_for_others_too_counts_for_them_and_never_ends_a_peer_at_once() -> None:
    node = Node({"a": ORDINARY})
    batch = [one(b"a")] * 15
    node.pace.spent(batch[:1], 1, 2 * DEAR_DATAGRAM_S, 16)
    node.pace.spent(batch[:1], 1, 2 * DEAR_DATAGRAM_S, 16)
    node.pace.spent([([b"a"] * 15, SOURCE)], 15, 30 * DEAR_DATAGRAM_S, 16)
    assert node.ended == []
    node.pace.spent(batch[:1], 1, 2 * DEAR_DATAGRAM_S, 16)
    assert node.ended == ["a"]


async def test_dear_datagrams_between_many_cheap_ones_end_their_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, Weather(delay=0.001))
    victim, foe = (SimNode(world, f"10.0.{number}.1", pick_engine("aioquic")) for number in (1, 2))
    foe.join(victim)
    world.run(2.0)
    link = foe.connect(victim.id)
    cpu = 0.0
    monkeypatch.setattr("meshnode.runtime.driver.thread_time", lambda: cpu)
    made = Driver(asyncio.get_running_loop(), victim.mesh.context.clock, Faults(Metrics()))
    made.stack = victim.mesh

    def take(runs: Sequence[Run], now: float) -> None:
        nonlocal cpu
        cpu += sum(20 * DEAR_DATAGRAM_S if data[-1] else ORDINARY for datagrams, _ in runs for data in datagrams)

    monkeypatch.setattr(victim.mesh, "take", take)
    cid = next(cid for cid, peer in victim.mesh.context.peers.by_cid.items() if peer.peer == foe.id)
    random.seed(1)
    for number in range(400 * MEASURED):
        made.on_batch([one(bytes([0x40]) + cid + bytes([number % (MEASURED + 1) == 0]))])
        made.pump()
    world.run(0.5)
    assert link.state is State.CLOSED
    made.close()


def test_the_peer_of_a_datagram_is_known_also_inside_a_relays_frame_and_is_ended_alone() -> None:
    world = World(1, Weather(delay=0.001))
    engines = pick_engine("aioquic")
    victim, foe, honest = (SimNode(world, f"10.0.{number}.1", engines) for number in (1, 2, 3))
    for node in (foe, honest):
        node.join(victim)
    world.run(2.0)
    links = {node.id: node.connect(victim.id) for node in (foe, honest)}
    context = victim.mesh.context
    pace = pace_of(context, lambda: 0.0)
    mine, elsewhere = ([b"\x01" + bytes(150)], foe.addr), ([b"\x01" + bytes(150)], SOURCE)
    assert pace.offer([mine, elsewhere], 0.0) == [elsewhere], "sealed datagrams from where a peer is take turns"
    packet = bytes([0x40]) + next(cid for cid, link in context.peers.by_cid.items() if link.peer == foe.id) + bytes(30)
    frame = make_frame(bytes(32), DOWN, bytes(8), bytes(8), packet)
    assert [context.peers.owner_of(data) for data in (packet, frame, b"", b"\x01" + packet)] == [
        foe.id,
        foe.id,
        None,
        None,
    ]
    assert pace.offer([one(packet), one(frame), one(bytes(40))], 0.0) == [one(bytes(40))]
    for _ in range(int(DEAR_DATAGRAMS) + 1):
        pace.spent([one(packet)], 1, 2 * DEAR_DATAGRAM_S)
    world.run(0.5)
    assert links[foe.id].state is State.CLOSED
    assert links[honest.id].state is State.READY
    assert victim.mesh.metrics.counters["packets_dear"] == 1
