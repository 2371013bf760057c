"""What is expected of the peer, and since when it has not come: the watchdog of the active path.

Only time in which this process itself ran counts. A watchdog that fires late says that we got no CPU: what has come
meanwhile may be unread still, so it is set once more, from now on (Lifeguard's local health, Dadgar et al. 2018).
"""

from __future__ import annotations

SILENCE_MIN_S = 0.08
SILENCE_RTTS = 1.25
SILENCE_MAX_S = 2.0
UNMEASURED_S = 0.1
LATE_S = 0.03  # later than this is no timer's granularity
BUSY_S = 1.0

NEVER = float("-inf")


def threshold(rtt: float | None) -> float:
    """Seconds without an answer that are suspicious on a path with this round trip."""
    return min(SILENCE_MAX_S, SILENCE_MIN_S + SILENCE_RTTS * (UNMEASURED_S if rtt is None else rtt))


class Silence:
    """Times are monotonic seconds; ``in_flight`` is bytes sent and unacknowledged."""

    __slots__ = ("_asked", "_awake", "_flight_began", "_last_data", "_watched", "in_flight")

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self._flight_began = now
        self._last_data = NEVER
        self._asked: float | None = None
        self._watched = NEVER
        self._awake = NEVER

    def flight(self, count: int, now: float) -> None:
        """So many bytes are in flight."""
        if count and not self.in_flight:
            self._flight_began = now
        self.in_flight = count

    def data(self, now: float) -> None:
        """The application's data arrived; more is to be expected."""
        self._last_data = now

    def ask(self, now: float) -> None:
        """Something that the peer will answer was sent."""
        if self._asked is None:
            self._asked = now

    def answered(self) -> None:
        """It was answered."""
        self._asked = None

    def settled(self, now: float) -> None:
        """The path works: begin anew."""
        self._asked = None
        self._flight_began = now

    def busy(self, now: float) -> bool:
        """True while data is under way."""
        return self.in_flight > 0 or now - self._last_data < BUSY_S

    def suspicious_at(self, heard: float, rtt: float | None) -> float | None:
        """When silence becomes suspicious on a path heard of at ``heard``; None while nothing is expected."""
        since = None
        if self._asked is not None:
            since = self._asked
        if self.in_flight and (since is None or self._flight_began < since):
            since = self._flight_began
        if self._watched < self._last_data and (since is None or self._last_data < since):
            since = self._last_data  # a stream that just delivered is expected to go on; asked once
        return None if since is None else max(since, heard, self._awake) + threshold(rtt)

    def is_real(self, due: float, heard: float, now: float) -> bool:
        """The watchdog that was due at ``due`` has fired: False when we were away, once in a silence."""
        if now - due > LATE_S and self._awake <= heard:
            self._awake = now
            return False
        self._watched = now
        return True
