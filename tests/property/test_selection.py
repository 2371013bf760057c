"""Laws of the choice of a path, for any two candidates and any event.

Examples are drawn from a generator each, whose seed a failure names: a candidate has a dozen fields, and Hypothesis
spends a hundred times on them what ``choose`` takes. Each law asserts that it had something to say often enough.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeVar

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

EXAMPLES = 3_000
NOW = 100.0
MTUS = {carries: MtuSearch(0) for carries in (True, None, False)}
for _carries, _mtu in MTUS.items():
    _mtu.carries = _carries
RELAYS: list[Path] = [ViaRelay("one"), ViaRelay("other")]
PATHS: list[Path] = [
    Addr("192.0.2.1", 1),
    Addr("10.9.0.7", 1),
    Addr("2001:db8::1", 1),
    ViaTunnel("peer", "192.0.2.3", 443),
    *RELAYS,
]
STATES = list(PathState)
Some = TypeVar("Some")


def _time(rng: random.Random) -> float:
    return rng.choice((NEVER, NEVER, NOW - 3, NOW, rng.uniform(NOW - 3, NOW), rng.uniform(NOW - 3, NOW)))


def _rtt(rng: random.Random) -> float | None:
    """Return any round trip, often one that is just at a margin of another."""
    return rng.choice(
        (None, 0.0001, 0.01, 0.015, 0.02, 0.025, 1.0, rng.uniform(0.0001, 0.03), rng.uniform(0.0001, 1.0))
    )


def _candidate(rng: random.Random, paths: list[Path] = PATHS, *, valid: bool = False) -> Candidate:
    """Return a candidate in any state; only a validated one has samples."""
    state = PathState.VALIDATED if valid else rng.choice(STATES)
    samples = rng.randint(1, 9) if state is PathState.VALIDATED else 0
    candidate = Candidate(
        rng.choice(paths),
        "record",
        MTUS[rng.choice((True, True, True, True, None, False))],
        state,
        _rtt(rng) if samples else None,
        samples,
        9,
        last_heard=_time(rng),
        claimed=_time(rng),
        answered=_time(rng),
        trusted_at=rng.choice((NEVER, NOW, rng.uniform(NOW - 3, NOW + 32))),
        distrust=rng.choice((0.0, 2.0, 32.0, rng.uniform(0.0, 32.0))),
        left_at=_time(rng),
    )
    candidate.outcomes.extend(rng.random() < 0.5 for _ in range(rng.randint(0, 8)))
    return candidate


def _situation(rng: random.Random) -> Situation:
    current, previous = (_candidate(rng) if rng.random() < 0.8 else None for _ in range(2))
    networks = rng.choice(((), (("10.9.0.1", 24),)))
    dialled_at = None if rng.random() < 0.9 else _time(rng)
    return Situation(NOW, current, previous, rng.random() < 0.5, _time(rng), networks, dialled_at)


def _answer(rng: random.Random) -> ProbeAnswered:
    """Return an answer, which validates its address."""
    return ProbeAnswered(_candidate(rng, valid=True), rng.choice((NOW - 3, NOW, rng.uniform(NOW - 3, NOW))))


def _event(rng: random.Random) -> Event:
    match rng.randrange(4):
        case 0:
            return _answer(rng)
        case 1:
            return PeerMoved(_candidate(rng))
        case 2:
            return MoveUnconfirmed()
        case _:
            return RelaysCompared(tuple(_candidate(rng, RELAYS) for _ in range(rng.randint(0, 3))))


def examples(of: Callable[[random.Random], Some]) -> Iterator[tuple[int, Some, Situation]]:
    """Yield seeds, with an event and a situation that follow from each."""
    for seed in range(EXAMPLES):
        rng = random.Random(seed)
        yield seed, of(rng), _situation(rng)


def test_only_the_peers_own_word_moves_packets_to_an_address_that_is_not_validated() -> None:
    changes = 0
    for seed, event, at in examples(_event):
        decision = choose(event, at)
        changes += decision.to is not None
        if decision.to is not None and not isinstance(event, PeerMoved):
            assert decision.to.is_valid, seed
        assert decision.to is None or decision.to is not at.current, seed
    assert changes > EXAMPLES // 10


def test_a_decision_has_a_reason_and_changes_nothing() -> None:
    for seed, event, at in examples(_event):
        before = repr((event, at))
        decision = choose(event, at)
        assert (decision.to is None) == (decision.reason is None), seed
        assert (decision == STAY) == (decision.to is None and decision.validate is None), seed
        assert repr((event, at)) == before, seed
        again = choose(event, at)
        assert (again.to is decision.to, again.reason) == (True, decision.reason), seed


def test_a_worse_kind_is_taken_only_when_the_path_in_use_failed() -> None:
    worse = 0
    for seed, event, at in examples(_answer):
        decision = choose(event, at)
        if decision.to is not None and at.current is not None and decision.to.rank > at.current.rank:
            worse += 1
            assert decision.failed, seed
            assert decision.reason in (PathReason.ANSWERED, PathReason.VALIDATED, PathReason.TOO_SMALL), seed
    assert worse > EXAMPLES // 50


def test_a_better_kind_that_is_trusted_is_always_taken() -> None:
    better = 0
    for seed, event, at in examples(_answer):
        current = at.current
        if current is None or not current.is_valid or event.found.rank >= current.rank:
            continue
        if event.found.trusted(event.sent, NOW):
            better += 1
            decision = choose(event, at)
            assert event.found in (decision.to, decision.validate), seed
            assert decision.to is None or decision.failed or event.found.mtu.carries, seed
    assert better > EXAMPLES // 50


def test_a_path_that_may_be_too_small_is_taken_only_where_the_one_in_use_failed() -> None:
    small = 0
    for seed, event, at in examples(_answer):
        decision = choose(event, at)
        if decision.to is not None and not decision.to.mtu.carries:
            assert decision.failed, seed
            small += 1
            assert not decision.to.is_too_small or at.current is None or at.current.is_too_small, seed
    assert small > EXAMPLES // 50


def test_of_two_good_paths_of_a_kind_neither_is_left_for_the_other_and_back() -> None:
    left = 0
    for seed, event, at in examples(_answer):
        first = choose(event, at)
        if at.current is None or first.to is None or first.failed:
            continue
        left += 1
        now = Situation(NOW, first.to, at.current, False, at.moved_at, at.networks)
        back = choose(ProbeAnswered(at.current, NOW), now)
        assert back.to is None or back.failed, (seed, "the same measurements do not speak for both")
    assert left > EXAMPLES // 100


def test_faster_is_faster_by_both_margins() -> None:
    faster = 0
    for seed, event, at in examples(_answer):
        decision = choose(event, at)
        if decision.reason is PathReason.FASTER:
            faster += 1
            assert at.current is not None
            assert at.current.rtt is not None
            assert event.found.rtt is not None
            assert event.found.rtt < at.current.rtt * HYSTERESIS_RATIO, seed
            assert event.found.rtt < at.current.rtt - HYSTERESIS_S, seed
    assert faster > EXAMPLES // 300
