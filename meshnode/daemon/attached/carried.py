"""A stream of the mesh that the control socket carries, for the program (frames: ``daemon/frames.py``)."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from contextlib import suppress
from typing import Any, cast

from meshnode.daemon.attached.control import error_of, result, send
from meshnode.daemon.client import STOPPED_HINT
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE
from meshnode.daemon.request import Json, Request
from meshnode.errors import ConnectionLost, MeshError, NotRunning
from meshnode.quic.preface import StreamStatus
from meshnode.quic.stream import Stream
from meshnode.sdk.pump import NOT_NOW, UNIX_BUFFER

READ = 1 << 14  # bytes read at once where no frame has begun; what is in a frame is read uncopied
HELD = 1 << 18  # bytes that the program has not read, above which the socket is read no more
PIECES = 64  # that one system call writes
CLOSED = "the peer closed the stream"
GONE = "the node stopped; what came is not the whole"
IN_ORDER = bytes([StreamStatus.ACCEPTED])


class ControlSocket:
    """The one stream of a connection to the control socket: what a ``StreamTable`` is for those of a peer."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = Stream(cast("Any", self), 0, opener=True)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._buffer = b""  # a part of a frame's head, or of the error behind the last
        self._left = 0  # bytes of the frame
        self._is_reading = self._is_over = False
        self._waiting: deque[memoryview | bytes] = deque()  # for room in the socket
        self._size = 0  # of these
        self._awaits_room = self._awaits_last = False

    async def ask(self, asked: Request) -> Json:
        """Ask for a stream, and return the answer; what comes behind it is the stream's. Raises MeshError."""
        lost = NotRunning("the node stopped before it answered", hint=STOPPED_HINT)
        try:
            await send(self._sock, asked)
            answer = b""
            while b"\n" not in answer:
                if not (more := await self._loop.sock_recv(self._sock, READ)):
                    raise lost
                answer += more
        except ConnectionError as error:
            raise lost from error
        line, _, self._buffer = answer.partition(b"\n")
        return result(json.loads(line))

    def begin(self, told: Json) -> Stream:
        """Return the stream of an answer."""
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
        self.stream.named = told["service"]
        self.stream.feed(IN_ORDER, False)
        sent, self._buffer = self._buffer, b""
        self._read_on()
        self._take(sent)
        return self.stream

    def close(self) -> None:
        """Let the socket go: the node resets a stream that has not ended."""
        if not self._is_over:
            self._is_over = True
            self._pause()
            if self._waiting:
                self._loop.remove_writer(self._sock)
                self._waiting.clear()
            self._size = 0
            self._awaits_last = False
        self._sock.close()

    # ---- what the node sends

    def _read_on(self) -> None:
        if not self._is_reading and not self._is_over:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._read)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def _read(self) -> None:
        try:
            data = self._sock.recv(self._left or READ)
        except NOT_NOW:
            return
        except OSError:
            data = b""
        if not data:
            self._end(ConnectionLost(GONE, hint=STOPPED_HINT))
            return
        self._take(data)
        if len(data) == READ and self._left and self._is_reading:
            self._read()  # the rest of a frame that has just begun: it is there, and another turn of the loop is dear

    def _take(self, data: bytes) -> None:
        """Take what came, which is nearly always a part of one frame, and not copied then."""
        while data and not self._is_over:
            if self._left >= len(data):
                self._left -= len(data)
                self.stream.feed(data, False)
                break
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left = 0
                self.stream.feed(part, False)
            else:
                data = self._take_head(self._buffer + data)
        if self.stream.unread.size > HELD:
            self._pause()

    def _take_head(self, data: bytes) -> bytes:
        """Take the head of a frame; returns what is behind it."""
        self._buffer = b""
        if len(data) < LENGTH.size:
            self._buffer = data
            return b""
        head, rest = data[: LENGTH.size], data[LENGTH.size :]
        size = LENGTH.unpack(head)[0]
        if head == END:
            self.stream.feed(b"", True)
        elif head == WHOLE:
            self._end(None)
        elif head == BROKEN and b"\n" not in rest:
            self._buffer = data
            return b""
        elif head == BROKEN:
            self._end(error_of(json.loads(rest)))
        elif size > MAX_FRAME:
            self._end(ConnectionLost("the node sent what is no frame"))
        else:
            self._left = size
        return rest

    def _end(self, error: MeshError | None) -> None:
        """End the stream as the node has said it ended."""
        self.close()
        self.stream.write_end = self.stream.write_end or CLOSED
        if error is not None:
            self.stream.fail(error)
        elif not self.stream.fin_received:
            self.stream.feed(b"", True)
        self.stream.on_change()

    # ---- what the stream asks

    def send(self, stream_id: int, data: bytes | memoryview, fin: bool) -> None:
        """Write bytes in frames, at once as far as the socket takes them."""
        if self._is_over:
            return
        pieces: list[bytes | memoryview] = []
        whole = memoryview(data)
        for at in range(0, len(whole), MAX_FRAME):
            part = whole[at : at + MAX_FRAME]
            pieces += (LENGTH.pack(len(part)), part)
        if fin:
            pieces.append(END)
        self._write(pieces, is_kept=type(data) is bytes)

    def _write(self, pieces: list[bytes | memoryview], *, is_kept: bool) -> None:
        sent = 0
        if not self._waiting:
            sent = self._send(pieces[:PIECES])
            if self._is_over:
                return
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
                continue
            rest = memoryview(piece)[sent:]
            sent = 0
            if not self._waiting:
                self._loop.add_writer(self._sock, self._write_on)
            self._waiting.append(rest if is_kept else bytes(rest))
            self._size += len(rest)

    def _send(self, pieces: list[bytes | memoryview]) -> int:
        try:
            return self._sock.sendmsg(pieces)
        except NOT_NOW:
            return 0
        except OSError:
            self._end(ConnectionLost(GONE, hint=STOPPED_HINT))
            return 0

    def _write_on(self) -> None:
        waiting = self._waiting
        sent = self._send([waiting[at] for at in range(min(PIECES, len(waiting)))])
        self._size -= sent
        while sent:
            if sent < len(waiting[0]):
                waiting[0] = waiting[0][sent:]
                break
            sent -= len(waiting.popleft())
        if not waiting and not self._is_over:
            self._loop.remove_writer(self._sock)
        if self._awaits_room and self.stream.low:
            self._awaits_room = False
            self.stream.on_change()

    def consume(self, stream_id: int, count: int) -> None:
        """Read on when the program has taken enough."""
        if not self._is_reading and self.stream.unread.size <= HELD // 2:
            self._read_on()

    def queued(self, stream_id: int) -> int:
        """Return the bytes that the node has not taken, and 1 while it has not said how the stream ended."""
        return self._size + self._awaits_last

    def await_drain(self, stream: Stream) -> None:
        """Call the stream's ``on_change`` when its queue is low again."""
        self._awaits_room = True

    def stop(self, stream_id: int, code: int) -> None:
        """Tell the node that the program reads no more, behind the end of what it writes."""
        if self._is_over:
            return
        self._read_on()  # what comes is dropped, until the node says how it ended
        if self.stream.write_end:
            self._awaits_last = True
            self._write([WHOLE], is_kept=True)

    def forget(self, stream_id: int) -> None:
        """Wait for the node's word: both directions have ended."""
        self._awaits_last = not self._is_over

    def reset(self, stream_id: int, code: int) -> None:
        """Drop the stream."""
        self.close()
