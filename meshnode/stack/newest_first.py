"""Order of what is received and belongs to no connection while more comes than this node has CPU for.

First in, first out serves nothing in time then: each datagram has waited as long as the queue is, and its sender has
given it up and sent it again. So the newest goes first (its sender still waits), signs of life before the rest, and
what has waited for ``MAX_QUEUED_S`` is dropped unread: the answer would come too late. What comes from addresses that
have answered this node and what comes from others take turns, so that a flood of forged sources takes half at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from meshnode.base.limits import MAX_QUEUED_S, MAX_UNCONNECTED, PACE_TURN_S
from meshnode.base.path import Path
from meshnode.quic.packets import FIXED
from meshnode.stack.reception import Run

SIGN_OF_LIFE = 160  # bytes: a sealed PING or PONG has at most 137, a padded request of the DHT 257 or more


class NewestFirst:
    """Datagrams of no connection that have not had their turn.

    Args:
        is_proven: Returns whether a source has answered this node.
        cpu: Returns the seconds of CPU used so far.

    Attributes:
        waiting: Datagrams that wait.
        dropped: Datagrams that found no room, or waited too long, so far.
    """

    def __init__(self, is_proven: Callable[[Path], bool], cpu: Callable[[], float]) -> None:
        self.waiting = self.dropped = 0
        self._is_proven = is_proven
        self._cpu = cpu
        self._signs: deque[tuple[float, Run]] = deque()
        self._known: deque[tuple[float, Run]] = deque()
        self._others: deque[tuple[float, Run]] = deque()

    def put(self, runs: Sequence[Run], now: float) -> None:
        """Let datagrams wait that were read at ``now``; of each kind the oldest go where there is no room."""
        for datagrams, source in runs:
            proven = self._is_proven(source)
            for data in datagrams:
                queue = self._others
                if proven:
                    queue = self._signs if len(data) <= SIGN_OF_LIFE and data and not data[0] & FIXED else self._known
                queue.append((now, ([data], source)))
                self.waiting += 1
                if len(queue) > MAX_UNCONNECTED:
                    queue.popleft()
                    self._lost(1)

    def _lost(self, count: int) -> None:
        self.waiting -= count
        self.dropped += count

    def turn(self, take: Callable[[Sequence[Run]], None], now: float) -> None:
        """Hand on what waits, the newest first, for ``PACE_TURN_S`` of CPU, and drop what has waited too long."""
        for queue in (self._signs, self._known, self._others):
            while queue and now - queue[0][0] > MAX_QUEUED_S:
                queue.popleft()
                self._lost(1)
        began = self._cpu()
        while self.waiting:
            for queue in self._signs or self._known, self._others:
                if queue:
                    self.waiting -= 1
                    take([queue.pop()[1]])
            if self._cpu() - began >= PACE_TURN_S:
                return
