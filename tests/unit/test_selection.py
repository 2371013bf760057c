"""The rule by which a path is chosen: each term by itself, and its table in the docs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.base.address import Addr
from meshnode.base.path import Path as PeerPath
from meshnode.base.path import ViaRelay, ViaTunnel
from meshnode.base.path_reason import PathReason, in_words
from meshnode.paths.candidate import NEVER, Candidate, PathState
from meshnode.paths.mtu import MtuSearch
from meshnode.paths.selection import (
    HYSTERESIS_RATIO,
    HYSTERESIS_S,
    LOSSES_TO_LEAVE,
    MIN_OUTCOMES,
    MIN_RTT_SAMPLES,
    SAME_MOVE_DETOUR_S,
    SAME_MOVE_S,
    STAY,
    Decision,
    MoveUnconfirmed,
    PeerMoved,
    ProbeAnswered,
    RelaysCompared,
    Situation,
    choose,
)

DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "path-selection.md"
NOW = 100.0
SENT = NOW - 0.05
A, B, LAN = Addr("192.0.2.1", 4242), Addr("192.0.2.2", 4242), Addr("10.9.0.7", 4242)
RELAY, OTHER_RELAY, TUNNEL = ViaRelay("one"), ViaRelay("other"), ViaTunnel("peer", "192.0.2.3", 443)
NETWORKS = (("10.9.0.1", 24),)


def path(
    by: PeerPath,
    rtt: float | None = 0.05,
    *,
    samples: int = 5,
    valid: bool = True,
    heard: float = NOW,
    carries: bool | None = True,
) -> Candidate:
    """A candidate that was probed ``samples`` times and last heard of at ``heard``."""
    state = PathState.VALIDATED if valid else PathState.PROBING
    mtu = MtuSearch(0)
    mtu.carries = carries
    return Candidate(by, "record", mtu, state, rtt, samples, samples, last_heard=heard, answered=heard)


def answered(found: Candidate, current: Candidate, *, sent: float = SENT, **more: object) -> Decision:
    """The decision on a probe to ``found`` that came back while ``current`` is in use."""
    return choose(ProbeAnswered(found, sent), replace(Situation(NOW, current), **more))  # type: ignore[arg-type]


# ---- silence and moves


def test_the_first_answer_after_a_silence_decides_unless_the_path_in_use_was_heard_since() -> None:
    found = path(ViaRelay("far"), 0.5)
    current = path(A, heard=SENT - 0.01)
    assert answered(found, current, silent=True) == Decision(found, PathReason.ANSWERED, failed=True)
    assert answered(found, current, silent=False) == STAY
    current.last_heard = SENT
    assert answered(found, current, silent=True) == STAY


def test_what_the_peer_claims_is_followed_when_nothing_newer_came_by_the_path_in_use() -> None:
    found, current = path(B), path(A, heard=SENT)
    assert answered(found, current) == STAY
    found.claimed = SENT + 0.01
    assert answered(found, current) == Decision(found, PathReason.VALIDATED, failed=True)
    current.last_heard = NOW
    assert answered(found, current) == STAY


def test_a_claimed_detour_waits_a_round_trip_for_the_path_in_use() -> None:
    found, current = path(RELAY), path(A, 0.05, heard=SENT - 1)
    found.claimed = NOW - 0.04
    assert answered(found, current, sent=NOW - 0.04) == STAY, "its own probe may be answered yet"
    found.claimed = NOW - 0.06
    assert answered(found, current, sent=NOW - 0.06).to is found
    assert answered(found, current, sent=NOW - 0.07) == STAY, "that probe was sent before the claim"
    current.answered = NOW - 0.06
    assert answered(found, current, sent=NOW - 0.06) == STAY, "the path in use has answered since"


def test_a_dial_goes_on_where_the_first_answer_came_from() -> None:
    found = path(B, carries=None)
    for current in (path(A, None, valid=False, heard=NEVER), path(A, heard=NOW - 1)):  # a stale one may be validated
        assert answered(found, current, dialled_at=SENT) == Decision(found, PathReason.VALIDATED, failed=True)
        assert answered(found, current) == STAY, "no dial runs"
    assert answered(found, path(A, None, valid=False), dialled_at=SENT) == STAY, "the peer was heard there"


def test_a_peer_that_moved_is_followed_once_in_a_burst() -> None:
    found, situation = path(B, valid=False), Situation(NOW, path(A))
    assert choose(PeerMoved(found), situation) == Decision(found, PathReason.PEER_MOVED, failed=True)
    assert choose(PeerMoved(found), replace(situation, moved_at=NOW - SAME_MOVE_S + 0.01)) == STAY
    assert choose(PeerMoved(found), replace(situation, current=found)) == STAY


def test_a_burst_that_comes_by_relays_later_than_by_itself_is_no_other_move() -> None:
    found, other = path(RELAY), path(ViaRelay("another"))
    for current, at, follows in (
        (path(A), 1.0, False),
        (other, 1.0, False),
        (path(A), SAME_MOVE_DETOUR_S + 0.1, True),
        (other, SAME_MOVE_DETOUR_S + 0.1, True),
    ):
        decision = choose(PeerMoved(found), Situation(NOW, current, moved_at=NOW - at))
        assert (decision.to is found) is follows
    direct = Situation(NOW, found, moved_at=NOW - SAME_MOVE_S - 0.1)
    assert choose(PeerMoved(path(B, valid=False)), direct).reason is PathReason.PEER_MOVED


def test_an_unconfirmed_move_goes_back_to_a_path_that_was_validated_or_stays() -> None:
    failed, before = path(B, None, valid=False), path(A)
    failed.state = PathState.FAILED
    situation = Situation(NOW, failed, before)
    assert choose(MoveUnconfirmed(), situation) == Decision(before, PathReason.UNCONFIRMED, failed=True)
    assert choose(MoveUnconfirmed(), replace(situation, previous=None)) == STAY
    assert choose(MoveUnconfirmed(), replace(situation, current=path(B))) == STAY
    before.state = PathState.FAILED
    assert choose(MoveUnconfirmed(), situation) == STAY


# ---- paths that lose what is as long as QUIC needs


@pytest.mark.parametrize(("found", "current"), [(path(A), path(RELAY)), (path(LAN), path(A)), (path(B, 0.01), path(A))])
def test_a_path_that_works_is_left_for_none_that_may_be_too_small(found: Candidate, current: Candidate) -> None:
    sent = NOW - 0.01
    assert answered(found, current, sent=sent, networks=NETWORKS).to is found
    for carries in (None, False):
        found.mtu.carries = carries
        assert answered(found, current, sent=sent, networks=NETWORKS) == Decision(validate=found)


def test_what_the_peer_claims_is_no_reason_to_take_a_better_kind_that_may_be_too_small() -> None:
    found, current = path(A, carries=None), path(RELAY, heard=SENT)
    found.claimed = SENT + 0.01
    assert answered(found, current) == Decision(validate=found)
    same_kind = path(A, heard=SENT)
    moved = path(B, carries=None)
    moved.claimed = SENT + 0.01
    assert answered(moved, same_kind).to is moved, "a NAT has mapped the peer to another port"


def test_a_path_that_is_too_small_is_left_for_the_first_that_is_not() -> None:
    current = path(A, carries=False)
    for found in (path(B, 0.5), path(TUNNEL, 0.5), path(RELAY, 0.5)):
        assert answered(found, current) == Decision(found, PathReason.TOO_SMALL, failed=True)
        found.mtu.carries = None
        assert answered(found, current) == Decision(validate=found)


def test_a_path_that_is_too_small_is_taken_only_where_the_other_is_too() -> None:
    found, silent = path(B, carries=False), path(A, heard=SENT - 0.01)
    moved, situation = PeerMoved(found), Situation(NOW, silent)
    assert answered(found, silent, silent=True) == STAY
    assert answered(found, silent, dialled_at=SENT) == STAY
    assert choose(moved, situation) == STAY, "it came by other paths too"
    silent.mtu.carries = False
    assert answered(found, silent, silent=True).reason is PathReason.ANSWERED
    assert choose(moved, situation).reason is PathReason.PEER_MOVED


# ---- better paths


@pytest.mark.parametrize(("better", "worse"), [(A, TUNNEL), (TUNNEL, RELAY), (A, RELAY)])
def test_a_better_kind_is_taken_however_slow_it_is_and_a_worse_one_however_fast(
    better: PeerPath, worse: PeerPath
) -> None:
    slow, fast = path(better, 0.5), path(worse, 0.01)
    assert answered(slow, fast) == Decision(slow, PathReason.BETTER_KIND)
    assert answered(fast, slow) == STAY


def test_a_better_kind_that_fell_silent_is_not_taken_while_it_is_distrusted() -> None:
    found, current = path(A), path(RELAY)
    found.trusted_at, found.left_at, found.distrust = NOW + 1, SENT - 1, 4.0
    assert answered(found, current) == STAY
    near = path(LAN)
    near.trusted_at, near.left_at, near.distrust = NOW + 1, SENT - 1, 4.0
    assert answered(near, current, networks=NETWORKS) == STAY, "nor is one on our own network"
    assert answered(near, path(A), networks=NETWORKS) == STAY, "also beside a direct one that leads out"
    near.trusted_at = NOW
    assert answered(near, path(A), networks=NETWORKS).reason is PathReason.NEARER
    found.trusted_at = NOW
    assert answered(found, current).reason is PathReason.BETTER_KIND


def test_a_path_on_our_own_network_is_nearer_unless_it_is_5_ms_slower() -> None:
    near, outside = path(LAN, 0.5), path(A, 0.05)
    sent = NOW - outside.rtt - HYSTERESIS_S
    assert answered(near, outside, sent=sent + 0.001, networks=NETWORKS) == Decision(near, PathReason.NEARER)
    assert answered(near, outside, sent=sent + 0.001) == STAY, "it is not on our network"
    assert answered(near, outside, sent=sent - 0.001, networks=NETWORKS) == STAY
    assert answered(path(Addr("10.9.0.8", 1), 0.5), near, sent=sent + 0.001, networks=NETWORKS) == STAY, "both are near"


def test_faster_takes_a_fifth() -> None:
    assert HYSTERESIS_RATIO == 0.8
    found = path(B, 0.159)
    assert answered(found, path(A, 0.2)) == Decision(found, PathReason.FASTER)
    assert answered(path(B, 0.161), path(A, 0.2)) == STAY


def test_faster_takes_5_ms() -> None:
    assert HYSTERESIS_S == 0.005
    assert answered(path(B, 0.0049), path(A, 0.01)).reason is PathReason.FASTER
    assert answered(path(B, 0.0051), path(A, 0.01)) == STAY


@pytest.mark.parametrize(("found", "current"), [(1, 5), (5, 1)])
def test_faster_takes_two_samples_of_each(found: int, current: int) -> None:
    assert MIN_RTT_SAMPLES == 2
    assert answered(path(B, 0.01, samples=found), path(A, 0.2, samples=current)) == STAY
    assert answered(path(B, 0.01, samples=2), path(A, 0.2, samples=2)).reason is PathReason.FASTER


def test_a_path_in_use_that_is_not_validated_yet_is_left_for_none_that_is_only_better() -> None:
    current = path(RELAY, 0.2, valid=False)
    assert answered(path(A, 0.01), current) == STAY
    assert answered(path(OTHER_RELAY, 0.01), current) == STAY


def test_a_relay_that_loses_three_of_eight_is_left_for_one_that_loses_none() -> None:
    current, other = path(RELAY), path(OTHER_RELAY)
    current.outcomes.extend([False] * LOSSES_TO_LEAVE + [True] * 5)
    other.outcomes.extend([True] * MIN_OUTCOMES)
    compared, situation = RelaysCompared((other,)), Situation(NOW, current)
    assert choose(compared, situation) == Decision(other, PathReason.FEWER_LOSSES)
    other.mtu.carries = False
    assert choose(compared, situation) == STAY, "it loses all packets but small ones"
    other.mtu.carries = True
    other.note(answered=False)
    assert choose(compared, situation) == STAY, "it loses too"
    other.outcomes.clear()
    other.note(answered=True)
    assert choose(compared, situation) == STAY, "too few probes to tell"
    other.note(answered=True)
    other.state = PathState.FAILED
    assert choose(compared, situation) == STAY
    other.state = PathState.VALIDATED
    current.note(answered=True)
    assert choose(compared, situation) == STAY, "two lost of eight are not enough"


def test_an_answer_on_the_path_in_use_chooses_nothing() -> None:
    current = path(A, heard=SENT - 1)
    assert answered(current, current, silent=True) == STAY


def test_before_there_is_a_path_nothing_is_chosen() -> None:
    assert choose(ProbeAnswered(path(A), SENT), Situation(NOW)) == STAY


# ---- the reasons


def test_the_docs_list_every_reason_with_its_words() -> None:
    rows = dict(re.findall(r"^\| `([a-z ]+)` \| ([^|]+?) \|", DOCS.read_text(), re.MULTILINE))
    assert rows == {reason.value: reason.words for reason in PathReason}


def test_a_reason_of_another_version_is_shown_unchanged() -> None:
    assert in_words("nearer") == PathReason.NEARER.words != "nearer"
    assert in_words("a reason of tomorrow") == "a reason of tomorrow"
