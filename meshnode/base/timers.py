"""One table of deadlines: a heap of actions, with a handle on each.

Equal deadlines fire in the order in which they were set. A timer that moves to a later time costs no heap operation:
its entry stays where it is and is put in its place when it surfaces. So a deadline that every packet moves (loss
detection, idling) leaves one entry in the heap, not one a packet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NoReturn

Action = Callable[[float], None]
OnError = Callable[[Exception], None]
NEVER = float("inf")
RETRY_S = 1.0  # until an action that has raised runs again
SHARED_S = 1.5  # what is in no hurry goes at times this far apart: one wake of a node for all of it


def reraise(error: Exception) -> NoReturn:
    """Let an exception through: what a simulation or a test wants."""
    raise error


def phase_of(node: bytes) -> float:
    """Return by how many seconds after zero the shared times of a node are: nodes of one host have one clock."""
    return SHARED_S * int.from_bytes(node[:2], "big") / 65_536


def shared_time(when: float, phase: float) -> float:
    """Return the last of a node's shared times that is not after ``when``."""
    return when - (when - phase) % SHARED_S


class Timer:
    """One deadline of a table: ``when`` it fires, NEVER while it is not set."""

    __slots__ = ("_action", "_queued", "_run", "_table", "when")

    def __init__(self, table: Timers, action: Action) -> None:
        self.when = NEVER
        self._table = table
        self._action: Action | None = action
        self._queued = NEVER  # the time of its entry in the heap that counts
        self._run = 0

    def set(self, when: float | None) -> None:
        """Move the deadline to ``when`` (the table's time); None takes it back.

        A time in the past fires in the next ``run``. Does nothing to a timer that was cancelled. O(1) for a later
        deadline, O(log n) for an earlier one.
        """
        if when is None or self._action is None:
            self.when = NEVER
            return
        self.when = when
        if when < self._queued:
            self._queued = when
            table = self._table
            table._count += 1
            heapq.heappush(table._heap, (when, table._count, self))

    def cancel(self) -> None:
        """Take the deadline back for good, and forget the action.

        May be repeated.
        """
        self.when = NEVER
        self._action = None

    @property
    def live(self) -> bool:
        """True while it is set: neither fired nor taken back."""
        return self.when != NEVER

    def fire(self, now: float) -> None:
        """Run the action now instead of later; does nothing when the timer is not set.

        The timer is unset before the action runs, so the action may set it again.
        """
        action = self._action
        if action is not None and self.when != NEVER:
            self.when = NEVER
            action(now)


class Timers:
    """Pending timers, earliest first.

    An action that raises and has not set its timer again runs once more after ``RETRY_S``; the others go on when
    ``on_error`` takes the exception.
    """

    def __init__(self) -> None:
        self.on_error: OnError = reraise
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._runs = 0

    def timer(self, action: Action) -> Timer:
        """Return a timer for ``action(now)`` that is not set yet and may be set any number of times."""
        return Timer(self, action)

    def at(self, when: float, action: Action) -> Timer:
        """Run ``action(now)`` in the first tick at or after ``when``."""
        timer = Timer(self, action)
        timer.set(when)
        return timer

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, None when no timer is set.

        O(1) while the first entry of the heap is the right one; entries of timers that were moved or taken back are
        put in their place, or dropped, on the way.
        """
        heap = self._heap
        while heap:
            at, _, timer = heap[0]
            if timer.when == at and timer._queued == at:
                return at
            heapq.heappop(heap)
            if timer._queued == at:
                timer._queued = NEVER
                timer.set(timer.when)
        return None

    def run(self, now: float) -> None:
        """Fire every timer due at ``now``, in the order of deadlines, each with ``now``.

        What an action sets meanwhile fires too when it is due; but the same timer only once a run, so that one which
        sets itself in the past cannot hold the loop.
        """
        heap = self._heap
        self._runs += 1
        again: list[Timer] = []
        try:
            while heap and heap[0][0] <= now:
                at, _, timer = heapq.heappop(heap)
                if timer._queued != at:
                    continue
                timer._queued = NEVER
                if timer.when > now:
                    timer.set(timer.when)
                elif timer._run == self._runs:
                    again.append(timer)
                else:
                    timer._run = self._runs
                    self._fire(timer, now)
        finally:
            for timer in again:
                timer.set(timer.when)

    def _fire(self, timer: Timer, now: float) -> None:
        try:
            timer.fire(now)
        except Exception as error:
            if not timer.live:
                timer.set(now + RETRY_S)
            self.on_error(error)
