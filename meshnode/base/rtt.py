"""Smoothed round-trip times (RFC 6298 section 2, RFC 9002 section 5.3)."""

from __future__ import annotations


class RttEstimator:
    """Smoothed RTT and its mean deviation, in seconds; ``srtt`` is None before the first sample."""

    __slots__ = ("srtt", "var")

    def __init__(self) -> None:
        self.srtt: float | None = None
        self.var = 0.0

    def sample(self, rtt: float) -> None:
        """Take one measured round trip in seconds.

        The first sets ``srtt`` to it and ``var`` to half of it; later ones weigh 1/8 and 1/4 (RFC 6298 section 2).
        Never pass that of a retransmitted request (Karn's algorithm): which of the two was answered is not known.
        """
        if self.srtt is None:
            self.srtt, self.var = rtt, rtt / 2
        else:
            self.var += (abs(self.srtt - rtt) - self.var) / 4
            self.srtt += (rtt - self.srtt) / 8

    def timeout(self, least: float, most: float, *, unknown: float, deviations: float = 4.0) -> float:
        """Return how long to wait for an answer, in seconds.

        Args:
            least: The lower bound.
            most: The upper bound.
            unknown: Returned before the first sample, bounds or not.
            deviations: How many mean deviations are added to ``srtt``; 4 in RFC 6298.
        """
        if self.srtt is None:
            return unknown
        return min(most, max(least, self.srtt + deviations * self.var))
