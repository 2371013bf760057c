"""Drives a ``Stack`` from asyncio: what sockets receive goes in, one timer lets deadlines fire, writes are flushed.

The stack is synchronous and is told the time. One turn of the loop takes all datagrams of a batch, then one flush sends
what they and the readers that they woke have caused: an answer and its ACK share a packet.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from time import thread_time

from meshnode.base.clock import Clock
from meshnode.base.limits import DEAR_DATAGRAM_S, PACED_FROM
from meshnode.base.metrics import describe
from meshnode.base.path import Path
from meshnode.base.timers import RETRY_S
from meshnode.identity.node_id import NodeId
from meshnode.runtime.faults import Faults
from meshnode.stack.newest_first import NewestFirst
from meshnode.stack.receive_pace import ReceivePace, pace_of
from meshnode.stack.reception import Run
from meshnode.stack.stack import Stack

PACED = describe("drop_paced", "datagrams dropped: their peer sent more than its share of this node's CPU can take")
BEHIND = describe("drop_behind", "datagrams of no connection dropped: newer ones took all CPU while they waited")

MEASURED = 64  # receptions after one that took long, by the clock of the wall
ACK_S = 0.001  # that the acknowledgement of one packet waits for an answer, as both engines let it
PUT_OFF_S = 0.05  # at least, by which a timer is put off, and between two times that it is
LOOKED_AT = 16  # one in so many receptions is measured besides, and counts for all: none knows which


class _Sample:
    """Which receptions are measured: so many that are ``left``, and one after ``until`` more whatever came before."""

    __slots__ = ("left", "until")

    def __init__(self) -> None:
        self.left = self.until = 0


class Driver:
    """The pump of one stack, which is set before the loop runs again."""

    pace: ReceivePace[NodeId | Path]
    backlog: NewestFirst

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, faults: Faults) -> None:
        self._loop = loop
        self._clock = clock
        self.faults = faults
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._put_off_at = 0.0
        self._flush_soon = False
        self._turn_soon = False
        self._taken = 0  # datagrams in this turn of the loop
        self._sample = _Sample()
        self._closed = False

    @property
    def stack(self) -> Stack:
        """The stack that is driven."""
        return self._stack

    @stack.setter
    def stack(self, stack: Stack) -> None:
        self._stack = stack
        self.pace = pace_of(stack.context, thread_time)
        self.backlog = NewestFirst(stack.context.credit.proven.__contains__, thread_time)

    def on_batch(self, runs: list[Run]) -> bool:
        """Hand received datagrams to the stack, and flush at the end of this turn of the loop.

        All get the same time. When many came, peers take turns (``ReceivePace``), and what is of no peer has as much
        CPU as all of them, the newest first (``NewestFirst``). Returns True while some wait: then the more is read, the
        fairer the turns are.
        """
        pace = self.pace
        count = 0
        for datagrams, _ in runs:
            count += len(datagrams)
        self._taken += count
        if self._taken < PACED_FROM and not pace.waiting:
            self._sample.until -= 1
            if self._sample.left or self._sample.until < 0:
                self._take_measured(runs, count)
                return False
            began = self._clock.monotonic()
            self._stack.take(runs, began)
            self.on_dirty()
            if self._clock.monotonic() - began > DEAR_DATAGRAM_S:
                self._sample.left = MEASURED
            return False
        dropped, now = pace.dropped, self._clock.monotonic()
        if others := pace.offer(runs, now):
            self.backlog.put(others, now)
        if pace.dropped > dropped:
            self.stack.metrics.count(PACED, pace.dropped - dropped)
        if not self._turn_soon:
            self._turn()
        return pace.waiting > 0

    def _take_measured(self, runs: list[Run], count: int) -> None:
        """Take a few datagrams and charge what they cost, when it was much."""
        if self._sample.until < 0:
            self._sample.until = random.randrange(2 * LOOKED_AT - 1)
        weight = 1 if self._sample.left else LOOKED_AT
        self._sample.left = max(0, self._sample.left - 1)
        began = thread_time()
        self._take(runs)
        spent = thread_time() - began
        if spent > DEAR_DATAGRAM_S:
            self._sample.left = MEASURED
            self.pace.spent(runs, count, spent, weight)

    def _turn(self) -> None:
        """Let peers take their turns, and then what is of no peer, once in a turn of the loop."""
        self._turn_soon = False
        if self._closed:
            return
        pace, backlog = self.pace, self.backlog
        dropped = pace.dropped
        pace.turn(self._take, self._flush, self._clock.monotonic())
        if pace.dropped > dropped:
            self.stack.metrics.count(PACED, pace.dropped - dropped)
        if backlog.waiting:
            dropped = backlog.dropped
            backlog.turn(self._take, self._clock.monotonic())
            if backlog.dropped > dropped:
                self.stack.metrics.count(BEHIND, backlog.dropped - dropped)
        if pace.waiting or backlog.waiting:
            self._turn_soon = True
            self._loop.call_soon(self._turn)

    def _take(self, runs: Sequence[Run]) -> None:
        self._stack.take(runs, self._clock.monotonic())
        self.on_dirty()  # flushed behind the readers that this wakes: an answer and its ACK share a packet

    def on_tunnelled(self, datagram: bytes, source: Path) -> None:
        """Take a datagram that a WebSocket carried."""
        if not self._closed:
            self.on_batch([([datagram], source)])

    def on_dirty(self) -> None:
        """Flush in this turn of the loop: the stack has something to send.

        Calls in one turn are joined into one flush, which runs behind the callbacks that wait already.
        """
        if not self._flush_soon and not self._closed:
            self._flush_soon = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Flush now."""
        self._flush_soon = False
        self._taken = 0
        if self._closed:
            return
        now = self._clock.monotonic()
        if self._stack.connections.may_wait(now):
            if self._timer is None or now + ACK_S < self._timer_at:
                self._set(now + ACK_S)
            return
        try:
            self._stack.flush(now)
        except Exception as error:
            self._failed(error)
        else:
            self.arm()

    def _flush(self) -> None:
        if not self._closed:
            self._drive(self._stack.flush)

    def _tick(self) -> None:
        self._timer = None
        if not self._closed:
            self._drive(self._stack.tick)

    def _drive(self, step: Callable[[float], None]) -> None:
        """Take one step of the stack. Whatever it raises, the timer is set again."""
        try:
            step(self._clock.monotonic())
        except Exception as error:
            self._failed(error)
        else:
            self.arm()

    def _failed(self, error: Exception) -> None:
        self.faults.take(error)
        self._set(self._clock.monotonic() + RETRY_S)

    def arm(self) -> None:
        """Set the timer to the stack's next deadline.

        A timer that is set to an earlier time is put off once in ``PUT_OFF_S``: a node at rest that has its answer
        does not wake for the deadline of that answer. In between it is left alone, fires early at worst and arms itself
        again, which costs less than to cancel one per packet.
        """
        at = self._stack.next_deadline()
        timer = self._timer
        if timer is not None:
            if at is not None and self._timer_at <= at and not self._may_put_off(at):
                return
            timer.cancel()
            self._timer = None
        if at is not None:
            self._set(at)

    def _may_put_off(self, at: float) -> bool:
        if at - self._timer_at < PUT_OFF_S:
            return False
        now = self._clock.monotonic()
        if now - self._put_off_at < PUT_OFF_S:
            return False
        self._put_off_at = now
        return True

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = at - self._clock.monotonic()
        # up to whole milliseconds: uvloop rounds to the nearest, and a timer that fires early has nothing to do but to
        # be set again, some five times before it is due; asyncio's own loop waits for whole ones as well
        self._timer = self._loop.call_later(math.ceil(delay * 1000) / 1000 if delay > 0 else 0.0, self._tick)

    def close(self) -> None:
        """Drive no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
