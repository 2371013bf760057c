"""More than the links carry: publishers wait, nothing is lost on healthy links, and one slow member stops no other."""

from __future__ import annotations

import pytest

from meshnode.base.limits import TOPIC_LINK_QUEUE
from meshnode.topics.messages import Hold, Release
from meshnode.topics.overlay import scope_of
from tests.sim.topic_links_sim import BANDWIDTH, RatedWorld

SIZE = 1_000


def _joined(count: int, seed: int = 1) -> RatedWorld:
    world = RatedWorld(seed, count)
    for node in world.nodes:
        world.join(node, "news")
        world.run(0.05)
    world.run(5.0)
    for i in range(30):  # a tree grows
        world.publish(world.nodes[i % 2], "news", b"warm")
        world.run(0.05)
    world.run(3.0)
    for node in world.nodes:
        node.read().clear()
    return world


def _slow_down(world: RatedWorld, rate: float) -> None:
    for node in world.nodes:
        for other in world.nodes:
            world.rates[node.id, other.id] = rate


def _count(world: RatedWorld, name: str) -> int:
    return sum(node.metrics.counters.get(name, 0) for node in world.nodes)


@pytest.mark.parametrize("publishers", [1, 2, 5])
def test_publishers_slow_down_to_what_links_carry_and_nothing_is_lost(publishers: int) -> None:
    world = _joined(20)
    _slow_down(world, 60_000.0)  # about 50 messages of 1 kB a second
    sent = [world.publish_at(node, "news", 300.0, SIZE, 10.0) for node in world.nodes[:publishers]]
    world.run(10.0)
    most = max(size for node in world.nodes for size in node.topics.waiting("news").values())
    world.run(25.0)
    total = sum(map(len, sent))
    assert 200 <= total <= 1_400, "paced, and not stopped"
    for node in world.nodes:
        own = len(sent[world.nodes.index(node)]) if node in world.nodes[:publishers] else 0
        assert len(node.read()) == total - own
        assert node.boxes[0].lost == 0
    assert _count(world, "topic_queue_full") == 0
    assert most < TOPIC_LINK_QUEUE // 2


def test_a_member_that_stalls_loses_its_oldest_with_a_counted_gap_and_no_other_does() -> None:
    world = _joined(20)
    publisher = world.nodes[0]
    stuck = world.nodes[7]
    for node in world.nodes:
        world.rates[node.id, stuck.id] = 1_000.0
    sent = world.publish_at(publisher, "news", 150.0, SIZE, 25.0)
    world.run(25.0)
    assert len(sent) > 2_000, "the others were kept waiting for a few seconds at most"
    for node in world.nodes:
        world.rates[node.id, stuck.id] = BANDWIDTH
    for queues in world.queues.values():
        if (stream := queues._out.get(stuck.id)) is not None:
            stream.free_at = world.now
    world.run(60.0)
    for node in world.nodes[1:]:
        if node is not stuck:
            assert len(node.read()) == len(sent)
            assert node.boxes[0].lost == 0
    got = {message.seq for message in stuck.read()}
    assert len(got) + stuck.boxes[0].lost == len(sent)
    assert max(got) == max(sent)


def test_members_that_say_hold_without_need_slow_publishers_and_do_not_silence_them() -> None:
    world = _joined(8)
    publisher = world.nodes[0]
    hold = Hold(scope_of("news"), 0)
    sent = world.publish_at(publisher, "news", 50.0, SIZE, 20.0)
    for second in range(20):  # released in between, so that no member is taken for slow
        for said in (hold, Release(hold.scope), hold):
            for peer in publisher.topics.neighbours("news"):
                publisher.topics.on_message(peer, said, world.now, world.wall)
        world.run(1.0)
        if second == 9:
            before = len(sent)
    assert 8 <= len(sent) - before <= 12, "held, to one message a second"
    world.run(5.0)
    assert all(len(node.read()) == len(sent) for node in world.nodes[1:])


def test_pressure_ends_when_links_are_fast_again() -> None:
    world = _joined(20)
    _slow_down(world, 20_000.0)
    sent = world.publish_at(world.nodes[0], "news", 200.0, SIZE, 20.0)
    world.run(10.0)
    slow = len(sent)
    assert slow < 600
    world.rates.clear()
    world.run(12.0)
    assert len(sent) - slow > 1_500
    world.run(5.0)
    assert all(len(node.read()) == len(sent) for node in world.nodes[1:])
