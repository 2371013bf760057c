"""Everything that a node keeps for one peer: its paths, its connection, dials, half-open arrivals, one timer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnode.base.address import Addr
from meshnode.base.limits import (
    CONTROL_FRAMES_BURST,
    CONTROL_FRAMES_PER_S,
    KEEPALIVE_S,
    MAX_FLIGHT,
)
from meshnode.base.path import Path
from meshnode.base.timers import Timers
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state, value
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.paths.candidate import NEVER
from meshnode.paths.peer import PeerPaths
from meshnode.quic import packets
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Hello

OnConnect = Callable[["Connection | MeshError"], None]

HEARD_S = 1.5 * KEEPALIVE_S  # a live peer is heard once a keepalive


class Session:
    """One peer. At most one READY connection; at most one dial; a few arrivals that have not said Hello yet."""

    __slots__ = (
        "arrivals",
        "attempt",
        "connection",
        "deferred",
        "dial",
        "frames",
        "held",
        "introduction",
        "outbox",
        "paths",
        "peer",
        "ready_at",
        "timer",
        "waiting",
    )

    def __init__(self, peer: NodeId, paths: PeerPaths, timers: Timers, tick: Callable[[Session, float], None]) -> None:
        self.peer = peer
        self.paths = paths
        self.timer = timers.timer(partial(tick, self))
        self.connection: Connection | None = None
        self.ready_at = float("-inf")  # since when it is the connection
        self.dial: Connection | None = None
        self.attempt = Attempt()
        self.arrivals: dict[Connection, Arrival] = {}
        self.held: HeldFlight | None = None
        self.deferred: tuple[Connection, Hello] | None = None  # an arrival's Hello, while this node's dial may live
        self.outbox: list[bytes] = []  # what the 3x rule holds back
        self.waiting: list[OnConnect] = []
        self.frames = TokenBucket(CONTROL_FRAMES_PER_S, CONTROL_FRAMES_BURST, 0.0)  # of all its connections
        self.introduction: Introduction | None = None  # the last one, of the ready connection

    @property
    def idle(self) -> bool:
        """Return whether nothing of this peer is worth keeping."""
        return (
            self.connection is None
            and self.dial is None
            and not self.arrivals
            and self.held is None
            and not self.waiting
        )

    @property
    def dials(self) -> bool:
        """Return whether the peer is being dialled, or looked up for that."""
        return self.connection is None and (self.dial is not None or bool(self.waiting))

    def heard_at(self) -> float:
        """Return when anything came from the peer by any path, in monotonic seconds."""
        return max((candidate.last_heard for candidate in self.paths.book), default=NEVER)

    def is_heard(self, now: float) -> bool:
        """Return whether the peer was heard in the last ``HEARD_S``, by any path."""
        return any(now - candidate.last_heard < HEARD_S for candidate in self.paths.book)

    def connections(self) -> list[Connection]:
        """Return all connections, in any state.

        The ready one comes first, then the dial, then arrivals.
        """
        if self.connection is not None and self.dial is None and not self.arrivals:
            return [self.connection]
        found = [c for c in (self.connection, self.dial) if c is not None]
        return found + list(self.arrivals)

    def answer(self, result: Connection | MeshError) -> None:
        """Give the result to all callers that wait for a connection; one that raises keeps no other from it.

        A caller that asks again meanwhile waits for the next result.
        """
        waiting, self.waiting = self.waiting, []
        failed: Exception | None = None
        for callback in waiting:
            try:
                callback(result)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed


@state
class Arrival:
    """Return address of a half-open connection; ``moved``: its dialler has spoken from another one before."""

    source: Path
    knock: bytes  # the token of all its dialler's Initials
    moved: bool = False

    def knocked(self, datagrams: list[bytes]) -> list[bytes]:
        """Return those that are no Initials, or bear the knock that began the handshake."""
        return [data for data in datagrams if not packets.is_initial(data) or packets.initial_token(data) == self.knock]

    def follow(self, source: Path, newest: bool) -> bool:
        """Answer there from now on if that was the dialler's (``newest``); return whether it is answered there."""
        if newest and source != self.source:
            self.source, self.moved = source, True
        return source == self.source


@state
class Attempt:
    """Progress of a session's dial."""

    begun: bool = False  # the first flight is out
    strayed: bool = False  # not all of the dial went by one path
    check_at: float = float("inf")  # when to refresh a slow dial
    redials: int = 0  # for the callers that wait


@value
class Introduction:
    """Word of a relay that the peer is seen at ``addr``."""

    addr: Addr
    at: float


class HeldFlight:
    """First flight of a dial that lost to this node's own: kept for 300 ms, in case that gets no answer."""

    __slots__ = ("datagrams", "deadline", "knock", "odcid", "source")

    def __init__(self, datagram: bytes, knock: bytes, odcid: bytes, source: Path, deadline: float) -> None:
        self.datagrams = [datagram]
        self.knock = knock
        self.odcid = odcid
        self.source = source
        self.deadline = deadline

    def add(self, datagram: bytes) -> bool:
        """Keep another one with the same knock. False when it has another, is known, or there are too many."""
        if (
            len(self.datagrams) >= MAX_FLIGHT
            or datagram in self.datagrams
            or packets.initial_token(datagram) != self.knock
        ):
            return False
        self.datagrams.append(datagram)
        return True
