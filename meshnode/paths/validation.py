"""Path validation by sealed probes: the probes of one peer's paths that have no answer yet (RFC 9000 section 8.2).

How much goes to an address before that is not decided here, but for all peers together in ``stack/address_credit``.
"""

from __future__ import annotations

from typing import NamedTuple

from meshnode.base.bounded import BoundedDict
from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_PROBES_OUT
from meshnode.base.path import Path
from meshnode.paths.candidate import Candidate, PathState
from meshnode.paths.effects import MOVED, Journal, SendProbe

CONFIRM_S = 1.0  # an address that a MOVED brought must answer our probe within this


class Probe(NamedTuple):
    """A probe on its way. ``sent`` is monotonic seconds; ``pad_to`` is what its answer proves to fit, 0 for nothing."""

    path: Path
    sent: float
    pad_to: int


class Validation:
    """The probes without an answer yet.

    ``confirm_by`` is when a path that the peer's MOVED brought counts as failed.
    """

    __slots__ = ("_entropy", "_journal", "_probes", "confirm_by")

    def __init__(self, journal: Journal, entropy: Entropy) -> None:
        self.confirm_by: float | None = None
        self._journal = journal
        self._entropy = entropy
        self._probes: BoundedDict[bytes, Probe] = BoundedDict(MAX_PROBES_OUT)

    def probe(self, candidate: Candidate, flags: int, now: float, pad_to: int = 0) -> bytes:
        """Send a probe; return its transaction id of 8 bytes.

        At most ``MAX_PROBES_OUT`` are remembered: the answer to an older one is ignored. ``pad_to`` is the size of the
        datagram in bytes, 0 for the smallest. One that tells of a move may leave shorter, so its answer proves no size.
        """
        tx = self._entropy(8)
        self._probes[tx] = Probe(candidate.path, now, 0 if flags & MOVED else pad_to)
        candidate.probes += 1
        if candidate.state in (PathState.UNKNOWN, PathState.FAILED):
            candidate.state = PathState.PROBING
        self._journal.emit(SendProbe(candidate.path, tx, flags, pad_to, candidate.named))
        return tx

    def take(self, tx: bytes) -> Probe | None:
        """Return the probe that an answer with this transaction id belongs to; None when there is none."""
        return self._probes.pop(tx, None)

    def claim(self, found: Candidate, current: Candidate | None, is_silent: bool, now: float) -> None:
        """Take note that the peer gives a reason to use ``found``: it moves this node only once a probe came back.

        For a detour it counts only if the path in use does not answer, so that is probed here.
        """
        if current is None or found.rank <= current.rank:
            found.claimed = now
            return
        if found.claimed <= current.answered:
            found.claimed = now
        if not is_silent:
            self.probe(current, 0, now)
