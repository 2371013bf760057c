"""Topics among hundreds of cores: every node that joined gets everything, no other carries a byte."""

from __future__ import annotations

import pytest

from meshnode.base.wire import encode
from meshnode.gossip.entry import Kind, sign_entry
from meshnode.gossip.messages import Eager, IHave
from meshnode.identity.keys import Identity
from meshnode.topics.messages import Greet, Part, encode_message
from meshnode.topics.overlay import scope_of
from tests.sim.topic_sim import EPOCH, TopicWorld


def _joined(count: int, members: int, seed: int = 1, apart: float = 0.05) -> TopicWorld:
    world = TopicWorld(seed, count)
    for node in world.nodes[:members]:
        world.join(node, "news")
        world.run(apart)
    world.run(5.0)
    return world


@pytest.mark.parametrize(("count", "members"), [(3, 2), (60, 50), (150, 120)])
def test_every_member_gets_every_message_once_and_in_order(count: int, members: int) -> None:
    world = _joined(count, members)
    for i in range(200):
        world.publish(world.nodes[i % 3 if members > 3 else 0], "news", b"%d" % i)
        world.run(0.02)
    world.run(3.0)
    publishers = [node.id for node in world.nodes[: 3 if members > 3 else 1]]
    for node in world.nodes[:members]:
        got = node.read()
        for publisher in publishers:
            if publisher != node.id:
                seqs = [m.seq for m in got if m.sender == publisher]
                assert sorted(seqs) == list(range(1, len(seqs) + 1))
        expected = 200 - sum(1 for i in range(200) if publishers[i % len(publishers)] == node.id)
        assert len(got) == expected
        assert not any(box.lost for box in node.boxes)
    assert all(not node.read() and not node.links for node in world.nodes[members:]), (
        "nodes that did not join carry nothing"
    )


def test_links_and_duplicates_stay_few_as_members_come() -> None:
    world = _joined(200, 200, apart=0.02)
    world.run(120.0)  # links that were wanted while the topic was small are over
    degrees = sorted(len(node.topics.neighbours("news")) for node in world.nodes)
    assert degrees[-1] <= 16
    assert degrees[len(degrees) // 2] <= 8
    for i in range(80):
        world.publish(world.nodes[0], "news", b"warm %d" % i)
        world.run(0.1)
    before = sum(node.metrics.counters.get("topic_received_twice", 0) for node in world.nodes)
    for i in range(50):
        world.publish(world.nodes[0], "news", b"%d" % i)
        world.run(0.02)
    world.run(2.0)
    twice = sum(node.metrics.counters.get("topic_received_twice", 0) for node in world.nodes) - before
    assert twice / (50 * 199) < 0.3


def test_members_that_die_cost_no_other_a_message() -> None:
    world = _joined(60, 60)
    dead = world.nodes[10:25]
    for i in range(300):
        if i == 50:
            for node in dead:
                world.kill(node, gone_after=2.0)
        world.publish(world.nodes[0], "news", b"%d" % i)
        world.run(0.02)
    world.run(5.0)
    for node in world.nodes[1:]:
        if node.alive:
            assert sorted(m.seq for m in node.read()) == list(range(1, 301))


def test_a_late_joiner_gets_the_latest_in_order_and_then_what_comes() -> None:
    world = _joined(12, 10)
    for i in range(30):
        world.publish(world.nodes[i % 4], "news", b"%d" % i)
        world.run(0.05)
    world.run(120.0)  # older than a message may be that is passed on
    late, plain = world.nodes[10], world.nodes[11]
    world.join(late, "news", replay=5)
    world.join(plain, "news")
    world.run(4.0)
    assert [m.data for m in late.read()] == [b"25", b"26", b"27", b"28", b"29"]
    assert plain.read() == []
    world.publish(world.nodes[0], "news", b"new")
    world.run(1.0)
    assert late.read()[-1].data == b"new"
    assert [m.data for m in plain.read()] == [b"new"]
    assert late.boxes[0].lost == plain.boxes[0].lost == 0


def test_a_member_that_leaves_is_asked_no_more_and_the_rest_stay_whole() -> None:
    world = _joined(20, 20)
    for node in world.nodes[5:12]:
        node.topics.leave("news", world.now)
        world._drain(node)
    world.run(5.0)
    world.publish(world.nodes[0], "news", b"x")
    world.run(2.0)
    assert all([m.data for m in n.read()] == [b"x"] for n in (*world.nodes[1:5], *world.nodes[12:]))
    assert all(not n.read() for n in world.nodes[5:12])


def test_messages_lost_on_a_full_link_come_by_another() -> None:
    world = _joined(30, 30)
    world.publish(world.nodes[0], "news", b"first")
    world.run(1.0)
    victim = world.nodes[7]
    source = world.nodes[0]
    cut = victim.topics.neighbours("news")[:1]
    eager = encode_message(Eager(scope_of("news"), ()))[:2]
    world.drop = lambda a, b, data: b == victim.id and a in cut and data[:2] == eager
    for i in range(20):
        world.publish(source, "news", b"%d" % i)
        world.run(0.05)
    world.run(3.0)
    assert len(victim.read()) == 21


def test_junk_on_a_topic_is_dropped_counted_and_told() -> None:
    world = _joined(3, 2)
    node, liar = world.nodes[0], world.nodes[1]
    scope, wall = scope_of("news"), world.wall
    stranger = Identity(b"\7" * 32)

    def entry(**changes: object) -> bytes:
        values: dict[str, object] = {
            "kind": Kind.TOPIC,
            "name": "news",
            "seq": int(EPOCH * 1000) + 1,
            "issued_ms": int(wall * 1000),
            "ttl": 60,
            "value": encode([int(EPOCH * 1000), b"x"]),
        }
        return sign_entry(stranger, **(values | changes)).encoded  # type: ignore[arg-type]

    forged = bytearray(entry())
    forged[3] ^= 1
    bad = {
        "forged": bytes(forged),
        "stale": entry(issued_ms=int((wall - 3600) * 1000)),
        "future": entry(issued_ms=int((wall + 3600) * 1000)),
        "other topic": entry(name="olds"),
        "other kind": entry(kind=Kind.TOPIC + 1),
        "not our value": entry(value=b"\x01"),
        "epoch after seq": entry(value=encode([int(EPOCH * 1000) + 5, b"x"])),
        "nothing": b"",
        "noise": b"\0" * 200,
    }
    for payload in bad.values():
        world.deliver(node, liar.id, encode_message(Eager(scope, ((0, payload),))))
    world.run(1.0)
    counters = node.metrics.counters
    assert node.read() == []
    assert counters["topic_drop_rejected"] + counters["topic_drop_unfit"] == len(bad)
    assert len(node.lied) == len(bad) - 2, "a wrong clock is no lie"
    world.deliver(node, world.nodes[2].id, encode_message(Eager(scope, ((0, entry()),))))
    world.deliver(node, world.nodes[2].id, encode_message(IHave(scope_of("other"), ((1, b"12345678"),))))
    assert counters["topic_drop_stranger"] == 2
    assert node.read() == []


def test_a_flood_of_one_origin_is_cut_to_its_rate() -> None:
    world = _joined(2, 2)
    node, liar = world.nodes
    flooder = Identity(b"\7" * 32)
    for i in range(2_000):
        sent = sign_entry(
            flooder,
            kind=Kind.TOPIC,
            name="news",
            seq=int(EPOCH * 1000) + 1 + i,
            issued_ms=int(world.wall * 1000),
            ttl=60,
            value=encode([int(EPOCH * 1000), b"x"]),
        )
        world.deliver(node, liar.id, encode_message(Eager(scope_of("news"), ((0, sent.encoded),))))
    assert len(node.read()) <= 1_024
    assert node.metrics.counters["topic_drop_flood"] >= 1_100
    world.publish(liar, "news", b"still heard")
    world.run(1.0)
    assert node.read()[-1].data == b"still heard"


def _messages(count: int, ids: int, wall: float) -> list[bytes]:
    """Messages of many throw-away ids, in turn."""
    made, epoch = [], int(EPOCH * 1000)
    for i in range(count):
        sender = Identity((1 + i % ids).to_bytes(32, "big"))
        fields = {"kind": Kind.TOPIC, "name": "news", "seq": epoch + 1 + i // ids, "issued_ms": int(wall * 1000)}
        made.append(sign_entry(sender, **fields, ttl=60, value=encode([epoch, b"x"])).encoded)  # type: ignore[arg-type]
    return made


def test_a_flood_of_many_ids_over_one_link_takes_nothing_from_what_others_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"TOTAL_RATE": 100.0, "TOTAL_BURST": 200.0, "LINK_RATE": 30.0, "LINK_BURST": 60.0}.items():
        monkeypatch.setattr(f"meshnode.topics.link_rates.TOPIC_{name}", value)
    world = _joined(3, 3)
    node, honest, liar = world.nodes
    flood = _messages(5_000, 100, world.wall)
    for second in range(50):
        world.publish(honest, "news", b"%d" % second)
        world.run(0.0199)  # it arrives in a moment: the flood is there first, and has taken what all share
        for payload in flood[100 * second : 100 * (second + 1)]:
            world.deliver(node, liar.id, encode_message(Eager(scope_of("news"), ((0, payload),))))
        world.run(0.0801)
    world.run(2.0)
    got = node.read()
    assert sum(message.sender == honest.id for message in got) == 50
    assert len(got) < 200 + 60 + 5 * 130 + 50 + 10, "what is over the rates costs no look at a signature"
    assert liar.id not in node.lied


def test_a_link_that_brings_more_than_any_node_passes_on_is_cut_off() -> None:
    world = _joined(3, 3)
    node, liar = world.nodes[0], world.nodes[2]
    (payload,) = _messages(1, 1, world.wall)
    frame = encode_message(Eager(scope_of("news"), ((0, payload),) * 4))
    for _ in range(4_900):
        world.deliver(node, liar.id, frame)
    assert liar.id not in node.lied
    for _ in range(200):
        world.deliver(node, liar.id, frame)
    assert liar.id in node.lied


def test_a_crowd_is_turned_away_when_enough_are_served() -> None:
    world = _joined(40, 1)
    node = world.nodes[0]
    for other in world.nodes[1:]:
        node.links[other.id] = None
        world.deliver(node, other.id, encode_message(Greet(scope_of("news"))))
    assert len(node.topics.neighbours("news")) == 16
    assert node.metrics.counters["topic_links_full"] == 23


def test_a_crowd_of_one_network_leaves_links_to_members_elsewhere_and_to_those_that_a_node_wants() -> None:
    world = _joined(60, 3)
    node, wanted, elsewhere, *crowd = world.nodes
    node.topics._context.groups_of = lambda peer: (
        ("crowd", "host") if peer in {other.id for other in crowd} else (peer, peer)
    )
    for other in (wanted, elsewhere):
        node.topics.on_message(other.id, Part(scope_of("news")), world.now, world.wall)
    for other in [*crowd, wanted, elsewhere]:
        node.links[other.id] = None
        world.deliver(node, other.id, encode_message(Greet(scope_of("news"))))
    assert {wanted.id, elsewhere.id} <= set(node.topics.neighbours("news"))
    assert len(node.topics.neighbours("news")) <= 18


@pytest.mark.parametrize(("publishers", "most"), [(1, 1.1), (2, 1.1), (5, 1.1)])
def test_hundreds_of_messages_a_second_settle_on_a_tree(publishers: int, most: float) -> None:
    world = _joined(20, 20)

    def second() -> float:
        names = ("topic_received", "topic_received_twice")
        before = [sum(node.metrics.counters.get(name, 0) for node in world.nodes) for name in names]
        for i in range(100):
            world.publish(world.nodes[i % publishers], "news", b"x")
            world.run(0.01)
        got, twice = (
            sum(node.metrics.counters.get(name, 0) for node in world.nodes) - at
            for name, at in zip(names, before, strict=True)
        )
        return 1 + twice / got

    copies = [second() for _ in range(9)]
    world.run(5.0)
    assert max(copies[6:]) <= most, copies
    assert all(len(node.read()) == 900 for node in world.nodes[publishers:])
