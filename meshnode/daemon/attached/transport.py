"""A stream of the mesh that the control socket carries, as a transport of asyncio (frames: ``daemon/frames.py``)."""

from __future__ import annotations

import asyncio
import json
from typing import cast

from meshnode.daemon.attached.control import error_of, result
from meshnode.daemon.client import STOPPED_HINT
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE, frame
from meshnode.daemon.request import Json, Request, encode
from meshnode.errors import ConnectionLost, MeshError, NotRunning
from meshnode.identity.node_id import NodeId

Bytes = bytes | bytearray | memoryview
MAX_LINE = 1 << 16  # bytes of the answer before the stream, and of the error behind it
GONE = "the node stopped; what came is not the whole"


class Carrier(asyncio.Protocol):
    """The connection to the control socket: an answer, then the frames of the stream.

    Attributes:
        answered: The node's answer to the request.
    """

    def __init__(self, asked: Request) -> None:
        self.answered: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._buffer = bytearray()
        self._socket: asyncio.Transport | None = None
        self._stream: CarriedTransport | None = None
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._socket = cast("asyncio.Transport", transport)
        self._socket.write(encode(self._asked))

    def give(self, stream: CarriedTransport) -> None:
        """Give the stream what has come behind the answer, and what comes.

        From the next turn of the loop on, so that a protocol has ``connection_made`` called before anything else.
        """
        self._stream = stream
        asyncio.get_running_loop().call_soon(self._take_frames)

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer, or frames.

        Until the answer is whole everything waits for it; frames behind it wait for ``give``.
        """
        self._buffer += data
        if self._stream is not None:
            self._take_frames()
        elif not self.answered.done() and (line := self._line()) is not None:
            try:
                self.answered.set_result(result(json.loads(line)))
            except MeshError as error:
                self.answered.set_exception(error)

    def _line(self) -> bytes | None:
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        return bytes(line)

    def _take_frames(self) -> None:
        """Give whole frames to the stream, as long as it reads."""
        assert self._stream is not None
        buffer = self._buffer
        while not self._is_over and len(buffer) >= LENGTH.size and not self._stream.is_paused:
            head = bytes(buffer[: LENGTH.size])
            (size,) = LENGTH.unpack(head)
            if head == BROKEN:
                if b"\n" not in buffer:
                    return
                self._end(error_of(json.loads(buffer[LENGTH.size :])))
            elif head == WHOLE:
                self._end(None)
            elif size > MAX_FRAME:
                self._end(ConnectionLost("the node sent what is no frame"))
            elif len(buffer) < LENGTH.size + size:
                return
            else:
                data = bytes(buffer[LENGTH.size : LENGTH.size + size])
                del buffer[: LENGTH.size + size]
                self._stream.on_data(data)

    def _end(self, error: MeshError | None) -> None:
        assert self._socket is not None
        assert self._stream is not None
        self._is_over = True
        self._socket.close()
        self._stream.on_end(error)

    def pause_writing(self) -> None:
        """Tell the stream's protocol: the node takes no more for now.

        Its buffer is full, because the peer is slow or the path is.
        """
        if self._stream is not None:
            self._stream.get_protocol().pause_writing()

    def resume_writing(self) -> None:
        """Tell the stream's protocol."""
        if self._stream is not None:
            self._stream.get_protocol().resume_writing()

    def eof_received(self) -> bool:
        """Keep what came: it may wait for a reader."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream.

        When the node did not say how the stream ended it has stopped, and the stream ends with ConnectionLost: what
        came may be less than what was sent.
        """
        if not self.answered.done():
            self.answered.set_exception(NotRunning("the node stopped before it answered", hint=STOPPED_HINT))
        if self._stream is not None and not self._is_over:
            self._is_over = True
            self._stream.on_end(ConnectionLost(GONE, hint=STOPPED_HINT))


class CarriedTransport(asyncio.Transport):
    """The stream, for its protocol."""

    def __init__(
        self, carrier: Carrier, sock: asyncio.Transport, protocol: asyncio.BaseProtocol, ends: tuple[NodeId, Json]
    ) -> None:
        """Make the transport of a stream; ``ends`` are this node, and the answer with ``peer`` and ``service``."""
        own, told = ends
        peer = NodeId.parse(told["peer"])
        super().__init__(
            {
                "peer": peer,
                "service": told["service"],
                "peername": (str(peer.overlay), 0, 0, 0),
                "sockname": (str(own.overlay), 0, 0, 0),
            }
        )
        self.is_paused = False
        self.ended = asyncio.Event()  # connection_lost was called
        self._carrier = carrier
        self._sock = sock
        self._protocol = protocol
        self._is_ended = self._is_closing = self._is_over = False
        carrier.give(self)
        protocol.connection_made(self)

    # ---- what the node tells

    def on_data(self, data: bytes) -> None:
        """Give bytes to the protocol, or the end of the peer's direction.

        Args:
            data: What came; ``b""`` is the end. A BufferedProtocol gets it in as many pieces as its buffer wants.
        """
        if self._is_closing:
            return
        protocol = self._protocol
        if not data:
            if not cast("asyncio.Protocol", protocol).eof_received():
                self.close()
        elif isinstance(protocol, asyncio.BufferedProtocol):
            while data:
                room = memoryview(protocol.get_buffer(len(data)))
                count = min(len(room), len(data))
                room[:count] = data[:count]
                protocol.buffer_updated(count)
                data = data[count:]
        else:
            cast("asyncio.Protocol", protocol).data_received(data)

    def on_end(self, error: MeshError | None) -> None:
        """Tell the protocol once that the stream is over.

        Args:
            error: None after a clean end.
        """
        if not self._is_over:
            self._is_over = self._is_closing = True
            self.ended.set()
            self._protocol.connection_lost(error)

    # ---- asyncio's

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol have what comes.

        Its ``connection_made`` is not called, as with asyncio's own transports.
        """
        self._protocol = protocol

    def is_closing(self) -> bool:
        """Return True once it was closed, or is over."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Return whether the protocol is given what comes."""
        return not self.is_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Give the protocol nothing until ``resume_reading``.

        The peer is held back when the buffers between it and this process are full. Safe to call twice.
        """
        if self.is_reading():
            self.is_paused = True
            self._sock.pause_reading()

    def resume_reading(self) -> None:
        """Go on reading."""
        if self.is_paused:
            self.is_paused = False
            if not self._sock.is_closing():
                self._sock.resume_reading()
            self._carrier.give(self)

    def write(self, data: Bytes) -> None:
        """Send bytes; they are dropped once the transport is closing.

        Raises:
            RuntimeError: ``write_eof`` was called before.
        """
        if self._is_ended and not self._is_closing:
            raise RuntimeError("write() called after write_eof()")
        whole = memoryview(data).cast("B")
        if not self._is_closing:
            for at in range(0, len(whole), MAX_FRAME):
                self._sock.write(frame(bytes(whole[at : at + MAX_FRAME])))

    def can_write_eof(self) -> bool:
        """Return True: the directions end separately."""
        return True

    def write_eof(self) -> None:
        """End this direction, behind what was written; the peer's goes on.

        Safe to call twice.
        """
        if not self._is_ended and not self._is_closing:
            self._is_ended = True
            self._sock.write(END)

    def close(self) -> None:
        """End this direction and read no more; what was written is still delivered.

        ``connection_lost`` is called when the node says that it was, or that it could not be.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self.is_paused = False
        self._sock.resume_reading()
        self._sock.write(WHOLE)
        self._carrier.give(self)

    def abort(self) -> None:
        """Reset the stream: what was not delivered is dropped, at both ends.

        ``connection_lost`` is called with None, as after ``abort`` of asyncio's own transports.
        """
        self._is_closing = True
        self._sock.abort()
        if not self._is_over:
            self._is_over = True
            self.ended.set()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the node has not taken yet."""
        return self._sock.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low and the high water mark.

        Both are bytes that the node has not taken.
        """
        return self._sock.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set between how many bytes the protocol is told to pause and to resume writing.

        Args:
            high: Above so many that the node has not taken, ``pause_writing`` is called; asyncio's default where None.
            low: At so few ``resume_writing`` is; a quarter of ``high`` where None.

        Raises:
            ValueError: ``low`` is above ``high``, or negative.
        """
        self._sock.set_write_buffer_limits(high, low)
