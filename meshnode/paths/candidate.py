"""One address of a peer, and what we know of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from meshnode.address import Addr
from meshnode.paths.mtu import MtuSearch

WINDOW = 8  # probes whose fate is remembered


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
    trusted_at: float = float("-inf")
    distrust: float = 0.5
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

    def measured(self, rtt: float, now: float) -> None:
        """A probe went round trip."""
        self.rtt = rtt if self.rtt is None else 0.75 * self.rtt + 0.25 * rtt
        self.samples += 1
        self.last_heard = now
        self.state = PathState.VALIDATED

    def fell_silent(self, now: float) -> None:
        """It was in use and stopped answering: do not hurry back (1 s, doubling to 32 s)."""
        self.failures += 1
        self.distrust = min(32.0, 2 * self.distrust)
        self.trusted_at = now + self.distrust
