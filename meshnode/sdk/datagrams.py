"""Datagrams between two nodes, as a program holds them: one flow of a connection, with what opens and ends it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

from meshnode.base.limits import MAX_FLOW_DATAGRAM
from meshnode.errors import ConnectionLost, FlowClosed, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.flows import Flow
from meshnode.quic.stream import Stream
from meshnode.sdk.transport import Signal, as_bytes

Bytes = bytes | bytearray | memoryview


class Datagrams:
    """A flow of datagrams to or from a service, as ``node.datagrams`` returns it and handlers of datagrams get it.

    Datagrams arrive whole and at most once, in any order, or not at all; they are encrypted, and congestion control
    holds for them. The flow survives every move of both nodes; what is under way on the old path may be lost.
    ``async with`` closes it at the end, and iterating yields what arrives until the peer closes it.

    Example:

        async with await node.datagrams("laptop", "dns") as flow:
            flow.send(query)
            answer = await flow.receive()
    """

    def __init__(self, stream: Stream, flow: Flow, link: Link) -> None:
        self._stream = stream
        self._flow = flow
        self._peer = link.peer
        self._signal = Signal(stream)
        self._is_closed = False
        self._unsent = 0
        self._loop = asyncio.get_running_loop()
        flow.on_arrival = self._signal.fire

    def __repr__(self) -> str:
        state = " closed" if self.is_closed else ""
        return f"<{type(self).__name__} of {self._stream.service!r} with {self._peer.short}{state}>"

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    @property
    def service(self) -> str:
        """The service's name."""
        return self._stream.service

    @property
    def max_size(self) -> int:
        """The most bytes that a datagram may have: 1,160, on every path and for the flow's whole life."""
        return MAX_FLOW_DATAGRAM

    @property
    def dropped(self) -> int:
        """Received datagrams that made room for newer ones, because more than 1 MiB waited for ``receive``."""
        return self._flow.dropped

    @property
    def unsent(self) -> int:
        """Datagrams that ``send`` dropped, because 256 of the connection waited for its congestion window."""
        return self._unsent

    @property
    def is_closed(self) -> bool:
        """True once the flow was closed, here or by the peer, or is lost; what has arrived can still be received."""
        return self._is_closed or self._stream.fin_received or self._stream.error is not None

    def accept(self) -> None:
        """Tell the opener that it is served.

        For handlers of services with ``accept=False``: the opener waits until then. A second call does nothing.
        """
        self._stream.accept()

    def send(self, data: Bytes) -> bool:
        """Send a datagram, without waiting.

        Args:
            data: 0 to ``max_size`` bytes.

        Returns:
            True when it is on its way; False when it was dropped here, because too many wait already (``unsent`` counts
            them): the path is slower than the sender.

        Raises:
            ValueError: It is longer than ``max_size``; nothing of it is sent.
            TypeError: ``data`` is no bytes.
            FlowClosed: The flow was closed, here or by the peer.
            ConnectionLost: The peer dropped the flow, or the connection is over.
            PolicyDenied: This node may use the service no longer.
        """
        data = data if type(data) is bytes else as_bytes(data)
        if len(data) <= MAX_FLOW_DATAGRAM and (error := self._over()) is not None:
            raise error
        sent = self._flow.send(data)
        self._unsent += not sent
        return sent

    async def receive(self) -> bytes:
        """Wait for the next datagram.

        Returns:
            The datagram, which may be empty.

        Raises:
            FlowClosed: The flow was closed, here or by the peer, and all that had arrived was received.
            ConnectionLost: The peer dropped the flow, or the connection is over.
            PolicyDenied: This node may use the service no longer.
            StreamMisused: Another coroutine waits for a datagram already.
        """
        while not self._flow.queue:
            if (error := self._over()) is not None:
                raise error
            await self._signal.reader("receive")
        return self._flow.take()

    def __aiter__(self) -> Datagrams:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.receive()
        except FlowClosed:
            raise StopAsyncIteration from None

    def _over(self) -> MeshError | None:
        """Return why the flow is over, None while it is not; one that the peer has closed is closed here too."""
        stream = self._stream
        if self._is_closed or stream.fin_received:
            self.close()
            return FlowClosed(f"the flow of datagrams to {self.service!r} was closed")
        return stream.error

    def close(self) -> None:
        """Close the flow. Safe to call twice.

        The peer's ``receive`` ends with FlowClosed, behind what arrives before; what has arrived here can still be
        received.
        """
        if self._is_closed:
            return
        self._is_closed = True
        stream = self._stream
        with suppress(ConnectionLost):
            if stream.error is None and not stream.fin_sent:
                stream.write(b"", fin=True)
        stream.stop_reading()
        self._signal.fire()

    def reset(self) -> None:
        """Drop the flow at once.

        The peer's ``receive`` raises ConnectionLost. ``close`` is the clean end.
        """
        self._is_closed = True
        self._stream.reset()

    async def __aenter__(self) -> Datagrams:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.reset()
        self.close()

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is None or stream.over or self._is_closed or self._loop.is_closed():
            return
        with suppress(RuntimeError):  # the loop ends meanwhile
            self._loop.call_soon_threadsafe(stream.reset)
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


DatagramHandler = Callable[[Datagrams, NodeId], Awaitable[None]]
