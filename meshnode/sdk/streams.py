"""asyncio readers and writers over mesh streams: the semantics of ``asyncio.StreamReader`` and ``StreamWriter``."""

from __future__ import annotations

import asyncio
from typing import Any

from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.stream import Stream


class _Signal:
    """Wakes every coroutine that waits for the stream to change."""

    def __init__(self, stream: Stream) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        stream.on_change = self.fire

    def fire(self) -> None:
        waiters = self._waiters
        if waiters:
            self._waiters = []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class MeshReader:
    """The receiving half of a stream, with the semantics of ``asyncio.StreamReader``.

    Reading gives credit back to the sender, so an unread stream holds it back. Iterating yields lines, as
    ``readline`` does. ``node.open``, ``node.open_any`` and ``connection.open`` return one; handlers are given one.
    """

    def __init__(self, stream: Stream, signal: _Signal) -> None:
        self._stream = stream
        self._signal = signal
        self._rest = b""

    def at_eof(self) -> bool:
        """Return True when the peer has ended its direction and everything was read."""
        return self._stream.at_eof and not self._rest

    async def read(self, n: int = -1) -> bytes:
        """Read up to ``n`` bytes, waiting for at least one.

        Args:
            n: The most to return; negative for everything until the end of the stream.

        Returns:
            The bytes; empty when the stream has ended.

        Raises:
            ConnectionLost: The stream was reset or its connection is over; first, what had arrived is returned.
        """
        if n == 0:
            return b""
        if n < 0:
            parts = []
            while part := await self.read(1 << 18):
                parts.append(part)
            return b"".join(parts)
        if self._rest:
            data, self._rest = self._rest[:n], self._rest[n:]
            return data
        stream = self._stream
        while not stream.buffered:
            if stream.fin_received:
                return b""
            if stream.error is not None:
                raise stream.error
            await self._signal.wait()
        return stream.read(n)

    async def readexactly(self, n: int) -> bytes:
        """Read exactly ``n`` bytes.

        Raises:
            asyncio.IncompleteReadError: The stream ended before; its ``partial`` has what came.
            ConnectionLost: As ``read``.
        """
        parts: list[bytes] = []
        missing = n
        while missing > 0:
            part = await self.read(missing)
            if not part:
                raise asyncio.IncompleteReadError(b"".join(parts), n)
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def readuntil(self, separator: bytes = b"\n", limit: int = 1 << 16) -> bytes:
        """Read up to and including a separator.

        Args:
            separator: The bytes to look for.
            limit: How many bytes to look through.

        Raises:
            asyncio.IncompleteReadError: The stream ended before; its ``partial`` has what came.
            asyncio.LimitOverrunError: No separator within the limit; what was read stays readable.
            ConnectionLost: As ``read``.
        """
        data = b""
        while True:
            at = data.find(separator)
            if at >= 0:
                end = at + len(separator)
                self._rest = data[end:] + self._rest
                return data[:end]
            if len(data) > limit:
                self._rest = data + self._rest
                raise asyncio.LimitOverrunError("no separator within the limit", len(data))
            part = await self.read(limit)
            if not part:
                raise asyncio.IncompleteReadError(data, None)
            data += part

    async def readline(self) -> bytes:
        """Read one line of at most 64 KiB with its ``\\n``; at the end of the stream what is left, then ``b""``.

        Raises:
            asyncio.LimitOverrunError, ConnectionLost: As ``readuntil``.
        """
        try:
            return await self.readuntil()
        except asyncio.IncompleteReadError as error:
            return error.partial

    def __aiter__(self) -> MeshReader:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class MeshWriter:
    """The sending half of a stream, with the semantics of ``asyncio.StreamWriter``.

    ``write`` queues without bound: await ``drain`` after it, which waits while more than 1 MiB is written and not yet
    acknowledged by the peer.
    """

    def __init__(self, stream: Stream, signal: _Signal, peer: NodeId) -> None:
        self._stream = stream
        self._signal = signal
        self._peer = peer
        self._closing = False

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._peer

    def accept(self) -> None:
        """Tell the opener that it is served: for handlers of services with ``accept=False``."""
        self._stream.accept()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peer`` (the NodeId of the other end) or ``service`` (the stream's service name) by name.

        Args:
            name: ``"peer"`` or ``"service"``.
            default: Returned for other names.
        """
        return {"peer": self._peer, "service": self._stream.service}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes for sending.

        Raises:
            ConnectionLost: The stream is over.
        """
        if data:
            self._stream.write(bytes(data))

    def writelines(self, lines: Any) -> None:
        """Queue several pieces of bytes, as ``write`` does."""
        self.write(b"".join(lines))

    async def drain(self) -> None:
        """Wait while more than 1 MiB is unacknowledged.

        Raises:
            ConnectionLost: The stream is over.
        """
        while not self._stream.drained():
            await self._signal.wait()
        if self._stream.error is not None:
            raise self._stream.error

    def can_write_eof(self) -> bool:
        """Return True, always: the two directions end separately."""
        return True

    def write_eof(self) -> None:
        """End this direction, after what is queued; the other one stays open. Safe to call twice."""
        if not self._stream.fin_sent and self._stream.error is None:
            self._stream.write(b"", fin=True)

    def is_closing(self) -> bool:
        """Return True once the stream was closed, by either end."""
        return self._closing or self._stream.error is not None

    def close(self) -> None:
        """End this direction and read no more; what is written is still delivered. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        self.write_eof()
        self._stream.stop_reading()

    def reset(self) -> None:
        """Drop the stream at once, undelivered bytes included; the peer's reads and writes raise ConnectionLost."""
        self._closing = True
        self._stream.reset()

    async def wait_closed(self) -> None:
        """Wait until the peer has acknowledged everything that was written, or the stream is over. Never raises."""
        stream = self._stream
        while stream.error is None and stream.queued:
            stream.await_low()
            await self._signal.wait()


def wrap(stream: Stream, peer: NodeId) -> tuple[MeshReader, MeshWriter]:
    """Return the reader and writer of a stream."""
    signal = _Signal(stream)
    return MeshReader(stream, signal), MeshWriter(stream, signal, peer)


async def accepted(stream: Stream, reader: MeshReader) -> None:
    """Wait until the peer has accepted the stream; raises why not."""
    while stream.status is None and stream.error is None:
        await reader._signal.wait()
    if stream.error is not None:
        error: MeshError = stream.error
        raise error
