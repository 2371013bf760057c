"""The asyncio transport of a mesh stream, which ``writer.transport`` gives: the state that reader and writer share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from meshnode.base.limits import STREAM_HIGH_WATER
from meshnode.errors import ConnectionLost, StreamMisused
from meshnode.identity.node_id import NodeId
from meshnode.quic.buffers import Marks
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import ENDED_HERE, Stream

Bytes = bytes | bytearray | memoryview


class Signal:
    """Wakes what waits for a stream to change: at most one reader, any number of writers."""

    __slots__ = ("_reader", "_writers")

    def __init__(self, stream: Stream) -> None:
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        stream.on_change = self.fire

    def fire(self) -> None:
        """Wake all."""
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(None)
        if self._writers:
            writers, self._writers = self._writers, []
            for waiter in writers:
                if not waiter.done():
                    waiter.set_result(None)

    def reader(self, caller: str) -> asyncio.Future[None]:
        """Return what the one reader waits for.

        Raises StreamMisused when another coroutine waits already.
        """
        if self._reader is not None and not self._reader.done():
            raise StreamMisused(
                f"{caller}() called while another coroutine is already waiting for incoming data",
                hint="let one coroutine read a stream",
            )
        reader: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
        self._reader = reader
        return reader

    async def wait(self) -> None:
        """Wait for a change."""
        waiter = asyncio.get_running_loop().create_future()
        self._writers.append(waiter)
        try:
            await waiter
        finally:
            if waiter.cancelled() and waiter in self._writers:
                self._writers.remove(waiter)


class Writing:
    """Writing to a stream: what its writer and its transport have in common."""

    __slots__ = ()
    _stream: Stream

    def write(self, data: Bytes) -> None:
        """Queue bytes for sending.

        Args:
            data: Any number of bytes.

        Raises:
            TypeError: ``data`` is no bytes.
            StreamMisused: ``write_eof`` was called before.
            ConnectionLost: The stream is over or was closed.
        """
        if type(data) is not bytes:
            data = as_bytes(data)
        if data:
            try:
                self._stream.write(data)
            except ConnectionLost:
                self._check_misuse()
                raise

    def writelines(self, data: Iterable[Bytes]) -> None:
        """Queue several pieces of bytes, as ``write`` does.

        Args:
            data: An iterable of bytes.

        Raises:
            TypeError, StreamMisused, ConnectionLost: As ``write``.
        """
        self.write(b"".join(data))

    def can_write_eof(self) -> bool:
        """Return True, always: the two directions end separately."""
        return True

    def _check_misuse(self) -> None:
        """Raise StreamMisused when the stream is fine and our direction was ended before a write."""
        raise NotImplementedError


class Marked:
    """The write buffer of a stream's transport: its size, and the marks between which a writer waits."""

    __slots__ = ()
    _stream: Stream

    def get_write_buffer_size(self) -> int:
        """Return the bytes that are written and not yet acknowledged by the peer."""
        return self._stream.queued

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high water mark in bytes."""
        low, high = self._stream.marks
        return low, high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set above how many unacknowledged bytes a writer waits, or a protocol is told to, and until how few.

        Args:
            high: The high water mark; by default 1 MiB, or four times ``low``.
            low: The low water mark, not above ``high``; by default half of ``high``.

        Raises:
            ValueError: Not 0 <= ``low`` <= ``high``.
        """
        if high is None:
            high = STREAM_HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 2
        if not 0 <= low <= high:
            raise ValueError(f"the low water mark ({low}) is at least 0 and at most the high one ({high})")
        self._stream.marks = Marks(low, high)


class StreamTransport(Writing, Marked, asyncio.Transport):
    """A stream as an ``asyncio.Transport``, to be used beside its writer.

    What a protocol would be told comes from the reader here, so ``set_protocol``, ``pause_reading`` and the like raise
    NotImplementedError, as in every transport that lacks them. Reading is paused by not reading.
    """

    __slots__ = ("_closing", "_keep", "_stream", "ends", "signal", "was_aborted")

    def __init__(self, stream: Stream, signal: Signal, ends: tuple[NodeId, NodeId], keep: Callable[[], None]) -> None:
        """Make the transport of a stream.

        ``ends`` are this node and the peer, ``keep`` has the reader take what has arrived, before nothing more does.
        """
        self._stream = stream
        self._keep = keep
        self._closing = False
        self.signal = signal
        self.ends = ends
        self.was_aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return something about the stream by its name.

        Args:
            name: ``"peer"`` (the NodeId of the other end), ``"service"``, or as in asyncio ``"peername"`` and
                ``"sockname"``: the overlay address as ``(host, port, flowinfo, scope_id)``, port 0.
            default: Returned for other names: a stream has no ``"socket"`` and no ``"sslcontext"`` of its own.
        """
        own, peer = self.ends
        if name == "peer":
            return peer
        if name == "service":
            return self._stream.service
        if name in ("peername", "sockname"):
            return (str((peer if name == "peername" else own).overlay), 0, 0, 0)
        return default

    def is_closing(self) -> bool:
        """Return True once the stream was closed here, or is over."""
        return self._closing or self._stream.error is not None

    def _check_misuse(self) -> None:
        """Raise StreamMisused when the stream is fine and our direction was ended before a write."""
        stream = self._stream
        if stream.write_end == ENDED_HERE and stream.error is None and not self._closing:
            raise StreamMisused("write() called after write_eof()", hint="end a direction behind the last write")

    def write_eof(self) -> None:
        """End this direction, after what is queued; the other one stays open.

        Safe to call twice.
        """
        stream = self._stream
        if not stream.write_end and stream.error is None:
            stream.write(b"", fin=True)

    def close(self) -> None:
        """End this direction and read no more; what is written is still delivered. Safe to call twice.

        What has arrived stays readable; then the reader is at its end.
        """
        if self._closing:
            return
        self._closing = True
        self.write_eof()
        stream = self._stream
        if stream.fin_received and not stream.unread:
            self.signal.fire()  # nothing is left to be read
        else:
            self.end_reading()

    def end_reading(self) -> None:
        """Let the reader end behind what has arrived."""
        self._keep()
        self._stream.stop_reading()
        self.signal.fire()

    def abort(self) -> None:
        """Drop the stream at once, undelivered bytes included.

        The peer's reads and writes raise ConnectionLost.
        """
        self._closing = self.was_aborted = True
        self._stream.reset(ended=self._stream.status is StreamStatus.ACCEPTED)  # a refusal has to arrive
        self.signal.fire()  # what waits for a delivery that was given up


def as_bytes(data: object) -> bytes:
    """Return bytes, a bytearray or a memoryview as bytes.

    Raises TypeError for anything else, integers too.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"data is a bytes-like object, not {type(data).__name__!r}")
    return bytes(data)


async def accepted(stream: Stream, signal: Signal) -> None:
    """Wait until the peer has accepted the stream; raises why not. One that is lost already may have an answer in it.

    Nothing reads the stream yet, so this has the one reader's place.
    """
    while stream.status is None and stream.error is None:
        await signal.reader("open")
    has_come = stream.status is StreamStatus.ACCEPTED and (stream.unread or stream.fin_received)
    if stream.error is not None and not has_come:
        raise stream.error
