"""A flow of datagrams that the control socket carries, for the program (frames: ``daemon/carry_flow.py``)."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from meshnode.base.limits import DATAGRAM_COST, FLOW_QUEUE, MAX_FLOW_DATAGRAM
from meshnode.daemon.attached.carried import ControlSocket
from meshnode.daemon.request import Json
from meshnode.identity.node_id import NodeId
from meshnode.quic.stream import Stream
from meshnode.sdk.datagrams import Datagrams

WAITING = 1 << 18  # bytes that wait for room in the control socket, above which a datagram is dropped
FIRST = b"\0"


def _nothing() -> None:
    return None


class _Stream(Stream):
    """The stream of a flow: what it is fed are frames, each a datagram."""

    __slots__ = ("control", "flow", "part")

    def __init__(self, control: ControlSocket, flow: LocalFlow) -> None:
        super().__init__(cast("Any", control), 0, opener=True)
        self.control = control
        self.flow = flow
        self.part = b""

    def feed(self, data: bytes, fin: bool) -> None:
        """Take a part of a frame; the last one makes it a datagram."""
        if self.status is None or fin:
            super().feed(data, fin)
            return
        self.part += data
        if not self.control._left:
            self.flow.arrived(self.part[len(FIRST) :])
            self.part = b""


class LocalFlow:
    """What ``quic.flows.Flow`` is for a flow of this node's own."""

    def __init__(self, sock: socket.socket) -> None:
        self.queue: deque[bytes] = deque()
        self.size = self.dropped = 0
        self.on_arrival: Callable[[], None] = _nothing
        self.control = ControlSocket(sock)
        self.control.stream = _Stream(self.control, self)

    def begin(self, told: Json) -> Datagrams:
        """Return the flow of an answer, as programs hold it."""
        stream = self.control.begin(told)
        return Datagrams(stream, cast("Any", self), cast("Any", SimpleNamespace(peer=NodeId.parse(told["peer"]))))

    def arrived(self, data: bytes) -> None:
        """Queue a datagram; of those that were not taken the oldest make room."""
        self.queue.append(data)
        self.size += len(data) + DATAGRAM_COST
        while self.size > FLOW_QUEUE:
            self.take()
            self.dropped += 1
        self.on_arrival()

    def take(self) -> bytes:
        """Take the oldest datagram; there is one at least."""
        data = self.queue.popleft()
        self.size -= len(data) + DATAGRAM_COST
        return data

    def send(self, data: bytes) -> bool:
        """Hand the node a datagram; False when it was dropped, for too many wait.

        Raises ValueError when it is longer than ``MAX_FLOW_DATAGRAM``; nothing is sent of it then.
        """
        if len(data) > MAX_FLOW_DATAGRAM:
            raise ValueError(f"a datagram has at most {MAX_FLOW_DATAGRAM} bytes, not {len(data)}")
        if self.control.queued(0) > WAITING:
            return False
        self.control.stream.write(FIRST + data)
        return True
