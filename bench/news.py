"""How fast whole nodes with real QUIC learn of each other: services, moves, goodbyes and crashes, in virtual time.

``python -m bench.news [NODES]`` prints the figures of one mesh.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from meshnode.directory.announcement import Offer
from meshnode.gossip import Status
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World

NODES = 100


def status(node: SimNode, other: SimNode) -> Status:
    """Return what a node believes of another."""
    assert node.mesh.gossip is not None
    return node.mesh.gossip.status(other.id)


def knows_address(node: SimNode, other: SimNode) -> bool:
    """Return whether a node has the newest record of another."""
    record = node.mesh.resolution.resolver.get(other.id, node.world.wall())
    return record is not None and record.endpoints[0].addr.host == other.addr.host


def _serves(node: SimNode, other: SimNode) -> bool:
    assert node.mesh.registry is not None
    return [instance.node for instance in node.mesh.registry.instances("db", node.world.now)] == [other.id]


def run(nodes: int = NODES, seed: int = 6) -> dict[str, float]:
    """Return after how many seconds all know each kind of news; 1e9 where one did not within 10 s.

    ``strangers``: pairs that do not know each other when all have joined; ``wrong``: such pairs of living ones at the
    end; ``links``: neighbours of the node with most.
    """
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    engines = pick_engine("aioquic")
    mesh = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, gossip=True) for i in range(nodes)]
    for number, node in enumerate(mesh[1:]):
        world.at(0.01 * number, lambda node=node: node.join(mesh[0]))  # type: ignore[misc]
    world.run(0.01 * nodes + 5.0)
    strangers = _strangers(mesh, mesh)
    links = [len(node.mesh.gossip.core.hyparview.active) for node in mesh if node.mesh.gossip is not None]
    crashed, mover, leaver, server = (mesh[nodes * fifth // 5] for fifth in (1, 2, 3, 4))
    rest = [node for node in mesh if node not in (crashed, mover, leaver, server)]

    def until(knows: Callable[[SimNode], bool]) -> float:
        began = world.now
        return world.now - began if world.run(10.0, lambda: all(map(knows, rest))) else 1e9

    assert server.mesh.registry is not None
    server.mesh.registry.directory.announce("db", Offer(), world.now)
    server.mesh.registry.drain(world.now)
    server.on_dirty()
    found = {"service": until(lambda node: _serves(node, server))}
    mover.move("10.7.7.7")
    found["move"] = until(lambda node: knows_address(node, mover))
    world.weather = replace(world.weather, jitter=0.0)  # which lets the end of a connection overtake the goodbye on it
    leaver.mesh.close(world.now)
    leaver.kill()
    found["goodbye"] = until(lambda node: status(node, leaver) is Status.LEFT)
    crashed.kill()
    found["crash"] = until(lambda node: status(node, crashed) is Status.GONE)
    wrong = _strangers(rest, [*rest, mover, server])
    return found | {"links": max(links), "links_least": min(links), "strangers": strangers, "wrong": wrong}


def _strangers(nodes: list[SimNode], others: list[SimNode]) -> int:
    return sum(status(a, b) is not Status.ALIVE for a in nodes for b in others if a is not b)


def rows(short: bool) -> Iterator[tuple[str, float, float, bool]]:
    """Yield the rows of one mesh."""
    nodes = 16 if short else NODES
    found = run(nodes)
    limits = {"service": 2.0, "move": 1.0, "goodbye": 1.0, "crash": 5.0}
    for what, limit in limits.items():
        yield f"{nodes} nodes with real QUIC: a {what} known to all, s", round(found[what], 2), limit, False
    yield f"{nodes} nodes with real QUIC: pairs that are wrong about each other", found["wrong"], 0, False


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:2])), indent=1))
