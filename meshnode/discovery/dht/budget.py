"""How many requests a node may have outstanding: a window that grows with answers and halves with time-outs (AIMD).

A mesh that is short of CPU answers late, requests time out, and what is sent instead of them makes it answer later: a
DHT without such a window collapses instead of getting slower (RFC 5681 section 3.1 and RFC 8085 section 3.1 say the
same of any request over UDP). One dead contact is no congestion: only a peer that answered the request before this one,
a short time ago, counts, and only when many of these do not.

Ids are free, and one that answers and is silent by turns costs nothing. So what counts are networks, each as much as
any other, those included that answered and were not asked since. A mesh that is short of CPU is so in most of them; an
attacker in a few has only these, and half of their outcomes are answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DHT_MAX_CALLS
from meshnode.discovery.dht.table import neighbourhood

FIRST = 512  # calls outstanding before anything timed out: 64 lookups at once
LOOKUP = 8  # calls that one lookup has outstanding (``lookup.ALPHA`` x ``lookup.PATHS``)
LEAST = LOOKUP  # a node under the worst load still finds its way
TOO_MANY = 0.15  # share of time-outs above which the mesh is short of CPU; 20 % loss makes 13 %
OUTCOMES = 64  # the last ones, shared by as many networks; where fewer are known the others count as answers
TIME_OUT_S = 60.0  # for which a time-out counts
ANSWER = float("-inf")  # among the times of time-outs


class Budget:
    """The window of one node's outstanding requests.

    Attributes:
        window: How many may be outstanding.
        share: Of the last outcomes of all networks, those that were time-outs.
    """

    __slots__ = ("_cut_at", "_newest", "_outcomes", "_threshold", "share", "window")

    def __init__(self) -> None:
        self.window = float(FIRST)
        self.share = 0.0
        self._threshold = float(FIRST)
        self._cut_at = self._newest = ANSWER
        self._outcomes: BoundedDict[Hashable, deque[float]] = BoundedDict(OUTCOMES)

    @property
    def congested(self) -> bool:
        """True while too many requests time out: nothing is sent again now, and no contact is to blame."""
        return self.share > TOO_MANY

    @property
    def lookups(self) -> int:
        """How many lookups may run at once: so many that each gets on, for one that is too slow is all waste."""
        return max(1, int(self.window) // LOOKUP)

    def answered(self, addr: Addr, now: float) -> None:
        """Count an answer in time from there.

        The window grows by one until it was cut here once, from then on by one a window.
        """
        self._note(addr, ANSWER, now)
        if not self.congested:
            self.window = min(
                float(DHT_MAX_CALLS), self.window + (1 if self.window < self._threshold else 1 / self.window)
            )

    def timed_out(self, addr: Addr, started: float, now: float) -> None:
        """Count a time-out of a peer that had answered the request before.

        The window is halved when there are too many, but once for all requests that were outstanding together: this
        one, sent at ``started``, says nothing of a window that was cut since.
        """
        self._note(addr, now, now)
        if self.congested and started >= self._cut_at:
            self.window = self._threshold = max(float(LEAST), self.window / 2)
            self._cut_at = now

    def _note(self, addr: Addr, outcome: float, now: float) -> None:
        network: Hashable = neighbourhood(addr.host) or addr  # a LAN is no network of one party
        outcomes = self._outcomes.get(network)
        if outcomes is None:
            outcomes = deque(maxlen=OUTCOMES)
        outcomes.append(outcome)
        self._outcomes.put(network, outcomes)
        each = OUTCOMES / len(self._outcomes)  # so many outcomes of each network count
        while len(outcomes) > each + 1:
            outcomes.popleft()
        since = now - TIME_OUT_S
        self._newest = max(self._newest, outcome)
        known = self._outcomes.values() if self._newest >= since else ()
        self.share = sum(t >= since for times in known for t in times) / OUTCOMES
