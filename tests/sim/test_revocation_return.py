"""A node that comes back, after weeks or a partition, hears of revocations before it serves: also where peers lie."""

from __future__ import annotations

import pytest

from meshnode.base.limits import AWAY_S, HELD_STREAMS_OF_PEER, REVOCATION_QUORUM
from meshnode.discovery.dht import lookups
from meshnode.errors import PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.quic.stream import Stream
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import revocation_wait
from meshnode.trust.authority import Issuer
from meshnode.trust.grant import Delegation
from meshnode.trust.revocation import RevocationError, dht_key_of, sign_revocation
from meshnode.trust.revocations import Revocations
from meshnode.trust.signed_policy import sign_policy
from meshnode.trust.succession import open_links
from tests.sim.revoked import (
    AUTHORITY,
    DAY,
    MS,
    STRANGER,
    knows,
    link_of,
    make_grant,
    make_node,
    now_ms,
    open_stream,
    revocation_of,
    say,
    suppress,
)

WAIT = 5.0


def _world(seed: int = 5) -> World:
    return World(seed, Weather(delay=0.02))


def _served(node: SimNode) -> list[Stream]:
    opened: list[Stream] = []
    node.on_stream_opened = opened.append
    return opened


def _come(world: World, node: SimNode, *others: SimNode) -> None:
    """Have nodes connect to one, which knows nothing of them."""
    for other in others:
        other.join(node)
        other.connect(node.id)
    world.run(0.3)


def _mute(node: SimNode) -> None:
    """Have a node neither say nor hear anything of revocations on its connections."""
    suppress(node)
    link = link_of(node)
    hooks = node.mesh.context.hooks
    hooks.link = [hook for hook in hooks.link if hook != link.on_link]


def test_a_stream_waits_until_as_many_others_as_it_needs_have_told_what_is_revoked() -> None:
    world = _world()
    client, back = make_node(world), make_node(world, was_away=True)
    friends = [make_node(world) for _ in range(REVOCATION_QUORUM)]
    opened = _served(back)
    _come(world, back, *friends[:-1])
    client.join(back)
    open_stream(world, client, back)
    assert not opened
    assert back.mesh.context.revoking.waits
    _come(world, back, friends[-1])
    assert world.run(0.5, lambda: bool(opened))


def test_a_stream_waits_for_the_policy_that_came_while_the_node_was_away_too() -> None:
    def policy(version: int, services: str) -> bytes:
        names = ", ".join(f'"other-{number}-{"x" * 40}"' for number in range(60))  # it comes in several parts
        rest = "".join(f'[[allow]]\nfrom = "any"\nservices = [{names}]\n' for _ in range(18))
        text = f'version = {version}\n[[allow]]\nfrom = "any"\nservices = "{services}"\n{rest}'
        return sign_policy(AUTHORITY, text.encode()).encoded

    world = _world()
    client, back = make_node(world), make_node(world, was_away=True)
    friends = [make_node(world) for _ in range(REVOCATION_QUORUM)]
    opened = _served(back)
    back.mesh.context.policies.adopt(policy(1, "*"))
    for friend in friends:
        friend.mesh.context.policies.adopt(policy(2, "web"))
    client.join(back)
    _, stream = open_stream(world, client, back)
    for friend in friends:
        friend.join(back)
        friend.mesh.connect(back.id, world.now, lambda result: None)
        friend.on_dirty()
    assert world.run(WAIT - 0.5, lambda: back.mesh.context.policies.version == 2)
    world.run(1.0)
    assert opened == []
    assert isinstance(stream.error, PolicyDenied)
    assert back.mesh.context.policies.is_current


def test_openers_with_more_targets_than_are_looked_up_at_once_wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation_wait, "REVOCATION_LOOKUPS", 1)
    world = _world()
    client, back = make_node(world), make_node(world, was_away=True)
    opened = _served(back)
    _come(world, back, *(make_node(world) for _ in range(REVOCATION_QUORUM)))
    client.join(back)
    open_stream(world, client, back)
    assert world.run(1.0, lambda: bool(opened))


def test_a_liar_that_answers_first_does_not_release_the_wait() -> None:
    world = _world()
    thief, liar, friend = make_node(world), make_node(world), make_node(world)
    back = make_node(world, was_away=True)
    opened = _served(back)
    say(friend, revocation_of(world, thief))
    _come(world, back, liar)
    thief.join(back)
    connection, _ = open_stream(world, thief, back)
    world.run(1.0)
    _come(world, back, friend)
    assert world.run(1.0, lambda: isinstance(connection.error, PolicyDenied))
    world.run(2 * WAIT)
    assert opened == []


def test_one_peer_that_has_not_told_yet_keeps_the_wait_however_many_others_have() -> None:
    world = _world()
    client, mute = make_node(world), make_node(world)
    back = make_node(world, was_away=True)
    friends = [make_node(world) for _ in range(REVOCATION_QUORUM + 1)]
    opened = _served(back)
    _mute(mute)
    _come(world, back, mute, *friends)
    client.join(back)
    open_stream(world, client, back)
    assert not opened
    mute.kill()
    back.mesh.context.peers.connection(mute.id).close(0, "gone")  # type: ignore[union-attr]
    back.on_dirty()
    assert world.run(0.5, lambda: bool(opened))


def test_the_wait_has_an_end_where_no_other_node_is_there() -> None:
    world = _world()
    client, back = make_node(world), make_node(world, was_away=True)
    opened = _served(back)
    client.join(back)
    open_stream(world, client, back)
    assert not opened
    assert world.run(WAIT, lambda: bool(opened))
    assert not back.mesh.context.revoking.waits


def test_a_node_that_only_restarted_waits_for_nothing() -> None:
    world = _world()
    client, server = make_node(world), make_node(world)
    opened = _served(server)
    client.join(server)
    open_stream(world, client, server)
    assert opened


def _back_among_liars(world: World, said: bytes) -> SimNode:
    """Return a node that was away, all of whose neighbours lie; twelve honest members are in the DHT only."""
    seed = make_node(world, seed_role=True)
    honest = [make_node(world, gossip=False) for _ in range(12)]
    for node in honest:
        node.join(seed)
    world.run(5.0)
    honest[0].mesh.context.revoking.take(said)
    honest[0].on_dirty()
    world.run(5.0)
    back = make_node(world, was_away=True, gossip=False)
    liars = [make_node(world, gossip=False) for _ in range(REVOCATION_QUORUM)]
    for liar in (*liars, seed):
        link_of(liar)._add = lambda *args: False  # type: ignore[method-assign]
        link_of(liar).held = Revocations(AUTHORITY.id)
    back.join(seed)
    _come(world, back, *liars)
    return back


@pytest.mark.parametrize("what", ["its key", "its delegate", "its grant", "a key that it has replaced"])
def test_a_revocation_that_every_neighbour_keeps_back_is_found_in_the_dht(what: str) -> None:
    world = _world(7)
    delegate, key = Identity(world.entropy(32)), Identity(world.entropy(32))
    right = Delegation(("member",), None, 2, MS + DAY)
    old = world.entropy(32)
    chain = make_grant(world, key, Issuer(delegate, make_grant(world, delegate, delegation=right)), lineage=(old,))
    thief = make_node(world, identity=key, grants=chain, gossip=False)
    grant = bytes.fromhex(open_links(chain)[-1].id)
    targets = {"its key": bytes(key.id), "its delegate": bytes(delegate.id), "its grant": grant}
    target = targets.get(what, old)
    back = _back_among_liars(world, sign_revocation(AUTHORITY, target, time=now_ms(world)).encoded)
    opened = _served(back)
    thief.join(back)
    connection, _ = open_stream(world, thief, back)
    assert world.run(3.0, lambda: isinstance(connection.error, PolicyDenied))
    assert opened == []


def test_a_dht_that_has_no_room_for_the_question_is_asked_as_soon_as_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _world(7)
    thief = make_node(world, gossip=False)
    back = _back_among_liars(world, revocation_of(world, thief).encoded)
    opened = _served(back)
    thief.join(back)
    with monkeypatch.context() as busy:
        busy.setattr(lookups, "DHT_MAX_LOOKUPS", 0)
        connection, _ = open_stream(world, thief, back)
        world.run(1.0)
    assert opened == []
    assert connection.error is None
    assert world.run(2.0, lambda: isinstance(connection.error, PolicyDenied))
    assert opened == []


def _connected_alone(world: World) -> tuple[SimNode, SimNode]:
    client, server = make_node(world), make_node(world)
    client.join(server)
    open_stream(world, client, server)
    return client, server


@pytest.mark.parametrize(("seconds", "waits"), [(AWAY_S - 60.0, False), (AWAY_S + 1_200.0, True)])
def test_a_node_that_was_cut_off_from_all_others_waits_as_one_that_was_off(seconds: float, waits: bool) -> None:
    world = _world()
    client, server = _connected_alone(world)
    connection = server.mesh.context.peers.connection(client.id)
    assert connection is not None
    client.kill()
    connection.close(0, "gone")
    server.on_dirty()
    world.run(seconds)
    late = make_node(world, host="10.0.0.9")
    late.join(server)
    opened = _served(server)
    open_stream(world, late, server)
    assert server.mesh.context.revoking.waits == waits
    assert bool(opened) == (not waits)


@pytest.mark.parametrize(("step", "waits"), [(AWAY_S - 60.0, False), (AWAY_S + 60.0, True), (-AWAY_S - 60.0, False)])
def test_a_host_that_slept_asks_its_peers_again(step: float, waits: bool) -> None:
    world = _world()
    client, server = _connected_alone(world)
    friends = [make_node(world) for _ in range(REVOCATION_QUORUM)]
    _come(world, server, *friends)
    server.clock.error += step
    server.mesh.tick(world.now)
    assert server.mesh.context.revoking.waits == waits
    opened = _served(server)
    if waits:
        world.run(2 * WAIT)
        _mute(client)
        server.clock.error += step
        server.mesh.tick(world.now)
        open_stream(world, friends[0], server)
        assert not opened, "one of them has not told yet"
    else:
        open_stream(world, friends[0], server)
        assert opened


def test_a_stream_that_comes_before_the_first_tick_behind_a_sleep_of_the_host_waits_too() -> None:
    world = _world()
    client, server = _connected_alone(world)
    opened = _served(server)
    server.clock.error += AWAY_S + 60.0
    looks, server.mesh.looks = server.mesh.looks, []  # no tick has looked at the clocks yet
    open_stream(world, client, server)
    assert not opened
    assert server.mesh.metrics.counters["streams_held_for_revocations"] == 1
    server.mesh.looks = looks
    server.mesh.tick(world.now)
    assert server.mesh.metrics.counters["clock_steps"] == 1
    assert not opened, "the tick finds the same step, and the wait goes on"
    assert world.run(WAIT, lambda: bool(opened))


def test_configured_seeds_are_dialled_and_heard_before_a_stream_goes_on() -> None:
    world = _world()
    seed, thief = make_node(world, seed_role=True, gossip=False), make_node(world, gossip=False)
    say(seed, revocation_of(world, thief))
    back = make_node(world, was_away=True, gossip=False)
    opened = _served(back)
    liars = [make_node(world, gossip=False) for _ in range(REVOCATION_QUORUM)]
    _come(world, back, *liars)
    seed.mesh.dht._shared.kept.find = lambda key: b""  # type: ignore[method-assign]  # it tells by its connection
    world.partition(seed.addr.host, back.addr.host, cut=True)
    back.join(seed)
    thief.join(back)
    connection, _ = open_stream(world, thief, back)
    world.partition(seed.addr.host, back.addr.host, cut=False)
    assert world.run(2.0, lambda: isinstance(connection.error, PolicyDenied))
    assert back.mesh.context.peers.connection(seed.id) is not None
    assert opened == []


def test_a_peer_holds_its_share_of_the_waiting_streams_and_no_more() -> None:
    world = _world()
    client, back = make_node(world), make_node(world, was_away=True)
    client.join(back)
    connection = client.connect(back.id)
    streams = [client.open(connection, "db")[0] for _ in range(HELD_STREAMS_OF_PEER + 3)]
    for stream in streams:
        stream.write(b"hello")
    client.on_dirty()
    world.run(1.0)
    assert sum(stream.error is not None for stream in streams) == 3


def test_peers_that_hold_all_waiting_streams_together_leave_another_one_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshnode.stack.revocation_wait.HELD_STREAMS", 4)
    world = _world()
    back, clients = make_node(world, was_away=True), [make_node(world) for _ in range(3)]
    streams = []
    for client, count in zip(clients, (3, 3, 1), strict=True):
        client.join(back)
        connection = client.connect(back.id)
        of_client = [client.open(connection, "db")[0] for _ in range(count)]
        for stream in of_client:
            stream.write(b"hello")
        streams.append(of_client)
        client.on_dirty()
        world.run(0.2)
    world.run(0.5)
    assert [sum(stream.error is None for stream in of_client) for of_client in streams] == [1, 2, 1]


def test_what_was_kept_counts_though_the_clock_was_set_back_since() -> None:
    world = _world()
    thief = make_node(world)
    made = sign_revocation(AUTHORITY, bytes(thief.id), time=now_ms(world) + 3_600_000)
    back = make_node(world)
    link_of(back).restore([b"junk", made.encoded])
    assert knows(back, thief)
    assert not back.mesh.context.revoking.waits
    other = make_node(world)
    with pytest.raises(RevocationError):
        other.mesh.context.revoking.take(made.encoded)


def test_a_node_that_has_lost_what_it_kept_waits_as_one_that_was_away() -> None:
    world = _world()
    back = make_node(world)
    link_of(back).restore(None)
    assert back.mesh.context.revoking.waits


# ---- in the DHT


def _store(world: World, node: SimNode, encoded: bytes) -> None:
    statements = node.mesh.context.records.statements
    assert statements is not None
    statements.publish_statement(dht_key_of(b"x"), encoded, world.now)
    node.on_dirty()
    world.run(2.0)


def test_a_revocation_reaches_a_node_by_the_dht_alone() -> None:
    world = _world()
    one, other, thief = (make_node(world, gossip=False) for _ in range(3))
    other.join(one)
    world.run(3.0)
    _mute(other)
    say(one, revocation_of(world, thief))
    assert world.run(2.0, lambda: knows(other, thief))
    assert other.mesh.metrics.counters["dht_statements"] == 1


def test_a_statement_that_does_not_hold_is_refused_and_one_that_comes_too_fast_too() -> None:
    world = _world()
    one, other, thief = (make_node(world, gossip=False) for _ in range(3))
    other.join(one)
    world.run(3.0)
    _store(world, one, sign_revocation(STRANGER, bytes(thief.id), time=now_ms(world)).encoded)
    counters = other.mesh.metrics.counters
    assert counters["dht_statements_refused"] == 1
    assert not knows(other, thief)
    keys = [Identity(world.entropy(32)) for _ in range(80)]
    for key in keys:
        statements = one.mesh.context.records.statements
        assert statements is not None
        said = sign_revocation(AUTHORITY, bytes(key.id), time=now_ms(world)).encoded
        statements.publish_statement(dht_key_of(bytes(key.id)), said, world.now)
    one.on_dirty()
    world.run(3.0)
    assert 50 <= counters["dht_statements"] < 70
    assert counters["dht_statements_refused"] >= 10


def test_a_statement_of_another_key_is_junk_and_one_from_the_future_is_no_fault() -> None:
    world = _world()
    one, thief = make_node(world, gossip=False), make_node(world, gossip=False)
    said = revocation_of(world, thief)
    kept = one.mesh.dht._shared.kept.of(said.encoded)
    assert kept is not None
    assert not kept.put(said.encoded, dht_key_of(b"another"))
    assert not knows(one, thief)
    future = sign_revocation(AUTHORITY, bytes(thief.id), time=now_ms(world) + DAY)
    assert kept.put(future.encoded, dht_key_of(bytes(thief.id)))
    assert not knows(one, thief)
    assert kept.put(said.encoded, dht_key_of(bytes(thief.id)))
    assert knows(one, thief)
    assert kept.put(said.encoded, dht_key_of(bytes(thief.id))), "what it knows already is no junk"
    assert not kept.put(said.encoded, dht_key_of(b"another"))
    assert kept.find(dht_key_of(bytes(thief.id))) == said.encoded
    assert kept.find(dht_key_of(b"another")) == b""
