"""Connections of this host's programs, TCP or Unix: pieces as the kernel gave them, uncopied, and asyncio's writer."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Protocol, cast

from meshnode.quic.buffers import Unread
from meshnode.sdk.pump import ENDED_BEFORE

PIECE = 1 << 18  # bytes that asyncio reads at once; more than one of them unread holds the program back


class Source(Protocol):
    """What bytes come from."""

    async def read(self, n: int = -1, /) -> bytes:
        """Return some bytes, b"" at the end."""


class LocalReader(asyncio.StreamReaderProtocol):
    """The reading half of a connection, which ``asyncio.StreamReader`` would copy three times.

    It holds two pieces at most. One coroutine reads at a time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state = asyncio.StreamReader(loop=loop)  # its end and its error; no byte goes through it
        super().__init__(self._state, loop=loop)
        self._loop = loop
        self._unread = Unread()
        self._waiter: asyncio.Future[None] | None = None
        self._source: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio's."""
        super().connection_made(transport)
        self._source = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep a piece."""
        self._unread.append(data)
        self._unread.size += len(data)
        if self._unread.size > PIECE and self._source is not None:
            self._source.pause_reading()
        self._wake()

    def eof_received(self) -> bool | None:
        """As asyncio's."""
        stays = super().eof_received()
        self._wake()
        return stays

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        if exc is not None and self._has_ended() and isinstance(exc, OSError) and exc.errno in ENDED_BEFORE:
            exc = None
        super().connection_lost(exc)
        self._wake()

    def _has_ended(self) -> bool:
        """Take what the kernel has yet: a program may have answered before it closed on what it had not read.

        True when its end is behind that.
        """
        assert self._source is not None
        try:
            while data := os.read(self._source.get_extra_info("socket").fileno(), PIECE):
                self._unread.append(data)
                self._unread.size += len(data)
        except (OSError, ValueError):  # uvloop's socket is without a descriptor then
            return False
        return True

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def is_quiet(self) -> bool:
        """Return True while the program has sent nothing that is unread, its end neither."""
        return not self._unread and not self._state.at_eof()

    def at_eof(self) -> bool:
        """Return True when the program has ended its direction and everything was read."""
        return not self._unread and self._state.at_eof()

    async def read(self, n: int = -1, /) -> bytes:
        """Return up to ``n`` bytes, all that came when negative, waiting for one at least; b"" at the end.

        Raises OSError when the connection was lost, behind what had come.
        """
        while True:
            if self._unread:
                return self._take(n)
            if (error := self._state.exception()) is not None:
                raise error
            if self._state.at_eof():
                return b""
            self._waiter = self._loop.create_future()
            await self._waiter

    def _take(self, n: int) -> bytes:
        data = self._unread.take(n)
        if self._unread.size <= PIECE < self._unread.size + len(data) and self._source is not None:
            self._source.resume_reading()
        return data


Local = tuple[LocalReader, asyncio.StreamWriter]


async def connection(sock: socket.socket) -> Local:
    """Return the reader and the writer of a connected socket, as ``asyncio.open_connection`` does."""
    loop = asyncio.get_running_loop()
    reader = LocalReader(loop)
    transport, _ = await loop.create_connection(lambda: reader, sock=sock)
    return reader, asyncio.StreamWriter(transport, reader, None, loop)


async def detached(local: Local) -> tuple[socket.socket, bytes]:
    """Take the socket out of a connection, when it has what was written; with what was read of it and not taken.

    Raises OSError when the connection was lost.
    """
    reader, writer = local
    writer.transport.set_write_buffer_limits(0)
    try:
        await writer.drain()
        sock = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
    except BaseException:
        writer.transport.abort()
        raise
    sock.setblocking(False)
    writer.transport.abort()  # its own descriptor alone
    return sock, reader._unread.take(-1) if reader._unread else b""
