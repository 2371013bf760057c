"""Laws of the choice of a path, for any two candidates and any event."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.base.address import Addr
from meshnode.base.path import Path, ViaRelay, ViaTunnel
from meshnode.base.path_reason import PathReason
from meshnode.paths.candidate import NEVER, Candidate, PathState
from meshnode.paths.mtu import MtuSearch
from meshnode.paths.selection import (
    HYSTERESIS_RATIO,
    HYSTERESIS_S,
    STAY,
    Event,
    MoveUnconfirmed,
    PeerMoved,
    ProbeAnswered,
    RelaysCompared,
    Situation,
    choose,
)

NOW = 100.0
MTU = MtuSearch(0)
PATHS: list[Path] = [
    Addr("192.0.2.1", 1),
    Addr("10.9.0.7", 1),
    Addr("2001:db8::1", 1),
    ViaTunnel("peer", "192.0.2.3", 443),
    ViaRelay("one"),
    ViaRelay("other"),
]
times = st.just(NEVER) | st.floats(NOW - 3, NOW)
rtts = st.none() | st.floats(0.0001, 1.0)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    """A candidate in any state; only a validated one has samples."""
    state = draw(st.sampled_from(PathState))
    samples = draw(st.integers(1, 9)) if state is PathState.VALIDATED else 0
    candidate = Candidate(
        draw(st.sampled_from(PATHS)),
        "record",
        MTU,
        state,
        draw(rtts) if samples else None,
        samples,
        9,
        last_heard=draw(times),
        claimed=draw(times),
        answered=draw(times),
        trusted_at=draw(st.just(NEVER) | st.floats(NOW - 3, NOW + 32)),
        distrust=draw(st.floats(0, 32)),
        left_at=draw(times),
    )
    candidate.outcomes.extend(draw(st.lists(st.booleans(), max_size=8)))
    return candidate


relayed = candidates().filter(lambda c: isinstance(c.path, ViaRelay))
valid = candidates().filter(lambda c: c.is_valid)
situations = st.builds(
    Situation,
    now=st.just(NOW),
    current=st.none() | candidates(),
    previous=st.none() | candidates(),
    silent=st.booleans(),
    moved_at=times,
    networks=st.sampled_from([(), (("10.9.0.1", 24),)]),
)
answers = st.builds(ProbeAnswered, valid, st.floats(NOW - 3, NOW))  # an answer validates the address
events = st.one_of(
    answers,
    st.builds(PeerMoved, candidates()),
    st.just(MoveUnconfirmed()),
    st.builds(
        RelaysCompared, st.lists(candidates().filter(lambda c: isinstance(c.path, ViaRelay)), max_size=3).map(tuple)
    ),
)
law = settings(max_examples=600, derandomize=True)


@law
@given(event=events, at=situations)
def test_only_the_peers_own_word_moves_packets_to_an_address_that_is_not_validated(event: Event, at: Situation) -> None:
    decision = choose(event, at)
    if decision.to is not None and not isinstance(event, PeerMoved):
        assert decision.to.is_valid
    assert decision.to is None or decision.to is not at.current


@law
@given(event=events, at=situations)
def test_a_decision_has_a_reason_and_changes_nothing(event: Event, at: Situation) -> None:
    before = repr((event, at))
    decision = choose(event, at)
    assert (decision.to is None) == (decision.reason is None) == (decision == STAY)
    assert repr((event, at)) == before
    again = choose(event, at)
    assert (again.to is decision.to, again.reason) == (True, decision.reason)


@law
@given(event=answers, at=situations)
def test_a_worse_kind_is_taken_only_when_the_path_in_use_failed(event: ProbeAnswered, at: Situation) -> None:
    decision = choose(event, at)
    if decision.to is not None and at.current is not None and decision.to.rank > at.current.rank:
        assert decision.failed
        assert decision.reason in (PathReason.ANSWERED, PathReason.VALIDATED)


@law
@given(event=answers, at=situations)
def test_a_better_kind_that_is_trusted_is_always_taken(event: ProbeAnswered, at: Situation) -> None:
    current = at.current
    if current is None or not current.is_valid or event.found.rank >= current.rank:
        return
    if event.found.trusted(event.sent, NOW):
        assert choose(event, at).to is event.found


@law
@given(event=answers, at=situations)
def test_of_two_good_paths_of_a_kind_neither_is_left_for_the_other_and_back(
    event: ProbeAnswered, at: Situation
) -> None:
    first = choose(event, at)
    if at.current is None or first.to is None or first.failed:
        return
    back = choose(ProbeAnswered(at.current, NOW), Situation(NOW, first.to, at.current, False, at.moved_at, at.networks))
    assert back.to is None or back.failed, "the same measurements do not speak for both"


@law
@given(event=answers, at=situations)
def test_faster_is_faster_by_both_margins(event: ProbeAnswered, at: Situation) -> None:
    decision = choose(event, at)
    if decision.reason is PathReason.FASTER:
        assert at.current is not None
        assert at.current.rtt is not None
        assert event.found.rtt is not None
        assert event.found.rtt < at.current.rtt * HYSTERESIS_RATIO
        assert event.found.rtt < at.current.rtt - HYSTERESIS_S
