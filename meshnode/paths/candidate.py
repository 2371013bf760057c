"""The candidate paths to one peer, and what is known of each (RFC 8445 terms).

Each path is a ``Candidate``; a ``CandidateBook`` holds a peer's, bounded, and knows which one is in use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import field
from enum import Enum
from typing import assert_never

from meshnode.base.address import Addr, is_dialable
from meshnode.base.limits import BASE_MTU, MAX_CANDIDATES
from meshnode.base.path import Path, ViaRelay, ViaSocket, ViaTunnel, udp_address
from meshnode.base.value import state
from meshnode.identity.record import EndpointKind, EndpointRecord
from meshnode.nat.local_networks import LocalNetworks, is_loopback, on_networks
from meshnode.paths.mtu import MtuSearch

LOSS_WINDOW = 8  # probes whose outcome is remembered
DISTRUST_MIN_S, DISTRUST_MAX_S = 0.1, 32.0
DISTRUST_HALF_LIFE_S = 10.0  # a path that falls silent six times a minute keeps as much distrust as it has
RACE_DISTRUST_MAX_S = 2.0  # up to this distrust, an answer to a probe from before the path was left restores it
NEVER = float("-inf")
SOURCES_SEEN = ("packet", "peer", "ping")  # of a candidate that is only where a datagram came from


class PathState(Enum):
    """Validation state of an address."""

    UNKNOWN = "unknown"
    PROBING = "probing"
    VALIDATED = "validated"
    FAILED = "failed"


@state
class Candidate:
    """One path to a peer. ``rtt`` is smoothed, in seconds; times are monotonic seconds.

    - ``claimed``: when the peer last gave a reason to move here;
    - ``answered``: when the latest answered probe was sent;
    - ``named``: a record, a relay or the configuration names it; else it is only the source of datagrams;
    - ``padded``: how many long probes told of this node's last move by it;
    - ``probes`` were sent and ``samples`` of them came back; ``failures``: how often it was in use and had to be left;
    - ``outcomes``: of the last probes of the relay monitor, True for each that came back.
    """

    path: Path
    source: str
    mtu: MtuSearch
    state: PathState = PathState.UNKNOWN
    rtt: float | None = None
    samples: int = 0
    probes: int = 0
    failures: int = 0
    last_heard: float = NEVER
    claimed: float = NEVER
    answered: float = NEVER
    trusted_at: float = NEVER
    distrust: float = 0.0
    left_at: float = NEVER
    outcomes: list[bool] = field(default_factory=list)
    named: bool = False
    padded: int = 0

    @property
    def is_valid(self) -> bool:
        """Return whether one of our probes, or a handshake, went round trip on it."""
        return self.state is PathState.VALIDATED

    @property
    def is_too_small(self) -> bool:
        """Return whether it answers small probes and loses what is as long as QUIC needs."""
        return self.mtu.carries is False

    @property
    def rank(self) -> int:
        """The kind of path, the best first: direct, tunnel, relayed.

        A tunnel goes to the peer itself. Were it the last choice, two relays whose client has no UDP would be reached
        through each other, and carry nothing for it.
        """
        match self.path:
            case Addr() | ViaSocket():
                return 0
            case ViaTunnel():
                return 1
            case ViaRelay():
                return 2
            case _:
                assert_never(self.path)

    @property
    def outcome(self) -> str:
        """The result of probing it, for people."""
        if self.samples and self.rtt is not None:
            small = f", but packets of {self.mtu.floor} bytes are lost" if self.is_too_small else ""
            return f"answered {self.samples} of {self.probes} probes, in {self.rtt * 1000:.1f} ms{small}"
        return f"no answer to {self.probes} probes" if self.probes else "not probed"

    @property
    def losses(self) -> int:
        """How many of the last probes were lost."""
        return self.outcomes.count(False)

    def note(self, *, answered: bool) -> None:
        """Enter the outcome of a probe; the last ``LOSS_WINDOW`` are kept."""
        self.outcomes.append(answered)
        del self.outcomes[:-LOSS_WINDOW]

    def measured(self, sent: float, now: float) -> None:
        """Take the answer to a probe that was sent at ``sent``: the address is validated.

        ``rtt`` is smoothed with a weight of 1/4 for the new sample.
        """
        rtt = now - sent
        self.answered = max(self.answered, sent)
        self.rtt = rtt if self.rtt is None else 0.75 * self.rtt + 0.25 * rtt
        self.samples += 1
        self.last_heard = now
        self.state = PathState.VALIDATED

    def went_round_trip(self, now: float) -> None:
        """Take note that a handshake did: the address is validated, and carries what is as long as its packets."""
        self.last_heard = now
        self.state = PathState.VALIDATED
        self.mtu.answered(self.mtu.floor, now)

    def fell_silent(self, now: float) -> None:
        """Distrust the path, which was in use and stopped answering, for 0.1 s, doubling each time, halving in 10 s."""
        self.failures += 1
        remaining = 0.5 ** ((now - self.left_at) / DISTRUST_HALF_LIFE_S)
        self.distrust = min(DISTRUST_MAX_S, max(DISTRUST_MIN_S, 2 * self.distrust * remaining))
        self.left_at = now
        self.trusted_at = now + self.distrust

    def trusted(self, sent: float, now: float) -> bool:
        """Return whether to go back to it now that a probe sent at ``sent`` was answered.

        A probe sent before the path was left shows that it had not failed, only answered late.
        """
        return now >= self.trusted_at or (sent <= self.left_at and self.distrust <= RACE_DISTRUST_MAX_S)


class CandidateBook:
    """At most ``MAX_CANDIDATES`` paths to one peer. Iterates over a copy, the oldest first.

    ``current`` is in use; ``previous`` was validated and in use before it. Neither is evicted: answers that come from
    them must find their candidate. ``here`` is what this node knows of its own networks.
    """

    __slots__ = ("_candidates", "_loopback_mtu", "_mtu_ceiling", "behind_nat", "current", "here", "previous")

    def __init__(self, mtu_ceiling: int, loopback_mtu: int = 0) -> None:
        self.current: Candidate | None = None
        self.previous: Candidate | None = None
        self.behind_nat = False  # the peer, as its record says
        self.here = LocalNetworks()
        self._mtu_ceiling = mtu_ceiling
        self._loopback_mtu = loopback_mtu  # 0 when it is no other than the base
        self._candidates: dict[Path, Candidate] = {}

    def floor_of(self, path: Path) -> int:
        """Return the bytes of UDP payload that a path surely carries: more than the base within this host."""
        addr = udp_address(path)
        if addr is not None and self._loopback_mtu and is_loopback(addr):
            return self._loopback_mtu
        return BASE_MTU

    def __iter__(self) -> Iterator[Candidate]:
        return iter(list(self._candidates.values()))

    def __contains__(self, path: Path) -> bool:
        return path in self._candidates

    def get(self, path: Path) -> Candidate | None:
        """Return the candidate with this path, if it is known."""
        return self._candidates.get(path)

    def learn(self, path: Path, source: str) -> Candidate | None:
        """Return the candidate with this path, a new one if need be; None when it can be no peer's.

        The oldest of the same source makes room for a new one, so that a lying source (a relay that introduces ever new
        addresses) can only push out what it brought itself.
        """
        found = self._candidates.get(path)
        if found is not None:
            found.named |= source not in SOURCES_SEEN
            return found
        addr = udp_address(path)
        if addr is not None and not is_dialable(addr):
            return None
        if len(self._candidates) >= MAX_CANDIDATES:
            spare = [old for old in self if old is not self.current and old is not self.previous]
            oldest = next((old for old in spare if old.source == source), spare[0])
            del self._candidates[oldest.path]
        floor = self.floor_of(path)
        always = isinstance(path, ViaTunnel) or floor > BASE_MTU  # TCP cuts what is too long
        mtu = MtuSearch(max(floor, self._mtu_ceiling) if addr is not None else 0, floor, always=always)
        found = self._candidates[path] = Candidate(path, source, mtu, named=source not in SOURCES_SEEN)
        return found

    def drop(self, path: Path) -> None:
        """Forget a path that is of no more use (a relay that was left), unless it is in use."""
        if self.current is not None and path == self.current.path:
            return
        dropped = self._candidates.pop(path, None)
        if dropped is self.previous:
            self.previous = None

    def take_record(self, record: EndpointRecord) -> list[Addr]:
        """Drop what an older record named and this one does not; return the addresses that it names.

        Addresses that no other node can have are left out (``LocalNetworks.believes``). ``behind_nat`` is set from the
        record; ``current`` and ``previous`` are kept even when it does not list them.
        """
        listed = dict.fromkeys(addr for e in record.endpoints for addr in self.here.reachable(e.addr))
        self.behind_nat = any(endpoint.kind is EndpointKind.REFLEXIVE for endpoint in record.endpoints)
        for candidate in self:
            in_use = candidate is self.current or candidate is self.previous
            if candidate.source == "record" and candidate.path not in listed and not in_use:
                del self._candidates[candidate.path]
        return list(listed)

    def is_left(self, listed: Collection[Addr]) -> bool:
        """Return True when the peer's newer record no longer lists the direct address in use."""
        if self.current is None or self.behind_nat:  # a punched address is the peer's NAT's, and in no record
            return False
        return self.current.rank == 0 and self.current.path not in listed

    def on_duplicate(self, path: Path) -> None:
        """Count a sealed datagram that came twice by this path as a loss.

        Only for relays: one that repeats datagrams is left as one that drops them.
        """
        found = self._candidates.get(path)
        if found is not None and isinstance(path, ViaRelay):
            found.note(answered=False)

    def relays(self) -> list[Candidate]:
        """Return the relayed candidates that are not in use."""
        return [c for c in self if isinstance(c.path, ViaRelay) and c is not self.current]

    def paths(self) -> list[Path]:
        """Return all candidate paths."""
        return list(self._candidates)

    def best_guess(self) -> Path | None:
        """Return the path to dial first.

        One that is not too small; of these a validated one; else one on our own networks; else a relay when the peer is
        behind a NAT, a direct one when it is not; in the record's order.
        """

        def rank(candidate: Candidate) -> tuple[bool, bool, bool, bool, int]:
            first = isinstance(candidate.path, ViaRelay) if self.behind_nat else candidate.rank == 0
            near = self.kind(candidate.path) == "lan"
            return candidate.is_too_small, not candidate.is_valid, not near, not first, candidate.rank

        best = min(self._candidates.values(), key=rank, default=None)
        return best.path if best is not None else None

    def is_better(self, one: Candidate, other: Candidate) -> bool:
        """Return True when ``one`` is of a better kind, or alone on our own networks."""
        if one.rank != other.rank:
            return one.rank < other.rank
        return self.kind(one.path) == "lan" and self.kind(other.path) != "lan"

    def kind(self, path: Path) -> str:
        """Return ``relay``; ``lan`` for an address on one of our networks or loopback; else ``direct``."""
        return path_kind(path, self.here.networks)


def path_kind(path: Path, networks: Iterable[tuple[str, int]]) -> str:
    """Return ``relay``, ``lan`` or ``direct``.

    ``lan`` is an address in one of ``networks`` (address, prefix length), loopback or link-local; ``direct`` any other
    UDP address, and a WebSocket to the peer itself.
    """
    if isinstance(path, ViaRelay):
        return "relay"
    addr = udp_address(path)
    return "lan" if addr is not None and on_networks(addr, networks) else "direct"
