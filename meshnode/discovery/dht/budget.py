"""How many requests a node may have outstanding: a window that grows with answers and halves with time-outs (AIMD).

A mesh that is short of CPU answers late, requests time out, and what is sent instead of them makes it answer later: a
DHT without such a window collapses instead of getting slower (RFC 5681 section 3.1 and RFC 8085 section 3.1 say the
same of any request over UDP). One dead contact is no congestion: only a peer that answered the request before this one,
a short time ago, counts, and only when many of these do not.
"""

from __future__ import annotations

from meshnode.base.limits import DHT_MAX_CALLS

FIRST = 512  # calls outstanding before anything timed out: 64 lookups at once
LOOKUP = 8  # calls that one lookup has outstanding (``lookup.ALPHA`` x ``lookup.PATHS``)
LEAST = LOOKUP  # a node under the worst load still finds its way
TOO_MANY = 0.15  # share of time-outs above which the mesh is short of CPU; 20 % loss makes 13 %
SMOOTHING = 1 / 32  # of that share, a call: the last 60 or so count


class Budget:
    """The window of one node's outstanding requests.

    Attributes:
        window: How many may be outstanding.
        share: Smoothed share of requests that timed out, of those to peers that had answered the one before.
    """

    __slots__ = ("_cut_at", "_threshold", "share", "window")

    def __init__(self) -> None:
        self.window = float(FIRST)
        self.share = 0.0
        self._threshold = float(FIRST)
        self._cut_at = float("-inf")

    @property
    def congested(self) -> bool:
        """True while too many requests time out: nothing is sent again now, and no contact is to blame."""
        return self.share > TOO_MANY

    @property
    def lookups(self) -> int:
        """How many lookups may run at once: so many that each gets on, for one that is too slow is all waste."""
        return max(1, int(self.window) // LOOKUP)

    def answered(self) -> None:
        """Count an answer in time: the window grows by one until it was cut here once, from then on by one a window."""
        self.share -= self.share * SMOOTHING
        if not self.congested:
            self.window = min(
                float(DHT_MAX_CALLS), self.window + (1 if self.window < self._threshold else 1 / self.window)
            )

    def timed_out(self, started: float, now: float) -> None:
        """Count a time-out of a peer that had answered the request before.

        The window is halved when there are too many, but once for all requests that were outstanding together: this
        one, sent at ``started``, says nothing of a window that was cut since.
        """
        self.share += (1 - self.share) * SMOOTHING
        if self.congested and started >= self._cut_at:
            self.window = self._threshold = max(float(LEAST), self.window / 2)
            self._cut_at = now
