"""Time and randomness as parameters. Cores never read either for themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

Entropy = Callable[[int], bytes]
"""Returns that many unpredictable bytes: ``os.urandom`` in production, seeded in the simulator."""


class Clock(Protocol):
    """Two clocks: monotonic seconds for timers, wall seconds (Unix) for what other nodes compare."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)  # called for each batch of datagrams and each flush

    def wall(self) -> float:
        """Return seconds since the Unix epoch; may step."""
        return time.time()
