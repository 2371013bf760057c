"""The streams of a modelled link: what is sent and not acknowledged, what came and is not in order yet.

Part of ``sim/link.py``. Every byte that was written is in exactly one place: unsent, in flight, lost or acknowledged.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

STREAM_WINDOW = 1 << 21  # as the default engine's
CONNECTION_WINDOW = 1 << 22
STREAMS = 128  # open at once, each way


@dataclass(slots=True)
class SendHalf:
    """Our direction of a stream."""

    limit: int = STREAM_WINDOW  # the peer's credit
    buffer: bytearray = field(default_factory=bytearray)  # from ``start`` on
    start: int = 0  # all before it is acknowledged
    sent: int = 0
    fin: bool = False
    fin_sent: bool = False
    fin_acked: bool = False
    reset: bool = False
    reset_acked: bool = False
    lost: deque[tuple[int, int, bool]] = field(default_factory=deque)
    acked: dict[int, int] = field(default_factory=dict)  # ranges beyond ``start``: begin -> end

    @property
    def stop(self) -> int:
        """The offset behind the last byte that was written."""
        return self.start + len(self.buffer)

    @property
    def done(self) -> bool:
        """Nothing of it is awaited any more."""
        return self.reset_acked or (self.fin_acked and not self.buffer)

    def take(self, room: int, credit: int) -> tuple[int, bytes, bool, int] | None:
        """Return offset, bytes, fin and how many of the bytes are new (they cost connection credit)."""
        if self.reset:
            return None
        if self.lost:
            begin, end, fin = self.lost.popleft()
            if end - begin > room:
                self.lost.appendleft((begin + room, end, fin))
                end, fin = begin + room, False
            return begin, bytes(self.buffer[begin - self.start : end - self.start]), fin, 0
        count = min(len(self.buffer) - (self.sent - self.start), self.limit - self.sent, room, credit)
        ends = self.fin and not self.fin_sent and self.sent + max(count, 0) == self.stop
        if count <= 0 and not ends:
            return None
        begin = self.sent
        self.sent += max(count, 0)
        self.fin_sent = self.fin_sent or ends
        return begin, bytes(self.buffer[begin - self.start : self.sent - self.start]), ends, self.sent - begin

    def wants(self, credit: int) -> bool:
        """There is something that may be sent."""
        if self.reset:
            return False
        if self.lost or (self.sent < self.stop and self.sent < self.limit and credit > 0):
            return True
        return self.fin and not self.fin_sent and self.sent == self.stop

    def on_acked(self, begin: int, end: int, fin: bool) -> None:
        """The peer has these bytes."""
        self.fin_acked = self.fin_acked or fin
        if begin != self.start:
            self.acked[begin] = max(end, self.acked.get(begin, 0))
            return
        front = end
        while front in self.acked:
            front = self.acked.pop(front)
        del self.buffer[: front - self.start]
        self.start = front


@dataclass(slots=True)
class ReceiveHalf:
    """The peer's direction of a stream."""

    granted: int = STREAM_WINDOW
    consumed: int = 0
    next: int = 0
    highest: int = 0
    end: int | None = None
    told: bool = False  # its end, or its reset, was reported
    stopped: bool = False
    early: list[tuple[int, bytes]] = field(default_factory=list)

    def feed(self, offset: int, data: bytes) -> bytes:
        """Take a piece and return what is in order now."""
        if offset > self.next:
            heapq.heappush(self.early, (offset, data))
            return b""
        ready = data[self.next - offset :]
        self.next += len(ready)
        if not self.early:
            return ready
        pieces = [ready]
        while self.early and self.early[0][0] <= self.next:
            offset, data = heapq.heappop(self.early)
            ready = data[self.next - offset :]
            self.next += len(ready)
            pieces.append(ready)
        return b"".join(pieces)


@dataclass(slots=True)
class Flow:
    """One bidirectional stream."""

    send: SendHalf = field(default_factory=SendHalf)
    receive: ReceiveHalf = field(default_factory=ReceiveHalf)

    @property
    def over(self) -> bool:
        """Both directions have ended and nothing is owed."""
        return self.receive.told and self.send.done
