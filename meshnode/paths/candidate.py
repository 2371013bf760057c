"""One address of a peer, and what we know of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from meshnode.base.address import Addr
from meshnode.paths.mtu import MtuSearch

WINDOW = 8  # probes whose fate is remembered
DISTRUST_S, DISTRUST_MAX_S = 0.1, 32.0
CALM_S = 10.0  # distrust halves in this time: a path that falls silent six times a minute keeps as much as it has
PATIENCE_S = 2.0


class PathState(Enum):
    """How far we trust an address to be the peer's."""

    UNKNOWN = "unknown"
    PROBING = "probing"
    VALIDATED = "validated"
    FAILED = "failed"


class Connectivity(Enum):
    """How the peer is, as far as paths can tell."""

    CONNECTED = "connected"
    SEEKING = "seeking"
    SUSPENDED = "suspended"


@dataclass(slots=True)
class Candidate:
    """``rtt`` and the times are seconds; ``claimed`` is when the peer last gave a reason to move here.

    ``answered`` is when the latest of our probes that came back was sent.

    ``probes`` were sent and ``samples`` came back; ``failures``: how often it was in use and had to be left.
    """

    addr: Addr
    source: str
    mtu: MtuSearch
    state: PathState = PathState.UNKNOWN
    rtt: float | None = None
    samples: int = 0
    probes: int = 0
    failures: int = 0
    last_heard: float = float("-inf")
    claimed: float = float("-inf")
    answered: float = float("-inf")
    trusted_at: float = float("-inf")
    distrust: float = 0.0
    left_at: float = float("-inf")
    fates: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def rank(self) -> int:
        """The kind of path, the best first: direct, tunnel, relayed.

        A tunnel goes to the peer itself. Were it the last choice, two relays whose client has no UDP would be reached
        through each other, and carry nothing for it.
        """
        return 0 if self.addr.is_udp else 1 if self.addr.is_tunnel else 2

    @property
    def outcome(self) -> str:
        """What came of probing it, for people."""
        if self.samples and self.rtt is not None:
            return f"answered {self.samples} of {self.probes} probes, in {self.rtt * 1000:.1f} ms"
        return f"no answer to {self.probes} probes" if self.probes else "not probed"

    @property
    def losses(self) -> int:
        """How many of the last probes were lost."""
        return self.fates.count(False)

    def measured(self, sent: float, now: float) -> None:
        """A probe went round trip."""
        rtt = now - sent
        self.answered = max(self.answered, sent)
        self.rtt = rtt if self.rtt is None else 0.75 * self.rtt + 0.25 * rtt
        self.samples += 1
        self.last_heard = now
        self.state = PathState.VALIDATED

    def fell_silent(self, now: float) -> None:
        """It was in use and stopped answering: do not hurry back (0.1 s, doubling with each time, halving in 10 s)."""
        self.failures += 1
        calm = 0.5 ** ((now - self.left_at) / CALM_S)
        self.distrust = min(DISTRUST_MAX_S, max(DISTRUST_S, 2 * self.distrust * calm))
        self.left_at = now
        self.trusted_at = now + self.distrust

    def trusted(self, sent: float, now: float) -> bool:
        """A probe sent at ``sent`` was answered: may we go back? Sent before we left, it says that it lived on."""
        return now >= self.trusted_at or (sent <= self.left_at and self.distrust <= PATIENCE_S)
