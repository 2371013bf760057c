"""Turns of peers in what is received: a deficit round robin by the CPU that their datagrams cost.

One peer's packets, full of the smallest frames, cost 0.1 to 2 ms each, and none of them breaks the protocol: it takes
the whole core when they are handled as they come. So when more has come than a few datagrams, what belongs to
connections waits here by peer, and peers take turns of equal cost, smaller ones where datagrams are dearer than usual:
those that need less than their share wait for one turn, and what is too much for its peer's queue is dropped, which
QUIC takes for congestion. What a peer's turn has this node send is part of its cost. Sealed datagrams from where a
peer's connection is wait by source, which may be forged, so not with its packets; what has waited for ``MAX_SEALED_S``
is dropped, for its sender has given it up. QUIC packets wait on: dropped, they would be sent again ever later. Peers
and sources of one network share their turns, for ids are free. A peer whose datagrams are dearer than any honest one's
is ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import field
from typing import Generic, TypeVar

from meshnode.base.bounded import BoundedDict
from meshnode.base.fair_rate import path_shares
from meshnode.base.limits import (
    DEAR_DATAGRAM_S,
    DEAR_DATAGRAMS,
    DEAR_DATAGRAMS_PER_S,
    MAX_PACED,
    MAX_SEALED_S,
    PACE_QUANTUM_S,
    PACE_TURN_S,
)
from meshnode.base.metrics import describe
from meshnode.base.path import Path
from meshnode.base.token_bucket import TokenBucket
from meshnode.base.value import state
from meshnode.identity.node_id import NodeId
from meshnode.quic.hello import CloseCode
from meshnode.quic.packets import FIXED
from meshnode.stack.context import Context
from meshnode.stack.reception import Run

PACKETS_DEAR = describe("packets_dear", "connections ended: their peer's packets cost too much CPU")
RUN = 64  # datagrams that are handed on at once: a reception of the largest kind
KEPT = 4  # that a peer may always have waiting
TYPICAL_S = 1e-4  # what a datagram is taken to cost before one was seen; an honest peer's cost 10 to 100 us
LEAST_SHARE = 0.25  # of a turn, for a peer whose datagrams cost four times that, or more

Owner = TypeVar("Owner", bound=Hashable)


@state
class _Queue:
    network: Hashable
    waiting: deque[tuple[float, Run]] = field(default_factory=deque)  # and when each was read
    count: int = 0  # datagrams that wait
    deficit: float = 0.0  # seconds that it may spend, or has spent too many
    each: float = TYPICAL_S  # what its datagrams cost, smoothed


class ReceivePace(Generic[Owner]):
    """What was received and has not had its turn.

    Args:
        owner: Returns the peer, or the source, that a datagram belongs to; None for what is of no connection, and
            does not wait.
        network: Returns the source network of an owner.
        cpu: Returns the seconds of CPU used so far.
        too_dear: Is called with an owner that is to be ended.

    Attributes:
        waiting: Datagrams that wait.
        dropped: Datagrams that found no room, or waited too long, so far.
    """

    def __init__(
        self,
        owner: Callable[[bytes, Path], Owner | None],
        network: Callable[[Owner], Hashable],
        cpu: Callable[[], float],
        too_dear: Callable[[Owner], None],
    ) -> None:
        self.waiting = self.dropped = 0
        self._owner = owner
        self._network = network
        self._cpu = cpu
        self._too_dear = too_dear
        self._queues: dict[Owner, _Queue] = {}
        self._order: deque[Owner] = deque()  # those of which something waits
        self._of_network: Counter[Hashable] = Counter()  # how many of these each network has
        self._dear: BoundedDict[Owner, TokenBucket] = BoundedDict(MAX_PACED)  # of datagrams that were too dear

    def spent(self, runs: Sequence[Run], count: int, spent: float, weight: int = 1) -> None:
        """Note the CPU that these datagrams, ``count`` of them, cost which did not wait.

        ``weight`` others were not looked at for each of them; but no one reception is half of what a peer may have.
        """
        for run in runs:
            owner = self._owner_of(run)
            if owner is not None:
                self._note(owner, max(len(run[0]), min(weight * len(run[0]), DEAR_DATAGRAMS / 2)), spent / count)

    def _owner_of(self, run: Run) -> Owner | None:
        """Return the peer that a run belongs to: that of its first datagram that is of a connection."""
        datagrams, source = run
        for data in datagrams:
            if (owner := self._owner(data, source)) is not None:
                return owner
        return None

    def offer(self, runs: Sequence[Run], now: float) -> list[Run]:
        """Let runs wait that were read at ``now``; returns those that do not, for they are of no connection."""
        others = []
        for run in runs:
            owner = self._owner_of(run)
            if owner is None:
                others.append(run)
                continue
            queue = self._queues.get(owner)
            if queue is None:
                queue = self._queues[owner] = _Queue(self._network(owner))
            count = len(run[0])
            if not queue.waiting:
                self._order.append(owner)
                self._of_network[queue.network] += 1
            elif queue.count >= self._room():
                self.dropped += count
                continue
            queue.waiting.append((now, run))
            queue.count += count
            self.waiting += count
        return others

    def _room(self) -> int:
        if self.waiting >= MAX_PACED:
            return KEPT
        return max(KEPT, MAX_PACED // len(self._order))

    def turn(self, take: Callable[[Sequence[Run]], None], flush: Callable[[], None], now: float) -> None:
        """Hand on what waits, peer by peer, for ``PACE_TURN_S`` of CPU; debts are forgotten when nothing waits.

        ``flush`` sends what that has caused, before the next peer's turn.
        """
        left = PACE_TURN_S
        while self._order and left > 0:
            owner = self._order[0]
            queue = self._queues[owner]
            self._drop_before(queue, now - MAX_SEALED_S)
            if queue.waiting and queue.deficit <= 0:
                if len(self._order) == 1:  # in quanta it would send after each, ever more often on a slow machine
                    queue.deficit = left
                    continue
                share = max(LEAST_SHARE, min(1.0, TYPICAL_S / queue.each))
                queue.deficit += share * PACE_QUANTUM_S / self._of_network[queue.network]
                self._order.rotate(-1)
                continue
            while queue.waiting and queue.deficit > 0 and left > 0:
                left -= self._run(owner, queue, take)
            began = self._cpu()
            flush()
            spent = self._cpu() - began
            queue.deficit -= spent
            left -= spent
            if not queue.waiting:
                self._order.popleft()
                self._of_network[queue.network] -= 1
        if not self._order:
            self._queues.clear()
            self._of_network.clear()

    def _drop_before(self, queue: _Queue, time: float) -> None:
        """Drop the sealed datagrams of a queue that came before a time."""
        while queue.waiting and queue.waiting[0][0] < time and _is_sealed(queue.waiting[0][1]):
            count = len(queue.waiting.popleft()[1][0])
            queue.count -= count
            self.waiting -= count
            self.dropped += count

    def _run(self, owner: Owner, queue: _Queue, take: Callable[[Sequence[Run]], None]) -> float:
        """Hand on as many of a peer's as it may spend on, and at least one; returns what they cost."""
        spend = queue.deficit if queue.deficit < PACE_QUANTUM_S else PACE_QUANTUM_S
        count = max(1, min(RUN, queue.count, int(spend / queue.each)))
        runs = _first(queue.waiting, count)
        queue.count -= count
        self.waiting -= count
        began = self._cpu()
        take(runs)
        spent = self._cpu() - began
        queue.deficit -= spent
        each = spent / count
        queue.each = max(1e-6, 0.75 * queue.each + 0.25 * each)
        self._note(owner, count, each)
        return spent

    def _note(self, owner: Owner, count: float, each: float) -> None:
        if each <= DEAR_DATAGRAM_S:
            return
        now = self._cpu()  # time is that of the CPU, of which such datagrams may take a little
        bucket = self._dear.get(owner)
        if bucket is None:
            bucket = self._dear[owner] = TokenBucket(DEAR_DATAGRAMS_PER_S, DEAR_DATAGRAMS, now)
        if not bucket.take(count, now):
            del self._dear[owner]
            self._too_dear(owner)


def _is_sealed(run: Run) -> bool:
    """Return whether a run is of sealed datagrams: those of one reception are all of one kind."""
    first = run[0][0]
    return bool(first) and not first[0] & FIXED


def _first(waiting: deque[tuple[float, Run]], count: int) -> list[Run]:
    """Take the first ``count`` datagrams, of which there are as many: runs, the last one cut where it has more."""
    runs = []
    while count > 0:
        came, (datagrams, source) = waiting.popleft()
        if len(datagrams) > count:
            waiting.appendleft((came, (datagrams[count:], source)))
            datagrams = datagrams[:count]
        runs.append((datagrams, source))
        count -= len(datagrams)
    return runs


def pace_of(context: Context, cpu: Callable[[], float]) -> ReceivePace[NodeId | Path]:
    """Return the pace of a stack's peers, and of the sources of sealed datagrams that are where peers are."""
    peers, junk, monotonic = context.peers, context.junk, context.clock.monotonic

    def owner(data: bytes, source: Path) -> NodeId | Path | None:
        found = peers.owner_of(data)
        if found is None and data and not data[0] & FIXED and junk.is_in_use(source, monotonic()):
            return source
        return found

    def network(owner: NodeId | Path) -> Hashable:
        return (peers.groups_of(owner) if isinstance(owner, NodeId) else path_shares(owner))[0]

    def end(owner: NodeId | Path) -> None:
        session = peers.sessions.get(owner) if isinstance(owner, NodeId) else None
        for connection in session.connections() if session is not None else ():
            context.metrics.count(PACKETS_DEAR)
            connection.close(CloseCode.PROTOCOL, "packets that cost too much")

    return ReceivePace(owner, network, cpu, end)
