"""The last path changes of a peer, for people: one entry a change, whatever the core went through meanwhile.

A silence is one entry, with its length once it is over; silences on the same path that follow one another are counted
in one. A change of path ends the silence before it and takes its place, so that a move is one entry: where packets go
now, why, and for how long nothing was heard.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshnode.base.limits import MAX_PATH_HISTORY
from meshnode.base.path import Path
from meshnode.base.path_reason import PathReason
from meshnode.base.value import state

BRIEF_S = 0.05  # a silence that a busy host makes by itself, beyond the one after which a path is suspected
SETTLE_S = 3.0  # a move may find first a path that works, then the best one
QUIET = (PathReason.SILENT, PathReason.SUSPENDED, PathReason.MOVED)  # nothing is heard from then on, until it ends
MOVES = (PathReason.MOVED, PathReason.PEER_MOVED)
SETTLING = (  # what a move goes through until it has its best path
    PathReason.VALIDATED,
    PathReason.ANSWERED,
    PathReason.BETTER_KIND,
    PathReason.NEARER,
    PathReason.FASTER,
)


@state
class Change:
    """One entry.

    Attributes:
        at: When, in monotonic seconds: the change of path, or the beginning of the (last) silence.
        reason: Why.
        path: Where packets go from then on; None for nowhere.
        silent_s: How long nothing was heard, of several silences the longest; None where there was none, or before its
            end.
        times: How many silences this entry stands for.
        is_open: True while the silence lasts.
    """

    at: float
    reason: PathReason
    path: Path | None
    silent_s: float | None = None
    times: int = 1
    is_open: bool = False


class PathHistory:
    """The last ``MAX_PATH_HISTORY`` changes, the oldest first."""

    def __init__(self) -> None:
        self._changes: list[Change] = []  # a few: a deque takes 600 bytes for none

    def __iter__(self) -> Iterator[Change]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def note(self, now: float, reason: PathReason, path: Path | None) -> None:
        """Enter what the path core has met."""
        last = self._changes[-1] if self._changes else None
        if reason in QUIET:
            self._on_quiet(last, now, reason, path)
        elif reason is not PathReason.RESUMED:  # that is the end of a silence, which ``settled`` has
            self._on_change(last, now, reason, path)

    def settled(self, now: float) -> None:
        """End the silence: something was heard.

        One that was brief, and the only one, is no change worth an entry.
        """
        last = self._changes[-1] if self._changes else None
        if last is None or not last.is_open:
            return
        _end(last, now)
        if last.reason is PathReason.SILENT and last.times == 1 and (last.silent_s or 0.0) < BRIEF_S:
            self._changes.pop()

    def _on_quiet(self, last: Change | None, now: float, reason: PathReason, path: Path | None) -> None:
        if last is not None and last.is_open and last.path == path:
            if last.reason is not PathReason.MOVED:  # what a move began stays one
                last.reason = reason
        elif last is not None and last.reason is reason is PathReason.SILENT and last.path == path:
            last.at, last.is_open, last.times = now, True, last.times + 1
        else:
            self._enter(Change(now, reason, path, is_open=True))

    def _on_change(self, last: Change | None, now: float, reason: PathReason, path: Path | None) -> None:
        if last is not None and last.is_open and reason is PathReason.BLACK_HOLE:
            return  # nothing passes at all: no word on large packets
        if last is not None and last.is_open:
            began, times = last.at, last.times
            _end(last, now)
            if times == 1:
                self._changes.pop()
                reason = PathReason.MOVED if last.reason is PathReason.MOVED else reason
            self._enter(Change(now, reason, path, silent_s=now - began))
        elif last is not None and last.reason in MOVES and reason in SETTLING and now - last.at < SETTLE_S:
            last.path = path
        else:
            self._enter(Change(now, reason, path))

    def _enter(self, change: Change) -> None:
        self._changes.append(change)
        del self._changes[:-MAX_PATH_HISTORY]


def _end(silence: Change, now: float) -> None:
    silence.silent_s = max(silence.silent_s or 0.0, now - silence.at)
    silence.is_open = False
