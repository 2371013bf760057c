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
        "attempt",
        "connection",
        "deferred",
        "dial",
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
        self.arrivals: dict[Connection, Path] = {}
        self.held: HeldInitial | None = None
        self.deferred: tuple[Connection, Hello] | None = None  # an arrival's Hello, while this node's dial may live
        self.outbox: deque[bytes] = deque(maxlen=MAX_HELD_DATAGRAMS)  # what the 3x rule holds back
        self.waiting: list[OnConnect] = []
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

    def connections(self) -> list[Connection]:
        """Return all connections, in any state.

        The ready one comes first, then the dial, then arrivals.
        """
        if self.connection is not None and self.dial is None and not self.arrivals:
            return [self.connection]
        found = [c for c in (self.connection, self.dial) if c is not None]
        return found + list(self.arrivals)

    def answer(self, result: Connection | MeshError) -> None:
        """Give the result to all callers that wait for a connection.

        A caller that asks again meanwhile waits for the next result.
        """
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback(result)


@dataclass(slots=True)
class Attempt:
    """Progress of a session's dial."""

    begun: bool = False  # the first flight is out
    check_at: float = float("inf")  # when to refresh a slow dial
    redials: int = 0  # for the callers that wait


@dataclass(frozen=True, slots=True)
class Introduction:
    """Word of a relay that the peer is seen at ``addr``."""

    addr: Addr
    at: float


class HeldInitial:
    """First flight of a dial that lost to this node's own: kept for 300 ms, in case that gets no answer."""

    __slots__ = ("datagram", "deadline", "odcid", "source")

    def __init__(self, datagram: bytes, odcid: bytes, source: Path, deadline: float) -> None:
        self.datagram = datagram
        self.odcid = odcid
        self.source = source
        self.deadline = deadline
