"""Token buckets for messages and their bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """So many messages and bytes a second, and so many at once; full at first."""

    rate: float
    burst: float
    byte_rate: float
    byte_burst: float
    tokens: float
    room: float
    at: float

    @classmethod
    def full(cls, rate: float, burst: float, byte_rate: float, byte_burst: float, now: float) -> Bucket:
        """A new one."""
        return cls(rate, burst, byte_rate, byte_burst, burst, byte_burst, now)

    def wait(self, size: int, now: float) -> float:
        """Seconds until a message of ``size`` bytes may go; 0 when it may."""
        passed = max(0.0, now - self.at)
        self.at = max(self.at, now)
        self.tokens = min(self.burst, self.tokens + passed * self.rate)
        self.room = min(self.byte_burst, self.room + passed * self.byte_rate)
        return max(0.0, (1 - self.tokens) / self.rate, (size - self.room) / self.byte_rate)

    def take(self, size: int, now: float) -> bool:
        """Spend one message; False (and nothing is spent) when it may not go yet."""
        if self.wait(size, now) > 1e-9:
            return False
        self.tokens -= 1
        self.room -= size
        return True

    def drain(self) -> None:
        """Nothing is saved up."""
        self.tokens = min(self.tokens, 1.0)
