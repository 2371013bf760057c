"""The service directory: what is offered, what is believed of it, and which instance is taken."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.base.limits import DIRECTORY_MAX_OFFERS, SERVICE_MAX_OWN
from meshnode.base.metrics import Metrics
from meshnode.base.wire import encode
from meshnode.directory.announcement import Offer, parse_offer
from meshnode.directory.services import PAUSE_S, REFRESH_S, Announce, ServiceChanged, Services
from meshnode.gossip.effects import Status
from meshnode.gossip.entry import Entry, Kind, sign_entry
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId

WALL = 1_800_000_000.0
ME, A, B, C = (Identity(bytes([i]) * 32) for i in range(1, 5))


class Bench:
    """A directory, and a membership that says what the test says."""

    def __init__(self) -> None:
        self.statuses: dict[NodeId, Status] = {}
        self.metrics = Metrics()
        self.core = Services(ME.id, random.Random(1), self.metrics, self.status, 0.0)
        self.seq = int(WALL * 1000)

    def status(self, peer: NodeId) -> Status:
        return self.statuses.get(peer, Status.ALIVE)

    def entry(self, signer: Identity, name: str = "db", value: bytes | None = b"", **changes: Any) -> Entry:
        self.seq += 1
        fields: dict[str, Any] = {"issued_ms": int(WALL * 1000), "ttl": 3600, "kind": Kind.SERVICE} | changes
        value = Offer().encoded() if value == b"" else value
        return sign_entry(signer, name=name, seq=self.seq, value=value, **fields)

    def offer(self, signer: Identity, name: str = "db", offer: Offer | None = None, now: float = 0.0) -> None:
        self.core.on_entry(self.entry(signer, name, (offer or Offer()).encoded()), WALL + now, now)

    def chosen(self, now: float = 0.0, rtts: dict[NodeId, float] | None = None, **options: Any) -> list[NodeId]:
        found = self.core.choose("db", now, WALL + now, (rtts or {}).get, **options)
        return [instance.node for instance in found]

    def told(self) -> list[tuple[str, NodeId]]:
        effects = self.core.take_effects()
        return [(e.change, e.instance.node) for e in effects if isinstance(e, ServiceChanged)]


def test_instances_come_and_go_with_their_entries_and_their_nodes() -> None:
    bench = Bench()
    bench.offer(A)
    bench.offer(B)
    assert bench.told() == [("up", A.id), ("up", B.id)]
    bench.statuses[A.id] = Status.SUSPECT
    bench.core.on_member(A.id, 0.0)
    assert bench.chosen() == [B.id, A.id], "an instance under suspicion is tried last, not never"
    bench.statuses[A.id] = Status.GONE
    bench.core.on_member(A.id, 0.0)
    assert bench.told() == [("changed", A.id), ("down", A.id)]
    assert bench.chosen() == [B.id]
    bench.statuses[A.id] = Status.ALIVE
    bench.core.on_member(A.id, 0.0)
    bench.core.on_entry(bench.entry(B, value=None), WALL, 0.0)
    assert bench.told() == [("up", A.id), ("down", B.id)]
    assert bench.chosen() == [A.id]


def test_of_a_crowd_that_offers_the_same_name_only_those_that_may_serve_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, looked = Bench(), list[NodeId]()
    for signer in (A, B, C):
        bench.offer(signer)
    state = bench.core.experience.state
    monkeypatch.setattr(
        bench.core.experience, "state", lambda peer, name, now: looked.append(peer) or state(peer, name, now)
    )
    assert bench.chosen(only=frozenset([B.id, ME.id])) == [B.id]
    assert looked == [B.id]


def test_what_has_expired_is_offered_no_longer() -> None:
    bench = Bench()
    bench.offer(A)
    assert bench.chosen(now=3599.0) == [A.id]
    assert bench.chosen(now=3601.0) == []
    bench.told()
    for now in (10.0, 3601.0):
        bench.core.tick(now, WALL + now)
    assert bench.told() == [("down", A.id)]
    assert bench.core.names() == []


def test_near_idle_and_well_instances_come_first() -> None:
    bench = Bench()
    for signer in (A, B, C):
        bench.offer(signer)
    assert bench.chosen(rtts={A.id: 0.08, B.id: 0.01}) == [B.id, C.id, A.id], "an unknown one is taken for 50 ms away"
    bench.offer(B, offer=Offer(load=100))
    assert bench.chosen(rtts={A.id: 0.08, B.id: 0.01})[0] != B.id
    bench.offer(C, offer=Offer(healthy=False))
    assert bench.chosen(rtts={A.id: 0.08, B.id: 0.01})[-1] == C.id


def test_a_load_of_ten_counts_as_twice_the_way_and_no_more() -> None:
    bench = Bench()
    bench.offer(A, offer=Offer(load=10))
    bench.offer(B)
    for _ in range(20):
        assert bench.chosen(rtts={A.id: 0.03, B.id: 0.1}) == [A.id, B.id]
        assert bench.chosen(rtts={A.id: 0.08, B.id: 0.1}) == [B.id, A.id]


def test_a_directory_has_nothing_to_do_at_first_and_forgets_what_expired_within_ten_seconds() -> None:
    bench = Bench()
    assert (bench.core.next_deadline() or 0.0) > 0.0
    bench.offer(A)
    now = 3600.5
    while now < 3612.0:
        bench.core.tick(now, WALL + now)
        now = bench.core.next_deadline() or 0.0
    assert bench.core.names() == []


def test_equally_near_instances_share_the_calls() -> None:
    bench = Bench()
    bench.offer(A)
    bench.offer(B)
    first = [bench.chosen(rtts={A.id: 0.0003, B.id: 0.0009})[0] for _ in range(200)]
    assert 50 < first.count(A.id) < 150


def test_sticky_stays_with_the_last_that_worked_as_long_as_it_works() -> None:
    bench = Bench()
    for signer in (A, B, C):
        bench.offer(signer)
    bench.core.experience.on_opened(C.id, "db")
    near = {A.id: 0.001, B.id: 0.001, C.id: 0.2}
    assert bench.chosen(rtts=near, sticky=True)[0] == C.id
    assert bench.chosen(rtts=near)[0] != C.id
    bench.core.experience.on_silent(C.id, 1.0)
    assert bench.chosen(1.0, rtts=near, sticky=True)[-1] == C.id
    bench.core.experience.on_heard(C.id)
    assert bench.chosen(1.0, rtts=near, sticky=True)[0] == C.id


def test_a_failure_counts_at_once_for_a_while_and_longer_when_it_repeats() -> None:
    bench = Bench()
    bench.offer(A)
    bench.offer(B)
    bench.core.experience.on_failed(A.id, 0.0)
    assert bench.chosen(0.1, rtts={A.id: 0.001}) == [B.id, A.id]
    assert bench.chosen(2.1, rtts={A.id: 0.001}) == [A.id, B.id]
    bench.core.experience.on_failed(A.id, 3.0)
    assert bench.chosen(6.9, rtts={A.id: 0.001}) == [B.id, A.id]
    bench.core.experience.on_opened(A.id, "db")
    assert bench.chosen(6.9, rtts={A.id: 0.001}) == [A.id, B.id]


def test_a_refusal_is_remembered_and_a_missing_service_until_it_is_announced_again() -> None:
    bench = Bench()
    bench.offer(A)
    bench.offer(B)
    bench.core.experience.on_refused(A.id, "db", 0.0)
    bench.core.experience.on_missing(B.id, "db", 0.0)
    states = {i.node: i.state for i in bench.core.instances("db", 1.0, WALL)}
    assert states == {A.id: "refused", B.id: "missing"}
    bench.offer(B, now=2.0)
    assert bench.chosen(2.0) == [B.id, A.id]


def test_a_missing_service_stays_missing_while_only_its_old_announcement_comes_again() -> None:
    bench = Bench()
    old = bench.entry(A)
    bench.core.on_entry(old, WALL, 0.0)
    bench.core.experience.on_missing(A.id, "db", 0.0)
    bench.core.on_entry(old, WALL, 1.0)
    assert [i.state for i in bench.core.instances("db", 1.0, WALL)] == ["missing"]
    bench.offer(A, now=2.0)
    assert [i.state for i in bench.core.instances("db", 2.0, WALL)] == ["up"]
    bench.core.experience.on_missing(B.id, "db", 3.0)
    bench.offer(B, now=4.0)
    assert [i.state for i in bench.core.instances("db", 4.0, WALL)] == ["up"] * 2, "of one that we had never heard of"


def test_our_own_services_are_announced_renewed_and_withdrawn() -> None:
    bench = Bench()
    core = bench.core
    core.announce("web", Offer(meta={"zone": "a"}), 0.0)
    (first,) = core.take_effects()
    assert isinstance(first, Announce)
    assert (first.kind, first.name) == (Kind.SERVICE, "web")
    core.announce("web", Offer(meta={"zone": "a"}, load=4), 1.5)
    assert core.take_effects() == [], "a little more load is not worth a broadcast"
    core.announce("web", Offer(meta={"zone": "a"}, load=40), 2.0)
    core.announce("web", Offer(meta={"zone": "a"}, load=60), 2.1)
    assert len(core.take_effects()) == 1
    core.tick(2.0 + PAUSE_S, WALL)
    assert len(core.take_effects()) == 1, "what changes faster is announced once a second"
    core.tick(2.0 + PAUSE_S + REFRESH_S * 1.2, WALL)
    assert [e for e in core.take_effects() if isinstance(e, Announce)]
    core.withdraw("web", 5000.0)
    (last,) = core.take_effects()
    assert isinstance(last, Announce)
    assert last.value is None
    core.tick(20_000.0, WALL)
    assert not [e for e in core.take_effects() if isinstance(e, Announce)]


def test_what_an_earlier_run_of_ours_announced_is_withdrawn() -> None:
    bench = Bench()
    bench.core.announce("web", Offer(), 0.0)
    bench.core.take_effects()
    bench.core.on_entry(bench.entry(ME, "web"), WALL, 0.0)
    bench.core.on_entry(bench.entry(ME, "old"), WALL, 0.0)
    (effect,) = bench.core.take_effects()
    assert isinstance(effect, Announce)
    assert (effect.name, effect.value) == ("old", None)


@pytest.mark.parametrize(
    "value",
    [
        b"junk",
        encode([0, 0, 0]),
        encode([2, 0, 0, {}]),
        encode([0, 0, 101, {}]),
        encode([0, True, 0, {}]),
        encode([0, 0, 0, []]),
        encode([0, 0, 0, {1: "a"}]),
        encode([0, 0, 0, {"a": b"x"}]),
        encode([0, 0, 0, {"a": "x" * 129}]),
        encode([0, 0, 0, {str(i): "x" for i in range(17)}]),
    ],
)
def test_what_is_no_announcement_is_dropped_and_counted(value: bytes) -> None:
    bench = Bench()
    bench.core.on_entry(bench.entry(A, value=value), WALL, 0.0)
    assert bench.metrics.counters == {"directory_drop_malformed": 1}
    assert bench.chosen() == []


def test_bounds_hold() -> None:
    bench = Bench()
    crowd = Identity(b"\x09" * 32)
    for i in range(DIRECTORY_MAX_OFFERS + 10):
        bench.offer(crowd, f"s{i}")
    assert len(bench.core.names()) == DIRECTORY_MAX_OFFERS
    assert bench.metrics.counters["directory_full"] == 10
    for i in range(SERVICE_MAX_OWN):
        bench.core.announce(f"own{i}", Offer(), 0.0)
    with pytest.raises(ValueError, match="at most 48"):
        bench.core.announce("one-more", Offer(), 0.0)
    for name in ("", "a/b", "x" * 65, "two words"):
        with pytest.raises(ValueError, match="name"):
            bench.core.announce(name, Offer(), 0.0)
    for offer in (Offer(load=101), Offer(meta={"a": "x" * 129}), Offer(meta={str(i): "x" * 100 for i in range(16)})):
        with pytest.raises(ValueError, match=r"load|metadata|bytes"):
            bench.core.announce("own0", offer, 0.0)


def test_an_offer_may_have_as_much_as_is_said_and_no_more() -> None:
    longest = Offer(load=100, meta={"k" * 128: "v" * 128})
    most = Offer(meta={str(number): "" for number in range(16)})
    for offer in (longest, most):
        assert parse_offer(Bench().entry(A, value=offer.encoded())) == offer
    for wrong in ({"k" * 129: ""}, {"k": "v" * 129}, {str(number): "" for number in range(17)}, {"": "v"}):
        with pytest.raises(ValueError, match="metadata"):
            Offer(meta=wrong).encoded()
        assert parse_offer(Bench().entry(A, value=encode([0, 0, 0, wrong]))) is None


TEXT = st.text(min_size=1, max_size=20)


@given(st.booleans(), st.booleans(), st.integers(0, 100), st.dictionaries(TEXT, TEXT, max_size=8))
def test_an_offer_comes_back_as_it_was(restricted: bool, healthy: bool, load: int, meta: dict[str, str]) -> None:
    offer = Offer(restricted, healthy, load, meta)
    assert parse_offer(Bench().entry(A, value=offer.encoded())) == offer


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_raise(value: bytes) -> None:
    parse_offer(Bench().entry(A, value=value))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "withdraw", "gone", "alive", "fail", "open", "refuse", "silent", "tick"]),
        st.sampled_from([A, B, C]),
        st.floats(0.0, 200.0),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_the_choice_is_of_living_instances_and_complete(steps: list[Any]) -> None:
    bench, now = Bench(), 0.0
    offered: dict[NodeId, None] = {}
    for what, signer, pause in steps:
        now += pause
        if what == "offer":
            seq = bench.entry(signer, issued_ms=int((WALL + now) * 1000))
            bench.core.on_entry(seq, WALL + now, now)
            offered[signer.id] = None
        elif what == "withdraw":
            bench.core.on_entry(bench.entry(signer, value=None), WALL + now, now)
            offered.pop(signer.id, None)
        elif what in ("gone", "alive"):
            bench.statuses[signer.id] = Status.GONE if what == "gone" else Status.ALIVE
            bench.core.on_member(signer.id, now)
        elif what == "fail":
            bench.core.experience.on_failed(signer.id, now)
        elif what == "open":
            bench.core.experience.on_opened(signer.id, "db")
        elif what == "refuse":
            bench.core.experience.on_refused(signer.id, "db", now)
        elif what == "silent":
            bench.core.experience.on_silent(signer.id, now)
        else:
            bench.core.tick(now, WALL + now)
            deadline = bench.core.next_deadline()
            assert deadline is None or deadline > now
        chosen = bench.chosen(now)
        assert len(chosen) == len(set(chosen))
        assert all(bench.status(node) is not Status.GONE for node in chosen)
        if now < 3600:
            assert set(chosen) == {n for n in offered if bench.status(n) is not Status.GONE}
