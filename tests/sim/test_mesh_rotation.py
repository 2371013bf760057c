"""The secret of a mesh changes while its nodes run: no connection is lost, and afterwards the old one opens nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from meshnode.errors import MeshError
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection, State
from meshnode.quic.hello import Frame
from meshnode.sim.world import SimNode
from meshnode.trust.rotation import Rotation, open_rotation, sign_rotation
from tests.sim.test_grants import AUTHORITY, HOUR, MS, Mesh

NEXT = bytes(range(32))


def _rotation(**changes: int) -> Rotation:
    said = {"serial": MS, "begins": MS + 60_000, "ends": MS + 120_000} | changes
    return sign_rotation(AUTHORITY.identity, key=NEXT, **said)


def _nodes(count: int) -> tuple[Mesh, list[SimNode]]:
    mesh = Mesh()
    return mesh, [mesh.node("web", sealer=Sealer) for _ in range(count)]


def _line(mesh: Mesh, nodes: list[SimNode]) -> list[Connection]:
    found = [mesh.dial(one, other) for one, other in pairwise(nodes)]
    assert all(isinstance(connection, Connection) for connection in found)
    return found  # type: ignore[return-value]


def test_the_next_secret_spreads_from_one_node_and_no_connection_is_lost_over_the_change() -> None:
    mesh, nodes = _nodes(4)
    connections = _line(mesh, nodes)
    stream = connections[0].open("echo")
    assert nodes[0].mesh.context.mesh_keys.adopt(_rotation().encoded, mesh.world.now)
    nodes[0].on_dirty()
    mesh.world.run(5.0)
    assert all(node.mesh.context.mesh_keys.held for node in nodes)
    assert {str(node.mesh.context.sealer.mesh) for node in nodes} == {str(MeshKey.from_text("sim"))}
    for at in range(5, 200, 5):
        stream.write(b"%03d" % at)
        nodes[0].on_dirty()
        mesh.world.run(5.0)
    assert stream.read() == b"".join(b"%03d" % at for at in range(5, 200, 5))
    assert all(connection.state is State.READY for connection in connections)
    assert {node.mesh.context.sealer.mesh.bytes for node in nodes} == {NEXT}
    assert isinstance(mesh.dial(nodes[0], nodes[3]), Connection), "new ones begin with the new secret"


def test_a_node_with_the_old_secret_enters_during_the_overlap_and_is_a_stranger_after_it() -> None:
    for late, enters in ((90.0, True), (150.0, False)):
        mesh, (one, other) = _nodes(2)
        _line(mesh, [one, other])
        one.mesh.context.mesh_keys.adopt(_rotation().encoded, mesh.world.now)
        mesh.world.run(late)
        newcomer = mesh.node("web", sealer=Sealer)
        newcomer.join(one)
        found: list[Connection | MeshError] = []
        newcomer.mesh.connect(one.id, mesh.world.now, found.append)
        newcomer.on_dirty()
        mesh.world.run(10.0)
        assert isinstance(found[0], Connection) is enters
        assert (newcomer.mesh.context.sealer.mesh.bytes == NEXT) is enters, "it is told the new one at once"


def test_a_rotation_that_is_not_the_authoritys_or_not_newer_changes_nothing() -> None:
    mesh, (one, other) = _nodes(2)
    _line(mesh, [one, other])
    good = _rotation()
    foreign = sign_rotation(Identity(b"x" * 32), serial=MS + 5, key=NEXT, begins=MS, ends=MS)
    forged = good.encoded[:-1] + bytes([good.encoded[-1] ^ 1])
    for bad in (foreign.encoded, forged, b"", bytes(200)):
        assert open_rotation(bad, AUTHORITY.identity.id) is None
        assert not one.mesh.context.mesh_keys.adopt(bad, mesh.world.now)
    assert one.mesh.context.mesh_keys.adopt(good.encoded, mesh.world.now)
    assert not one.mesh.context.mesh_keys.adopt(_rotation(serial=MS - 1).encoded, mesh.world.now)
    assert one.mesh.context.mesh_keys.held == good


def test_a_peer_without_grants_is_not_told_the_next_secret() -> None:
    mesh = Mesh()
    plain: dict[str, Any] = {"chain": (), "sealer": Sealer}
    one, other = mesh.node("web", sealer=Sealer), mesh.node(**plain)
    for node in (one, other):
        object.__setattr__(node.mesh.context.settings, "needs_grant", False)
    assert isinstance(mesh.dial(other, one), Connection)
    one.mesh.context.mesh_keys.adopt(_rotation(ends=MS + HOUR).encoded, mesh.world.now)
    one.on_dirty()
    mesh.world.run(30.0)
    assert other.mesh.context.mesh_keys.held is None


def test_a_second_rotation_follows_the_first() -> None:
    mesh, (one, other) = _nodes(2)
    (connection,) = _line(mesh, [one, other])
    one.mesh.context.mesh_keys.adopt(_rotation().encoded, mesh.world.now)
    mesh.world.run(130.0)
    now = int(mesh.world.wall() * 1000)
    second = sign_rotation(AUTHORITY.identity, serial=now, key=bytes(32), begins=now + 10_000, ends=now + 20_000)
    assert other.mesh.context.mesh_keys.adopt(second.encoded, mesh.world.now)
    other.on_dirty()
    mesh.world.run(60.0)
    assert {node.mesh.context.sealer.mesh.bytes for node in (one, other)} == {bytes(32)}
    assert connection.state is State.READY


def test_a_secret_of_before_that_a_member_tells_a_newcomer_takes_it_to_no_other_mesh() -> None:
    mesh, (newcomer, liar) = _nodes(2)
    _line(mesh, [newcomer, liar])
    old = _rotation(serial=1, begins=MS - 2_000, ends=MS - 1_000)
    now_used = newcomer.mesh.context.sealer.mesh
    mesh.connection(liar, newcomer).send_frame(Frame.MESH_KEY, old.encoded)
    liar.on_dirty()
    mesh.world.run(1.0)
    assert newcomer.mesh.context.mesh_keys.held is None
    assert newcomer.mesh.context.sealer.mesh is now_used
    assert newcomer.mesh.metrics.counters["drop_mesh_key"] == 1
    same = sign_rotation(AUTHORITY.identity, serial=2, key=now_used.bytes, begins=MS - 2, ends=MS - 1)
    mesh.connection(liar, newcomer).send_frame(Frame.MESH_KEY, same.encoded)
    liar.on_dirty()
    mesh.world.run(1.0)
    assert newcomer.mesh.context.mesh_keys.held == same, "what has led to its own is good to know"
