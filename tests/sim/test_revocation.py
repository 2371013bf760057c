"""Revocations in whole meshes: every node hears of them, what runs ends, and no peer can keep one back or forge one."""

from __future__ import annotations

import pytest

from meshnode.errors import PolicyDenied
from meshnode.gossip import Kind
from meshnode.identity.keys import Identity
from meshnode.quic.hello import Frame
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.authority import Issuer
from meshnode.trust.grant import LAST_MS, Delegation
from meshnode.trust.revocation import sign_revocation
from meshnode.trust.rotation import sign_rotation
from tests.sim.revoked import (
    AUTHORITY,
    DAY,
    MS,
    STRANGER,
    knows,
    link_of,
    make_grant,
    make_mesh,
    make_node,
    now_ms,
    open_stream,
    revocation_of,
    say,
    suppress,
)


def test_every_node_hears_of_a_revocation_and_forgets_the_node_within_a_second() -> None:
    world, nodes = make_mesh(30)
    thief, others = nodes[7], [node for node in nodes if node is not nodes[7]]
    say(nodes[-1], revocation_of(world, thief))
    begun = world.now
    assert world.run(10.0, lambda: all(knows(node, thief) for node in others))
    assert world.now - begun < 1.0
    world.run(2.0)
    for node in others:
        assert node.mesh.context.peers.connection(thief.id) is None
        assert node.mesh.context.records.cached(thief.id) is None
        assert node.mesh.gossip is not None
        assert thief.id not in node.mesh.gossip.members()
        assert not [e for e in node.mesh.gossip.core.store.entries(Kind.MEMBER) if e.origin == thief.id]


def test_a_stream_of_a_revoked_node_ends_within_a_second_at_both_ends_and_says_why() -> None:
    world, nodes = make_mesh(4)
    server, thief = nodes[1], nodes[2]
    connection, stream = open_stream(world, thief, server)
    say(nodes[3], revocation_of(world, thief))
    begun = world.now
    assert world.run(5.0, lambda: stream.error is not None)
    assert world.now - begun < 1.0
    assert isinstance(stream.error, PolicyDenied)
    assert "its grant was revoked" in str(stream.error)
    assert isinstance(connection.error, PolicyDenied)
    world.run(1.0)
    refused: list[object] = []
    thief.mesh.connect(server.id, world.now, refused.append)
    thief.on_dirty()
    assert world.run(20.0, lambda: bool(refused))
    assert isinstance(refused[0], PolicyDenied), "nor does it come in again"


def test_a_revoked_delegate_takes_with_it_the_nodes_that_it_let_in() -> None:
    world = World(3, Weather(delay=0.02))
    key, child = Identity(world.entropy(32)), Identity(world.entropy(32))
    right = Delegation(("member",), None, 2, MS + DAY)
    chain = make_grant(world, key, delegation=right)
    hub, one = make_node(world, seed_role=True), make_node(world)
    let_in = make_node(world, identity=child, grants=make_grant(world, child, Issuer(key, chain)))
    for node in (one, let_in):
        node.join(hub)
    world.run(10.0)
    connection, _ = open_stream(world, let_in, one)
    say(hub, sign_revocation(AUTHORITY, bytes(key.id), time=now_ms(world)))
    assert world.run(1.0, lambda: isinstance(connection.error, PolicyDenied))


def test_a_stolen_device_is_revoked_with_its_own_key() -> None:
    world, nodes = make_mesh(5)
    device = nodes[3]
    chain = device.mesh.context.grants
    identity = device.mesh.context.identity
    say(nodes[1], sign_revocation(identity, bytes(identity.id), time=now_ms(world), chain=chain))
    assert world.run(1.0, lambda: all(knows(node, device) for node in nodes if node is not device))


def test_a_part_that_was_cut_off_hears_of_it_when_it_is_back() -> None:
    world, nodes = make_mesh(12)
    left, right = nodes[:6], nodes[6:]
    hosts = [[node.addr.host for node in half] for half in (left, right)]
    for one in hosts[0]:
        for other in hosts[1]:
            world.partition(one, other, cut=True)
    world.run(60.0)
    thief = right[0]
    say(left[0], revocation_of(world, thief))
    world.run(30.0)
    assert all(knows(node, thief) for node in left)
    assert not any(knows(node, thief) for node in right)
    for one in hosts[0]:
        for other in hosts[1]:
            world.partition(one, other, cut=False)
    assert world.run(120.0, lambda: all(knows(node, thief) for node in right[1:]))


@pytest.mark.parametrize("seed", range(3))
def test_half_of_all_nodes_together_cannot_keep_a_revocation_from_the_others(seed: int) -> None:
    world, nodes = make_mesh(24, seed)
    for node in nodes[2::2]:
        suppress(node)
    honest = [node for node in nodes if node not in nodes[2::2]]
    thief = nodes[2]
    say(nodes[-1], revocation_of(world, thief))
    assert world.run(150.0, lambda: all(knows(node, thief) for node in honest))


def test_forged_statements_are_dropped_counted_and_blamed() -> None:
    world, nodes = make_mesh(3)
    victim, liar = nodes[1], nodes[0]
    good = revocation_of(world, nodes[2])
    forged = good.encoded[:3] + bytes([good.encoded[3] ^ 1]) + good.encoded[4:]
    unproven = sign_revocation(STRANGER, bytes(nodes[2].id), time=now_ms(world)).encoded
    future = sign_revocation(AUTHORITY, bytes(nodes[2].id), time=now_ms(world) + DAY).encoded
    _frame(world, victim, liar, Frame.REVOKED, None, [forged, unproven, future, b"\x80"])
    counters = victim.mesh.metrics.counters
    for name in ("forged", "unproven", "future", "bytes"):
        assert counters[f"revocation_drop_{name}"] == 1, name
    assert not knows(victim, nodes[2])
    assert victim.mesh.gossip is not None
    assert liar.id in victim.mesh.gossip.core.reputation._banned


def test_what_others_still_pass_on_of_a_revoked_node_is_dropped_and_no_fault_of_theirs() -> None:
    world, nodes = make_mesh(3)
    one, other, thief = nodes
    assert other.mesh.gossip is not None
    entry = next(e for e in other.mesh.gossip.core.store.entries(Kind.MEMBER) if e.origin == thief.id)
    say(one, revocation_of(world, thief))
    assert one.mesh.gossip is not None
    ingest = one.mesh.gossip.core.arrivals.ingest
    before = one.mesh.metrics.counters.get("gossip_drop_revoked", 0)
    assert ingest.take(other.id, entry.encoded, world.now) is None
    assert one.mesh.metrics.counters["gossip_drop_revoked"] == before + 1
    assert ingest.take_effects() == []


def _frame(world: World, to: SimNode, sender: SimNode, kind: Frame, *fields: object) -> None:
    connection = to.mesh.context.peers.connection(sender.id)
    assert connection is not None
    link_of(to).on_control(connection, [int(kind), *fields], world.now)
    to.on_dirty()


@pytest.mark.parametrize(
    "fields",
    [
        (Frame.REVOKED_HAVE,),
        (Frame.REVOKED_HAVE, bytes(127)),
        (Frame.REVOKED_HAVE, "x" * 128),
        (Frame.REVOKED_ASK, 16, b""),
        (Frame.REVOKED_ASK, -1, b""),
        (Frame.REVOKED_ASK, 0),
        (Frame.REVOKED, None, [b""] * 2, 3),
        (Frame.REVOKED, "0", []),
        (Frame.REVOKED, None, b"statements"),
        (Frame.REVOKED, None, [1]),
        (Frame.REVOKED, None, [bytes(6_000)]),
    ],
)
def test_malformed_frames_are_dropped_and_counted(fields: tuple[object, ...]) -> None:
    world, nodes = make_mesh(2)
    _frame(world, nodes[0], nodes[1], fields[0], *fields[1:])  # type: ignore[arg-type]
    assert nodes[0].mesh.metrics.counters["revocation_drop_malformed"] == 1


def test_a_large_set_reaches_a_newcomer_in_pages() -> None:
    world, nodes = make_mesh(2)
    for n in range(700):
        key = Identity(n.to_bytes(32, "big"))
        nodes[0].mesh.context.revoking.take(
            sign_revocation(AUTHORITY, bytes(key.id), time=MS, ends=LAST_MS, reason="x" * 100).encoded
        )
    nodes[0].on_dirty()
    world.run(5.0)
    late = make_node(world)
    late.join(nodes[1])
    assert world.run(20.0, lambda: len(link_of(late).held or ()) == 700)


def test_a_revoked_node_never_gets_the_next_secret_of_the_mesh() -> None:
    world, nodes = make_mesh(4)
    thief, others = nodes[2], [nodes[0], nodes[1], nodes[3]]
    say(nodes[1], revocation_of(world, thief))
    assert world.run(1.0, lambda: all(knows(node, thief) for node in others))
    now = now_ms(world)
    rotation = sign_rotation(AUTHORITY, serial=now, key=bytes(32), begins=now + 5_000, ends=now + 60_000)
    nodes[0].mesh.context.mesh_keys.adopt(rotation.encoded, world.now)
    nodes[0].on_dirty()
    world.run(120.0)
    assert [node.mesh.context.mesh_keys.held is not None for node in (*others, thief)] == [True, True, True, False]
