"""A peer's path history: what a person reads of silences and moves."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_PATH_HISTORY
from meshnode.base.path import Path
from meshnode.base.path_reason import PathReason
from meshnode.paths.history import PathHistory

A, B, C = (Addr(f"192.0.2.{number}", 1) for number in (1, 2, 3))


class Change(NamedTuple):
    """What an entry holds, to compare with."""

    at: float
    reason: PathReason
    path: Path | None
    silent_s: float | None = None
    times: int = 1
    is_open: bool = False


def of(*steps: tuple[float, PathReason | None, Addr]) -> list[Change]:
    """The entries after these steps; None stands for the end of a silence."""
    history = PathHistory()
    for at, reason, path in steps:
        if reason is None:
            history.settled(at)
        else:
            history.note(at, reason, path)
    return [Change(*(getattr(change, field.name) for field in fields(change))) for change in history]


def test_a_silence_has_its_end_and_those_on_one_path_are_one_entry() -> None:
    steps: list[tuple[float, PathReason | None, Addr]] = [(0.0, PathReason.ACCEPTED, A)]
    for number in range(20):
        steps += [(10.0 + number, PathReason.SILENT, A), (10.1 + number + number / 100, None, A)]
    connected, silence = of(*steps)
    assert (silence.reason, silence.path, silence.times, silence.at) == (PathReason.SILENT, A, 20, 29.0)
    assert silence.silent_s is not None
    assert abs(silence.silent_s - 0.29) < 1e-6, "the longest"
    assert not silence.is_open
    assert connected == Change(0.0, PathReason.ACCEPTED, A)


def test_a_brief_silence_is_no_entry_unless_the_path_changes_in_it() -> None:
    connected = Change(0.0, PathReason.ACCEPTED, A)
    start = (0.0, PathReason.ACCEPTED, A)
    brief = [step for at in (5.0, 6.0, 7.0) for step in ((at, PathReason.SILENT, A), (at + 0.01, None, A))]
    assert of(start, *brief) == [connected]
    assert of(start, (5.0, PathReason.SILENT, A), (5.01, PathReason.PEER_MOVED, B), (5.01, None, B)) == [
        connected,
        Change(5.01, PathReason.PEER_MOVED, B, silent_s=5.01 - 5.0),
    ]


def test_silences_on_two_paths_stay_two() -> None:
    found = of((1.0, PathReason.SILENT, A), (1.2, None, A), (5.0, PathReason.FASTER, B), (9.0, PathReason.SILENT, B))
    assert [(change.reason, change.is_open) for change in found] == [
        (PathReason.SILENT, False),
        (PathReason.FASTER, False),
        (PathReason.SILENT, True),
    ]


def test_a_silence_that_became_a_suspension_is_one_entry_with_its_whole_length() -> None:
    (found,) = of(
        (1.0, PathReason.SILENT, A), (3.0, PathReason.SUSPENDED, A), (41.0, PathReason.RESUMED, A), (41.0, None, A)
    )
    assert found == Change(1.0, PathReason.SUSPENDED, A, silent_s=40.0)


def test_a_move_of_the_peer_is_one_entry_also_when_the_first_path_is_not_the_best() -> None:
    (found,) = of(
        (1.0, PathReason.SILENT, A),
        (1.5, PathReason.PEER_MOVED, B),
        (1.5, None, B),
        (2.0, PathReason.BETTER_KIND, C),
    )
    assert found == Change(1.5, PathReason.PEER_MOVED, C, silent_s=0.5)


def test_an_own_move_is_one_entry_whatever_it_goes_through() -> None:
    expected = Change(2.0, PathReason.MOVED, B, silent_s=1.0)
    assert of((1.0, PathReason.MOVED, A), (1.2, PathReason.SILENT, A), (2.0, PathReason.ANSWERED, B)) == [expected]
    assert of((1.0, PathReason.MOVED, A), (1.04, None, A))[0].silent_s is not None
    assert of((1.0, PathReason.SILENT, A), (1.2, PathReason.MOVED, A), (2.0, PathReason.ANSWERED, B)) == [expected]


def test_two_moves_that_follow_one_another_are_two_entries() -> None:
    found = of(
        (1.0, PathReason.MOVED, A), (1.1, None, A), (2.0, PathReason.PEER_MOVED, B), (3.0, PathReason.UNCONFIRMED, A)
    )
    assert [(change.reason, change.path) for change in found] == [
        (PathReason.MOVED, A),
        (PathReason.PEER_MOVED, B),
        (PathReason.UNCONFIRMED, A),
    ]


def test_large_packets_that_do_not_pass_are_told_but_not_in_a_silence() -> None:
    (silence,) = of((1.0, PathReason.SILENT, A), (2.0, PathReason.BLACK_HOLE, A), (4.0, None, A))
    assert silence == Change(1.0, PathReason.SILENT, A, silent_s=3.0)
    (hole,) = of((1.0, PathReason.BLACK_HOLE, A))
    assert hole == Change(1.0, PathReason.BLACK_HOLE, A)


def test_a_later_improvement_is_an_entry_of_its_own() -> None:
    found = of((1.0, PathReason.PEER_MOVED, B), (5.0, PathReason.FASTER, C))
    assert [change.reason for change in found] == [PathReason.PEER_MOVED, PathReason.FASTER]


def test_the_latest_are_kept() -> None:
    found = of(*((float(number), PathReason.FASTER, (A, B)[number % 2]) for number in range(100)))
    assert len(found) == MAX_PATH_HISTORY
    assert found[-1].at == 99.0
