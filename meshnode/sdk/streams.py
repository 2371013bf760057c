"""asyncio readers and writers over mesh streams: the semantics of ``asyncio.StreamReader`` and ``StreamWriter``.

They are subclasses of asyncio's, so that what is written for those takes these; nothing of asyncio's is used, for its
reader copies what arrives and grants credit before the program has taken it.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, SupportsIndex

from meshnode.errors import MeshError, Unsupported
from meshnode.identity.node_id import NodeId
from meshnode.quic.buffers import Marks
from meshnode.quic.stream import Stream
from meshnode.sdk.transport import Signal, StreamTransport, Writing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    Separator = ReadableBuffer | tuple[ReadableBuffer, ...]

LIMIT = 1 << 16  # bytes of a line, as in asyncio
NEEDS_SEPARATOR = "Separator should be at least one-byte string"


class MeshReader(asyncio.StreamReader):
    """The receiving half of a stream, with the semantics of ``asyncio.StreamReader``, which it is a subclass of.

    Reading gives credit back to the sender, so an unread stream holds it back. Iterating yields lines, as
    ``readline`` does. ``node.open``, ``node.open_any`` and ``connection.open`` return one; handlers are given one.
    A read that is cancelled loses nothing, but for ``read(-1)``. One coroutine reads at a time. Unlike asyncio's, it
    gives what had come of a stream that is lost before it raises, as ``recv`` of a socket does.
    """

    def __init__(self, stream: Stream, signal: Signal, limit: int = LIMIT) -> None:
        if limit <= 0:
            raise ValueError("limit cannot be <= 0")
        self._stream = stream
        self._signal = signal
        self._limit = limit
        self._held = bytearray()  # taken from the stream, and not by the program yet

    def __repr__(self) -> str:
        stream, held = self._stream, len(self._held) + self._stream.buffered
        info = [type(self).__name__]
        info += [f"{held} bytes"] if held else []
        info += ["eof"] if stream.fin_received else []
        info += [f"limit={self._limit}"] if self._limit != LIMIT else []
        info += [f"exception={stream.error!r}"] if stream.error is not None else []
        return f"<{' '.join(info)}>"

    def exception(self) -> MeshError | None:
        """Return why the stream is over.

        Returns:
            The error that a read raises; None while the stream is not over, or when it has ended cleanly.
        """
        return None if self._stream.fin_received else self._stream.error

    def at_eof(self) -> bool:
        """Return whether nothing more can be read.

        Returns:
            True when the peer has ended its direction and everything was read.
        """
        return self._stream.at_eof and not self._held

    async def read(self, n: int = -1) -> bytes:
        """Read up to ``n`` bytes, waiting for at least one.

        Args:
            n: The most to return; negative for everything until the end of the stream.

        Returns:
            The bytes; empty when the stream has ended, or the writer was closed.

        Raises:
            ConnectionLost: The stream was reset or its connection is over: never a clean end. What had come before can
                be read first, with ``n`` bytes at a time.
            StreamMisused: Another coroutine waits for data already.
        """
        if n <= 0:
            return await self._read_all() if n else self._read_nothing()
        stream = self._stream
        while not (self._held or stream.unread):
            if stream.fin_received:
                return b""
            if stream.error is not None:
                raise stream.error
            await self._signal.reader("read")
        if self._held:
            data = bytes(self._held[:n])
            del self._held[:n]
            return data
        return stream.read(n)

    def _read_nothing(self) -> bytes:
        self._raise_error()
        return b""

    async def _read_all(self) -> bytes:
        stream, parts = self._stream, [bytes(self._held)]
        self._held.clear()
        while True:
            if self._held or stream.unread:  # held: the writer was closed meanwhile
                parts.append(bytes(self._held) or stream.read())
                self._held.clear()
            elif stream.fin_received:
                return b"".join(parts)
            elif stream.error is not None:
                self._held += b"".join(parts)
                raise stream.error
            else:
                await self._signal.reader("read")

    async def readexactly(self, n: int) -> bytes:
        """Read exactly ``n`` bytes.

        Args:
            n: How many; 0 gives ``b""`` at once.

        Returns:
            The bytes, never fewer.

        Raises:
            ValueError: ``n`` is negative.
            asyncio.IncompleteReadError: The stream ended before; its ``partial`` has what came.
            ConnectionLost, StreamMisused: As ``read``.
        """
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        stream, buffer = self._stream, self._held
        self._raise_error()
        while len(buffer) < n:
            if stream.unread:
                buffer += stream.read(n - len(buffer))
            else:
                await self._more("readexactly", n)
        data = bytes(buffer[:n])
        del buffer[:n]
        return data

    async def readuntil(
        self, separator: ReadableBuffer | tuple[ReadableBuffer, ...] = b"\n", limit: int | None = None
    ) -> bytes:
        """Read up to and including a separator.

        Args:
            separator: The bytes to look for, or a tuple of several: the first that ends counts.
            limit: How many bytes may come before it; by default 64 KiB.

        Returns:
            The bytes with the separator.

        Raises:
            ValueError: The separator is empty.
            asyncio.IncompleteReadError: The stream ended before; its ``partial`` has what came.
            asyncio.LimitOverrunError: No separator within the limit; what was read stays readable.
            ConnectionLost, StreamMisused: As ``read``.
        """
        several = tuple(map(bytes, separator)) if isinstance(separator, tuple) else (bytes(separator),)
        if not several:
            raise ValueError("Separator should contain at least one element")
        if not all(several):
            raise ValueError(NEEDS_SEPARATOR)
        self._raise_error()
        most, longest = self._limit if limit is None else limit, max(map(len, several))
        stream, buffer, offset = self._stream, self._held, 0
        while (found := _find(buffer, several, offset)) is None:
            offset = max(0, len(buffer) + 1 - longest)
            if stream.unread and len(buffer) <= max(LIMIT, 2 * most):  # else it would grow with every try
                buffer += stream.read()
            elif offset > most:
                raise asyncio.LimitOverrunError("Separator is not found, and chunk exceed the limit", offset)
            else:
                await self._more("readuntil", None)
        start, end = found
        if start > most:
            raise asyncio.LimitOverrunError("Separator is found, but chunk is longer than limit", start)
        data = bytes(buffer[:end])
        del buffer[:end]
        return data

    async def readline(self) -> bytes:
        """Read one line of at most 64 KiB.

        Returns:
            The line with its ``\\n``; at the end of the stream what is left, then ``b""``.

        Raises:
            ValueError: The line is longer. It is dropped, as far as it has come.
            ConnectionLost, StreamMisused: As ``read``.
        """
        try:
            return await self.readuntil()
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            if self._held.startswith(b"\n", error.consumed):
                del self._held[: error.consumed + 1]
            else:
                self._held.clear()
            raise ValueError(error.args[0]) from None

    def _raise_error(self) -> None:
        """Raise why nothing more can be read of a stream that has not ended."""
        stream = self._stream
        if stream.error is not None and not (stream.fin_received or stream.unread or self._held):
            raise stream.error

    async def _more(self, caller: str, expected: int | None) -> None:
        """Wait for more data; at the end of the stream raise IncompleteReadError with what there is."""
        stream = self._stream
        if stream.fin_received:
            partial = bytes(self._held)
            self._held.clear()
            raise asyncio.IncompleteReadError(partial, expected)
        if stream.error is not None:
            raise stream.error
        await self._signal.reader(caller)

    def _keep(self) -> None:
        """Take what has arrived out of the stream, which is about to drop it."""
        if self._stream.unread:
            self._held += self._stream.read()

    def __aiter__(self) -> MeshReader:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # ---- what asyncio's protocols do to a reader

    def feed_eof(self) -> None:
        """Read no more.

        What has arrived stays readable, then the stream is at its end; what comes later is dropped.
        """
        self._keep()
        self._stream.stop_reading()
        self._signal.fire()

    def feed_data(self, data: Iterable[SupportsIndex]) -> NoReturn:
        """Raise Unsupported: a reader is fed by its stream alone.

        Args:
            data: Not used.
        """
        raise Unsupported("a mesh reader is fed by its stream alone", hint="make an asyncio.StreamReader to feed")

    def set_exception(self, exc: Exception) -> NoReturn:
        """Raise Unsupported: a stream ends with the errors of the mesh.

        Args:
            exc: Not used.
        """
        raise Unsupported("a mesh reader has the errors of its stream alone", hint="writer.transport.abort() ends it")

    def set_transport(self, transport: asyncio.BaseTransport) -> NoReturn:
        """Raise Unsupported: a reader has its stream.

        Args:
            transport: Not used.
        """
        raise Unsupported("a mesh reader has its stream, and no other transport", hint="use writer.transport")


def _find(buffer: bytearray, several: tuple[bytes, ...], offset: int) -> tuple[int, int] | None:
    """Return begin and end of the separator that ends first, looking from ``offset`` on."""
    found = [(at + len(one), -at) for one in several if (at := buffer.find(one, offset)) >= 0]
    if not found:
        return None
    end, start = min(found)  # of those that end there, the shortest
    return -start, end


class MeshWriter(Writing, asyncio.StreamWriter):
    """The sending half of a stream, with the semantics of ``asyncio.StreamWriter``, which it is a subclass of.

    ``write`` queues without bound: await ``drain`` after it, which waits while more than 1 MiB is written and not yet
    acknowledged by the peer. ``async with`` closes the stream at the end and waits for it, and resets it when the block
    raises. A writer that is dropped unclosed resets its stream, with a ResourceWarning.
    """

    def __init__(self, stream: Stream, transport: StreamTransport) -> None:
        self._stream = stream
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        state = " closing" if self._transport.is_closing() else ""
        return f"<{type(self).__name__} to {self._stream.service!r} of {self.peer.short}{state}>"

    @property
    def transport(self) -> asyncio.Transport:
        """The stream as an ``asyncio.Transport``: ``abort``, the write buffer's size and limits."""
        return self._transport

    @property
    def peer(self) -> NodeId:
        """The node at the other end."""
        return self._transport.ends[1]

    def accept(self) -> None:
        """Tell the opener that it is served.

        For handlers of services with ``accept=False``: the opener waits until then. A second call does nothing.
        """
        self._stream.accept()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return something about the stream by its name.

        Args:
            name: ``"peer"`` (the NodeId of the other end), ``"service"``, or as in asyncio ``"peername"`` and
                ``"sockname"``: the overlay address as ``(host, port, flowinfo, scope_id)``, port 0.
            default: Returned for other names: a stream has no ``"socket"`` and no ``"sslcontext"`` of its own.
        """
        return self._transport.get_extra_info(name, default)

    async def drain(self) -> None:
        """Wait while more than 1 MiB is unacknowledged.

        Raises:
            ConnectionLost: The stream is over.
        """
        while not self._stream.drained():
            await self._transport.signal.wait()
        if self._stream.error is not None:
            raise self._stream.error

    def _check_misuse(self) -> None:
        self._transport._check_misuse()

    def write_eof(self) -> None:
        """End this direction, after what is queued; the other one stays open.

        Safe to call twice.
        """
        self._transport.write_eof()

    def is_closing(self) -> bool:
        """Return whether writing makes no sense any more.

        Returns:
            True once the stream was closed here, or is over.
        """
        return self._transport.is_closing()

    def close(self) -> None:
        """End this direction and read no more; what is written is still delivered. Safe to call twice.

        What has arrived stays readable; then the reader is at its end.
        """
        self._transport.close()

    def reset(self) -> None:
        """Drop the stream at once, undelivered bytes included.

        The reads and writes of the peer raise ConnectionLost. ``close`` is the end that delivers everything.
        """
        self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the stream is closed, here or at both ends, and the peer has everything that was written.

        Raises:
            ConnectionLost: The stream was lost before.
        """
        stream, transport = self._stream, self._transport
        while stream.error is None and not transport.was_aborted:
            ends = transport.is_closing() or stream.over
            if ends and not stream.queued:
                return
            if stream.queued:
                if ends:
                    stream.marks = Marks(0, stream.marks.high)  # one wake, not one for each packet of any stream
                stream.await_low()
            await transport.signal.wait()
        if stream.error is not None and not transport.was_aborted:
            raise stream.error

    async def start_tls(self, sslcontext: object, **options: object) -> NoReturn:
        """Raise Unsupported: a stream is encrypted and both ends have proven their keys already.

        TLS inside of it is for programs that need certificates of their own: give its bytes to an ``ssl.MemoryBIO``.

        Args:
            sslcontext: Not used.
            options: Not used.
        """
        raise Unsupported(
            "a mesh stream has no plain text to upgrade: it is encrypted, and both ends have proven their keys",
            hint="leave start_tls out; writer.peer is the proven peer",
        )

    async def __aenter__(self) -> MeshWriter:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self.reset()
        self.close()
        await self.wait_closed()

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is None or self._loop.is_closed():
            return
        if stream.over or self._transport.is_closing():
            if stream.error is not None and stream.unread:  # of one that was lost: it holds other streams back
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(stream.discard)
            return
        with suppress(RuntimeError):  # the loop ends meanwhile
            self._loop.call_soon_threadsafe(self._transport.abort)
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)


class MeshStream(NamedTuple):
    """Both halves of a stream, as ``open`` returns them: a tuple of reader and writer.

    ``async with`` closes the stream at the end and waits for it, and resets it when the block raises.

    Example:

        async with await node.open("laptop", "echo") as (reader, writer):
            writer.write(b"hello")
            writer.write_eof()
            print(await reader.read())
    """

    reader: MeshReader
    """The receiving half."""
    writer: MeshWriter
    """The sending half."""

    async def __aenter__(self) -> MeshStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self.writer.__aexit__(kind)


def wrap(stream: Stream, ends: tuple[NodeId, NodeId]) -> MeshStream:
    """Return the reader and writer of a stream; ``ends`` are this node and the peer."""
    signal = Signal(stream)
    reader = MeshReader(stream, signal)
    return MeshStream(reader, MeshWriter(stream, StreamTransport(stream, signal, ends, reader._keep)))


def unwrapped(opened: MeshStream) -> tuple[Stream, tuple[NodeId, NodeId]]:
    """Take a stream, and both of its ends, out of its reader and writer, which are of no use then."""
    writer = opened.writer
    stream, ends = writer._stream, writer._transport.ends
    del writer._stream  # or the writer would reset it when it is dropped
    return stream, ends
