"""Processes with one key, as of a cloned machine: one stays, the others stand down, and all are told."""

from __future__ import annotations

import base64

import pytest

from meshnode.identity.keys import Identity
from meshnode.quic.connection import KeyInUse
from meshnode.sim.link import ModelEngines
from meshnode.sim.world import SimNode, Weather, World
from meshnode.stack.fencing import ASK_S, OUTBID_S, OUTBIDS, Fencing
from meshnode.stack.key_twins import KeyTwins, boot_of, capability_of, first_stays, make_boot

KEY = Identity(bytes([77]) * 32)


def _world(seed: int) -> tuple[World, ModelEngines]:
    world = World(seed, Weather(delay=0.02, jitter=0.005))
    return world, ModelEngines(world.entropy)


def _mesh(
    seed: int, count: int = 2, first: bool = False, friends: int = 3
) -> tuple[World, list[SimNode], list[SimNode]]:
    """A seed and friends, then processes with one key, the next each 50 ms."""
    world, engines = _world(seed)
    others = [SimNode(world, f"10.0.0.{n + 1}", engines, seed_role=n == 0, gossip=True) for n in range(1 + friends)]
    for node in others[1:]:
        node.join(others[0])
    world.run(5.0)
    twins = []
    for n in range(count):
        node = SimNode(world, f"10.0.1.{n + 1}", engines, gossip=True, identity=KEY, first_stays=first)
        node.join(others[0])
        twins.append(node)
        world.run(0.05)
    return world, others, twins


def _fencing(node: SimNode) -> Fencing:
    found = node.mesh.context.fencing
    assert isinstance(found, Fencing)
    return found


def _down(twins: list[SimNode]) -> list[bool]:
    return [_fencing(node).stood_down for node in twins]


def _told(node: SimNode) -> bool:
    return KEY.id in node.mesh.context.peers.twins.noted(node.world.now)


def _wanted(count: int, first: bool) -> list[bool]:
    stays = 0 if first else count - 1
    return [n != stays for n in range(count)]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("seed", range(8))
def test_one_of_several_stays_within_two_seconds_and_none_comes_back_for_a_minute(
    seed: int, count: int, first: bool
) -> None:
    world, others, twins = _mesh(seed, count, first)
    assert world.run(2.0 - 0.05 * count, lambda: _down(twins) == _wanted(count, first))
    changes: list[bool] = []
    for node in twins:
        node.on_stood_down = changes.append  # type: ignore[method-assign]
    stays = twins[_wanted(count, first).index(False)]
    for _ in range(60):
        for friend in others:
            friend.connect(KEY.id)
        world.run(1.0)
    assert changes == []
    assert _down(twins) == _wanted(count, first)
    for friend in others:
        active = friend.mesh.sessions[KEY.id].paths.active
        assert active == stays.addr


@pytest.mark.parametrize("first", [False, True])
def test_both_processes_and_their_peer_are_told(first: bool) -> None:
    world, others, twins = _mesh(4, 2, first)
    assert world.run(5.0, lambda: all(_told(node) for node in (*twins, others[0])))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("goodbye", [False, True])
def test_when_the_one_that_stayed_ends_for_good_another_takes_its_place(first: bool, goodbye: bool) -> None:
    world, others, twins = _mesh(5, 2, first)
    world.run(10.0)
    stays, other = twins if first else twins[::-1]
    if goodbye:
        stays.mesh.close(world.now)
        stays.on_dirty()
        world.run(0.1)
    stays.kill()
    assert world.run(3 * ASK_S[1], lambda: not _fencing(other).stood_down)
    world.run(20.0)
    connection = others[1].connect(KEY.id, 60.0)
    assert connection.error is None
    assert others[1].mesh.sessions[KEY.id].paths.active == other.addr
    assert not _fencing(other).stood_down


def test_a_node_that_stands_down_sends_nothing_but_one_dial_a_minute_and_dials_for_no_one() -> None:
    world, others, twins = _mesh(6)
    world.run(5.0)
    loser = twins[0]
    refused: list[object] = []
    loser.mesh.connect(others[1].id, world.now, refused.append)
    assert isinstance(refused[0], KeyInUse)
    sent: list[float] = []
    send = loser.send
    loser.send = lambda path, datagrams: sent.append(world.now) or send(path, datagrams)  # type: ignore[method-assign, func-returns-value]
    loser.mesh.context.sender._link = loser
    world.run(50.0)
    assert sent == []
    world.run(60.0)
    assert sent


def test_a_node_that_restarts_again_and_again_is_no_twin() -> None:
    for first in (False, True):
        world, engines = _world(3)
        hub = SimNode(world, "10.0.0.1", engines, seed_role=True, gossip=True)
        friend = SimNode(world, "10.0.0.2", engines, gossip=True)
        friend.join(hub)
        for number in range(8):
            host = f"10.0.0.{3 + number % 2}"
            node = SimNode(world, host, engines, gossip=True, identity=KEY, first_stays=first)
            node.join(hub)
            world.run(4.0)
            friend.connect(KEY.id)
            assert not any(map(_told, (hub, friend, node)))
            assert not _fencing(node).stood_down
            node.kill()


@pytest.mark.parametrize("first", [False, True])
def test_a_liar_without_proof_makes_no_node_stand_down(first: bool) -> None:
    world, engines = _world(8)
    victim, liar = (SimNode(world, f"10.0.0.{n}", engines, first_stays=first) for n in (1, 2))
    liar.join(victim)
    connection = liar.connect(victim.id)
    fencing = _fencing(victim)
    victim.mesh.own_record.changed(world.now + 1.0)
    victim.on_dirty()
    world.run(2.0)
    assert victim.mesh.record is not None
    assert liar.mesh.record is not None
    other = base64.b64encode(liar.mesh.record.encoded).decode()
    own = base64.b64encode(victim.mesh.record.encoded).decode()
    for proof in ("", "x", other, own, own[:-8] + "AAAAAAAA"):
        fencing.on_proof(liar.id, proof, world.now)
        assert not fencing.stood_down
    assert connection.error is None


def test_the_word_of_a_peer_that_was_not_admitted_counts_for_nothing() -> None:
    world, engines = _world(14)
    victim, liar = (SimNode(world, f"10.0.0.{n}", engines) for n in (1, 2))
    world.partition("10.0.0.1", "10.0.0.2", cut=True, back=False)
    liar.join(victim)
    liar.mesh.connect(victim.id, world.now, lambda outcome: None)
    liar.on_dirty()
    world.run(0.1)
    (arrival,) = victim.mesh.sessions[liar.id].arrivals
    arrival._close(KeyInUse("another host has this key", proof=""))
    assert victim.mesh.context.peers.twins.noted(world.now) == []


def test_liars_of_one_network_with_a_record_of_the_process_before_make_no_first_node_stand_down_and_two_do() -> None:
    world, engines = _world(9)
    victim = SimNode(world, "10.0.0.1", engines, identity=KEY, first_stays=True)
    kept = victim.mesh.record
    assert kept is not None
    victim.kill()
    world.run(60.0)
    victim = SimNode(world, "10.0.0.1", engines, identity=KEY, first_stays=True)
    liars = [SimNode(world, f"10.0.{n}.{number}", engines) for n in (1, 2) for number in (2, 3)]
    for liar in liars:
        victim.join(liar)
        victim.connect(liar.id)
    fencing, proof = _fencing(victim), base64.b64encode(kept.encoded).decode()
    for liar in (*liars[:2], *liars[:2]):
        fencing.on_proof(liar.id, proof, world.now)
    assert not fencing.stood_down, "it ended, and peers in one network have kept its record: ids are free"
    fencing.on_proof(liars[2].id, proof, world.now)
    assert fencing.stood_down


def test_a_record_that_an_earlier_process_signs_now_needs_no_second_peer() -> None:
    world, engines = _world(10)
    first, second = (SimNode(world, f"10.0.0.{n}", engines, identity=KEY, first_stays=True) for n in (1, 2))
    world.run(60.0)
    first.mesh.own_record.changed(world.now)
    first.on_dirty()
    world.run(1.0)
    now = first.mesh.record
    assert now is not None
    _fencing(second).on_proof(SimNode(world, "10.0.0.3", engines).id, base64.b64encode(now.encoded).decode(), world.now)
    assert _fencing(second).stood_down


@pytest.mark.parametrize("since", [False, True])
def test_a_record_of_an_earlier_process_that_is_heard_moves_a_later_one_only_if_it_was_signed_since_that_began(
    since: bool,
) -> None:
    world, engines = _world(11)
    first = SimNode(world, "10.0.0.1", engines, identity=KEY, first_stays=True)
    record = first.mesh.record
    world.run(60.0)
    second = SimNode(world, "10.0.0.2", engines, identity=KEY, first_stays=True)
    world.run(60.0)
    if since:
        first.mesh.own_record.changed(world.now)
        first.on_dirty()
        world.run(1.0)
        record = first.mesh.record
    assert record is not None
    _fencing(second).heard(record, world.now)
    assert _fencing(second).stood_down == since


def test_the_end_of_its_connection_tells_a_process_that_dials_no_more_that_another_one_has_its_key() -> None:
    world, engines = _world(12)
    hub = SimNode(world, "10.0.0.1", engines, seed_role=True)
    twins = []
    for number in (2, 3):
        node = SimNode(world, f"10.0.0.{number}", engines, identity=KEY)
        node.join(hub)
        node.connect(hub.id)
        twins.append(node)
        world.run(0.5)
    assert _down(twins) == [True, False]


def test_a_peer_that_took_another_process_for_a_restart_is_told_as_well_as_the_others() -> None:
    world, others, twins = _mesh(14, 1, friends=1)
    others[1].connect(KEY.id)
    world.run(5.0)
    node = SimNode(world, "10.0.1.2", ModelEngines(world.entropy), gossip=True, identity=KEY)
    node.join(others[0])
    assert world.run(3.0, lambda: all(_told(each) for each in (*others, *twins, node)))
    assert _down([*twins, node]) == [True, False]


def test_each_process_of_a_crowd_is_shown_a_record_that_was_signed_since_it_asked_and_they_have_a_rate() -> None:
    world, engines = _world(13)
    node = SimNode(world, "10.0.0.1", engines, identity=KEY, first_stays=True)
    seen: dict[int, float] = {}
    asked = 0.0
    for _ in range(3 * OUTBIDS):
        asked = world.now
        _fencing(node).outbid(asked)
        node.on_dirty()
        world.run(0.2)
        assert node.mesh.record is not None
        seen[node.mesh.record.seq] = world.now
    assert OUTBIDS <= len(seen) <= OUTBIDS + 2 + 3 * OUTBIDS * 0.2 / OUTBID_S
    world.run(OUTBID_S)
    assert node.mesh.record.issued >= (world.wall() - world.now + asked) * 1000, "one that comes too soon is not lost"


def test_boot_ids_tell_two_processes_from_one_that_restarts() -> None:
    twins = KeyTwins()
    assert [twins.on_boot(KEY.id, boot) for boot in (b"1", b"1", b"2", b"3", b"3", b"4", b"5")] == [False] * 7
    assert twins.on_boot(KEY.id, b"4")
    assert not twins.is_twice(KEY.id, 0.0)
    assert [twins.note(KEY.id, now) for now in (0.0, 599.0, 1_100.0, 1_800.0)] == [True, False, False, True]


def test_boot_ids_are_ordered_by_time_and_say_which_process_is_to_stay() -> None:
    one, other = make_boot(1_700_000_000_000, False, b"\xff"), make_boot(1_700_000_000_001, True, b"\x00")
    assert one < other
    assert [first_stays(boot) for boot in (one, other)] == [False, True]
    assert len(capability_of(one)) <= 24
    world, engines = _world(9)
    node = SimNode(world, "10.0.0.1", engines)
    assert boot_of(node.mesh.record) == node.mesh.context.boot
    assert boot_of(None) == b""
