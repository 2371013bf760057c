"""Everything that a node keeps for one peer: its paths, its connection, dials, half-open arrivals, one timer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from meshnode.base.address import Addr
from meshnode.base.limits import MAX_HELD_DATAGRAMS
from meshnode.base.path import Path
from meshnode.base.timers import Timers
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.paths.peer import PeerPaths
from meshnode.quic.connection import Connection
from meshnode.quic.hello import Hello

OnConnect = Callable[["Connection | MeshError"], None]


class Session:
    """One peer. At most one READY connection; at most one dial; a few arrivals that have not said Hello yet."""

    __slots__ = (
        "arrivals",
        "begun",
        "check_at",
        "connection",
        "deferred",
        "dial",
        "held",
        "introduction",
        "outbox",
        "paths",
        "peer",
        "ready_at",
        "redials",
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
        self.begun = False  # the dial's first flight is out
        self.check_at = float("inf")  # when to refresh a slow dial
        self.redials = 0  # how often for those that wait
        self.arrivals: dict[Connection, Path] = {}
        self.held: HeldInitial | None = None
        self.deferred: tuple[Connection, Hello] | None = None  # an arrival's Hello, while ours may live
        self.outbox: deque[bytes] = deque(maxlen=MAX_HELD_DATAGRAMS)  # what the 3x rule holds back
        self.waiting: list[OnConnect] = []
        self.introduction: Introduction | None = None  # the last one, of the ready connection

    @property
    def idle(self) -> bool:
        """True when nothing of this peer is worth keeping."""
        return (
            self.connection is None
            and self.dial is None
            and not self.arrivals
            and self.held is None
            and not self.waiting
        )

    @property
    def dials(self) -> bool:
        """True while we dial the peer, or look for its record in order to."""
        return self.connection is None and (self.dial is not None or bool(self.waiting))

    def connections(self) -> list[Connection]:
        """All connections, in any state."""
        if self.connection is not None and self.dial is None and not self.arrivals:
            return [self.connection]
        found = [c for c in (self.connection, self.dial) if c is not None]
        return found + list(self.arrivals)

    def answer(self, result: Connection | MeshError) -> None:
        """Tell all callers that wait for a connection."""
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback(result)


@dataclass(frozen=True, slots=True)
class Introduction:
    """A relay has said that the peer is seen at ``addr``."""

    addr: Addr
    at: float


class HeldInitial:
    """The first flight of a dial that lost to ours: kept for 300 ms, in case ours gets nowhere."""

    __slots__ = ("datagram", "deadline", "odcid", "source")

    def __init__(self, datagram: bytes, odcid: bytes, source: Path, deadline: float) -> None:
        self.datagram = datagram
        self.odcid = odcid
        self.source = source
        self.deadline = deadline
