"""Two nodes that have different ideas of their connection agree again: after a restart, and after a lost goodbye."""

from __future__ import annotations

import os
from functools import partial

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import (
    ACCEPTS_PER_ADDRESS_BURST,
    ACCEPTS_PER_NETWORK_BURST,
    HANDSHAKE_TIMEOUT_S,
    MAX_ARRIVALS_PER_PEER,
)
from meshnode.discovery.dht import watching
from meshnode.identity.keys import Identity
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import CloseCode
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack import peer_table
from meshnode.stack.probe import NO_HANDLE, connection_tag


def _three(seed: int, jitter: float) -> tuple[World, list[SimNode], list[Identity]]:
    world = World(seed, Weather(delay=0.02, jitter=jitter))
    engines = pick_engine("auto")
    identities = [Identity(world.entropy(32)) for _ in range(3)]
    nodes = [
        SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, identity=identity)
        for i, identity in enumerate(identities)
    ]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(2.0)
    return world, nodes, identities


def _is_connected(one: SimNode, other: SimNode) -> bool:
    session = one.mesh.sessions.get(other.id)
    return session is not None and session.connection is not None


def _dial(one: SimNode, other: SimNode) -> None:
    one.mesh.connect(other.id, one.world.now, lambda _: None)
    one.on_dirty()


def test_a_late_answer_about_the_old_connection_does_not_end_the_new_one() -> None:
    for seed in range(40):
        world, (first, a, b), identities = _three(seed, 0.02)
        one, other = (a, b) if seed % 2 else (b, a)
        one.connect(other.id)
        old = a.mesh.sessions[b.id].connection
        assert old is not None
        world.run(world.rng.uniform(1.0, 4.0))
        b.kill()
        world.run(world.rng.uniform(1.0, 4.0))
        again = SimNode(world, b.addr.host, pick_engine("auto"), identity=identities[2])
        again.join(first)

        def ask(a: SimNode = a, b: SimNode = again, old: Connection = old, world: World = world) -> None:
            if old.state is State.READY:
                a.mesh.ping(old, 2.0, world.now, lambda _: _dial(a, b))
                a.on_dirty()

        asked = world.now + 0.3
        for number in range(3):
            world.at(asked + 0.01 * number, ask)
        world.at(asked + world.rng.uniform(-0.15, 0.1), partial(_dial, again, a))
        world.run(1.3)
        assert _is_connected(again, a), seed
        assert _is_connected(a, again), seed


def test_a_peer_that_restarts_in_the_middle_of_a_dial_is_dialled_again() -> None:
    for seed in range(20):
        world, (first, a, b), identities = _three(seed, 0.005)
        came: list[float] = []
        a.mesh.connect(b.id, world.now, lambda _, came=came, world=world: came.append(world.now))  # type: ignore[misc]
        a.on_dirty()
        session = a.mesh.sessions[b.id]
        assert world.run(0.5, lambda s=session: s.dial is not None and s.dial.bytes_in > 0)  # type: ignore[misc]
        b.kill()
        world.run(world.rng.uniform(0.0, 1.0))
        again = SimNode(world, b.addr.host, pick_engine("auto"), identity=identities[2])
        again.join(first)
        if seed % 2:
            world.at(world.now + world.rng.uniform(0.0, 0.3), partial(_dial, again, a))
        began = world.now
        world.run(1.5)
        assert _is_connected(a, again), seed
        assert _is_connected(again, a), seed
        assert came, seed
        assert came[0] - began < 1.0, seed


def test_a_peer_that_begins_after_the_dial_did_is_dialled_again() -> None:
    for seed in range(20):
        world, (first, a, b), identities = _three(seed, 0.005)
        a.connect(b.id)
        a.mesh.sessions[b.id].connection.close(CloseCode.NORMAL)  # type: ignore[union-attr]
        b.kill()
        came: list[object] = []
        a.mesh.connect(b.id, world.now, came.append)
        a.on_dirty()
        world.run(world.rng.uniform(0.2, 2.0))
        host = b.addr.host if seed % 2 else "10.0.1.1"
        again = SimNode(world, host, pick_engine("auto"), identity=identities[2])
        again.join(first)
        world.run(2.0)
        assert _is_connected(a, again), seed
        assert _is_connected(again, a), seed
        assert [type(each) for each in came] == [Connection], seed


def test_a_dial_finds_a_peer_that_publishes_its_new_address_only_later() -> None:
    for seed in range(10):
        world, (first, a, b), _ = _three(seed, 0.002)
        for other in (first, a):
            world.partition("10.0.9.9", other.addr.host, cut=True)
        b.move("10.0.9.9")
        _dial(a, b)
        world.run(world.rng.uniform(2.0, 3.0))
        assert not _is_connected(a, b), seed
        for other in (first, a):
            world.partition("10.0.9.9", other.addr.host, cut=False)
        world.run(1.5)
        assert _is_connected(a, b), seed


def test_a_dial_that_may_not_watch_looks_its_peer_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "DHT_MAX_WATCHED", 0)
    for seed in range(10):
        world, (first, a, b), _ = _three(seed, 0.002)
        for other in (first, a):
            world.partition("10.0.9.9", other.addr.host, cut=True)
        b.move("10.0.9.9")
        _dial(a, b)
        began = world.now
        world.run(world.rng.uniform(2.6, 3.5))
        assert not _is_connected(a, b), seed
        for other in (first, a):
            world.partition("10.0.9.9", other.addr.host, cut=False)
        world.run(began + HANDSHAKE_TIMEOUT_S - world.now)
        assert _is_connected(a, b), seed


def test_peers_that_come_by_themselves_take_at_most_half_of_the_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "DHT_MAX_WATCHED", 8)
    world = World(1, Weather(delay=0.002))
    engines = pick_engine("auto")
    seed, victim, friend = (SimNode(world, f"10.0.0.{n}", engines) for n in (1, 2, 3))
    crowd = [SimNode(world, f"10.0.{n}.1", engines) for n in range(10, 22)]
    for node in (victim, friend, *crowd):
        node.join(seed)
    world.run(2.0)
    for node in crowd:
        node.open(node.connect(victim.id))
    world.run(2.0)
    watched = victim.mesh.context.records.dht.dht._watching._watched
    assert len(watched) <= 4
    victim.open(victim.connect(friend.id))
    world.run(1.0)
    assert friend.id.dht_key in watched


def test_a_dial_meets_a_peer_as_soon_as_it_has_published() -> None:
    waits = []
    for seed in range(20):
        world, (first, a, _), _ = _three(seed, 0.002)
        late = SimNode(world, "10.0.0.9", pick_engine("auto"))
        came: list[float] = []
        a.mesh.connect(late.id, world.now, lambda _, came=came, world=world: came.append(world.now))  # type: ignore[misc]
        a.on_dirty()
        world.run(world.rng.uniform(0.15, 2.0))
        began = world.now
        late.join(first)
        world.run(2.0)
        assert _is_connected(a, late), seed
        waits.append(came[0] - began)
    assert max(waits) < 0.4, waits


def test_an_echo_on_a_connection_that_ends_is_lost_at_once() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    connection = a.connect(b.id)
    world.partition(a.addr.host, b.addr.host, cut=True)
    lost: list[float] = []
    a.mesh.ping(connection, 2.0, world.now, lambda outcome: lost.append(world.now))
    connection.close(CloseCode.NORMAL)
    assert lost == [world.now]


def test_a_lost_goodbye_keeps_no_peer_from_connecting_again() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    smaller, larger = sorted((a, b), key=lambda node: node.id)
    smaller.connect(larger.id)
    world.run(1.0)
    world.partition(a.addr.host, b.addr.host, cut=True)
    closed = larger.mesh.sessions[smaller.id].connection
    assert closed is not None
    closed.close(CloseCode.NORMAL)
    larger.on_dirty()
    world.run(0.5)
    world.partition(a.addr.host, b.addr.host, cut=False)
    assert _is_connected(smaller, larger), "it knows of no end"
    larger.connect(smaller.id, 0.5)
    world.run(0.2)
    assert _is_connected(smaller, larger)
    assert _is_connected(larger, smaller)


def test_of_two_dials_one_connection_stays() -> None:
    for seed in range(20):
        world, (_, a, b), _ = _three(seed, 0.01)
        for one, other in ((a, b), (b, a)):
            world.at(world.now + world.rng.uniform(0.0, 0.08), partial(_dial, one, other))
        world.run(2.0)
        ends = [one.mesh.sessions[other.id].connection for one, other in ((a, b), (b, a))]
        assert connection_tag(ends[0]) == connection_tag(ends[1]) != NO_HANDLE


def _first_flight(sender: SimNode, to: SimNode) -> bytes:
    """The first datagram of a dial with a valid knock, as a peer sends it that never answers what comes back."""
    sealer = sender.mesh.context.sealer
    engine = pick_engine("auto").dial(
        sender.mesh.context.identity, to.id, lambda odcid: sealer.knock(to.id, odcid), 30.0, sender.world.now
    )
    return engine.transmit(sender.world.now)[0]


def _counts(node: SimNode) -> tuple[int, int, int]:
    """First flights that were accepted, kept aside, and dropped because there were too many."""
    counters = node.mesh.metrics.counters
    names = ("accepts", "simultaneous_dial_held", "drop_arrivals_full")
    return tuple(counters.get(name, 0) for name in names)  # type: ignore[return-value]


def test_one_peer_holds_no_more_than_four_half_open_connections_here_and_only_until_they_time_out() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    before = _counts(b)
    elsewhere = Addr("10.0.9.1", 1)  # nothing there answers
    for _ in range(20):
        b.receive(_first_flight(a, b), elsewhere)
    accepted, held, full = (after - was for after, was in zip(_counts(b), before, strict=True))
    assert (accepted, held, full) == (MAX_ARRIVALS_PER_PEER, 0, 20 - MAX_ARRIVALS_PER_PEER)
    world.run(HANDSHAKE_TIMEOUT_S + 0.1)
    a.connect(b.id, 1.0)
    assert _is_connected(b, a)


def test_while_our_own_dial_has_precedence_one_first_flight_is_kept_aside_and_the_next_does_not_replace_it() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    smaller, larger = sorted((a, b), key=lambda node: node.id)
    world.partition(smaller.addr.host, larger.addr.host, cut=True)
    _dial(smaller, larger)
    world.run(0.05)
    before = _counts(smaller)
    flights = [_first_flight(larger, smaller) for _ in range(20)]
    for flight in (*flights, *flights):
        smaller.receive(flight, Addr("10.0.9.1", 1))
    accepted, held, full = (after - was for after, was in zip(_counts(smaller), before, strict=True))
    assert held == 1, "the first of them, and each time it comes again it is the same"
    assert accepted == MAX_ARRIVALS_PER_PEER
    assert full > 0
    world.partition(smaller.addr.host, larger.addr.host, cut=False)
    world.run(2.0)
    assert _is_connected(smaller, larger)
    assert _is_connected(larger, smaller)


def _throw_away(world: World, to: SimNode) -> bytes:
    """A first flight of an id that nothing is known of, and that never answers."""
    identity = Identity(world.entropy(32))
    sealer = Sealer(identity, MeshKey.from_text("sim"), to.mesh.context.clock, os.urandom, born=0)
    engine = pick_engine("auto").dial(identity, to.id, lambda odcid: sealer.knock(to.id, odcid), 30.0, world.now)
    return engine.transmit(world.now)[0]


def test_throw_away_ids_take_neither_a_newcomers_place_nor_a_connected_peers() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    for n in range(300):
        b.receive(_throw_away(world, b), Addr("10.0.9.1", 1 + n % 50))
    counters = b.mesh.metrics.counters
    assert counters["accepts"] <= ACCEPTS_PER_NETWORK_BURST + 10
    assert counters["drop_accepts_slowed"] >= 300 - ACCEPTS_PER_NETWORK_BURST - 10
    a.connect(b.id, 1.0)  # from another network
    assert _is_connected(b, a)
    for _ in range(int(ACCEPTS_PER_ADDRESS_BURST)):
        b.receive(_throw_away(world, b), Addr("10.0.9.1", 1))
    before = counters["accepts"]
    for _ in range(MAX_ARRIVALS_PER_PEER):
        b.receive(_first_flight(a, b), Addr("10.0.9.1", 1))  # a peer with a connection spends no token, wherever it is
    assert counters["accepts"] == before + MAX_ARRIVALS_PER_PEER


def test_throw_away_ids_at_one_socket_take_no_place_of_a_newcomer_beside_it() -> None:
    world, (_, a, b), _ = _three(1, 0.002)
    for _ in range(300):
        b.receive(_throw_away(world, b), Addr("10.0.0.9", 1))  # of the newcomer's own network
    counters = b.mesh.metrics.counters
    assert counters["accepts"] <= ACCEPTS_PER_ADDRESS_BURST + 10
    assert "half_open_pushed_out" not in counters
    a.connect(b.id, 1.0)
    assert _is_connected(b, a)


def test_connections_of_ever_new_ids_keep_out_no_newcomer_and_end_no_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_table, "MAX_PEERS_ACCEPTED", 4)
    world = World(5, Weather(delay=0.005))
    engines = ModelEngines(world.entropy)
    node = SimNode(world, "10.0.1.1", engines, seed_role=True, gossip=False)

    def joined(host: str) -> SimNode:
        other = SimNode(world, host, engines, gossip=False)
        other.join(node)
        _dial(other, node)
        world.run(0.5)
        return other

    first = joined("10.0.2.9")
    flood = [joined(f"10.0.2.{n}") for n in range(10, 18)]  # a newcomer's connection each, of one network
    assert [_is_connected(each, node) for each in flood].count(True) == 3
    newcomers = [joined(host) for host in ("10.0.3.1", "10.0.4.1")]
    assert all(_is_connected(node, each) and _is_connected(each, node) for each in (first, *newcomers))
    assert len(node.mesh.context.peers.accepted) == 4
    assert node.mesh.metrics.counters["connections_pushed_out"] == 5 + 2


def test_a_first_flight_that_is_too_many_costs_no_key_agreement() -> None:
    world, (_, _, b), _ = _three(1, 0.002)
    known = len(b.mesh.context.identity._shared)
    for _ in range(300):
        b.receive(_throw_away(world, b), Addr("10.0.0.9", 1))
    assert len(b.mesh.context.identity._shared) - known <= ACCEPTS_PER_ADDRESS_BURST + 1
