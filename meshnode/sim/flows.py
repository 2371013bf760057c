"""The streams of a modelled link: what is sent and not acknowledged, what came and is not in order yet.

Part of ``sim/link.py``. Every byte that was written is in exactly one place: unsent, in flight, lost or acknowledged.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from meshnode.errors import StreamLimitError
from meshnode.quic.datagram_queue import DatagramQueue
from meshnode.quic.seam import MAX_DATAGRAM_FRAME, EngineEvent, StopSending, StreamData, StreamReset
from meshnode.sim.frames import (
    DATA,
    DATAGRAM,
    LIMIT,
    MAX_DATA,
    MAX_STREAM,
    MAX_STREAMS,
    RESET,
    STOP,
    STREAM,
    STREAM_FIN,
)
from meshnode.sim.recovery import Piece, Sent

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
        """Take out what to send next, lost pieces first.

        Args:
            room: The most bytes that fit the packet.
            credit: The most new bytes that the connection's window allows.

        Returns:
            Offset, bytes, fin, and how many of the bytes are new (they cost connection credit); None for nothing.
        """
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
        """Return whether there is something that may be sent with this connection credit."""
        if self.reset:
            return False
        if self.lost or (self.sent < self.stop and self.sent < self.limit and credit > 0):
            return True
        return self.fin and not self.fin_sent and self.sent == self.stop

    def on_acked(self, begin: int, end: int, fin: bool) -> None:
        """Drop the bytes from ``begin`` to ``end``, which the peer has, once all before them are acknowledged too."""
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
        """Take a piece of the stream and return the bytes that are in order now.

        Pieces may overlap and repeat; what is beyond a gap waits, bounded by the window.
        """
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


@dataclass(slots=True)
class Credit:
    """The windows of a connection, both ways, in bytes of all its streams."""

    sent: int = 0
    limit: int = CONNECTION_WINDOW  # the peer's
    received: int = 0
    consumed: int = 0
    granted: int = CONNECTION_WINDOW


class Streams:
    """All streams of a connection, its windows and its limits.

    ``happened`` and ``controls`` (frames to send) are taken by the engine, which is this with packets around it;
    ``error`` says that the peer broke a limit.
    """

    def __init__(self) -> None:
        self.happened: list[EngineEvent] = []  # events that were not taken yet
        self.controls: list[bytes] = []
        self.datagrams = DatagramQueue(deque(), self._datagram_limit)
        self.error = ""
        self.ready: dict[int, Flow] = {}  # may have something to send
        self._flows: dict[int, Flow] = {}
        self._own_next, self._peer_next = 1, 0
        self._own_limit = STREAMS
        self._peer_over = self._peer_granted = 0
        self._credit = Credit()

    def _datagram_limit(self) -> int:
        return MAX_DATAGRAM_FRAME

    def be_dialler(self) -> None:
        """Number our streams as a dialler's, with even ids (RFC 9000 section 2.1).

        A listener's are odd.
        """
        self._own_next, self._peer_next = 0, 1

    # ---- in

    def _flow_of_peer(self, stream_id: int) -> Flow | None:
        """Return the stream; opens it, and all below it, when it is the peer's next (RFC 9000 section 2.1)."""
        flow = self._flows.get(stream_id)
        if flow is not None or stream_id & 1 == self._own_next & 1 or stream_id < self._peer_next:
            return flow
        if stream_id // 4 >= self._peer_granted + STREAMS:
            self.error = "too many streams"
            return None
        while self._peer_next <= stream_id:
            flow = self._flows[self._peer_next] = Flow()
            self._peer_next += 4
        return flow

    def on_data(self, stream_id: int, offset: int, data: bytes, fin: bool) -> None:
        """Take a piece of a stream; ``fin`` when it is the last.

        What is in order becomes a StreamData event. A peer that sends more than was granted, on the stream or on the
        connection, sets ``error``. Pieces of a stream that is over are dropped.
        """
        flow = self._flow_of_peer(stream_id)
        if flow is None or flow.receive.told:
            return
        half = flow.receive
        if self._exceeds(half, offset + len(data)):
            self.error = "over the window"
            return
        stop = offset + len(data)
        if fin:
            half.end = stop
        ready = half.feed(offset, data)
        ended = half.end is not None and half.next == half.end
        if ready or ended:
            half.told = ended
            self.happened.append(StreamData(stream_id, ready, ended))
            if ended:
                self._maybe_over(stream_id, flow)

    def _exceeds(self, half: ReceiveHalf, stop: int) -> bool:
        """Count received bytes up to ``stop``; True when that is more than was granted."""
        if stop > half.highest:
            self._credit.received += stop - half.highest
            half.highest = stop
        return stop > half.granted or self._credit.received > self._credit.granted

    def on_control(self, kind: int, stream_id: int, value: int) -> None:
        """Take a limit (``value`` is the new one; a lower one counts for nothing), a reset or a stop (its code)."""
        if kind == MAX_DATA:
            self._credit.limit = max(self._credit.limit, value)
            self.ready.update(self._flows)
            return
        if kind == MAX_STREAMS:
            self._own_limit = max(self._own_limit, value)
            return
        if kind not in (RESET, STOP, MAX_STREAM):
            return
        flow = self._flow_of_peer(stream_id)
        if flow is None:
            return
        if kind == MAX_STREAM:
            flow.send.limit = max(flow.send.limit, value)
            self.ready[stream_id] = flow
        elif kind == RESET and not flow.receive.told:
            flow.receive.told = True
            self.happened.append(StreamReset(stream_id, value))
            self._maybe_over(stream_id, flow)
        elif kind == STOP and not flow.send.reset:
            self.reset(stream_id, value)
            self.happened.append(StopSending(stream_id, value))

    def _maybe_over(self, stream_id: int, flow: Flow) -> None:
        if not flow.over or self._flows.pop(stream_id, None) is None:
            return
        self.ready.pop(stream_id, None)
        if stream_id & 1 != self._own_next & 1:
            self._peer_over += 1
            if self._peer_over - self._peer_granted >= STREAMS // 4:
                self._peer_granted = self._peer_over
                self.controls.append(LIMIT.pack(MAX_STREAMS, 0, self._peer_granted + STREAMS))

    def on_acked(self, packet: Sent) -> None:
        """Note that the peer has all that was in the packet."""
        for stream_id, begin, stop, fin in packet.pieces:
            flow = self._flows.get(stream_id)
            if flow is not None:
                flow.send.on_acked(begin, stop, fin)
                self._maybe_over(stream_id, flow)
        for control in packet.controls:
            if control[0] == RESET:
                _, stream_id, _ = LIMIT.unpack(control)
                flow = self._flows.get(stream_id)
                if flow is not None:
                    flow.send.reset_acked = True
                    self._maybe_over(stream_id, flow)

    def requeue(self, packets: list[Sent]) -> None:
        """Queue what was in these packets again; control frames go first, in their order."""
        for packet in packets:
            self.controls += packet.controls
            for stream_id, begin, end, fin in packet.pieces:
                flow = self._flows.get(stream_id)
                if flow is not None:
                    flow.send.lost.append((begin, end, fin))
                    self.ready[stream_id] = flow

    # ---- out

    def fill(self, body: list[bytes], room: int) -> tuple[list[Piece], list[bytes]]:
        """Add frames of at most ``room`` bytes to ``body``.

        Returns the pieces of streams and the control frames among them, for ``Sent``: what to queue again if the packet
        is lost. Control frames go first, then datagrams, then streams in the order in which they became ready.
        """
        pieces: list[Piece] = []
        controls: list[bytes] = []
        while self.controls and room >= LIMIT.size:
            control = self.controls.pop(0)
            controls.append(control)
            body.append(control)
            room -= LIMIT.size
        waiting = self.datagrams.waiting
        while waiting and room >= DATA.size + len(waiting[0]):
            datagram = waiting.popleft()
            body += [DATA.pack(DATAGRAM, 0, 0, len(datagram)), datagram]
            room -= DATA.size + len(datagram)
        for stream_id, flow in list(self.ready.items()):
            if room <= DATA.size:
                break
            credit = self._credit.limit - self._credit.sent
            taken = flow.send.take(room - DATA.size, credit)
            if taken is not None:
                offset, data, fin, new = taken
                self._credit.sent += new
                pieces.append((stream_id, offset, offset + len(data), fin))
                body.append(DATA.pack(STREAM_FIN if fin else STREAM, stream_id, offset, len(data)))
                body.append(data)
                room -= DATA.size + len(data)
                credit -= new
            if not flow.send.wants(credit):
                del self.ready[stream_id]
        return pieces, controls

    # ---- what the connection asks for; see ``meshnode.quic.seam.Engine``

    def open_stream(self) -> int:
        """Reserve the next bidirectional stream id.

        Raises StreamLimitError when 128 are open, or as many as the peer has granted meanwhile.
        """
        stream_id = self._own_next
        if stream_id // 4 >= self._own_limit:
            raise StreamLimitError("too many streams are open to this peer", hint="close some, or wait")
        self._own_next += 4
        self._flows[stream_id] = Flow()
        return stream_id

    def send(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Queue stream bytes; a stream that is finished or was reset swallows them."""
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.send.reset and not flow.send.fin:
            flow.send.buffer += data
            flow.send.fin = fin
            self.ready[stream_id] = flow

    def reset(self, stream_id: int, code: int) -> None:
        """Abort our direction: what is unsent and lost is dropped, and the peer gets a RESET with ``code``.

        Does nothing when it is over or was reset.
        """
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.send.reset and not flow.send.done:
            flow.send.reset = True
            flow.send.buffer.clear()
            flow.send.lost.clear()
            self.controls.append(LIMIT.pack(RESET, stream_id, code))

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer, once, to end its direction; does nothing when it has.

        The peer resets its direction, and what it sent before is delivered until then.
        """
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.receive.told and not flow.receive.stopped:
            flow.receive.stopped = True
            self.controls.append(LIMIT.pack(STOP, stream_id, code))

    def queued_bytes(self, stream_id: int) -> int:
        """Return the bytes written and not acknowledged; 0 for a stream that is over."""
        flow = self._flows.get(stream_id)
        return len(flow.send.buffer) if flow is not None else 0

    def unread(self) -> int:
        """Return the bytes that arrived and were not consumed."""
        return self._credit.received - self._credit.consumed

    def consumed(self, stream_id: int, count: int) -> bool:
        """Advance the receive windows by the ``count`` bytes that the application took.

        A window moves, and the peer is told, in steps of a quarter of its size. Returns True when there is something to
        tell.
        """
        due = False
        self._credit.consumed += count
        if self._credit.consumed + CONNECTION_WINDOW - self._credit.granted >= CONNECTION_WINDOW // 4:
            self._credit.granted = self._credit.consumed + CONNECTION_WINDOW
            self.controls.append(LIMIT.pack(MAX_DATA, 0, self._credit.granted))
            due = True
        flow = self._flows.get(stream_id)
        if flow is not None and not flow.receive.told:
            half = flow.receive
            half.consumed += count
            if half.consumed + STREAM_WINDOW - half.granted >= STREAM_WINDOW // 4:
                half.granted = half.consumed + STREAM_WINDOW
                self.controls.append(LIMIT.pack(MAX_STREAM, stream_id, half.granted))
                due = True
        return due
