"""One deadline per peer, in a heap: setting one costs a push, the earliest is at hand."""

from __future__ import annotations

import heapq

from meshnode.identity.node_id import NodeId


class Deadlines:
    """Stale heap entries are skipped when they surface; ``_armed`` says which entry is current."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, NodeId]] = []
        self._armed: dict[NodeId, float] = {}
        self._count = 0

    def set(self, peer: NodeId, at: float | None) -> None:
        """Replace the peer's deadline; None removes it."""
        if at is None:
            self._armed.pop(peer, None)
        elif self._armed.get(peer) != at:
            self._armed[peer] = at
            self._count += 1
            heapq.heappush(self._heap, (at, self._count, peer))

    def earliest(self) -> float | None:
        """Return the first deadline of all."""
        heap = self._heap
        while heap and self._armed.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float) -> list[NodeId]:
        """Remove and return whose deadline has come."""
        due: list[NodeId] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, peer = heapq.heappop(self._heap)
            if self._armed.get(peer) == at:
                del self._armed[peer]
                due.append(peer)
        return due


def earlier(a: float | None, b: float | None) -> float | None:
    """Return the earlier of two deadlines, where None is never."""
    if a is None or b is None:
        return b if a is None else a
    return a if a < b else b


def is_due(deadline: float | None, now: float) -> bool:
    """True when there is a deadline and it has come."""
    return deadline is not None and deadline <= now
