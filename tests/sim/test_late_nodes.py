"""What a node does less of while its ticks come late, or requests time out; and that it does it as ever right after."""

from __future__ import annotations

import pytest

from meshnode.base.address import Addr
from meshnode.errors import MeshError
from meshnode.gossip import Contact
from meshnode.identity.node_id import NodeId
from meshnode.paths.liveness import TIMER_SLACK_S
from meshnode.paths.peer import PeerPaths
from meshnode.paths.seeking import Connectivity
from meshnode.quic.connection import Connection
from meshnode.quic.engines import pick_engine
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.gossip_probes import GossipProbes
from meshnode.stack.resolution import SEEK_AFTER_S, SLOW_BY_S, SLOW_SEEK_S

LATE_S = 0.5


def _mesh(count: int = 3, *, gossip: bool = False) -> tuple[World, SimNode, list[SimNode]]:
    world = World(1, Weather(delay=0.002))
    engines = pick_engine("auto")
    seed = SimNode(world, "10.0.0.1", engines, seed_role=True, gossip=gossip)
    nodes = [SimNode(world, f"10.0.0.{i + 11}", engines, gossip=gossip) for i in range(count)]
    for node in nodes:
        node.join(seed)
    world.run(5.0)
    return world, seed, nodes


def _lookups(node: SimNode) -> int:
    return node.mesh.metrics.counters["dht_lookups"]


def test_the_last_tick_says_how_late_a_node_is_and_one_in_time_that_it_is_not() -> None:
    _, _, (node, *_) = _mesh()
    due = node.mesh.next_deadline()
    assert due is not None
    node.mesh.tick(due + LATE_S)
    assert node.mesh.context.late_by == pytest.approx(LATE_S)
    assert node.mesh.dht._announcer._late_by() == node.mesh.context.late_by
    due = node.mesh.next_deadline()
    assert due is not None
    node.mesh.tick(due)
    assert node.mesh.context.late_by == 0.0


def test_a_deadline_that_is_past_when_it_is_set_makes_no_tick_late() -> None:
    world, _, (node, *_) = _mesh()
    context = node.mesh.context
    context.timers.at(world.now - 1.0, lambda now: None)
    node.mesh.flush(world.now)
    node.mesh.tick(world.now + 0.5 * TIMER_SLACK_S)
    assert context.late_by == 0.0


def test_what_is_read_first_after_a_time_without_cpu_does_not_hide_it() -> None:
    _, _, (node, *_) = _mesh()
    context = node.mesh.context
    due = context.timers.next_deadline()
    assert due is not None
    now = due + LATE_S
    context.timers.at(due - 1.0, lambda now: None)
    node.mesh.receive([(b"\x00" * 40, Addr("10.9.9.9", 1))], now)
    node.mesh.tick(now)
    assert context.late_by == pytest.approx(LATE_S)


def test_no_node_of_a_mesh_in_which_one_crashes_and_one_moves_is_ever_late_unless_it_was_stalled() -> None:
    world, seed, (node, gone, *others) = _mesh(6)
    node.connect(gone.id)
    others[0].move("10.0.7.1")
    gone.kill()
    world.run(60.0)
    assert [n.mesh.context.late_s for n in (seed, node, *others)] == [0.0] * 6
    node.stall(20.0)  # longer than between two keepalives
    world.run(25.0)
    assert 1.0 < node.mesh.context.late_s < 20.0
    assert seed.mesh.context.late_s == 0.0


def test_paths_are_told_by_how_much_the_process_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    world, seed, (node, *_) = _mesh()
    told: list[float] = []
    session = node.mesh.sessions[seed.id]
    monkeypatch.setattr(PeerPaths, "tick", lambda paths, now, late: told.append(late))
    monkeypatch.setattr(PeerPaths, "next_deadline", lambda paths: world.now)
    node.mesh.context.late_by = LATE_S
    node.mesh.connections._tick(session, world.now)
    assert told == [LATE_S]


@pytest.mark.parametrize("why", ["late", "congested"])
def test_a_node_without_cpu_seeks_few_of_the_peers_that_it_finds_silent(why: str) -> None:
    world, _, (node, *others) = _mesh(6)
    records, context = node.mesh.resolution, node.mesh.context
    ids = [other.id for other in others]

    def seek_all() -> int:
        before = _lookups(node)
        for peer in ids:
            records.seek(peer, world.now)
        return _lookups(node) - before

    assert seek_all() == len(ids)
    world.run(10.0)
    budget = node.mesh.dht._shared.rpcs.budget
    if why == "late":
        context.late_by = 2 * SLOW_BY_S
    else:
        budget.share = 1.0  # of requests that time out
    records._seek_at = float("-inf")
    assert seek_all() == 1
    world.run(3.0)
    context.late_by, budget.share = (2 * SLOW_BY_S, 0.0) if why == "late" else (0.0, 1.0)
    records._seek_at = world.now - SLOW_SEEK_S
    assert seek_all() == 1
    world.run(3.0)
    context.late_by, budget.share = 0.0, 0.0
    records._sought.clear()
    assert seek_all() == len(ids), "at once when there is CPU again"


def test_a_silent_peer_that_gossip_alone_has_use_for_is_looked_up_after_a_while_and_another_at_once() -> None:
    world, _, (node, one, other, *_) = _mesh(6, gossip=True)
    records, use = node.mesh.resolution, node.mesh.context.use
    assert use is not None
    use.add(one.id)

    def seek(peer: NodeId) -> int:
        before = _lookups(node)
        records.seek(peer, world.now)
        return _lookups(node) - before

    assert seek(one.id) == 1
    assert seek(other.id) == 0, "all its neighbours miss it at this moment, and gossip tells of it"
    world.run(0.5 * SEEK_AFTER_S)
    assert seek(other.id) == 0
    world.run(0.6 * SEEK_AFTER_S)
    assert seek(other.id) == 1
    assert seek(other.id) == 0
    node.mesh.context.late_by = 2 * SLOW_BY_S
    for wait, peer, found in ((1, other, 0), (1, one, 1), (2, other, 0), (3, other, 1)):
        world.run(0.1)
        records._seek_at = world.now - (wait + 0.1) * SLOW_SEEK_S
        node.mesh.context.late_by = 2 * SLOW_BY_S
        assert seek(peer.id) == found


def test_a_node_that_comes_late_keeps_its_relays_and_its_record_though_they_seem_silent() -> None:
    world, seed, (node, *_) = _mesh()
    relays = node.mesh.relaying
    assert relays.homes == (seed.id,)
    record = node.mesh.record
    node.mesh.sessions[seed.id].paths.seeking.connectivity = Connectivity.SUSPENDED
    node.mesh.context.late_by = LATE_S
    relays._keep(world.now)
    assert relays.homes == (seed.id,)
    assert node.mesh.record is record
    node.mesh.context.late_by = 0.0
    relays._keep(world.now)
    assert relays.homes == ()


def test_a_member_that_uses_relays_is_dialled_when_it_is_probed_and_not_by_a_late_node() -> None:
    world, seed, (node, other, _) = _mesh()
    dialled: list[NodeId] = []

    def connect(contact: Contact, now: float) -> None:
        dialled.append(contact.id)

    probes = GossipProbes(node.mesh.context, lambda peer: None, connect)
    there = other.mesh.record
    assert there is not None
    assert there.relays == (seed.id,)
    for late, expected in ((LATE_S, []), (0.0, [other.id])):
        node.mesh.context.late_by = late
        probes.probe(Contact(other.id, there.encoded), world.now)
        assert dialled == expected


def test_a_late_node_looks_after_a_slow_dial_less_often_and_takes_no_peer_for_restarted() -> None:
    world, _, (node, other, _) = _mesh()
    found: list[Connection | MeshError] = []
    there = other.mesh.record
    assert there is not None
    node.mesh.resolution.offer(there.encoded, "test", world.now)
    node.mesh.connect(other.id, world.now, found.append)
    session = node.mesh.sessions[other.id]
    dial = session.dial
    assert dial is not None
    for path in session.paths.book:
        path.answered, path.mtu.carries = world.now, True  # to PINGs, which are served first
    later = dial.started + 1.0
    dialing = node.mesh.context.dials
    node.mesh.context.late_by = 0.6
    dialing._check(session, later)  # type: ignore[attr-defined]
    assert session.attempt.check_at == later + 0.6
    assert session.dial is dial
    node.mesh.context.late_by, dial.handshake.late = 0.0, 0.5
    dialing._check(session, later)  # type: ignore[attr-defined]
    assert session.dial is dial, "of that second it ran half a second"
    dial.handshake.late = 0.0
    dialing._check(session, later)  # type: ignore[attr-defined]
    assert session.dial is not dial
