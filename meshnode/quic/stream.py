"""One bidirectional application stream, sans-IO: bytes in order, true back-pressure in both directions.

The opener sends a header (2-byte length, CBOR ``[service]``); the acceptor answers with one status byte
before its first application byte. Receive credit follows what the application has consumed, never what
has arrived, so a slow reader holds its sender back (measured: 500 MB at 2 MB/s leaves both ends flat).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from meshnode.base.limits import MAX_SERVICE_NAME, STREAM_HIGH_WATER, STREAM_LOW_WATER
from meshnode.base.wire import WireError, decode, encode
from meshnode.errors import ConnectionLost, MeshError, PolicyDenied, ServiceNotFound, ServiceUnavailable


class StreamStatus(IntEnum):
    """The acceptor's first byte."""

    ACCEPTED = 0
    NO_SUCH_SERVICE = 1
    DENIED = 2
    UNAVAILABLE = 3


class StreamPort(Protocol):
    """What a stream needs of its connection."""

    def stream_send(self, stream_id: int, data: bytes, fin: bool) -> None: ...
    def stream_consumed(self, stream_id: int, count: int) -> None: ...
    def stream_queued(self, stream_id: int) -> int: ...
    def stream_reset(self, stream_id: int, code: int) -> None: ...
    def stream_stop(self, stream_id: int, code: int) -> None: ...
    def stream_done(self, stream_id: int) -> None: ...
    def stream_await_drain(self, stream: Stream) -> None: ...


def encode_header(service: str) -> bytes:
    """Return the opener's header for ``service`` (at most ``MAX_SERVICE_NAME`` UTF-8 bytes; else ValueError)."""
    if not service or len(service.encode()) > MAX_SERVICE_NAME:
        raise ValueError(f"a service name has 1 to {MAX_SERVICE_NAME} bytes")
    body = encode([service])
    return len(body).to_bytes(2, "big") + body


def _nothing() -> None:
    return None


class Stream:
    """State of one stream. ``on_change`` is called whenever a waiting reader, writer or opener may go on."""

    __slots__ = (
        "_chunks",
        "_done",
        "_head",
        "_port",
        "_wants_header",
        "_wants_status",
        "background",
        "buffered",
        "error",
        "fin_received",
        "fin_sent",
        "id",
        "on_change",
        "service",
        "status",
        "stopped",
        "unwanted",
    )

    def __init__(self, port: StreamPort, stream_id: int, *, opener: bool) -> None:
        self._port = port
        self.id = stream_id
        self.service = ""
        self.status: StreamStatus | None = None
        self.error: MeshError | None = None
        self.fin_received = False
        self.fin_sent = False
        self.stopped = False  # we read no more, but what the peer has sent before it heard so still arrives
        self.unwanted = False  # the peer has closed the stream: it reads no more
        self.buffered = 0
        self.background = False  # what comes says nothing of when more will: its absence is no silence of the path
        self.on_change: Callable[[], None] = _nothing
        self._chunks: deque[bytes] = deque()
        self._head = bytearray()
        self._wants_header = not opener
        self._wants_status = opener
        self._done = False

    # ---- what arrives

    def feed(self, data: bytes, fin: bool) -> None:
        """Take received bytes. Raises WireError when the peer's header or status is junk."""
        if self._wants_header:
            data = self._take_header(data)
        if self._wants_status and data:
            try:
                self.status = StreamStatus(data[0])
            except ValueError as error:
                raise WireError("stream status unknown") from error
            self._port.stream_consumed(self.id, 1)
            data = data[1:]
            self._wants_status = False
            if self.status is StreamStatus.NO_SUCH_SERVICE:
                self.error = ServiceNotFound(
                    f"the peer has no service {self.service!r}", hint="`meshnode status` there lists what it has"
                )
            elif self.status is StreamStatus.DENIED:
                self.error = PolicyDenied(
                    "the peer does not allow us to use this service", hint="ask its owner for `--allow` with your id"
                )
            elif self.status is StreamStatus.UNAVAILABLE:
                self.error = ServiceUnavailable(
                    f"the service {self.service!r} is there, but its target does not answer",
                    hint="does the program that it exposes run there? Its node's log names the target",
                )
        if data and self.stopped:
            self._port.stream_consumed(self.id, len(data))
        elif data:
            self._chunks.append(data)
            self.buffered += len(data)
        if fin:
            self.fin_received = True
            if self._wants_status and self.error is None:
                self.error = ConnectionLost("the peer ended the stream before it accepted it")
            self._finish()
        self.on_change()

    def _take_header(self, data: bytes) -> bytes:
        self._head += data
        if len(self._head) < 2:
            return b""
        size = int.from_bytes(self._head[:2], "big")
        if size > MAX_SERVICE_NAME + 8:
            raise WireError("stream header too long")
        if len(self._head) < 2 + size:
            return b""
        fields = decode(bytes(self._head[2 : 2 + size]), MAX_SERVICE_NAME + 8)
        if not isinstance(fields, list) or len(fields) != 1 or not isinstance(fields[0], str) or not fields[0]:
            raise WireError("stream header malformed")
        self.service = fields[0]
        rest = bytes(self._head[2 + size :])
        self._head.clear()
        self._wants_header = False
        self._port.stream_consumed(self.id, 2 + size)
        return rest

    def fail(self, error: MeshError) -> None:
        """The stream is over without an end: a reset, or its connection is gone."""
        if self.error is None:
            self.error = error
        self._done = True
        self.on_change()

    # ---- what the application does

    def accept(self) -> None:
        """Acceptor only: let the opener know that its stream has a handler."""
        self.status = StreamStatus.ACCEPTED
        self._port.stream_send(self.id, bytes([StreamStatus.ACCEPTED]), False)

    def refuse(self, status: StreamStatus) -> None:
        """Acceptor only: answer with the reason and end both directions."""
        self.status = status
        self.fin_sent = self.stopped = True
        self._port.stream_send(self.id, bytes([status]), True)
        self._port.stream_stop(self.id, int(status))
        self.discard()

    def read(self, limit: int = -1) -> bytes:
        """Take up to ``limit`` received bytes (all when negative) without waiting; credit goes back to the sender."""
        chunks = self._chunks
        if not chunks:
            return b""
        if limit < 0 or limit >= self.buffered:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
        elif len(chunks[0]) <= limit:
            data = chunks.popleft()
        else:
            first = chunks[0]
            data = first[:limit]
            chunks[0] = first[limit:]
        self.buffered -= len(data)
        self._port.stream_consumed(self.id, len(data))
        return data

    @property
    def header_complete(self) -> bool:
        """True once the acceptor knows which service is meant."""
        return not self._wants_header

    @property
    def at_eof(self) -> bool:
        """True when the peer has ended its direction and everything was read."""
        return self.fin_received and not self.buffered

    def write(self, data: bytes, fin: bool = False) -> None:
        """Queue bytes. Raises the stream's error, or ConnectionLost after an end was written."""
        if self.error is not None:
            raise self.error
        if self.fin_sent:
            by = "the peer closed the stream" if self.unwanted else "this end has closed the stream"
            raise ConnectionLost(by)
        self.fin_sent = fin
        self._port.stream_send(self.id, data, fin)
        if fin:
            self._finish()

    @property
    def queued(self) -> int:
        """Bytes written that the peer has not acknowledged yet."""
        return self._port.stream_queued(self.id)

    def drained(self) -> bool:
        """True when a writer may go on; otherwise ``on_change`` will be called when it may."""
        if self.error is not None or self.queued <= STREAM_HIGH_WATER:
            return True
        self._port.stream_await_drain(self)
        return False

    @property
    def over(self) -> bool:
        """True when both directions have ended, or it failed."""
        return self._done or self.error is not None

    def await_low(self) -> None:
        """Have ``on_change`` called when (some of) the send queue is acknowledged."""
        self._port.stream_await_drain(self)

    @property
    def low(self) -> bool:
        """True when the send queue is short enough to wake a writer that waited."""
        return self.queued <= STREAM_LOW_WATER

    def reset(self, code: int = 0) -> None:
        """Drop both directions at once; the peer's reader sees ConnectionLost."""
        if self._done:
            self.discard()
            return
        self._port.stream_reset(self.id, code)
        self._port.stream_stop(self.id, code)
        self.discard()
        self.fail(ConnectionLost("the stream was reset here"))

    def stop_reading(self) -> None:
        """Nobody will read any more: give the credit back and ask the peer to stop."""
        if not self.fin_received and not self._done:
            self._port.stream_stop(self.id, 0)
            self.fin_received = self.stopped = True
            self._finish()
        self.discard()

    def discard(self) -> None:
        """Drop what is unread and give its credit back."""
        if self.buffered:
            self._port.stream_consumed(self.id, self.buffered)
        self._chunks.clear()
        self.buffered = 0

    def _finish(self) -> None:
        if self.fin_received and self.fin_sent and not self._done:
            self._done = True
            self._port.stream_done(self.id)
