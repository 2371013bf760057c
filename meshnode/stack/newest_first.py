"""Order of what is received and belongs to no connection while more comes than this node has CPU for.

First in, first out serves nothing in time then: each datagram has waited as long as the queue is, and its sender has
given it up and sent it again. So the newest goes first (its sender still waits), signs of life before the rest, and
what has waited for ``MAX_QUEUED_S`` is dropped unread: the answer would come too late. What comes from addresses that
have answered this node and what comes from others take turns, so that a flood of forged sources takes half at most. In
each kind source networks take turns too, and in a network its hosts; those that had nothing waiting come first. Where
there is no room, the oldest of the host with most goes, of the network with most.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence

from meshnode.base.fair_rate import path_shares
from meshnode.base.fair_table import FairTable, Groups
from meshnode.base.limits import MAX_QUEUED_S, MAX_UNCONNECTED, PACE_TURN_S
from meshnode.base.path import Path
from meshnode.quic.packets import FIXED
from meshnode.stack.reception import Run

SIGN_OF_LIFE = 160  # bytes: a sealed PING or PONG has at most 137, a padded request of the DHT 257 or more


class _Turns:
    """Numbers by groups, which take turns; the newest number of a group goes first."""

    __slots__ = ("_numbers", "_parts")

    def __init__(self) -> None:
        self._parts: OrderedDict[Hashable, _Turns] = OrderedDict()
        self._numbers: deque[int] = deque()  # where there are no groups within

    def __bool__(self) -> bool:
        return bool(self._parts or self._numbers)

    def add(self, number: int, groups: Groups) -> None:
        if not groups:
            self._numbers.append(number)
            return
        part = self._parts.get(groups[0])
        if part is None:
            part = self._parts[groups[0]] = _Turns()
            self._parts.move_to_end(groups[0], last=False)
        part.add(number, groups[1:])

    def pop(self) -> int:
        if not self._parts:
            return self._numbers.pop()
        group, part = next(iter(self._parts.items()))
        number = part.pop()
        if part:
            self._parts.move_to_end(group)
        else:
            del self._parts[group]
        return number

    def drop_oldest(self, groups: Groups) -> None:
        if not groups:
            self._numbers.popleft()
            return
        part = self._parts[groups[0]]
        part.drop_oldest(groups[1:])
        if not part:
            del self._parts[groups[0]]


class _Queue:
    """Datagrams of one kind that wait, at most ``MAX_UNCONNECTED``; true while any does."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, Run, Groups]] = {}  # oldest first
        self._shares: FairTable[int] = FairTable(MAX_UNCONNECTED)
        self._turns = _Turns()
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, data: bytes, source: Path, now: float) -> bool:
        """Let a datagram wait; returns False when another one went for it."""
        groups, number = path_shares(source), self._next
        self._next += 1
        self._waiting[number] = now, ([data], source), groups
        self._turns.add(number, groups)
        gone = self._shares.add(number, *groups)
        if gone is None:
            return True
        self._turns.drop_oldest(self._waiting.pop(gone)[2])
        return False

    def pop(self) -> Run:
        """Take the one whose turn it is."""
        number = self._turns.pop()
        self._shares.discard(number)
        return self._waiting.pop(number)[1]

    def drop_before(self, time: float) -> int:
        """Drop what came before a time; returns how many."""
        dropped = 0
        while self._waiting:
            number, (came, _, groups) = next(iter(self._waiting.items()))
            if came >= time:
                break
            del self._waiting[number]
            self._shares.discard(number)
            self._turns.drop_oldest(groups)
            dropped += 1
        return dropped


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
        self._signs, self._known, self._others = _Queue(), _Queue(), _Queue()

    def put(self, runs: Sequence[Run], now: float) -> None:
        """Let datagrams wait that were read at ``now``; some go where there is no room for all."""
        for datagrams, source in runs:
            proven = self._is_proven(source)
            for data in datagrams:
                queue = self._others
                if proven:
                    queue = self._signs if len(data) <= SIGN_OF_LIFE and data and not data[0] & FIXED else self._known
                self.waiting += 1
                if not queue.put(data, source, now):
                    self._lost(1)

    def _lost(self, count: int) -> None:
        self.waiting -= count
        self.dropped += count

    def turn(self, take: Callable[[Sequence[Run]], None], now: float) -> None:
        """Hand on what waits, the newest first, for ``PACE_TURN_S`` of CPU, and drop what has waited too long."""
        for queue in (self._signs, self._known, self._others):
            self._lost(queue.drop_before(now - MAX_QUEUED_S))
        began = self._cpu()
        while self.waiting:
            for queue in self._signs or self._known, self._others:
                if queue:
                    self.waiting -= 1
                    take([queue.pop()])
            if self._cpu() - began >= PACE_TURN_S:
                return
