"""What a node asks of a silent peer's addresses while it comes late itself: it has no CPU, and finds all silent."""

from __future__ import annotations

import pytest

from meshnode.base.path import ViaTunnel
from meshnode.paths.effects import MOVED, SendProbe
from meshnode.paths.liveness import MAX_EXCUSED_S, STARVED_S, TIMER_SLACK_S, Watchdog, threshold
from meshnode.paths.seeking import LATE_ROUNDS
from meshnode.paths.validation import CONFIRM_S
from tests.unit.path_wire import RTT, A, B, C, Wire, connected, record

LATE_S = 0.5


def _asked(wire: Wire, late: float) -> list[object]:
    """Let the next deadline pass that much too late; returns the addresses that are asked then."""
    due = wire.paths.next_deadline()
    assert due is not None
    wire.now = due + late
    wire.effects.clear()
    wire.paths.tick(wire.now, late)
    wire.collect()
    return [effect.path for effect in wire.seen(SendProbe) if isinstance(effect, SendProbe)]


def _silent() -> Wire:
    """A peer with three addresses that answers nowhere any more; it is to be found silent next."""
    wire = connected(A)
    wire.up.clear()
    wire.paths.peer_record(record(A, B, C), wire.now)
    wire.run(60.0)
    wire.paths.seeking.end(wire.now)
    wire.paths.keepalive.at = wire.now + 1_000
    wire.paths.watchdog.restart(wire.now)
    wire.paths.watchdog.expect(wire.now)
    return wire


def test_a_silence_that_is_noticed_late_is_excused_for_a_while_and_then_asked_of_the_path_in_use() -> None:
    wire = _silent()
    began, asked = wire.now, []
    while not asked:
        asked = _asked(wire, LATE_S)
    assert wire.now - began > MAX_EXCUSED_S
    assert asked == [A]


def test_a_busy_host_that_is_late_by_less_excuses_a_silence_once_and_asks_all_addresses() -> None:
    wire = _silent()
    late = STARVED_S / 2
    assert late > TIMER_SLACK_S
    assert _asked(wire, late) == [], "what came meanwhile may be unread"
    for _ in range(LATE_ROUNDS):
        assert sorted(map(str, _asked(wire, late))) == sorted(map(str, [A, B, C])), "this peer has moved"


def test_a_silence_that_is_noticed_in_time_is_asked_of_all_addresses() -> None:
    assert sorted(map(str, _asked(_silent(), 0.0))) == sorted(map(str, [A, B, C]))


def test_most_rounds_that_come_late_go_to_the_path_in_use_and_are_as_far_apart_as_they_are_late() -> None:
    wire = _silent()
    _asked(wire, 0.0)
    rounds, gaps = [], []
    for _ in range(2 * LATE_ROUNDS):
        rounds.append(len(_asked(wire, LATE_S)))
        gaps.append(wire.paths.seeking.next_probe - wire.now)  # type: ignore[operator]
    assert rounds.count(1) == 2 * (LATE_ROUNDS - 1)
    assert rounds.count(3) == 2, "a peer that moved is found by a late node too"
    assert min(gaps) >= 0.9 * LATE_S


def test_a_node_that_has_moved_asks_all_addresses_however_late_it_is() -> None:
    wire = _silent()
    wire.paths.seeking.move(wire.now, is_busy=False)
    assert min(len(_asked(wire, LATE_S)) for _ in range(LATE_ROUNDS)) == 3


def test_no_round_that_is_very_late_opens_a_websocket() -> None:
    tunnel = ViaTunnel("peer", "192.0.2.9", 443)
    wire = _silent()
    wire.paths.add_candidates([(tunnel, "record")], wire.now)
    _asked(wire, 0.0)
    wire.paths.seeking.silent_since = wire.now - 1.0  # of time in which this process ran
    assert tunnel not in [path for _ in range(2 * LATE_ROUNDS) for path in _asked(wire, LATE_S)]
    assert tunnel in _asked(wire, 0.0)


def test_a_peer_that_takes_long_to_answer_is_asked_where_it_is_first_and_less_often() -> None:
    wire = _silent()
    current = wire.paths.book.current
    assert current is not None
    current.rtt = 1.6
    asked = [_asked(wire, 0.0) for _ in range(3)]
    assert [len(paths) for paths in asked] == [1, 3, 3]
    assert asked[0] == [A]
    assert wire.paths.seeking.next_probe - wire.now >= threshold(1.6) / 4  # type: ignore[operator]
    wire.paths.seeking.move(wire.now, is_busy=False)
    _asked(wire, 0.0)
    assert wire.paths.seeking.next_probe - wire.now < 0.1, "a node that has moved tells of it at once"  # type: ignore[operator]


def test_an_address_of_a_move_has_three_round_trips_and_the_time_that_this_process_is_late() -> None:
    for rtt, late in ((0.8, 0.0), (RTT, LATE_S)):
        wire = connected(A)
        wire.paths.book.current.rtt = rtt  # type: ignore[union-attr]
        wire.paths.on_ping(B, MOVED, wire.now)
        wire.up.clear()
        first = CONFIRM_S if late else 3 * rtt
        wire.run(first - 0.01)
        assert wire.paths.active == B
        if late:
            wire.now += 0.01 + late
            wire.paths.tick(wire.now, late)
            wire.run(CONFIRM_S - 0.05)
            assert wire.paths.active == B, "its answer may have come, and be unread"
        wire.run(0.1)
        assert wire.paths.active == A


def test_once_it_is_in_time_again_a_node_asks_as_ever() -> None:
    wire = _silent()
    _asked(wire, 0.0)
    for _ in range(3):
        _asked(wire, LATE_S)
    assert len(_asked(wire, 0.0)) == 3
    assert wire.paths.seeking.next_probe - wire.now < LATE_S  # type: ignore[operator]


def test_rounds_of_a_dial_that_come_late_are_fewer_too() -> None:
    wire = Wire()
    wire.paths.peer_record(record(A, B, C), wire.now)
    wire.paths.begin(A, wire.now)
    wire.collect()
    assert len(_asked(wire, 0.0)) == 3
    assert len(_asked(wire, LATE_S)) == 1
    assert wire.paths.seeking.dial_at - wire.now >= LATE_S  # type: ignore[operator]
    dialled_at = wire.paths.seeking.dialled_at
    assert dialled_at is not None
    assert wire.now - dialled_at == pytest.approx(0.3), "WebSockets are tried after time in which this process ran"


def test_a_silence_is_excused_once_where_the_watchdog_was_set_in_the_past_and_the_process_is_in_time() -> None:
    watchdog = Watchdog(0.0)
    watchdog.expect(0.0)
    due = watchdog.suspicious_at(0.0, 0.02)
    assert due is not None
    assert not watchdog.is_real(due, 0.0, due + 1.0, 0.0)
    assert watchdog.is_real(due + 1.0, 0.0, due + 2.0, 0.0)


def test_a_watchdog_that_is_late_again_and_again_believes_a_silence_in_the_end() -> None:
    watchdog = Watchdog(0.0)
    watchdog.expect(0.0)
    due = first = watchdog.suspicious_at(0.0, 0.02)
    assert due is not None
    assert first is not None
    while not watchdog.is_real(due, 0.0, due + STARVED_S, STARVED_S):
        assert watchdog.suspicious_at(0.0, 0.02) == due + STARVED_S + threshold(0.02)
        due += STARVED_S + threshold(0.02)
    assert due - first == pytest.approx(MAX_EXCUSED_S, abs=0.4)
