"""One dial, step by step: what it answers, when, and what is forgotten afterwards."""

from __future__ import annotations

from functools import partial

import pytest

from meshnode.base.address import Addr
from meshnode.base.limits import HANDSHAKE_TIMEOUT_S
from meshnode.base.path import ViaTunnel
from meshnode.errors import ConnectionLost, InvalidId, MeshError, NodeClosed, NoPathError, NotFound, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint, EndpointRecord, sign_record
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.hello import CloseCode
from meshnode.sim.link import ModelEngines
from meshnode.sim.plain import PlainSealer
from meshnode.sim.world import SimNode, Weather, World
from meshnode.trust.policy import parse_policy

ELSEWHERE = Addr("10.0.9.1", 1)  # nothing there answers


def test_a_seed_that_moves_while_it_is_dialled_for_the_meshs_sake_is_found_where_it_went() -> None:
    world = World(1, Weather(delay=0.05))
    engines = ModelEngines(world.entropy)
    seed, other = (SimNode(world, f"10.9.0.{n}", engines, seed_role=True, gossip=True) for n in (1, 2))
    seed.join(other)
    other.join(seed)
    world.run(10.0)
    node = SimNode(world, "10.0.0.1", engines, gossip=True)
    world.partition(seed.addr.host, node.addr.host, cut=True)
    node.join(seed)
    node.mesh.add_contact(other.id, other.addr, world.now)
    world.run(1.5)
    moved = world.now
    seed.move("10.9.7.1")
    assert world.run(10.0, lambda: node.mesh.context.peers.connection(seed.id) is not None)
    assert world.now - moved < 1.0, "0.7: its watch at the other seed; 1.3 without one"


def _world(seed: int = 1, kind: str = "model", jitter: float = 0.0) -> tuple[World, SimNode, SimNode, SimNode]:
    """A seed and two nodes that know each other only through it; of the two the smaller id first."""
    world = World(seed, Weather(delay=0.02, jitter=jitter))
    model = kind == "model"
    engines = ModelEngines(world.entropy) if model else pick_engine(kind)
    more = {"sealer": PlainSealer} if model else {}
    nodes = [SimNode(world, f"10.0.0.{i + 1}", engines, seed_role=i == 0, **more) for i in range(3)]  # type: ignore[arg-type]
    for node in nodes[1:]:
        node.join(nodes[0])
    world.run(3.0)
    smaller, larger = sorted(nodes[1:], key=lambda node: node.id)
    return world, nodes[0], smaller, larger


def _dial(one: SimNode, peer: NodeId, got: list[object]) -> None:
    one.mesh.connect(peer, one.world.now, got.append)
    one.on_dirty()


def _count(node: SimNode, name: str) -> int:
    return node.mesh.metrics.counters.get(name, 0)


def _apart(world: World, one: SimNode, other: SimNode, *, cut: bool = True) -> None:
    world.partition(one.addr.host, other.addr.host, cut=cut)


def _first_flight(sender: SimNode, to: NodeId, knocks_as: SimNode | None = None) -> bytes:
    """The first datagram of a dial with a knock, of a peer that never answers what comes back."""
    sealer = (knocks_as or sender).mesh.context.sealer
    engine = pick_engine("aioquic").dial(
        sender.mesh.context.identity, to, lambda odcid: sealer.knock(to, odcid), 30.0, sender.world.now
    )
    return engine.transmit(sender.world.now)[0]


# ---- the way that a dial takes


@pytest.mark.parametrize("kind", ["model", "aioquic", "qh3"])
def test_a_relay_that_answers_beside_a_dial_is_no_reason_to_leave_the_way_that_answered_first(kind: str) -> None:
    if kind == "qh3":
        pytest.importorskip("qh3")
    world, _, a, b = _world(kind=kind)
    record = b.mesh.record
    assert record is not None
    assert record.relays, "the seed is a relay of both"
    a.mesh.offer_record(record.encoded, "ticket", world.now)
    ways: list[object] = []
    a.on_path = lambda peer, old, new, why: ways.append(new) if peer == b.id else None  # type: ignore[method-assign]
    stream, inbox = a.open(a.connect(b.id))
    began = world.now
    stream.write(b"x")
    assert world.run(1.0, lambda: bytes(inbox.data) == b"x")
    assert world.now - began < 0.045, "one round trip"
    world.run(0.1)
    assert set(ways) == {b.addr}


# ---- what a dial answers


def test_all_that_wait_for_a_peer_get_the_one_connection_of_one_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    world, _, a, b = _world()
    got: list[object] = []
    asked: list[NodeId] = []
    resolve = a.mesh.context.records.resolve
    monkeypatch.setattr(
        a.mesh.context.records, "resolve", lambda peer, *rest: (asked.append(peer), resolve(peer, *rest))
    )
    dials = _count(a, "dials")
    for _ in range(3):
        _dial(a, b.id, got)
    world.run(2.0)
    assert [type(each) for each in got] == [Connection] * 3
    assert got[0] is got[1] is got[2]
    assert _count(a, "dials") - dials == 1
    assert asked == [b.id], "it is looked for once"
    _dial(a, b.id, got)
    assert got[3] is got[0], "a live connection is given at once"
    assert b.mesh.sessions[a.id].connection is not None


def test_a_peer_that_cannot_be_found_is_an_error_and_leaves_no_trace() -> None:
    world, _, a, _ = _world()
    unknown = Identity(world.entropy(32)).id
    got: list[object] = []
    for _ in range(2):
        _dial(a, unknown, got)
    assert world.run(30.0, lambda: bool(got))
    assert [type(each) for each in got] == [NotFound] * 2
    assert unknown not in a.mesh.sessions


def test_an_id_that_is_no_key_is_refused_at_once_and_leaves_no_trace() -> None:
    world, _, a, _ = _world()
    no_key = NodeId(b"\xff" * 32)
    got: list[object] = []
    a.mesh.add_seed(no_key, [ELSEWHERE], world.now)
    _dial(a, no_key, got)
    assert [type(each) for each in got] == [InvalidId]
    assert no_key not in a.mesh.sessions
    _dial(a, a.id, got)
    assert isinstance(got[1], NoPathError)


def test_a_closed_node_dials_no_more() -> None:
    world, _, a, b = _world()
    got: list[object] = []
    a.mesh.close(world.now)
    _dial(a, b.id, got)
    assert [type(each) for each in got] == [NodeClosed]


def test_a_peer_that_does_not_answer_is_given_up_when_the_handshake_is_over_time_and_not_before() -> None:
    world, _, a, b = _world()
    got: list[object] = []
    b.kill()
    timeouts = _count(a, "handshake_timeouts")
    a.mesh.add_seed(b.id, [b.addr, ViaTunnel(str(b.id), "seed.example", 443)], world.now)
    _dial(a, b.id, got)
    world.run(HANDSHAKE_TIMEOUT_S - 0.5)
    assert got == []
    world.run(1.0)
    assert [type(each) for each in got] == [NoPathError]
    assert str(b.addr) in str(got[0])
    assert "WebSocket to seed.example:443" in str(got[0])
    assert "wss!" not in str(got[0])
    assert _count(a, "handshake_timeouts") - timeouts == 1


@pytest.mark.parametrize("is_known", [True, False])
def test_a_dial_that_is_not_answered_at_once_is_told_of_newer_records(is_known: bool) -> None:
    world, seed, a, b = _world()
    b.kill()
    if is_known:
        record = seed.mesh.context.records.cached(b.id)
        assert record is not None
        a.mesh.context.records.offer(record.encoded, "test", world.now)
    else:
        b = SimNode(world, "10.0.0.9", ModelEngines(world.entropy), sealer=PlainSealer)
    watched = a.mesh.context.records.dht.dht._watching._watched
    _dial(a, b.id, [])
    assert (a.mesh.sessions[b.id].dial is not None) is is_known
    world.run(0.05)
    assert b.id.dht_key not in watched, "most dials are over by then"
    world.run(0.1)
    assert b.id.dht_key in watched


def test_a_peer_that_answers_but_not_the_dial_is_dialled_three_times_and_the_last_has_its_whole_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, _, a, b = _world()
    flights: list[bytes] = []
    monkeypatch.setattr(b.mesh.take.__self__, "_stranger", lambda data, odcid, *rest: flights.append(odcid))
    dials = _count(a, "dials")
    got: list[object] = []
    _dial(a, b.id, got)
    assert world.run(10.0, lambda: _count(a, "dials") == dials + 3)
    world.run(0.05)
    assert len(set(flights)) == 3, "each begins at once"
    world.run(HANDSHAKE_TIMEOUT_S - 0.5)
    assert got == []
    world.run(1.0)
    assert [type(each) for each in got] == [NoPathError]
    assert _count(a, "dials") == dials + 3
    assert a.mesh.context.peers.twins.noted(world.now) == [], "that is no sign of a second host with this key"


def test_a_refused_peer_gets_the_reason_and_keeps_the_other_direction() -> None:
    world, _, a, b = _world()
    b.guard.set_local(parse_policy(f'[[deny]]\nfrom = "{a.id}"'.encode()))
    got: list[object] = []
    _dial(a, b.id, got)
    world.run(2.0)
    assert [type(each) for each in got] == [PolicyDenied]
    assert _count(b, "refused_policy") == 1
    assert isinstance(b.connect(a.id), Connection)


def test_a_dial_that_has_nowhere_to_go_begins_as_soon_as_a_newer_record_names_an_address() -> None:
    world, _, a, _ = _world()
    peer = Identity(world.entropy(32))
    found: list[EndpointRecord] = []
    for seq, addr in enumerate((Addr("127.0.0.1", 9), ELSEWHERE), int(world.wall() * 1000)):
        issued = int(world.wall() * 1000)
        found.append(sign_record(peer, seq=seq, issued_ms=issued, ttl=600, endpoints=(Endpoint(addr),)))
    a.mesh.context.records.offer(found[0].encoded, "test", world.now)
    _dial(a, peer.id, [])
    assert a.mesh.sessions[peer.id].paths.active is None, "nothing is sent to a loopback address of another host"
    a.mesh.context.records.offer(found[1].encoded, "test", world.now)
    assert a.mesh.sessions[peer.id].paths.active == ELSEWHERE


# ---- first flights


def test_a_knock_that_does_not_hold_is_counted_and_begins_nothing() -> None:
    _, seed, a, b = _world(kind="aioquic")
    accepts, bad = _count(b, "accepts"), _count(b, "drop_knock")
    b.receive(_first_flight(a, seed.id), ELSEWHERE)  # for another node
    assert _count(b, "drop_knock") - bad == 1
    b.receive(_first_flight(b, b.id), ELSEWHERE)  # in its own name
    assert _count(b, "drop_knock") - bad == 2
    assert b.id not in b.mesh.sessions
    assert _count(b, "accepts") == accepts
    none = _count(b, "drop_no_connection")
    b.receive(b"\x40" + bytes(30), ELSEWHERE)
    assert _count(b, "drop_no_connection") - none == 1
    flight = _first_flight(a, b.id)
    b.receive(flight, ELSEWHERE)
    assert _count(b, "accepts") - accepts == 1
    (arrival,) = b.mesh.sessions[a.id].arrivals
    assert arrival.bytes_in == len(flight), "it is answered without being sent again"


def test_where_a_first_flight_came_from_is_evidence_of_filters_only_when_its_knock_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, seed, a, b = _world(kind="aioquic")
    told: list[tuple[str, Addr]] = []
    filters = b.mesh.context.nat.filters
    for what in ("stray", "heard"):
        monkeypatch.setattr(filters, what, lambda source, now, what=what: told.append((what, source)))
    b.receive(_first_flight(a, seed.id), ELSEWHERE)
    b.receive(_first_flight(a, b.id), a.addr)
    assert told == [("stray", ELSEWHERE), ("heard", a.addr)]


@pytest.mark.parametrize(("error", "waits"), [(ConnectionLost("gone"), True), (PolicyDenied("no"), False)])
def test_a_dial_that_is_over_waits_for_the_peers_own_unless_it_was_refused(error: MeshError, waits: bool) -> None:
    _, _, b, a = _world(kind="aioquic")  # the larger id accepts beside its dial
    b.kill()
    got: list[object] = []
    _dial(a, b.id, got)
    a.receive(_first_flight(b, a.id), ELSEWHERE)
    session = a.mesh.sessions[b.id]
    assert session.dial is not None
    assert len(session.arrivals) == 1
    session.dial.abandon(error)
    assert got == ([] if waits else [error])


def test_a_flight_that_was_kept_aside_gets_its_turn_when_our_own_dial_gets_nowhere() -> None:
    world, _, a, b = _world(kind="aioquic")
    b.kill()
    _dial(a, b.id, [])
    world.run(0.05)
    accepts, held = _count(a, "accepts"), _count(a, "simultaneous_dial_held")
    flight = _first_flight(b, a.id)
    for _ in range(3):
        a.receive(flight, ELSEWHERE)
    assert (_count(a, "accepts") - accepts, _count(a, "simultaneous_dial_held") - held) == (0, 1)
    world.run(2.0)
    assert _count(a, "accepts") - accepts == 1


def test_a_flight_that_was_kept_aside_is_forgotten_when_our_own_dial_is_answered() -> None:
    world, _, a, b = _world(kind="aioquic")
    _apart(world, a, b)
    got: list[object] = []
    _dial(a, b.id, got)
    world.run(0.05)
    flight = _first_flight(b, a.id)
    accepts = _count(a, "accepts")
    a.receive(flight, ELSEWHERE)
    _apart(world, a, b, cut=False)
    world.run(3.0)
    assert [type(each) for each in got] == [Connection]
    assert _count(a, "accepts") == accepts
    bad = _count(a, "drop_knock")
    a.receive(flight, ELSEWHERE)
    assert _count(a, "drop_knock") - bad == 1, "it is a replay like any other now"
    world.run(HANDSHAKE_TIMEOUT_S + 1.0)
    assert a.mesh.sessions[b.id].connection is got[0]


# ---- when both ends have one


@pytest.mark.parametrize("smaller_first", [True, False])
def test_a_peer_that_lost_our_goodbye_connects_again_and_both_have_the_new_one(smaller_first: bool) -> None:
    world, _, a, b = _world()
    one, other = (a, b) if smaller_first else (b, a)
    first = one.connect(other.id)
    world.run(0.5)
    _apart(world, a, b)
    ended = other.mesh.sessions[one.id].connection
    assert ended is not None
    ended.close(CloseCode.NORMAL)
    other.on_dirty()
    world.run(0.3)
    _apart(world, a, b, cut=False)
    assert one.mesh.sessions[other.id].connection is first
    again = other.connect(one.id, 2.0)
    world.run(0.5)
    ends = [x.mesh.sessions[y.id].connection for x, y in ((one, other), (other, one))]
    assert ends[1] is again
    assert ends[0] is not None
    assert ends[0] is not first
    assert ends[0].engine.odcid == again.engine.odcid


def test_a_late_dial_of_the_peer_does_not_replace_the_connection_that_both_have() -> None:
    world, _, a, b = _world()
    both = a.connect(b.id)
    world.run(0.5)
    its_own = b.mesh.sessions[a.id].connection
    b.mesh.context.dials._dial(b.mesh.sessions[a.id], None, world.now)  # begun before it had the one of both
    b.on_dirty()
    world.run(1.0)
    assert a.mesh.sessions[b.id].connection is both
    assert b.mesh.sessions[a.id].connection is its_own
    assert [end.state for end in (both, its_own)] == [State.READY] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(40))
def test_dials_that_cross_answer_both_and_leave_one_connection_that_stays(seed: int) -> None:
    world, _, a, b = _world(seed, jitter=0.04)
    got: list[object] = []
    ended: list[Connection] = []
    for node in (a, b):
        node.on_connection = lambda connection, up: None if up else ended.append(connection)  # type: ignore[method-assign]
    for one, other in ((a, b), (b, a)):
        world.at(world.now + world.rng.uniform(0.0, 0.1), partial(_dial, one, other.id, got))
    world.run(2.0)
    assert [type(each) for each in got] == [Connection] * 2
    ends = [x.mesh.sessions[y.id].connection for x, y in ((a, b), (b, a))]
    assert None not in ends
    assert ends[0].engine.odcid == ends[1].engine.odcid  # type: ignore[union-attr]
    assert not ended, "what was given to one that waited is not taken away again"


def test_a_peer_that_published_its_address_is_dialled_there_as_soon_as_its_record_is_found() -> None:
    world, _, a, b = _world()
    dials = _count(a, "dials")
    _dial(a, b.id, [])
    assert world.run(1.0, lambda: _count(a, "dials") > dials)
    assert a.mesh.sessions[b.id].paths.active == b.addr


def test_the_peers_own_dial_that_was_put_off_is_admitted_when_ours_fails() -> None:
    """This node's dial has precedence, and the peer may have taken it already: until that is clear no second lives."""
    put_off = 0
    for seed in range(120):
        world, _, a, b = _world(seed, jitter=0.06)
        got: list[object] = []
        world.at(world.now + world.rng.uniform(0.0, 0.08), partial(_dial, a, b.id, got))
        world.at(world.now + 0.01, partial(_dial, b, a.id, []))

        def is_put_off(a: SimNode = a, b: SimNode = b) -> bool:
            session = a.mesh.sessions.get(b.id)
            return session is not None and session.deferred is not None and session.dial is not None

        if not world.run(1.0, is_put_off):
            continue
        put_off += 1
        session = a.mesh.sessions[b.id]
        assert got == []
        assert session.dial is not None
        session.dial.abandon(ConnectionLost("gone"))
        assert [type(each) for each in got] == [Connection]
        assert got[0] is session.connection
        assert not session.connection.dialler  # type: ignore[union-attr]
    assert put_off >= 3, put_off


def test_a_peer_that_fell_silent_is_sought_where_the_configuration_names_it_now() -> None:
    world, _, one, other = _world()
    connection = one.connect(other.id)
    stream, _ = one.open(connection)
    other.kill()
    stream.write(b"hello")
    world.run(10.0)
    assert not one.mesh.hears(other.id)
    again = SimNode(
        world, "10.0.9.9", ModelEngines(world.entropy), sealer=PlainSealer, identity=other.mesh.context.identity
    )
    one.join(again)
    assert again.addr in one.mesh.sessions[other.id].paths.book
    assert world.run(1.0, lambda: connection.state is State.CLOSED), "its end there knows nothing of it"
    assert one.connect(other.id).peer == again.id
    assert one.mesh.hears(other.id)


# ---- members that the DHT knows


def _dial_member(one: SimNode, other: SimNode) -> tuple[list[object], list[NodeId]]:
    """Dial for the mesh's sake; the answer, and which peers are looked up for it."""
    got: list[object] = []
    looked_up: list[NodeId] = []
    resolution = one.mesh.resolution
    look_up = resolution.look_up

    def noted(peer: NodeId, now: float) -> None:
        looked_up.append(peer)
        look_up(peer, now)

    resolution.look_up = noted  # type: ignore[method-assign]
    one.mesh.context.dials.connect_member(other.id, one.world.now, got.append)
    one.on_dirty()
    return got, looked_up


def test_a_member_that_answers_the_dht_is_dialled_there_and_not_looked_up() -> None:
    world, _, a, b = _world()
    assert b.id in a.mesh.resolution.contacts()
    assert a.mesh.resolution.cached(b.id) is None
    got, looked_up = _dial_member(a, b)
    assert world.run(0.2, lambda: bool(got))
    assert isinstance(got[0], Connection)
    assert looked_up == []
    assert a.mesh.resolution.cached(b.id) is not None, "its Hello brings the record"


def test_a_member_that_has_moved_since_it_answered_the_dht_is_found_all_the_same() -> None:
    world, _, a, b = _world()
    b.move("10.0.0.77")
    world.run(0.01)  # its new record has not come anywhere
    got, _ = _dial_member(a, b)
    assert world.run(1.5, lambda: bool(got))
    assert isinstance(got[0], Connection)
