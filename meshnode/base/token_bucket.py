"""Token buckets: limit a rate and allow a burst."""

from __future__ import annotations

ROUNDING_S = 1e-9  # a token that is due within this time counts: a timer set to wait() never fires just too early


class TokenBucket:
    """``rate`` tokens a second, at most ``burst`` of them saved; full at first. Time is in monotonic seconds."""

    __slots__ = ("_filled", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._filled = now

    def take(self, amount: float, now: float) -> bool:
        """Take ``amount`` tokens; False, taking none, when there are too few.

        An ``amount`` above ``burst`` is never granted. A ``now`` before the last one counts as the last one.
        """
        if now > self._filled:  # datagrams that are read together share one reading of the clock
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
            self._filled = now
        if (amount - self._tokens) / self.rate > ROUNDING_S:
            return False
        self._tokens -= amount
        return True

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` tokens can be taken; 0.0 when they can be now.

        It takes none. ``amount`` is at most ``burst``: for more there is no such time, and the result means nothing.
        """
        self._fill(now)
        return max(0.0, (amount - self._tokens) / self.rate)

    def is_full(self, now: float) -> bool:
        """True when nothing taken is still missing: the bucket behaves like a new one."""
        self._fill(now)
        return self._tokens >= self.burst

    def give(self, amount: float) -> None:
        """Give tokens back that were taken in vain."""
        self._tokens = min(self.burst, self._tokens + amount)

    def drain(self, most: float) -> None:
        """Forget saved tokens above ``most``, for a limit that shall not begin with a burst."""
        self._tokens = min(self._tokens, most)

    def _fill(self, now: float) -> None:
        if now > self._filled:  # a clock that stands still or goes back neither gives tokens nor takes any
            self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
            self._filled = now


class RateLimit:
    """Two buckets, of messages and of their bytes: both allow a message, or neither is charged."""

    __slots__ = ("messages", "octets")

    def __init__(self, messages: TokenBucket, octets: TokenBucket) -> None:
        self.messages = messages
        self.octets = octets

    def wait(self, size: int, now: float) -> float:
        """Return the seconds until a message of ``size`` bytes is allowed; 0.0 when it is now."""
        return max(self.messages.wait(1, now), self.octets.wait(size, now))

    def take(self, size: int, now: float) -> bool:
        """Charge a message of ``size`` bytes to both buckets.

        Returns False, charging neither, when one of them has too little: too many messages, or too many bytes.
        """
        if self.octets.wait(size, now) > ROUNDING_S or not self.messages.take(1, now):
            return False
        self.octets.take(size, now)
        return True

    def is_full(self, now: float) -> bool:
        """True when nothing taken is still missing."""
        return self.messages.is_full(now) and self.octets.is_full(now)
