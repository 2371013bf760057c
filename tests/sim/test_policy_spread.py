"""The authority's policy in whole meshes: it reaches every node, none older comes back, no other key signs one."""

from __future__ import annotations

import pytest

from meshnode.base.limits import POLICY_PART
from meshnode.errors import ConfigError, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.quic.hello import Frame
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import policy_link
from meshnode.stack.policy_link import PolicyLink
from meshnode.trust.authority import Issuer
from meshnode.trust.policy import Act
from meshnode.trust.signed_policy import sign_policy

AUTHORITY, OTHER = Identity(b"a" * 32), Identity(b"o" * 32)


def _node(world: World, host: str, role: str = "member", *, seed_role: bool = False) -> SimNode:
    """Make a node with a grant of the authority."""
    identity, now = Identity(world.entropy(32)), int(world.wall() * 1000)
    grants = Issuer(AUTHORITY).issue(
        identity.id, roles=[role], not_before=now, expires=now + 86_400_000, entropy=world.entropy
    )
    return SimNode(
        world,
        host,
        ModelEngines(world.entropy),
        seed_role=seed_role,
        sealer=PlainSealer,
        gossip=True,
        identity=identity,
        authority=AUTHORITY.id,
        grants=grants,
    )


def _mesh(count: int) -> tuple[World, list[SimNode]]:
    world = World(14, Weather(delay=0.02, jitter=0.005))
    nodes = [_node(world, f"10.0.0.{i + 1}", seed_role=i == 0) for i in range(count)]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(20.0)
    return world, nodes


def _link(node: SimNode) -> PolicyLink:
    found = node.mesh.context.policies
    assert isinstance(found, PolicyLink)
    return found


def _signed(version: int, rules: str = "", key: Identity = AUTHORITY) -> bytes:
    return sign_policy(key, f"version = {version}\n{rules}".encode()).encoded


def _versions(nodes: list[SimNode]) -> list[int]:
    return [node.mesh.context.policies.version for node in nodes]


def _give(world: World, node: SimNode, encoded: bytes) -> None:
    node.mesh.context.policies.adopt(encoded)
    node.on_dirty()


def test_a_new_policy_is_in_force_at_every_node_within_a_second() -> None:
    world, nodes = _mesh(30)
    kept: list[bytes] = []
    nodes[7].mesh.context.policies.on_adopted = kept.append
    encoded = _signed(4, '[[allow]]\nname = "web"\nfrom = "any"\nservices = "web"')
    _give(world, nodes[-1], encoded)
    begun = world.now
    assert world.run(10.0, lambda: _versions(nodes) == [4] * 30)
    assert world.now - begun < 1.0
    assert kept == [encoded]
    for node in nodes:
        assert node.guard.ask(Act.SERVICE, nodes[0].id, "web").rule == "web"
        assert not node.guard.ask(Act.SERVICE, nodes[0].id, "ssh").allowed


def test_a_node_that_comes_later_and_a_policy_in_parts_arrive_too() -> None:
    world, nodes = _mesh(4)
    rules = "".join(f'[[allow]]\nfrom = "role:r{n}"\nservices = ["s{n}", "{"x" * 40}"]\n' for n in range(500))
    encoded = _signed(1, rules)
    assert len(encoded) > 3 * POLICY_PART
    late, others = nodes[3], nodes[:3]
    late.mesh.close(world.now)
    _give(world, nodes[0], encoded)
    assert world.run(10.0, lambda: _versions(others) == [1] * 3)
    node = _node(world, "10.0.1.1")
    node.join(nodes[1])
    assert world.run(30.0, lambda: node.mesh.context.policies.version == 1)
    assert node.mesh.context.policies.held is not None
    assert node.mesh.context.policies.held.encoded == encoded


def test_an_older_or_equal_policy_is_refused_and_does_not_spread() -> None:
    world, nodes = _mesh(4)
    _give(world, nodes[0], _signed(5, '[[deny]]\nfrom = "any"\nservices = "*"'))
    world.run(5.0)
    for older in (_signed(4), _signed(5)):
        with pytest.raises(ConfigError, match="is not newer than 5"):
            nodes[1].mesh.context.policies.adopt(older)
    assert _versions(nodes) == [5] * 4
    assert all(node.guard.mesh is not None and node.guard.mesh.rules for node in nodes)


def test_a_policy_of_another_key_is_refused_dropped_and_blamed() -> None:
    world, nodes = _mesh(3)
    with pytest.raises(ConfigError, match="no policy of this mesh's authority"):
        nodes[1].mesh.context.policies.adopt(_signed(9, key=OTHER))
    good = _signed(9)
    broken = good[:64] + good[64:].replace(b"version = 9", b"version = 8")
    with pytest.raises(ConfigError, match="did not sign"):
        nodes[1].mesh.context.policies.adopt(broken)
    victim, liar = nodes[1], nodes[0]
    _say(world, victim, liar, Frame.POLICY_HAVE, 9)
    _say(world, victim, liar, Frame.POLICY_PART, 9, 0, 1, broken)
    assert victim.mesh.metrics.counters["policy_drop_forged"] == 1
    assert _versions(nodes) == [0, 0, 0]


def _say(world: World, to: SimNode, sender: SimNode, kind: Frame, *fields: object) -> None:
    """Have a frame arrive as if the peer had sent it, and let what it causes go out."""
    connection = to.mesh.context.peers.connection(sender.id)
    assert connection is not None
    _link(to).on_control(connection, [int(kind), *fields], world.now)
    if kind is not Frame.POLICY_HAVE:  # else the peer's answer would come
        world.run(1.0)


def test_a_peer_that_never_sends_what_it_says_it_has_delays_no_other() -> None:
    world, nodes = _mesh(3)
    victim, liar, honest = nodes[0], nodes[1], nodes[2]
    _say(world, victim, liar, Frame.POLICY_HAVE, 2**53)
    _give(world, honest, _signed(1))
    assert world.run(1.0, lambda: victim.mesh.context.policies.version == 1)
    world.run(5.0)
    assert not _link(victim)._fetches, "it is given up"
    _say(world, victim, liar, Frame.POLICY_HAVE, 2**53)
    assert _link(victim)._fetches, "it is asked again"
    assert _link(victim).is_current, "and nothing waits for it again"


def test_peers_that_never_send_what_they_say_they_have_come_after_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_link, "MAX_POLICY_FETCHES", 1)
    world, nodes = _mesh(4)
    victim, *liars, honest = nodes
    link = _link(victim)
    link._peers = {node.id: link._peers[node.id] for node in (*liars, honest)}  # the liars were there first
    for liar in liars:
        _link(liar).adopt = lambda encoded: None  # type: ignore[method-assign,assignment,return-value]
        _say(world, victim, liar, Frame.POLICY_HAVE, 2**53)
    _give(world, honest, _signed(1))
    for _ in range(60):
        world.run(0.1)
        for liar in liars:
            _say(world, victim, liar, Frame.POLICY_HAVE, 2**53)
    assert link.version == 1


@pytest.mark.parametrize(
    "fields",
    [
        (Frame.POLICY_HAVE,),
        (Frame.POLICY_HAVE, -1),
        (Frame.POLICY_HAVE, "1"),
        (Frame.POLICY_HAVE, True),
        (Frame.POLICY_ASK, 1),
        (Frame.POLICY_ASK, 1, 10_000),
        (Frame.POLICY_PART, 1, 0, 1, b"not asked for"),
        (Frame.POLICY_PART, 1, 0, 1, "no bytes"),
        (Frame.POLICY_PART, 1, 0, 1, b"", b"more"),
    ],
)
def test_what_is_malformed_or_not_asked_for_is_dropped_and_counted(fields: tuple[object, ...]) -> None:
    world, nodes = _mesh(2)
    connection = nodes[0].mesh.context.peers.connection(nodes[1].id)
    assert connection is not None
    _link(nodes[0]).on_control(connection, list(fields), world.now)
    assert nodes[0].mesh.metrics.counters["policy_drop_malformed"] == 1


def test_roles_of_nodes_that_are_not_connected_count_for_topics_and_names() -> None:
    world, nodes = _mesh(14)
    speaker = _node(world, "10.0.1.1", "speaker")
    speaker.join(nodes[0])
    world.run(20.0)
    far = [node for node in nodes if node.mesh.context.peers.connection(speaker.id) is None]
    assert far, "the test needs nodes that are not connected with it"
    assert all("speaker" in node.guard.known(speaker.id).roles for node in nodes)
    _give(world, nodes[0], _signed(1, '[[allow]]\nfrom = "role:speaker"\nnames = "tower"\n'))
    world.run(5.0)
    for node in (speaker, nodes[3]):
        registry = node.mesh.registry
        assert registry is not None
        registry.names.claim("tower", int(world.wall() * 1000), world.now)
        registry.drain(world.now)
        node.on_dirty()
    world.run(5.0)
    for node in nodes:
        assert node.mesh.registry is not None
        assert node.mesh.registry.names.name_of(speaker.id, world.wall()) == "tower"


def test_roles_that_were_heard_of_end_with_their_grant() -> None:
    _world, nodes = _mesh(14)
    node = nodes[1]
    standing = node.mesh.context.standings.own()
    assert standing is not None
    far = next(other for other in nodes if other is not node and node.id not in other.mesh.sessions)
    assert far.guard.known(node.id).roles == {"member"}
    far.mesh.context.is_revoked = lambda grants: any(grant.subject == node.id for grant in grants)
    far.guard.changed()
    assert far.guard.known(node.id).roles == frozenset()


def test_the_policy_of_the_authority_cuts_what_runs_at_every_node() -> None:
    world, nodes = _mesh(3)
    server, client = nodes[1], nodes[2]
    connection = client.connect(server.id)
    stream, _ = client.open(connection, "ssh")
    stream.write(b"hello")
    client.on_dirty()
    world.run(1.0)
    _give(world, nodes[0], _signed(1, '[[allow]]\nfrom = "any"\nservices = "web"'))
    assert world.run(1.0, lambda: stream.error is not None)
    assert isinstance(stream.error, PolicyDenied)
