"""Whatever a member sends as gossip: it is dropped by name, costs its sender, never raises, and stays bounded."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.limits import (
    GOSSIP_MAX_CONTACTS,
    GOSSIP_MAX_HOPS,
    GOSSIP_MAX_MISSING,
    GOSSIP_MAX_PASSIVE,
    GOSSIP_MAX_PENDING,
    GOSSIP_MAX_WALKS,
)
from meshnode.base.metrics import Metrics
from meshnode.base.wire import WireError, encode
from meshnode.gossip import Contact, Gossip, decode_message, encode_message
from meshnode.gossip import messages as m
from meshnode.gossip.entry import Entry, EntryReject, open_entry, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

WALL = 1_800_000_000.0
ME, PEER = Identity(bytes(31) + b"\x01"), Identity(bytes(31) + b"\x02")
quick = settings(max_examples=300, derandomize=True)

ids = st.binary(min_size=32, max_size=32).map(NodeId)
tx = st.integers(0, m.MAX_TX)
contacts = st.builds(Contact, ids, st.binary(max_size=100))
some = st.lists(contacts, max_size=GOSSIP_MAX_CONTACTS).map(tuple)
item = st.binary(min_size=8, max_size=8)
items = st.lists(item, max_size=20).map(tuple)
hops = st.integers(0, GOSSIP_MAX_HOPS)
scope = st.binary(max_size=m.MAX_SCOPE)
payload = st.binary(max_size=300)
prints = st.integers(0, 8).flatmap(
    lambda n: st.lists(st.integers(0, 2**64 - 1), min_size=2**n, max_size=2**n).map(tuple)
)
told = st.dictionaries(st.integers(0, 15), items, max_size=5).map(lambda d: tuple(sorted(d.items())))
messages = st.one_of(
    st.builds(m.Join, st.binary(max_size=100)),
    st.builds(m.ForwardJoin, contacts, st.integers(0, m.MAX_WALK)),
    st.builds(m.Neighbour, st.booleans(), st.binary(max_size=100)),
    st.builds(m.NeighbourReply, st.booleans()),
    st.builds(m.Disconnect, st.booleans()),
    st.builds(m.Shuffle, tx, st.integers(0, m.MAX_WALK), some),
    st.builds(m.ShuffleReply, tx, some),
    st.builds(m.IndirectProbe, tx, contacts),
    st.builds(m.IndirectReply, tx, st.booleans()),
    st.builds(m.Eager, scope, st.lists(st.tuples(hops, payload), max_size=5).map(tuple)),
    st.builds(m.IHave, scope, st.lists(st.tuples(hops, item), max_size=20).map(tuple)),
    st.builds(m.Graft, scope, items),
    st.builds(m.Prune, scope),
    st.builds(m.SyncRequest, prints),
    st.builds(m.SyncResponse, st.just(16), st.booleans(), told),
    st.builds(m.Want, st.lists(item, min_size=1, max_size=20).map(tuple)),
    st.builds(m.Entries, st.booleans(), st.lists(payload, max_size=5).map(tuple)),
)
cbor = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=12,
)


def _gossip() -> tuple[Gossip, Metrics]:
    metrics = Metrics()
    return Gossip(ME, rng=random.Random(1), metrics=metrics, now=0.0, wall=WALL), metrics


def _with_neighbour() -> tuple[Gossip, Metrics]:
    gossip, metrics = _gossip()
    gossip.on_link(PEER.id, True, 0.0)
    gossip.on_message(PEER.id, m.Neighbour(True, b""), 0.0)
    assert PEER.id in gossip.hyparview.active
    gossip.take_effects()
    return gossip, metrics


@given(messages)
@quick
def test_every_message_decodes_to_itself(message: m.Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200) | cbor.map(encode) | st.lists(cbor, min_size=1, max_size=5).map(encode))
@quick
def test_bytes_of_any_kind_are_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        message = decode_message(data)
    except WireError:
        return
    assert encode_message(message) == data


@given(st.integers(1, 17), st.lists(cbor, max_size=4))
@quick
def test_fields_of_any_kind_behind_a_known_type_do_too(kind: int, fields: list[object]) -> None:
    try:
        decode_message(encode([kind, *fields]))
    except WireError:
        pass


@given(st.lists(messages | st.binary(max_size=100), max_size=60), st.randoms(use_true_random=False))
@quick
def test_a_neighbour_may_say_anything_in_any_order(said: list[object], rng: random.Random) -> None:
    gossip, _ = _with_neighbour()
    now = 0.0
    for message in said:
        now += rng.random()
        if isinstance(message, bytes):
            gossip.receive(PEER.id, message, now)
        else:
            gossip.on_message(PEER.id, message, now)  # type: ignore[arg-type]
        gossip.take_effects()
        gossip.tick(now, WALL + now)
        at = gossip.next_deadline()
        assert at is None or at > now
    views = gossip.hyparview
    assert len(views.passive) <= GOSSIP_MAX_PASSIVE
    assert len(views._pending) <= GOSSIP_MAX_PENDING
    assert len(views.shuffles._walks) <= GOSSIP_MAX_WALKS
    assert len(gossip.plumtree.awaited) <= GOSSIP_MAX_MISSING


def _entry(**changes: object) -> Entry:
    fields: dict[str, object] = {
        "kind": 8,
        "name": "db",
        "seq": int(WALL * 1000),
        "issued_ms": int(WALL * 1000),
        "ttl": 60,
        "value": b"x",
    }
    return sign_entry(PEER, **(fields | changes))  # type: ignore[arg-type]


@given(st.binary(max_size=200) | cbor.map(lambda value: bytes(64) + encode(value)))
@quick
def test_bytes_of_any_kind_are_no_entry(data: bytes) -> None:
    assert isinstance(open_entry(data, WALL), EntryReject)


@given(st.integers(0, 199), st.integers(1, 255))
@quick
def test_an_entry_with_one_byte_changed_is_none(where: int, change: int) -> None:
    data = bytearray(_entry().encoded)
    data[where % len(data)] ^= change
    assert isinstance(open_entry(bytes(data), WALL), EntryReject)


def test_each_kind_of_bad_entry_is_dropped_under_its_name_and_costs_its_bringer() -> None:
    future = int((WALL + 400) * 1000)
    other = Identity(bytes(31) + b"\x03")
    bad = {
        "oversized": bytes(5_000),
        "malformed": bytes(64) + b"\xff\xff",
        "not_canonical": bytes(100),
        "future": _entry(seq=future, issued_ms=future).encoded,
        "expired": _entry(issued_ms=int((WALL - 100) * 1000)).encoded,
        "forged": _entry().encoded.replace(bytes(PEER.id), bytes(other.id)),
        "unfit": _entry(kind=1, value=b"no member").encoded,
    }
    for name, data in bad.items():
        gossip, metrics = _with_neighbour()
        gossip.on_message(PEER.id, m.Eager(b"", ((0, data),)), 0.0)
        assert not [e for e in gossip.take_effects() if type(e).__name__ == "Changed"]
        counted = {k for k in metrics.counters if k.startswith("gossip_drop_")}
        assert f"gossip_drop_{name}" in counted
        assert gossip.reputation.points(PEER.id) > 0, name


def test_a_member_that_forwards_garbage_is_cut_off() -> None:
    gossip, metrics = _with_neighbour()
    for number in range(5):
        gossip.on_message(PEER.id, m.Eager(b"", ((0, bytes([number]) * 100),)), 0.0)
    effects = [type(e).__name__ for e in gossip.take_effects()]
    assert "Banned" in effects
    assert PEER.id not in gossip.hyparview.active
    gossip.on_message(PEER.id, m.Join(b""), 1.0)
    assert PEER.id not in gossip.hyparview.active
    assert metrics.counters["gossip_drop_banned"] >= 1
    gossip.tick(700.0, WALL + 700)
    gossip.on_message(PEER.id, m.Join(b""), 700.0)
    assert PEER.id in gossip.hyparview.active, "after ten minutes it may try again"


def _take_all(gossip: Gossip) -> None:
    """Let a second pass, in which what came at once has its turns."""
    for turn in range(50):
        gossip.tick(turn / 50, WALL + turn / 50)


def test_a_flood_from_one_origin_is_cut_to_its_rate_and_its_share() -> None:
    gossip, metrics = _with_neighbour()
    base = int(WALL * 1000)
    for number in range(400):
        entry = _entry(name=f"f{number}", seq=base + number)
        gossip.on_message(PEER.id, m.Eager(b"", ((0, entry.encoded),)), 0.0)
    _take_all(gossip)
    assert len(gossip.store) <= 64
    assert metrics.counters["gossip_drop_flood"] > 0
    assert PEER.id not in gossip.hyparview.active, "it was its own flood: no honest node sends more than others pass on"


def test_an_honest_node_whose_link_was_held_up_for_ten_seconds_is_not_cut_off() -> None:
    gossip, metrics = _with_neighbour()
    base = int(WALL * 1000)
    for number in range(80 + 16 * 10):  # all that it may publish in that time
        entry = _entry(name=f"f{number}", seq=base + number)
        gossip.on_message(PEER.id, m.Eager(b"", ((0, entry.encoded),)), 0.0)
    _take_all(gossip)
    assert metrics.counters["gossip_drop_flood"] > 0
    assert PEER.id in gossip.hyparview.active


def test_an_old_goodbye_buries_no_member() -> None:
    gossip, _ = _with_neighbour()
    base = int(WALL * 1000)
    bye = _entry(kind=1, name="", seq=base, value=encode([True, b""]), ttl=3600)
    back = _entry(kind=1, name="", seq=base + 1, value=encode([False, b""]), ttl=7200)
    for entry in (bye, back, bye):
        gossip.on_message(PEER.id, m.Neighbour(True, b""), 0.0)
        gossip.on_message(PEER.id, m.Eager(b"", ((0, entry.encoded),)), 0.0)
        gossip.on_message(PEER.id, m.Entries(True, (entry.encoded,)), 0.0)
    assert gossip.status(PEER.id).value == "alive"
    assert PEER.id in gossip.hyparview.active
    gossip.tick(7300.0, WALL + 7300)  # the newer one has expired, the older one is brought again
    gossip.on_message(PEER.id, m.Entries(True, (bye.encoded,)), 7300.0)
    assert gossip.status(PEER.id).value != "left"
