"""Deadlines of a core: a heap of actions. Equal deadlines fire in the order in which they were set."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[float], None]


class Timer:
    """One deadline; ``cancel()`` is cheap and may be repeated."""

    __slots__ = ("_action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self._action: Action | None = action

    def cancel(self) -> None:
        """The action will not run, and is forgotten."""
        self._action = None

    @property
    def live(self) -> bool:
        """True until the action ran or was cancelled."""
        return self._action is not None

    def fire(self, now: float) -> None:
        """Run the action once."""
        action, self._action = self._action, None
        if action is not None:
            action(now)


class Timers:
    """Pending timers, earliest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._counter = 0

    def at(self, when: float, action: Action) -> Timer:
        """Run ``action(now)`` in the first tick at or after ``when``."""
        timer = Timer(when, action)
        self._counter += 1
        heapq.heappush(self._heap, (when, self._counter, timer))
        return timer

    def next_deadline(self) -> float | None:
        """The earliest live deadline."""
        while self._heap and not self._heap[0][2].live:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Fire everything due; afterwards ``next_deadline()`` is None or later than ``now``."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2].fire(now)
