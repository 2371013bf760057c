"""When silence is the peer's, and how soon a path that fell silent is trusted again."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from meshnode.base.address import Addr
from meshnode.paths.candidate import DISTRUST_HALF_LIFE_S, DISTRUST_MAX_S, Candidate
from meshnode.paths.liveness import SILENCE_MIN_S, TIMER_SLACK_S, Keepalive, Watchdog, threshold
from meshnode.paths.mtu import MtuSearch

RTT = 0.02
HEARD = 100.0


def _due(watchdog: Watchdog) -> float:
    due = watchdog.suspicious_at(HEARD, RTT)
    assert due is not None
    return due


def test_nothing_expected_is_no_silence() -> None:
    watchdog = Watchdog(HEARD)
    assert watchdog.suspicious_at(HEARD, RTT) is None
    watchdog.set_in_flight(1200, HEARD)
    assert _due(watchdog) == HEARD + threshold(RTT) > HEARD + SILENCE_MIN_S
    watchdog.set_in_flight(0, HEARD)
    assert watchdog.suspicious_at(HEARD, RTT) is None


def test_a_stream_that_just_delivered_is_waited_for_once() -> None:
    watchdog = Watchdog(HEARD)
    watchdog.data_at = HEARD
    assert watchdog.is_real(_due(watchdog), HEARD, _due(watchdog), 0.0)
    assert watchdog.suspicious_at(HEARD, RTT) is None


def test_a_watchdog_that_fires_late_says_nothing_of_the_peer_and_is_set_once_more() -> None:
    watchdog = Watchdog(HEARD)
    watchdog.expect(HEARD)
    woke = _due(watchdog) + 0.3
    assert not watchdog.is_real(_due(watchdog), HEARD, woke, 0.0)
    assert _due(watchdog) == woke + threshold(RTT)
    assert watchdog.is_real(_due(watchdog), HEARD, _due(watchdog), 0.0)  # we ran in between, and nothing had come


def test_a_timers_granularity_is_not_lateness() -> None:
    watchdog = Watchdog(HEARD)
    watchdog.expect(HEARD)
    assert watchdog.is_real(_due(watchdog), HEARD, _due(watchdog) + 0.9 * TIMER_SLACK_S, 0.0)


def test_a_path_is_trusted_soon_after_its_first_silence_and_later_after_each_more() -> None:
    path = Candidate(Addr("192.0.2.1", 4242), "record", MtuSearch(0))
    waits = []
    for n in range(12):
        path.fell_silent(HEARD + n / 1000)
        waits.append(path.trusted_at - path.left_at)
    assert waits[0] == pytest.approx(0.1)
    assert all(later > 1.9 * earlier for earlier, later in pairwise(waits[:9]))
    assert waits[-1] == pytest.approx(DISTRUST_MAX_S)
    path.fell_silent(HEARD + 8 * DISTRUST_HALF_LIFE_S)
    assert path.trusted_at - path.left_at < 0.5


def test_a_path_that_answers_what_was_sent_before_it_was_left_is_retaken_unless_that_is_usual() -> None:
    path = Candidate(Addr("192.0.2.1", 4242), "record", MtuSearch(0))
    path.fell_silent(HEARD)
    assert path.trusted(HEARD - 0.01, HEARD + 0.01)
    assert not path.trusted(HEARD + 0.01, HEARD + 0.02)
    assert path.trusted(HEARD + 0.15, HEARD + 0.16)
    for n in range(12):
        path.fell_silent(HEARD + n)
    assert not path.trusted(HEARD + 10.9, HEARD + 11.1)


def test_silence_is_suspicious_after_four_seconds_at_most_however_slow_the_path() -> None:
    assert [threshold(rtt) for rtt in (0.0, 0.1, 1.0, 10.0)] == pytest.approx([0.08, 0.205, 1.33, 4.0])
    assert threshold(None) == threshold(0.1)


def test_what_a_candidate_answered_last_is_the_newest_probe_not_the_last_answer() -> None:
    path = Candidate(Addr("192.0.2.1", 4242), "record", MtuSearch(0))
    path.measured(HEARD, HEARD + 0.1)
    assert (path.answered, path.rtt, path.samples, path.last_heard) == (HEARD, pytest.approx(0.1), 1, HEARD + 0.1)
    path.measured(HEARD - 0.3, HEARD + 0.2)
    assert (path.answered, path.samples, path.last_heard) == (HEARD, 2, HEARD + 0.2)
    assert path.rtt == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)
    path.measured(HEARD + 0.3, HEARD + 0.4)
    assert path.answered == HEARD + 0.3


def test_keepalives_of_a_nodes_peers_go_together_and_none_is_late() -> None:
    rng = random.Random(1)
    peers = [Keepalive(rng, phase=0.4) for _ in range(1_000)]
    for number, peer in enumerate(peers):
        peer.renew(100.0 + number * 0.015)
        assert peer.at is not None
        assert 12.0 <= peer.at - (100.0 + number * 0.015) <= 16.5
    wakes = {round(peer.at or 0.0, 6) for peer in peers}
    assert len(wakes) <= 15
    assert all(abs((at - 0.4) % 1.5) < 1e-6 or abs((at - 0.4) % 1.5 - 1.5) < 1e-6 for at in wakes)
