"""Revocations among 1,000 nodes: the real component of each node, over the links that gossip's views would have.

A frame takes 50 ms, and 200 ms more where a packet of it is lost (1 in 100), for control frames are repeated by QUIC.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshnode.base.metrics import Metrics
from meshnode.base.timers import Timers
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.quic.hello import Frame
from meshnode.stack.context import Context, StackSettings
from meshnode.stack.revocation_link import RevocationLink
from meshnode.trust.revocation import Revocation, sign_revocation

AUTHORITY, THIEF = Identity(b"a" * 32), Identity(b"t" * 32)
EPOCH = 1_700_000_000.0
NODES, VIEW = 1_000, 5  # HyParView's active view: 5 neighbours, 8 at most
DELAY_S, LOST_S, LOSS = 0.05, 0.2, 0.01


class Net:
    """Nodes, and frames on their way in virtual time."""

    def __init__(self, seed: int, count: int = NODES) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._sent = 0
        self.frames = 0
        self.nodes = [Node(self, n) for n in range(count)]

    def ring(self, nodes: list[Node]) -> None:
        """Link nodes: a random cycle, and links across until each has ``VIEW`` on average."""
        order = self.rng.sample(nodes, len(nodes))
        pairs = list(zip(order, [*order[1:], order[0]], strict=True))
        pairs += [cast(Any, tuple(self.rng.sample(nodes, 2))) for _ in range(len(nodes) * (VIEW - 2) // 2)]
        for one, other in pairs:
            self.link(one, other)

    def link(self, one: Node, other: Node) -> None:
        """Connect two nodes."""
        for a, b in ((one, other), (other, one)):
            a.connections[b.id] = Connection(self, a, b)
        for a, b in ((one, other), (other, one)):
            a.component.on_link(cast(Any, a.connections[b.id]), True, self.now)

    def send(self, action: Callable[[], None]) -> None:
        """Carry a frame."""
        self._sent += 1
        self.frames += 1
        delay = DELAY_S + (LOST_S if self.rng.random() < LOSS else 0.0)
        heapq.heappush(self._queue, (self.now + delay, self._sent, action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            timer = min((t for node in self.nodes if (t := node.timers.next_deadline()) is not None), default=end)
            at = self._queue[0][0] if self._queue else end
            if min(at, timer) >= end:
                break
            if at > timer:
                self.now = timer
                for node in self.nodes:
                    node.timers.run(self.now)
                continue
            while self._queue and self._queue[0][0] <= min(timer, end):
                self.now, _, action = heapq.heappop(self._queue)
                action()
        self.now = end


class Connection:
    """One end of a link."""

    def __init__(self, net: Net, own: Node, other: Node) -> None:
        self.peer = other.id
        self._net, self._own, self._other = net, own, other

    def send_frame(self, kind: Frame, *fields: object) -> None:
        """Send a frame, unless this end lies: then it says nothing of what it knows."""
        if self._own.lies:
            return
        back = self._other.connections[self._own.id]
        said = [int(kind), *fields]
        self._net.send(lambda: self._other.component.on_control(cast(Any, back), said, self._net.now))


class Node:
    """The revocations of one node."""

    def __init__(self, net: Net, number: int) -> None:
        self.id = NodeId(number.to_bytes(32, "big"))
        self.connections: dict[NodeId, Connection] = {}
        self.lies = False
        self.knows_at: float | None = None
        self.timers = Timers()
        context = SimpleNamespace(
            identity=SimpleNamespace(id=self.id),
            settings=StackSettings(authority=AUTHORITY.id),
            clock=SimpleNamespace(monotonic=lambda: net.now, wall=lambda: EPOCH + net.now),
            metrics=Metrics(),
            timers=self.timers,
            rng=net.rng,
            peers=SimpleNamespace(connection=self.connections.get),
            events=SimpleNamespace(on_revoked=lambda revocation: self._heard(net.now)),
            gossip=None,
            standings=SimpleNamespace(end_revoked=lambda now: None),
            records=SimpleNamespace(statements=None),  # gossip has to reach all without the DHT
            policies=SimpleNamespace(),  # no stream waits here
        )
        self.component = RevocationLink(cast(Context, context))

    def _heard(self, now: float) -> None:
        if self.knows_at is None:
            self.knows_at = now


def _revocation() -> Revocation:
    return sign_revocation(AUTHORITY, bytes(THIEF.id), time=int(EPOCH * 1000))


def _delays(nodes: list[Node], begun: float) -> list[float]:
    return sorted(node.knows_at - begun if node.knows_at is not None else float("inf") for node in nodes)


@pytest.mark.parametrize("seed", range(2))
def test_99_percent_of_1000_nodes_know_within_a_second(seed: int) -> None:
    net = Net(seed)
    net.ring(net.nodes)
    net.run(1.0)
    begun, before = net.now, net.frames
    net.nodes[0].component.take(_revocation().encoded)
    net.run(3.0)
    delays = _delays(net.nodes, begun)
    assert delays[int(0.99 * NODES) - 1] < 1.0
    assert delays[-1] < 2.0
    assert net.frames - before < 2 * VIEW * NODES, "one frame a link and direction"


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_liars_delay_no_honest_node_that_has_an_honest_neighbour(share: float) -> None:
    net = Net(3)
    net.ring(net.nodes)
    net.run(1.0)
    for node in net.rng.sample(net.nodes[1:], int(share * NODES)):
        node.lies = True
    begun = net.now
    net.nodes[0].component.take(_revocation().encoded)
    net.run(5.0)
    reached, waiting = {net.nodes[0].id}, [net.nodes[0]]
    by_id = {node.id: node for node in net.nodes}
    while waiting:  # those to which a way of honest nodes leads
        for peer in waiting.pop().connections:
            if peer not in reached:
                reached.add(peer)
                if not by_id[peer].lies:
                    waiting.append(by_id[peer])
    delays = _delays([by_id[peer] for peer in reached], begun)
    assert len(reached) > 0.95 * NODES
    assert delays[int(0.99 * len(delays)) - 1] < 1.5
    assert delays[-1] < 5.0


def test_two_halves_and_a_node_that_comes_back_know_all_as_soon_as_one_link_is_there() -> None:
    net = Net(4)
    left, right, back = net.nodes[:500], net.nodes[500:-1], net.nodes[-1]
    for half in (left, right):
        net.ring(half)
    net.run(1.0)
    left[0].component.take(_revocation().encoded)
    net.run(5.0)
    assert all(node.knows_at is not None for node in left)
    assert not any(node.knows_at is not None for node in right)
    begun = net.now
    net.link(left[7], right[7])
    net.run(3.0)
    assert _delays(right, begun)[-1] < 2.5
    begun = net.now
    net.link(back, right[1])
    net.run(1.0)
    assert _delays([back], begun)[-1] < 4 * (DELAY_S + LOST_S)
