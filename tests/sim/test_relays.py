"""Relays in virtual time: first contact, upgrade, failure, liars and limits."""

from __future__ import annotations

from itertools import pairwise

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_RELAYS_NAMED, RELAY_RETRY_S
from meshnode.identity.keys import Identity
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream
from meshnode.relay.frames import label
from meshnode.relay.server import RelayLimits, RelayServer
from meshnode.sim.link import ModelEngines
from meshnode.sim.nat import Nat
from meshnode.sim.world import Inbox, SimNode, Weather, World
from meshnode.stack.relay_client import MAX_RETRY_S


def _mesh(seed: int = 1, relays: int = 2) -> tuple[World, list[SimNode], SimNode, SimNode]:
    """Two relays, and two nodes that reach them but not each other."""
    world = World(seed, Weather(delay=0.02))
    engines = pick_engine("auto")
    seeds = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=True) for i in range(relays)]
    here, there = (SimNode(world, f"10.0.0.{i}", engines) for i in (11, 12))
    for node in (here, there):
        for seed_node in seeds:
            node.join(seed_node)
    world.run(3.0)
    world.partition(here.addr.host, there.addr.host, cut=True)
    return world, seeds, here, there


def _count(world: World, stream: Stream, beats: int) -> None:
    """Write numbers at 100 Hz."""
    sent = 0

    def beat() -> None:
        nonlocal sent
        stream.write(sent.to_bytes(8, "big"))
        sent += 1
        if sent < beats:
            world.at(world.now + 0.01, beat)

    beat()


def _complete(inbox: Inbox, beats: int) -> bool:
    return bytes(inbox.data) == b"".join(n.to_bytes(8, "big") for n in range(beats))


def _gap(inbox: Inbox, since: float) -> float:
    return max(b - a for a, b in pairwise(inbox.times) if b > since)


def _path(here: SimNode, there: SimNode) -> str:
    paths = here.mesh.sessions[there.id].paths
    assert paths.active is not None
    return paths.book.kind(paths.active)


def test_a_peer_that_cannot_be_reached_is_reached_through_a_relay_at_once() -> None:
    world, _, here, there = _mesh()
    began = world.now
    connection = here.connect(there.id)
    stream, inbox = here.open(connection)
    stream.write(b"hello")
    assert world.run(2.0, lambda: bytes(inbox.data) == b"hello")
    assert world.now - began < 0.5
    assert _path(here, there) == _path(there, here) == "relay"


def test_a_relay_reads_nothing_and_what_it_forges_is_dropped() -> None:
    world, seeds, here, there = _mesh()
    relays = {node.addr.host for node in seeds}
    passed: list[bytes] = []
    forging, deliver = False, world.deliver

    def relayed(source: Addr, to: Addr, datagram: bytes, nat: Nat | None = None) -> None:
        if to.host in relays or source.host in relays:
            passed.append(datagram)
        if (
            forging and source.host in relays and len(datagram) > 60
        ):  # the relay has the keys of its frames, not of these
            deliver(source, to, datagram[:-20] + bytes([datagram[-20] ^ 1]) + datagram[-19:], nat)
        deliver(source, to, datagram, nat)

    world.deliver = relayed  # type: ignore[method-assign]
    stream, inbox = here.open(here.connect(there.id))
    said = b"only for the other end " * 200
    for forging in (False, True):
        stream.write(said)
        expected = said * (1 + forging)
        assert world.run(5.0, lambda expected=expected: bytes(inbox.data) == expected)  # type: ignore[misc]
    assert _path(here, there) == "relay"
    assert sum(map(len, passed)) > len(said)
    assert not [data for data in passed if said[:12] in data]


def test_a_dead_relay_is_left_for_the_other_and_nothing_is_lost() -> None:
    world, seeds, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 400)
    world.run(1.0)
    active = str(here.mesh.sessions[there.id].paths.active)
    died = world.now
    next(s for s in seeds if str(s.id) in active).kill()
    world.run(8.0)
    assert _complete(inbox, 400)
    assert _gap(inbox, died) < 0.5
    assert _path(here, there) == "relay"


def test_a_direct_path_replaces_the_relay_without_a_pause() -> None:
    world, _, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 2000)
    world.run(1.0)
    opened = world.now
    world.partition(here.addr.host, there.addr.host, cut=False)
    assert world.run(10.0, lambda: _path(here, there) != "relay" and _path(there, here) != "relay")
    world.run(20.0)
    assert _complete(inbox, 2000)
    assert _gap(inbox, opened) < 0.05


def test_a_direct_path_that_dies_falls_back_to_the_relay() -> None:
    world, _, here, there = _mesh()
    world.partition(here.addr.host, there.addr.host, cut=False)
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 400)
    world.run(1.0)
    assert _path(here, there) == "direct"
    died = world.now
    world.partition(here.addr.host, there.addr.host, cut=True)
    world.run(8.0)
    assert _complete(inbox, 400)
    assert _gap(inbox, died) < 0.5
    assert _path(here, there) == "relay"


def test_a_relayed_stream_survives_the_moves_of_both_clients_and_of_the_relay() -> None:
    world, seeds, here, there = _mesh(relays=1)
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 800)
    world.run(1.0)
    for count, movers in enumerate(([here, there], [seeds[0]], [here])):
        world.partition(here.addr.host, there.addr.host, cut=False)
        for mover in movers:
            mover.move(f"10.1.{count}.{mover.addr.host.rpartition('.')[2]}")
        world.partition(here.addr.host, there.addr.host, cut=True)
        world.run(2.0)
    world.run(10.0)
    assert _complete(inbox, 800)


def test_a_relay_that_drops_half_is_left_within_two_seconds() -> None:
    world, seeds, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 600)
    world.run(1.0)
    active = str(here.mesh.sessions[there.id].paths.active)
    liar = next(s for s in seeds if str(s.id) in active)
    outbox = liar.send

    def lossy(addr, datagrams):  # type: ignore[no-untyped-def]
        return outbox(addr, [d for d in datagrams if d[0] != 0x02 or world.rng.random() < 0.5])

    liar.mesh.context.link.send = lossy  # type: ignore[method-assign]
    assert world.run(2.0, lambda: str(here.mesh.sessions[there.id].paths.active) != active)
    world.run(10.0)
    assert _complete(inbox, 600)


def test_a_relay_that_delays_is_left_within_two_seconds() -> None:
    world, seeds, here, there = _mesh()
    stream, inbox = here.open(here.connect(there.id))
    _count(world, stream, 600)
    world.run(1.0)
    active = str(here.mesh.sessions[there.id].paths.active)
    liar = next(s for s in seeds if str(s.id) in active)
    outbox = liar.send

    def late(addr, datagrams):  # type: ignore[no-untyped-def]
        for datagram in datagrams:
            world.at(world.now + (0.15 if datagram[0] == 0x02 else 0), lambda d=datagram: outbox(addr, [d]))  # type: ignore[misc]
        return True

    liar.mesh.context.link.send = late  # type: ignore[method-assign]
    assert world.run(2.0, lambda: str(here.mesh.sessions[there.id].paths.active) != active)
    world.run(10.0)
    assert _complete(inbox, 600)


def test_a_relay_that_is_gone_is_dialled_ever_more_rarely_and_asked_when_it_is_back() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    gone, other = (SimNode(world, f"10.0.0.{n}", engines, seed_role=True) for n in (1, 2))
    node = SimNode(world, "10.0.0.3", engines)
    gone.kill()
    node.join(gone)
    node.join(other)
    dialled: list[float] = []
    begin = node.mesh.context.dials.connect
    note = lambda peer, *rest: (dialled.append(world.now) if peer == gone.id else None, begin(peer, *rest))[1]  # noqa: E731
    node.mesh.context.dials.connect = note  # type: ignore[method-assign]
    world.run(1_500.0)
    waits = [b - a for a, b in pairwise(dialled)]
    assert waits[0] < 30.0
    assert MAX_RETRY_S < waits[-1] < MAX_RETRY_S + 30.0
    tried = len(dialled)
    back = SimNode(world, gone.addr.host, engines, seed_role=True, identity=gone.mesh.context.identity)
    back.join(node)
    back.connect(node.id)
    world.run(3.0)
    assert {one["relay"]: one["granted"] for one in _held(node)} == {str(back.id): True, str(other.id): True}
    assert len(dialled) == tried + 1


def test_a_relay_that_could_not_be_reached_is_asked_again_after_a_move() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    blocked, other, node = (SimNode(world, f"10.0.0.{n}", engines, seed_role=n < 3) for n in (1, 2, 3))
    world.partition(blocked.addr.host, node.addr.host, cut=True)
    node.join(blocked)
    node.join(other)
    world.run(1_500.0)
    node.move("10.0.0.4")
    assert world.run(5.0, lambda: all(one["granted"] for one in _held(node)) and len(_held(node)) == 2)


def test_a_relay_is_dialled_again_soon_where_no_other_node_is_heard() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    gone, node = (SimNode(world, f"10.0.0.{n}", engines, seed_role=n == 1) for n in (1, 2))
    gone.kill()
    node.join(gone)
    world.run(1_500.0)
    SimNode(world, gone.addr.host, engines, seed_role=True, identity=gone.mesh.context.identity)
    assert world.run(RELAY_RETRY_S + 10.0, lambda: any(one["granted"] for one in _held(node)))


def _names_relays(liar: SimNode, world: World) -> None:
    """Have a node's record name four relays that are nowhere, and each second four others."""
    invented = lambda now: tuple(Identity(world.entropy(32)).id for _ in range(4))  # noqa: E731
    liar.mesh.relaying._homes = invented  # type: ignore[method-assign]


def test_relays_that_a_peers_record_invents_take_no_place_of_the_nodes_own_nor_of_another_peers() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    first, second = (SimNode(world, f"10.0.{n}.1", engines, seed_role=True) for n in (1, 2))
    liar, there = SimNode(world, "10.0.9.1", engines), SimNode(world, "10.0.8.1", engines)
    node = SimNode(world, "10.0.7.1", engines)
    _names_relays(liar, world)
    liar.join(node)
    liar.connect(node.id)
    world.run(20.0)
    assert len(_held(node)) == MAX_RELAYS_NAMED
    there.join(second)
    there.join(node)
    there.connect(node.id)
    world.run(5.0)
    granted = lambda: {one["relay"] for one in _held(node) if one["granted"]}  # noqa: E731
    assert granted() == {str(second.id)}
    node.join(first)
    world.run(5.0)
    assert granted() == {str(first.id), str(second.id)}


def test_relays_that_do_not_answer_leave_their_places_to_others() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    silent = [SimNode(world, f"10.0.0.{n}", engines, seed_role=True) for n in range(1, 4)]
    for relay in silent:
        relay.mesh.context.serving._on_ask = lambda connection, now: None  # type: ignore[method-assign]
    node = SimNode(world, "10.0.1.1", engines)
    for relay in silent:
        node.join(relay)
    world.run(2.0)
    assert [one["granted"] for one in _held(node)] == [False] * 3
    other = SimNode(world, "10.0.2.1", engines, seed_role=True)
    node.join(other)
    assert world.run(10.0, lambda: str(other.id) in [one["relay"] for one in _held(node) if one["granted"]])


def test_a_configured_seed_that_comes_back_has_a_place_though_strangers_hold_all() -> None:
    world = World(1, Weather(delay=0.02))
    engines = ModelEngines(world.entropy)
    seed, node = SimNode(world, "10.0.0.1", engines, seed_role=True), SimNode(world, "10.0.7.1", engines)
    seed.kill()
    node.join(seed)
    strangers = [SimNode(world, f"10.0.{n}.1", engines, seed_role=True) for n in (1, 2, 3)]
    for stranger in strangers:
        stranger.join(node)
        stranger.connect(node.id)
    ids = {stranger.id for stranger in strangers}
    assert world.run(30.0, lambda: sum(bool(one["granted"]) for one in _held(node)) == len(ids))
    assert set(node.mesh.relaying.homes) < ids
    back = SimNode(world, seed.addr.host, engines, seed_role=True, identity=seed.mesh.context.identity)
    back.join(node)
    back.connect(node.id)
    assert world.run(15.0, lambda: node.mesh.relaying.homes[0] == back.id)
    assert len(node.mesh.relaying.homes) == 2
    world.run(60.0)
    assert len(_held(node)) == 1 + len(ids), "no other place is taken beside"
    back.kill()
    assert world.run(60.0, lambda: set(node.mesh.relaying.homes) < ids)


def _held(node: SimNode) -> list[dict[str, object]]:
    held = node.mesh.context.relays.status()["held"]
    assert isinstance(held, list)
    return held


def test_no_node_is_introduced_to_a_peer_that_has_not_talked_to_it() -> None:
    world, seeds, here, there = _mesh(relays=1)
    relay = here.mesh.sessions[seeds[0].id].connection
    assert relay is not None
    sent: list[str] = []
    deliver = world.deliver

    def watch(source, to, datagram, nat):  # type: ignore[no-untyped-def]
        if to == there.addr and source != there.addr and len(datagram) < 1000:
            sent.append(str(source))
        deliver(source, to, datagram, nat)

    from meshnode.quic.hello import Frame

    world.run(2.0)
    world.deliver = watch  # type: ignore[method-assign]
    for _ in range(20):
        relay.send_frame(Frame.INTRODUCE, bytes(there.id))
    world.run(1.0)
    assert seeds[0].mesh.metrics.counters["relay_no_consent"] == 20
    assert str(here.addr) not in sent
    assert "introductions" not in there.mesh.metrics.counters


def test_a_relay_that_grants_again_and_again_holds_one_place() -> None:
    world, seeds, here, _ = _mesh(relays=2)
    client = here.mesh.relaying
    liar, other = seeds[0].id, seeds[1].id
    world.run(2.0, lambda: all(holding.granted for holding in client._holdings.values()) and len(client._holdings) == 2)
    honest = client._holdings[other].reservation
    for number in range(1_000):
        client._on_grant(liar, [5, number.to_bytes(8, "big"), bytes(32)], world.now)
    assert len(client._by_reservation) == 2
    with pytest.raises(ValueError, match="another relay's"):
        client._on_grant(liar, [5, honest, bytes(32)], world.now)
    assert client._by_reservation[honest].relay == other


def test_a_full_relay_tells_a_client_that_gives_way_and_counts_one_that_moved_where_it_is() -> None:
    world = World(1, Weather(delay=0.02))
    engines = pick_engine("auto")
    relay = SimNode(world, "10.0.0.1", engines, seed_role=True)
    relay.mesh.context.serving.server = server = RelayServer(
        RelayLimits(clients=3), lambda peer: True, world.entropy, relay.mesh.metrics, world.now
    )
    crowd = [SimNode(world, f"10.0.9.{n}", engines) for n in range(1, 4)]
    for node in crowd:
        node.join(relay)
        world.run(1.0)
    assert [server.serves(node.id) for node in crowd] == [True] * 3
    newcomer = SimNode(world, "10.0.8.1", engines)
    newcomer.join(relay)
    assert world.run(5.0, lambda: server.serves(newcomer.id))
    assert [server.serves(node.id) for node in crowd] == [True, True, False]
    assert world.run(1.0, lambda: not crowd[2].mesh.relaying._holdings)
    before = server._by_label[label(newcomer.id)].little
    newcomer.move("10.0.9.9")
    beside = server._by_label[label(crowd[0].id)].little
    assert before is not beside
    assert world.run(2.0, lambda: server._by_label[label(newcomer.id)].little is beside)
