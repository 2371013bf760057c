"""Two events of ``chaos.py``: more to do than a mesh has CPU for, and a crowd that surrounds one node and vanishes."""

from __future__ import annotations

import random
from collections.abc import Callable

from meshnode.errors import RateLimited
from meshnode.gossip import Kind
from meshnode.gossip.messages import Neighbour
from tests.sim.gossip_node import GossipNode
from tests.sim.gossip_sim import GossipNet

CROWD, STAYS_S = 6, 3.0


def overload(net: GossipNet, rng: random.Random, nodes: list[GossipNode]) -> None:
    """Most nodes get CPU in turns of a fraction of a second only, while some publish as much as they may."""
    for node in rng.sample(nodes, max(1, len(nodes) * 3 // 4)):
        for turn in range(6):
            until = net.now + turn * 0.6 + rng.uniform(0.3, 0.55)
            net.at(net.now + turn * 0.6, _stall, node, until)
    for node in rng.sample(nodes, max(1, len(nodes) // 3)):
        for number in range(40):
            try:
                node.gossip.publish(Kind.TOPIC, f"o{number}", rng.randbytes(500), 60, net.now)
            except RateLimited:
                break
        net.pump(node)


def _stall(node: GossipNode, until: float) -> None:
    node.stalled_until = max(node.stalled_until, until)


def eclipse(net: GossipNet, victim: GossipNode, room: int, arrive: Callable[[GossipNode], GossipNode]) -> None:
    """New nodes all join through the victim, ask it for a place again and again, and vanish together."""
    crowd = [arrive(victim) for _ in range(min(CROWD, room))]
    for round_ in range(4):
        net.at(net.now + 0.6 * (round_ + 1), _ask, net, victim, crowd)
    for node in crowd:
        net.at(net.now + STAYS_S, net.crash, node)


def _ask(net: GossipNet, victim: GossipNode, crowd: list[GossipNode]) -> None:
    for node in crowd:
        if node.alive and victim.alive and node.id in victim.links:
            victim.gossip.on_message(node.id, Neighbour(True, b""), net.now)
            net.pump(victim)
