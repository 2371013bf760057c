"""Policies in whole nodes: refusals say why where they may, and a change ends what runs, with its reason."""

from __future__ import annotations

import pytest

from meshnode.base.wire import encode
from meshnode.errors import PolicyDenied
from meshnode.gossip import Kind
from meshnode.gossip.entry import sign_entry
from meshnode.identity.keys import Identity
from meshnode.quic.connection import Connection, State
from meshnode.quic.stream import Stream
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.policy import parse_policy


def _nodes(count: int, *, gossip: bool = False) -> tuple[World, list[SimNode]]:
    world = World(14, Weather(delay=0.02, jitter=0.005))
    engines = ModelEngines(world.entropy)
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, sealer=PlainSealer, gossip=gossip)
        for i in range(count)
    ]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(20.0 if gossip else 2.0)
    return world, nodes


def _set(node: SimNode, text: str) -> None:
    node.guard.set_local(parse_policy(text.encode()))


def _ask(world: World, node: SimNode, connection: Connection, service: str) -> Stream:
    stream = connection.open(service)
    stream.write(b"hello")
    node.on_dirty()
    world.run(1.0)
    return stream


def test_a_refused_node_hears_the_rule_only_where_the_policy_tells_it() -> None:
    world, (server, client) = _nodes(2)
    connection = client.connect(server.id)
    denied = '[[deny]]\nname = "no ssh"\nfrom = "any"\nservices = "ssh"\n[[allow]]\nfrom = "any"\n'
    for head, rule in (('reasons = "told"\n', "no ssh"), ('reasons = "hidden"\n', ""), ("", "")):
        _set(server, head + denied)
        refused = _ask(world, client, connection, "ssh")
        assert isinstance(refused.error, PolicyDenied)
        assert refused.error.rule == rule
        assert ("no ssh" in str(refused.error)) == bool(rule)
        assert refused.read() == b""
    assert _ask(world, client, connection, "web").read() == b"hello"
    assert server.mesh.metrics.counters["refused_service_policy"] == 3


def test_a_node_without_the_role_hears_which_rule_gives_it_to_others_only_where_the_policy_tells_it() -> None:
    world, (server, client) = _nodes(2)
    connection = client.connect(server.id)
    web = '[[allow]]\nfrom = "any"\nservices = "web"\n'
    rules = '[[allow]]\nname = "developers"\nfrom = "role:dev"\nservices = "ssh"\n' + web
    for head, rule in (('reasons = "told"\n', "developers"), ('reasons = "hidden"\n', ""), ("", "")):
        _set(server, head + rules)
        refused = _ask(world, client, connection, "ssh")
        assert isinstance(refused.error, PolicyDenied)
        assert refused.error.rule == rule
        assert ("developers" in str(refused.error)) == bool(rule)
    _set(server, 'reasons = "told"\n' + web)
    silent = _ask(world, client, connection, "ssh").error
    assert isinstance(silent, PolicyDenied)
    assert silent.rule == "", "no rule is about it"


def test_a_node_whose_connection_is_denied_hears_the_rule_too() -> None:
    world, (server, client) = _nodes(2)
    _set(server, f'reasons = "told"\n[[deny]]\nname = "put out"\nfrom = "{client.id}"')
    world.run(2.0)  # what the seed was connected for is over
    with pytest.raises(PolicyDenied) as caught:
        client.connect(server.id)
    assert caught.value.rule == "put out"


def test_a_change_of_policy_cuts_streams_that_it_allows_no_longer_and_no_others() -> None:
    world, (server, client) = _nodes(2)
    connection = client.connect(server.id)
    kept, cut = (_ask(world, client, connection, service) for service in ("web", "ssh"))
    assert (kept.read(), cut.read()) == (b"hello", b"hello")
    begun = world.now
    _set(server, '[[allow]]\nfrom = "any"\nservices = "web"')
    assert world.run(1.0, lambda: cut.error is not None)
    assert world.now - begun < 0.2
    assert isinstance(cut.error, PolicyDenied)
    world.run(5.0)
    assert (kept.error, connection.state) == (None, State.READY)
    kept.write(b"again")
    client.on_dirty()
    world.run(1.0)
    assert kept.read() == b"again"
    assert server.mesh.metrics.counters["cut_streams"] == 1


def test_a_change_of_policy_cuts_the_connection_of_a_node_that_is_put_out() -> None:
    world, (server, client) = _nodes(2)
    connection = client.connect(server.id)
    stream = _ask(world, client, connection, "web")
    _set(server, f'[[deny]]\nfrom = "{client.id}"')
    assert world.run(1.0, lambda: connection.state is State.CLOSED)
    assert isinstance(connection.error, PolicyDenied)
    assert isinstance(stream.error, PolicyDenied)
    assert server.mesh.metrics.counters["cut_connections"] == 1


def test_a_policy_that_observes_cuts_and_refuses_nothing() -> None:
    world, (server, client) = _nodes(2)
    connection = client.connect(server.id)
    stream = _ask(world, client, connection, "web")
    _set(server, 'mode = "observe"\n[[deny]]\nfrom = "any"')
    world.run(5.0)
    assert stream.error is None
    assert _ask(world, client, connection, "ssh").read() == b"hello"


def test_a_client_that_may_use_the_relay_no_longer_loses_its_reservation() -> None:
    world, (relay, client, other) = _nodes(3)
    for node in (client, other):
        node.connect(relay.id)
    world.run(5.0)
    server = relay.mesh.context.serving
    assert server.clients() == 2
    _set(relay, f'[[allow]]\nfrom = "{other.id}"\nrelay = true')
    world.run(1.0)
    assert [server.serves(node.id) for node in (client, other)] == [False, True]
    assert relay.id not in client.mesh.context.relays.homes


# ---- names and topics


def test_a_name_means_only_a_node_that_may_claim_it_and_a_change_is_looked_at_again() -> None:
    world, nodes = _nodes(3, gossip=True)
    judge, honest, thief = nodes
    registry = judge.mesh.registry
    assert registry is not None
    _claim(world, thief, "tower")
    assert registry.names.name_of(thief.id, world.wall()) == "tower"
    _set(judge, f'[[allow]]\nfrom = "{honest.id}"\nnames = "tower"')
    world.run(1.0)
    assert registry.names.name_of(thief.id, world.wall()) == ""
    _claim(world, honest, "tower")
    assert registry.names.resolve("tower", world.wall()) == honest.id
    _claim(world, thief, "tower")
    assert registry.names.resolve("tower", world.wall()) == honest.id, "no dispute either"
    assert judge.mesh.metrics.counters["names_drop_policy"] >= 2
    judge.guard.set_local(None)
    world.run(1.0)
    assert registry.names.name_of(honest.id, world.wall()) == "tower", "it was used, and is pinned"


def test_a_claim_that_is_refused_is_told_of_once_however_often_claims_are_looked_at() -> None:
    world, (judge, thief) = _nodes(2, gossip=True)
    _set(judge, '[[deny]]\nfrom = "any"\nnames = "*"')
    _claim(world, thief, "tower")
    told = judge.mesh.metrics.counters["names_drop_policy"]
    assert told >= 1
    for _ in range(5):
        judge.guard.changed()
        judge.on_dirty()
        world.run(0.5)
    assert judge.mesh.metrics.counters["names_drop_policy"] == told


def test_rules_for_a_name_follow_the_node_that_has_it() -> None:
    world, (server, client, _) = _nodes(3, gossip=True)
    _set(server, '[[allow]]\nfrom = "name:tower"\nservices = "web"')
    connection = client.connect(server.id)
    assert isinstance(_ask(world, client, connection, "web").error, PolicyDenied)
    _claim(world, client, "tower")
    assert _ask(world, client, connection, "web").read() == b"hello"


def _claim(world: World, node: SimNode, name: str) -> None:
    registry = node.mesh.registry
    assert registry is not None
    registry.names.claim(name, int(world.wall() * 1000), world.now)
    registry.drain(world.now)
    node.on_dirty()
    world.run(3.0)


def test_a_crowd_that_claims_names_has_all_that_runs_looked_at_once_a_second() -> None:
    world, (server, client, _) = _nodes(3, gossip=True)
    registry, looks = server.mesh.registry, list[float]()
    assert registry is not None
    _set(server, '[[allow]]\nfrom = "name:tower"\nservices = "web"')
    connection = client.connect(server.id)
    world.run(2.0)
    server.mesh.context.access_changed.append(looks.append)
    for number in range(150):
        crowd, ms = Identity(number.to_bytes(32, "big")), int(world.wall() * 1000)
        value = encode(ms)
        claim = sign_entry(crowd, kind=Kind.NAME, name=f"n{number}", seq=ms, issued_ms=ms, ttl=600, value=value)
        registry._take(claim, world.now)
        server.on_dirty()
        world.run(0.02)
    assert 2 <= len(looks) <= 5
    _claim(world, client, "tower")
    assert _ask(world, client, connection, "web").read() == b"hello", "and a rule about a name follows it"


class _Member:
    """A node in one topic."""

    def __init__(self, world: World, node: SimNode, topic: str) -> None:
        assert node.mesh.topic_link is not None
        self.world, self.node, self.topic = world, node, topic
        self.link = node.mesh.topic_link
        self.inbox = self.link.topics.join(topic, world.now, world.wall())
        self._drain()

    def _drain(self) -> None:
        self.link.drain(self.world.now)
        self.node.on_dirty()

    def publish(self, data: bytes) -> None:
        self.link.topics.publish(self.topic, data, self.world.now, self.world.wall())
        self._drain()
        self.world.run(2.0)

    def heard(self) -> list[bytes]:
        found = []
        while (message := self.inbox.pop()) is not None:
            found.append(message.data)
        return found


def test_what_a_node_may_not_publish_reaches_none_that_has_the_policy() -> None:
    world, nodes = _nodes(5, gossip=True)
    policy = f'[[allow]]\nfrom = "{nodes[1].id}"\npublish = "alarm"'
    for node in nodes[:4]:
        _set(node, policy)
    members = [_Member(world, node, "alarm") for node in nodes]
    world.run(10.0)
    members[1].publish(b"fire")
    members[4].publish(b"false alarm")
    assert [member.heard() for member in members] == [[b"fire"], [], [b"fire"], [b"fire"], [b"fire"]]
    assert sum(node.mesh.metrics.counters.get("topic_drop_denied", 0) for node in nodes[:4]) > 0


def test_a_node_that_may_not_subscribe_gets_no_message_and_is_parted_from() -> None:
    world, nodes = _nodes(4, gossip=True)
    members = [_Member(world, node, "plans") for node in nodes]
    world.run(10.0)
    members[0].publish(b"one")
    assert [member.heard() for member in members[1:]] == [[b"one"]] * 3
    policy = f'[[allow]]\nfrom = "any"\nsubscribe = "*"\n[[deny]]\nfrom = "{nodes[3].id}"\nsubscribe = "plans"'
    for node in nodes[:3]:
        _set(node, policy)
    world.run(5.0)
    members[0].publish(b"two")
    assert [member.heard() for member in members[1:]] == [[b"two"], [b"two"], []]
    assert all(nodes[3].id not in member.link.topics.neighbours("plans") for member in members[:3])


def test_what_may_publish_takes_part_though_no_rule_lets_it_subscribe() -> None:
    world, nodes = _nodes(3, gossip=True)
    policy = f'[[allow]]\nfrom = "{nodes[1].id}"\npublish = "t"\n[[allow]]\nfrom = "{nodes[0].id}"\nsubscribe = "t"'
    for node in nodes:
        _set(node, policy)
    members = [_Member(world, node, "t") for node in nodes[:2]]
    world.run(10.0)
    members[1].publish(b"hello")
    assert members[0].heard() == [b"hello"]
    assert not nodes[0].guard.joins(nodes[2].id, "t")
