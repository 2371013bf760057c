"""One address of a peer, and what we know of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshnode.address import Addr


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
    """``rtt`` and the times are seconds; ``claimed`` is when the peer last gave a reason to move here."""

    addr: Addr
    source: str
    state: PathState = PathState.UNKNOWN
    rtt: float | None = None
    samples: int = 0
    last_heard: float = float("-inf")
    claimed: float = float("-inf")
    mtu: int = 1200

    def measured(self, rtt: float, now: float) -> None:
        """A probe went round trip."""
        self.rtt = rtt if self.rtt is None else 0.75 * self.rtt + 0.25 * rtt
        self.samples += 1
        self.last_heard = now
        self.state = PathState.VALIDATED
