"""Meshes with an authority in virtual time, for tests of what is revoked there."""

from __future__ import annotations

from typing import Any

from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import EPOCH, SimNode, Weather, World
from meshnode.stack.revocation_link import RevocationLink
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain
from meshnode.trust.revocation import Revocation, sign_revocation

AUTHORITY, STRANGER = Identity(b"a" * 32), Identity(b"s" * 32)
MS = int(EPOCH * 1000)
DAY = 86_400_000


def make_grant(world: World, identity: Identity, issuer: Issuer | None = None, **more: Any) -> Chain:
    said = {"roles": ["member"], "not_before": MS, "expires": MS + 90 * DAY, "entropy": world.entropy} | more
    return (issuer or Issuer(AUTHORITY)).issue(identity.id, **said)


def make_node(world: World, **more: Any) -> SimNode:
    identity = more.pop("identity", None) or Identity(world.entropy(32))
    grants = more.pop("grants", None) or make_grant(world, identity)
    more = {"gossip": True, "sealer": PlainSealer, "authority": AUTHORITY.id} | more
    host = more.pop("host", f"10.0.0.{len(world.nodes) + 1}")
    return SimNode(world, host, ModelEngines(world.entropy), identity=identity, grants=grants, **more)


def make_mesh(count: int, seed: int = 14) -> tuple[World, list[SimNode]]:
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    nodes = [make_node(world, seed_role=n == 0) for n in range(count)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(20.0)
    return world, nodes


def now_ms(world: World) -> int:
    return int(world.wall() * 1000)


def revocation_of(world: World, node: SimNode, reason: str = "stolen") -> Revocation:
    return sign_revocation(AUTHORITY, bytes(node.id), time=now_ms(world), reason=reason)


def say(node: SimNode, revocation: Revocation) -> None:
    node.mesh.context.revoking.take(revocation.encoded)
    node.on_dirty()


def link_of(node: SimNode) -> RevocationLink:
    found = node.mesh.context.revoking
    assert isinstance(found, RevocationLink)
    return found


def knows(node: SimNode, other: SimNode) -> bool:
    return node.mesh.context.is_barred(other.id)


def open_stream(world: World, client: SimNode, server: SimNode) -> tuple[Connection, Stream]:
    connection = client.connect(server.id)
    stream, _ = client.open(connection, "db")
    stream.write(b"hello")
    client.on_dirty()
    world.run(0.5)
    return connection, stream


def suppress(node: SimNode) -> None:
    """Make a node a liar: it knows nothing, passes nothing on, and says that its set is like the other's."""
    link = link_of(node)
    link.on_control = lambda *args: None  # type: ignore[method-assign]
    node.mesh.context.hooks.control.update(dict.fromkeys(link.frames, link.on_control))
