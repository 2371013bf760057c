"""Whatever a member sends as services, names, subscriptions or topics: nothing raises, nothing grows without bound."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.limits import TOPIC_MAX_LINKS, TOPIC_QUEUE
from meshnode.base.metrics import Metrics
from meshnode.directory.announcement import is_offer
from meshnode.directory.names import Names, is_claim
from meshnode.directory.services import Services
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Kind, sign_entry
from meshnode.gossip.messages import Eager, Graft, IHave, Prune
from meshnode.identity.keys import Identity
from meshnode.sdk.node import runtime_of
from meshnode.topics.entries import is_subscription
from meshnode.topics.messages import SERVICE, Greet, Hold, Latest, Part, Pull, Release
from meshnode.topics.overlay import scope_of
from meshnode.topics.topics import Topics
from tests.conftest import MakeNode, echo
from tests.live.test_directory import until

WALL = 1_800_000_000.0
ME = Identity(b"\1" * 32)
OTHERS = [Identity(bytes([i]) * 32) for i in range(2, 8)]
VALUES = st.one_of(st.none(), st.binary(max_size=64))
NAMES = st.one_of(st.text(max_size=40), st.sampled_from(["db", "laptop", scope_of("news").hex()]))


@given(st.lists(st.tuples(st.sampled_from([*OTHERS, ME]), st.sampled_from([8, 9, 10]), NAMES, VALUES), max_size=20))
@settings(max_examples=60)
def test_any_entries_are_taken_or_dropped(entries: list[tuple[Identity, int, str, bytes | None]]) -> None:
    def alive(peer: object) -> Status:
        return Status.ALIVE

    metrics = Metrics()
    directory = Services(ME.id, random.Random(1), metrics, alive, 0.0)
    names = Names(ME.id, metrics, alive)
    topics = Topics(ME, random.Random(1), metrics, alive)
    topics.join("news", 0.0, WALL)
    for number, (signer, kind, name, value) in enumerate(entries):
        entry = sign_entry(signer, kind=kind, name=name, seq=number, issued_ms=int(WALL * 1000), ttl=60, value=value)
        for fits in (is_offer, is_claim, is_subscription):
            assert fits(entry) in (True, False)
        directory.on_entry(entry, WALL, 0.0)
        names.on_entry(entry, WALL)
        topics.on_entry(entry, 0.0)
    directory.choose("db", 0.0, WALL, lambda peer: None)
    for core in (directory, topics):
        core.take_effects()
    names.take_effects()


IDS = st.binary(min_size=8, max_size=8)
HOPS = st.integers(0, 64)


@st.composite
def _payload(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(st.binary(max_size=300))
    signer = draw(st.sampled_from(OTHERS))
    kind, name = draw(st.sampled_from([(Kind.TOPIC, "news"), (Kind.TOPIC, "other"), (Kind.SERVICE, "news")]))
    seq, issued = draw(st.integers(0, 2**45)), draw(st.integers(0, int(WALL * 1000) + 10**6))
    value = draw(st.one_of(st.none(), st.binary(max_size=40), st.just(b"\x82\x01\x41x")))
    return sign_entry(signer, kind=kind, name=name, seq=seq, issued_ms=issued, ttl=60, value=value).encoded


SCOPE = st.sampled_from([scope_of("news"), scope_of("other"), b"x"])
MESSAGES = st.one_of(
    st.builds(Eager, SCOPE, st.lists(st.tuples(HOPS, _payload()), max_size=4).map(tuple)),
    st.builds(IHave, SCOPE, st.lists(st.tuples(HOPS, IDS), max_size=8).map(tuple)),
    st.builds(Graft, SCOPE, st.lists(IDS, max_size=8).map(tuple)),
    st.builds(Prune, SCOPE),
    st.builds(Greet, SCOPE),
    st.builds(Part, SCOPE),
    st.builds(Latest, SCOPE, st.lists(IDS, max_size=8).map(tuple)),
    st.builds(Pull, SCOPE, st.lists(IDS, min_size=1, max_size=8).map(tuple)),
    st.builds(Hold, SCOPE, st.integers(0, 19)),
    st.builds(Release, SCOPE),
)


@given(st.lists(st.tuples(st.sampled_from(OTHERS), MESSAGES, st.floats(0.0, 5.0)), max_size=40), st.integers(0, 3))
@settings(max_examples=80)
def test_any_messages_of_members_leave_a_topic_whole(steps: list, replay: int) -> None:  # type: ignore[type-arg]
    topics = Topics(ME, random.Random(1), Metrics(), lambda peer: Status.ALIVE)
    inbox = topics.join("news", 0.0, WALL, replay)
    now = 0.0
    for signer, message, pause in steps:
        now += pause
        topics.on_link(signer.id, True, now)
        topics.on_message(signer.id, message, now, WALL + now)
        topics.tick(now)
        deadline = topics.next_deadline()
        assert deadline is None or deadline > now
        topics.take_effects()
    assert len(topics.neighbours("news")) <= TOPIC_MAX_LINKS
    assert len(inbox) <= TOPIC_QUEUE
    topics.publish("news", b"x", now, WALL + now)
    topics.leave("news", now)
    assert topics.joined() == []


async def test_junk_on_a_topic_stream_ends_the_stream_and_nothing_else(make_node: MakeNode) -> None:
    seed = await make_node(seed_role=True)
    node = await make_node(seed=seed)
    seed.serve("echo", echo, allow=["any"])
    topic = await seed.join("news")
    connection = await node.connect(seed.id)
    for junk in (b"\xff" * 100, b"\x00\x03abc", b"\x00\x00", b"\x00\x05\x81\x01\x40\x00\x00", b"\x40\x01" + b"x" * 10):
        before = runtime_of(seed).metrics.counters.get("topic_drop_malformed", 0)
        _, writer = await connection.open(SERVICE)
        writer.write(junk)
        await until(lambda before=before: runtime_of(seed).metrics.counters.get("topic_drop_malformed", 0) > before)  # type: ignore[misc]
    assert connection.is_open
    reader, writer = await connection.open("echo")
    writer.write(b"still here")
    writer.write_eof()
    assert await reader.read() == b"still here"
    await topic.leave()
