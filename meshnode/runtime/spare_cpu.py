"""Whether the process has CPU to spare, for work that is worth doing only then."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 0.05  # between two looks, which cost 15 us
BUSY = 0.75  # of the time since the last look that the loop's thread ran, or waited for a core: above it none is spare


def busy_time() -> float:
    """Return the seconds that this thread ran or, as far as the kernel tells, was ready and had to wait for a core."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            waited = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux, or no /proc
        waited = 0
    return time.thread_time() + waited / 1e9


class SpareCpu:
    """Tells whether the thread of the event loop was busy for less than ``BUSY`` of the time, a moment ago.

    A stream that takes all it can get keeps the thread busy, so nothing is spare beside it; so do other processes.
    """

    def __init__(self, used: Callable[[], float] = busy_time) -> None:
        """``used`` returns the seconds that the loop's thread was busy; to be asked in that thread."""
        self._used = used
        self._last_used = self._last_look = float("-inf")
        self._spare = False

    def __call__(self, now: float) -> bool:
        """Return True when there is CPU to spare; ``now`` is monotonic seconds.

        The first time after a pause there is none: what was used meanwhile says nothing of now.
        """
        passed = now - self._last_look
        if passed >= LOOK_S:
            used = self._used()
            self._spare = passed < 4 * LOOK_S and used - self._last_used < BUSY * passed
            self._last_used, self._last_look = used, now
        return self._spare
