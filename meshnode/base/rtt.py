"""Smoothed round-trip times (RFC 6298 section 2, RFC 9002 section 5.3)."""

from __future__ import annotations


class RttEstimator:
    """Smoothed RTT and its mean deviation, in seconds; ``srtt`` is None before the first sample."""

    __slots__ = ("srtt", "var")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.var = 0.0

    def sample(self, rtt: float) -> None:
        """Take one measured round trip (Karn's algorithm: never that of a retransmitted request)."""
        if self.srtt is None:
            self.srtt, self.var = rtt, rtt / 2
        else:
            self.var += (abs(self.srtt - rtt) - self.var) / 4
            self.srtt += (rtt - self.srtt) / 8

    def timeout(self, least: float, most: float, *, unknown: float, deviations: float = 4.0) -> float:
        """Return ``srtt`` plus so many deviations, within the bounds; ``unknown`` before the first sample."""
        if self.srtt is None:
            return unknown
        return min(most, max(least, self.srtt + deviations * self.var))
