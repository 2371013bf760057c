"""Datagrams of a connection by flow: QUIC DATAGRAM frames (RFC 9221). Sans-IO.

A flow belongs to a stream, as in RFC 9297: the stream's header opens it and its end ends it. So policy, the limit of a
service and the end of a connection mean the same for flows as for streams. A DATAGRAM frame holds the stream's id as a
variable-length integer (RFC 9000 section 16), then the application's bytes. They arrive once, whole, in any order, or
never; what is too large for every path is never accepted for sending, so the size limit of a flow does not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from meshnode.base.limits import (
    DATAGRAM_COST,
    FLOW_QUEUE,
    FLOW_SHARE,
    MAX_DATAGRAM_QUEUE,
    MAX_FLOW_DATAGRAM,
    MAX_FLOWS,
)
from meshnode.base.metrics import describe
from meshnode.quic.seam import Engine

UNKNOWN_FLOW = describe("datagrams_drop_flow", "datagrams of a flow that is not open, or not any more")
QUEUE_FULL = describe("datagrams_drop_queue", "datagrams that made room for newer ones: their reader is too slow")


def _nothing(*_: object) -> None:
    return None


def encode_datagram(flow: int, data: bytes) -> bytes:
    """Return the payload of a DATAGRAM frame: the flow's id in its shortest form, then ``data``."""
    for prefix in range(4):
        size = 1 << prefix
        if flow < 1 << 8 * size - 2:
            return (flow | prefix << 8 * size - 2).to_bytes(size, "big") + data
    raise ValueError("a flow's id has at most 62 bits")


def decode_datagram(payload: bytes) -> tuple[int, bytes] | None:
    """Return the flow's id and the application's bytes; None when the id is cut short."""
    size = 1 << (payload[0] >> 6) if payload else 1
    if len(payload) < size:
        return None
    return int.from_bytes(payload[:size], "big") & (1 << 8 * size - 2) - 1, payload[size:]


class Flow:
    """One flow. ``on_arrival`` is called when a datagram was queued; what was queued stays readable after the end.

    Attributes:
        id: That of its stream.
        queue: Datagrams that the application has not taken, the oldest first.
        size: What they count for, in bytes.
        dropped: Received datagrams that made room for newer ones.
    """

    __slots__ = ("_table", "dropped", "id", "on_arrival", "queue", "size")

    def __init__(self, table: FlowTable, flow_id: int) -> None:
        self.id = flow_id
        self.queue: deque[bytes] = deque()
        self.size = self.dropped = 0
        self.on_arrival: Callable[[], None] = _nothing
        self._table = table

    def take(self) -> bytes:
        """Take the oldest datagram; there is one at least."""
        data = self.queue.popleft()
        self._table.took(self, len(data) + DATAGRAM_COST)
        return data

    def send(self, data: bytes) -> bool:
        """Queue a datagram for sending; False when it was dropped, for too many wait or the flow is over.

        Raises ValueError when it is longer than ``MAX_FLOW_DATAGRAM``; nothing is sent of it then.
        """
        if len(data) > MAX_FLOW_DATAGRAM:
            raise ValueError(f"a datagram has at most {MAX_FLOW_DATAGRAM} bytes, not {len(data)}")
        return self._table.send(self, data)


class FlowTable:
    """The flows of one connection, by id.

    Attributes:
        engine: What sends them.
        held: What all datagrams that no application has taken count for, in bytes.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        dirty: Callable[[], None],
        dropped: Callable[[str], None],
    ) -> None:
        """Make an empty table; the callbacks are those of ``StreamTable``."""
        self.engine = engine
        self.held = 0
        self._dirty = dirty
        self._dropped = dropped
        self._flows: dict[int, Flow] = {}
        self._opened = [0, 0]  # how many by dialler and listener: the lowest bit of their streams' ids

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, stream_id: int) -> Flow | None:
        """Begin the flow of a stream; None when the side that opened the stream has ``MAX_FLOWS``, or has none."""
        if not self.engine.datagrams.supported or self._opened[stream_id & 1] >= MAX_FLOWS:
            return None
        self._opened[stream_id & 1] += 1
        flow = self._flows[stream_id] = Flow(self, stream_id)
        self.engine.datagrams.has_flows = True
        return flow

    def on_datagram(self, payload: bytes) -> bool:
        """Queue a datagram for its flow; returns False when there is none.

        Of a flow over its bound the oldest go: over ``FLOW_QUEUE``, or its share while all flows hold too much.
        """
        found = decode_datagram(payload)
        flow = self._flows.get(found[0]) if found is not None else None
        if found is None or flow is None:
            self._dropped(UNKNOWN_FLOW)
            return False
        cost = len(found[1]) + DATAGRAM_COST
        flow.queue.append(found[1])
        flow.size += cost
        self.held += cost
        while flow.size > FLOW_QUEUE or (self.held > MAX_DATAGRAM_QUEUE and flow.size > FLOW_SHARE):
            flow.take()
            flow.dropped += 1
            self._dropped(QUEUE_FULL)
        flow.on_arrival()
        return True

    def took(self, flow: Flow, cost: int) -> None:
        """Count what an application has taken of a flow."""
        flow.size -= cost
        if self._flows.get(flow.id) is flow:
            self.held -= cost

    def send(self, flow: Flow, data: bytes) -> bool:
        """Queue a datagram of a flow; False when it is over, or too many wait."""
        if self._flows.get(flow.id) is not flow or not self.engine.datagrams.send(encode_datagram(flow.id, data)):
            return False
        self._dirty()
        return True

    def end(self, stream_id: int) -> None:
        """End the flow of a stream, if it has one: nothing is sent or queued any more."""
        flow = self._flows.pop(stream_id, None)
        if flow is not None:
            self._opened[stream_id & 1] -= 1
            self.engine.datagrams.has_flows = bool(self._flows)
            self.held -= flow.size

    def close(self) -> None:
        """End all flows."""
        self._flows.clear()
        self.held = 0
        self._dirty = self._dropped = _nothing  # they refer to the connection, which refers to this
