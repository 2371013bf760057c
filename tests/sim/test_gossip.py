"""Meshes of gossip cores in virtual time: the promises of ``./dev bench gossip`` in short form."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from bench.gossip import accusations, broadcasts, burst, churn, crashes, moves, partition, why
from meshnode.base.limits import GOSSIP_MAX_ACCUSERS
from meshnode.gossip import Kind, Status
from tests.sim.gossip_sim import GossipNet, build


@pytest.fixture(scope="module")
def net() -> GossipNet:
    return build(150, 1, announce=True, every=0.01, settle=10.0)


def test_a_broadcast_reaches_all_within_a_second_and_each_about_once(net: GossipNet) -> None:
    found = broadcasts(net, 10, 1, wait=3.0)
    assert not found["missing"]
    assert found["p999"] < 1.0
    assert found["payloads"] <= 1.3


def test_a_move_is_known_within_a_second(net: GossipNet) -> None:
    assert moves(net, 5, 2)["p99"] < 1.0


def test_a_crash_is_known_within_five_seconds_and_no_other_node_is_buried(net: GossipNet) -> None:
    found = crashes(net, 3, 3)
    assert found["p99"] < 5.0
    assert not found["wrong"]


def test_links_and_views_are_few_and_connected(net: GossipNet) -> None:
    assert net.is_connected()
    for node in net.living():
        assert 3 <= len(node.gossip.hyparview.active) <= 8
        assert len(node.gossip.hyparview.passive) <= 30


def test_a_late_message_says_why_it_was_late(net: GossipNet) -> None:
    net.unfollow()
    entry = net.publish(net.living()[3], "trace", b"x")
    net.run(3.0)
    last = max(net.living(), key=lambda node: net.arrivals[entry.id][node.number].arrived)
    lines = net.why(entry, last).splitlines()
    assert lines[0] == f"  0.000 s  node {net.living()[3].number} published it"
    assert f"-> node {last.number}," in lines[-1]
    assert lines[-1].startswith(f"{net.delays(entry)[-1]:7.3f} s")


def test_the_bench_shows_the_way_of_the_latest_arrival() -> None:
    lines = why(seed=2, nodes=40).splitlines()
    assert lines[0] == "  0.000 s  node 39 published it"
    assert all(" -> node " in line for line in lines[1:])


@pytest.fixture(scope="module")
def at_once() -> GossipNet:
    return burst(200)


def test_a_mesh_that_was_joined_at_once_through_three_is_as_fast(at_once: GossipNet) -> None:
    found = broadcasts(at_once, 10, 11, wait=4.0)
    assert not found["missing"]
    assert found["p999"] < 1.0
    assert found["payloads"] <= 1.3


def test_neighbours_are_not_those_that_joined_at_the_same_time(at_once: GossipNet) -> None:
    at_once.run(max(0.0, 60.0 - at_once.now))
    linked = [(node, at_once.by_id[peer]) for node in at_once.nodes for peer in node.gossip.hyparview.active]
    apart = sorted(abs(node.number - other.number) for node, other in linked)
    assert apart[len(apart) // 2] > 40  # two drawn by lot are 58 apart


def test_no_living_node_is_taken_for_gone_at_five_percent_loss() -> None:
    assert not accusations(100, 60.0)["confirmed"]


def test_halves_that_were_cut_off_and_changed_have_one_state_soon_after_they_met() -> None:
    found = partition(60, seconds=20.0, changes=10)
    assert found["seconds"] < 5.0
    assert found["accusations"] <= GOSSIP_MAX_ACCUSERS * 30


def test_an_overloaded_node_does_not_accuse_the_healthy() -> None:
    net = build(40, 5, every=0.05, settle=10.0)
    slow = net.nodes[7]
    for _ in range(10):  # its process gets no CPU for two seconds of every three: messages and timers wait
        slow.stalled_until = net.now + 2.0
        net.run(3.0)
    told = [(peer, status) for node in net.nodes for _, peer, status in node.statuses if status is Status.GONE]
    assert not [peer for peer, _ in told if peer != slow.id]
    assert slow.metrics.counters.get("gossip_accusations", 0) == 0
    slow.stalled_until = 0.0
    net.run(10.0)
    assert all(node.gossip.status(slow.id) in (Status.ALIVE, Status.UNKNOWN) for node in net.nodes)


def test_a_goodbye_is_heard_and_its_replay_buries_no_member() -> None:
    net = build(20, 6, announce=True, every=0.05, settle=8.0)
    leaver = net.nodes[5]
    net.leave(leaver)
    net.run(2.0)
    rest = net.living()
    assert all(node.gossip.status(leaver.id) is Status.LEFT for node in rest)
    goodbye = rest[0].gossip.store.get((leaver.id, Kind.MEMBER, ""))
    assert goodbye is not None
    net.restart(leaver, rest[0])
    net.announce(leaver)
    net.run(3.0)
    assert all(node.gossip.status(leaver.id) is Status.ALIVE for node in rest)
    for node in rest:  # a liar says it again, to all
        assert node.gossip.arrivals.ingest.take(rest[1].id, goodbye.encoded, net.now) is None
    assert all(node.gossip.status(leaver.id) is Status.ALIVE for node in rest)


SCRIPT = """
import sys
from tests.sim.gossip_sim import build
net = build(20, int(sys.argv[1]), announce=True, loss=0.05, every=0.05, settle=3.0, strict=True)
net.crash(net.nodes[3])
net.partition(net.nodes[:8])
net.run(5.0)
net.heal()
net.publish(net.nodes[10], "db", b"here")
net.run(5.0)
print(net.digest, net.messages)
"""


def _digest(seed: int, hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_seed_names_every_message_of_a_run_in_any_process() -> None:
    first = _digest(11, "1")
    assert first == _digest(11, "2")
    assert first.split()[0] != _digest(12, "1").split()[0]


def test_a_mesh_of_more_members_than_are_listed_agrees_under_churn_on_the_living() -> None:
    found = churn(160, places=64)
    assert found["connected"]
    assert found["newcomers_listed"] == 0, "the list was full when they came"
    assert found["wrong"] == 0, "each node takes each member for what it is"
    assert found["newcomers_links"] >= 3, "a newcomer is reached through its neighbours"
    assert found["states"] == 1


def test_a_mesh_survives_steady_churn() -> None:
    net = build(80, 7, announce=True, every=0.02, settle=5.0)
    rng = random.Random(7)
    for _ in range(20):
        living = net.living()
        net.crash(rng.choice(living))
        newcomer = net.add()
        net.join(newcomer, rng.choice(net.living()[:-1]))
        net.announce(newcomer)
        net.run(2.0)
    net.run(10.0)
    assert net.is_connected()
    assert len({tuple(node.gossip.store.buckets.prints) for node in net.living()}) == 1
