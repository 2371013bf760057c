"""Drives a ``Stack`` from asyncio: what sockets receive goes in, one timer lets deadlines fire, writes are flushed.

The stack is synchronous and is told the time. One turn of the loop takes all datagrams of a batch, then one flush sends
what they and the readers that they woke have caused: an answer and its ACK share a packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshnode.base.clock import Clock
from meshnode.base.path import Path
from meshnode.base.timers import RETRY_S
from meshnode.runtime.faults import Faults
from meshnode.stack.stack import Stack


class Driver:
    """The pump of one stack, which is set before the loop runs again."""

    stack: Stack

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, faults: Faults) -> None:
        self._loop = loop
        self._clock = clock
        self._faults = faults
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_soon = False
        self._closed = False

    def on_batch(self, batch: list[tuple[bytes, Path]]) -> None:
        """Hand received datagrams to the stack, and flush at the end of this turn of the loop.

        ``batch`` holds (datagram, source) in the order of arrival; all get the same time.
        """
        now = self._clock.monotonic()
        for data, source in batch:
            try:
                self.stack.datagram(data, source, now)
            except Exception as error:
                self._faults.take(error)
        self.on_dirty()  # flushed behind the readers that this wakes: an answer and its ACK share a packet

    def on_tunnelled(self, datagram: bytes, source: Path) -> None:
        """Take a datagram that a WebSocket carried."""
        if not self._closed:
            self.on_batch([(datagram, source)])

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
        if not self._closed:
            self._drive(self.stack.flush)

    def _tick(self) -> None:
        self._timer = None
        if not self._closed:
            self._drive(self.stack.tick)

    def _drive(self, step: Callable[[float], None]) -> None:
        """Take one step of the stack. Whatever it raises, the timer is set again."""
        try:
            step(self._clock.monotonic())
        except Exception as error:
            self._faults.take(error)
            self._set(self._clock.monotonic() + RETRY_S)
        else:
            self.arm()

    def arm(self) -> None:
        """Set the timer to the stack's next deadline.

        A timer that is set to an earlier time is left alone: it fires early at worst and arms itself again, which costs
        less than to cancel one per packet.
        """
        at = self.stack.next_deadline()
        timer = self._timer
        if timer is not None:
            if at is not None and self._timer_at <= at:
                return  # fires early at worst, and arms itself again: cheaper than a cancel per packet
            timer.cancel()
            self._timer = None
        if at is not None:
            self._set(at)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self._clock.monotonic()), self._tick)

    def close(self) -> None:
        """Drive no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
