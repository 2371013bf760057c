"""A mesh stream as a transport that drives an ``asyncio.Protocol``, as ``create_connection`` and ``create_server`` do.

What arrives is handed to the protocol from a callback of the loop, never from inside of the stack. Reading that is
paused gives no credit back, so the peer's writer waits; a protocol that writes faster than the peer acknowledges is
told by ``pause_writing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from meshnode.errors import ConnectionLost, MeshError, StreamMisused
from meshnode.identity.node_id import NodeId
from meshnode.quic.buffers import Marks
from meshnode.quic.stream import Stream
from meshnode.sdk.transport import Bytes, Marked, as_bytes

P = TypeVar("P", bound=asyncio.BaseProtocol)

TURN = 1 << 18  # bytes that one turn of the loop hands to a protocol: other callbacks run between two


def _nothing() -> None:
    return None


def _told(protocol: asyncio.BaseProtocol, method: str) -> object:
    """Call a method that not every protocol has; return what it answers."""
    return getattr(protocol, method, _nothing)()


class ProtocolTransport(Marked, asyncio.Transport):
    """The transport of one stream; its protocol has ``connection_made`` called before anything else."""

    def __init__(
        self, stream: Stream, ends: tuple[NodeId, NodeId], factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        """Take a stream that is accepted; ``ends`` are this node and the peer. Raises what ``factory`` raises."""
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._ends = ends
        self._protocol = factory()
        self._paused = False  # reading
        self._closing = False
        self._is_full = False  # the protocol was told to pause writing
        self._eof_told = False
        self._eof_written = False
        self._refused: MeshError | None = None  # something was written that the peer does not take
        self._is_failed = False
        self._failure: Exception | None = None
        self._scheduled = False
        self.ended = asyncio.Event()  # connection_lost was called
        stream.on_change = self._wake
        self._protocol.connection_made(self)
        self._wake()

    # ---- what it is

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return something about the stream by its name.

        Args:
            name: ``"peername"`` or ``"peer"`` (the NodeId of the other end), ``"sockname"`` (this node's), or
                ``"service"``.
            default: Returned for other names: a stream has no ``"socket"`` and no ``"sslcontext"``.
        """
        if name == "service":
            return self._stream.service
        if name in ("peername", "peer"):
            return self._ends[1]
        return self._ends[0] if name == "sockname" else default

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what arrives from now on to another protocol.

        Its ``connection_made`` is not called, as with asyncio's own transports.
        """
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Return True once it was closed or is over."""
        return self._closing

    # ---- reading

    def is_reading(self) -> bool:
        """Return True while the protocol gets what arrives."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Hand nothing on until ``resume_reading``.

        What arrives waits, and the peer may send no more than a window. Safe to call twice.
        """
        self._paused = True

    def resume_reading(self) -> None:
        """Go on with what has waited."""
        self._paused = False
        self._wake()

    def _deliver(self) -> None:
        """Hand the protocol what is there, as far as this turn goes, and the end."""
        stream, left = self._stream, TURN
        while stream.unread and left > 0 and self.is_reading():
            left -= self._hand_on(self._protocol)
        if stream.unread:
            if self.is_reading():
                self._wake()
        elif stream.fin_received and not self._eof_told and self.is_reading():
            self._eof_told = True
            if not _told(self._protocol, "eof_received") and not self._closing:
                self.close()

    def _hand_on(self, protocol: asyncio.BaseProtocol) -> int:
        stream = self._stream
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = memoryview(protocol.get_buffer(-1)).cast("B")
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            data = stream.read(len(buffer))
            buffer[: len(data)] = data
            protocol.buffer_updated(len(data))
        else:
            data = stream.read(len(stream.unread[0]))  # a piece as it came, uncopied
            protocol.data_received(data)  # type: ignore[attr-defined]
        return len(data)

    # ---- writing

    def write(self, data: Bytes) -> None:
        """Queue bytes for sending; they are dropped once the transport is closing.

        Args:
            data: Any number of bytes.

        Raises:
            TypeError: ``data`` is no bytes.
            StreamMisused: ``write_eof`` was called before.
        """
        if type(data) is not bytes:
            data = as_bytes(data)
        if self._eof_written and not self._closing:
            raise StreamMisused("write() called after write_eof()", hint="end a direction behind the last write")
        if self._closing or not data:
            return
        stream = self._stream
        if stream.write_end or stream.error is not None:
            self._refused = stream.error or ConnectionLost(stream.write_end)
            self._wake()
            return
        stream.write(data)
        if not self._is_full and stream.queued > stream.marks.high:
            self._is_full = True
            stream.await_low()
            _told(self._protocol, "pause_writing")

    def can_write_eof(self) -> bool:
        """Return True, always: the two directions end separately."""
        return True

    def write_eof(self) -> None:
        """End this direction, after what is queued; the other one stays open.

        Safe to call twice.
        """
        if not self._eof_written and not self._closing:
            self._eof_written = True
            self._end_writing()

    def _end_writing(self) -> None:
        if not self._stream.write_end and self._stream.error is None:
            self._stream.write(b"", fin=True)

    # ---- ends

    def close(self) -> None:
        """Read no more, and end when the peer has everything that was written.

        Safe to call twice. ``connection_lost`` is called with None then, or with an error when the stream is lost.
        """
        if self._closing:
            return
        self._closing = True
        self._end_writing()
        stream = self._stream
        stream.stop_reading()
        stream.marks = Marks(0, stream.marks.high)
        if stream.queued:
            stream.await_low()
        self._wake()

    def abort(self) -> None:
        """Drop the stream at once, undelivered bytes included.

        The peer's end is lost with ConnectionLost.
        """
        self._closing = True
        self._stream.reset(ended=True)
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        """End with an error of this end's own, or with none."""
        self._closing = self._is_failed = True
        self._failure = self._failure or error
        self._wake()

    def _outcome(self) -> tuple[Exception | None] | None:
        """Return what ``connection_lost`` is called with, in a tuple; None while the stream goes on."""
        stream, error = self._stream, self._stream.error
        if self._is_failed:
            return (self._failure,)
        if self._closing:
            lost = error or self._refused
            return (lost,) if lost is not None or not stream.queued else None
        if error is not None and (self._eof_told or not (stream.fin_received or stream.unread)):
            return (error,)
        if self._refused is not None and stream.fin_received and not stream.unread:
            return (self._refused,)  # what a peer sends that reads no more comes first
        return None

    # ---- turns of the loop

    def _wake(self) -> None:
        if not self._scheduled and not self.ended.is_set():
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Do what has become possible; what the protocol raises ends the stream, as in asyncio."""
        self._scheduled = False
        if self.ended.is_set():
            return
        try:
            self._deliver()
            self._go_on_writing()
        except Exception as error:
            self._loop.call_exception_handler(
                {
                    "message": "Fatal error: a protocol's callback failed.",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._stream.reset()
            self._fail(error)
        if (outcome := self._outcome()) is not None:
            self._lose(outcome[0])

    def _go_on_writing(self) -> None:
        stream = self._stream
        if stream.queued > stream.marks.low and stream.error is None:
            if self._is_full or self._closing:
                stream.await_low()
        elif self._is_full:
            self._is_full = False
            _told(self._protocol, "resume_writing")

    def _lose(self, error: Exception | None) -> None:
        self._closing = True
        self.ended.set()
        stream = self._stream
        stream.on_change = _nothing
        stream.reset()
        self._protocol.connection_lost(error)


def driven(
    stream: Stream, ends: tuple[NodeId, NodeId], protocol_factory: Callable[[], P]
) -> tuple[ProtocolTransport, P]:
    """Let a protocol have a stream; raises what ``protocol_factory`` raises, and resets the stream then."""
    made: list[P] = []

    def factory() -> P:
        made.append(protocol_factory())
        return made[0]

    try:
        return ProtocolTransport(stream, ends, factory), made[0]
    except BaseException:
        stream.reset()
        raise


class Ending(Protocol):
    """A transport that says when it is over."""

    @property
    def ended(self) -> asyncio.Event:
        """Set once ``connection_lost`` was called."""

    def close(self) -> None:
        """As asyncio's."""

    def abort(self) -> None:
        """As asyncio's."""


async def until_lost(transport: Ending) -> None:
    """Wait until a transport is over; a caller that is cancelled aborts it."""
    try:
        await transport.ended.wait()
    except asyncio.CancelledError:
        transport.abort()
        raise
