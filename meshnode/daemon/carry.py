"""The node's end of a stream that the control socket carries: half-close both ways, back-pressure, bounded buffers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from meshnode.base.value import frozen
from meshnode.daemon.frames import BROKEN, END, LENGTH, MAX_FRAME, WHOLE
from meshnode.errors import MeshError
from meshnode.quic.stream import Stream
from meshnode.sdk.pump import OnEnd, Pump, ToSocket, ToStream, free
from meshnode.sdk.streams import MeshReader, MeshWriter

if TYPE_CHECKING:
    from meshnode.daemon.carry_flow import CarriedFlow

GONE_S = 2.0  # for the client to go away once it was told how the stream ended
LOOK_S = 0.2  # between looks whether the service still reads, once it has ended its own direction


@frozen
class Carried:
    """A stream of the mesh that a handler hands to the control socket, as the last of its results."""

    reader: MeshReader
    writer: MeshWriter
    ended: asyncio.Event | None = None  # is set when it is carried no longer

    def accept(self) -> None:
        """Tell the peer that its stream is served."""
        self.writer.accept()

    def drop(self) -> None:
        """Reset the stream, which is not carried."""
        self.writer.reset()
        if self.ended is not None:
            self.ended.set()


@contextmanager
def handed_over(stream: Carried | CarriedFlow) -> Iterator[None]:
    """Drop a stream whose client has gone before it was told of it."""
    try:
        yield
    except BaseException:
        stream.drop()
        raise


class FromClient(ToStream):
    """Carries the frames of a client. Behind ``END`` it looks for ``WHOLE``, and whether the client is gone."""

    def __init__(self, sock: socket.socket, stream: Stream, on_end: OnEnd) -> None:
        super().__init__(sock, stream, free, None, on_end)
        self._head = b""
        self._left = 0  # bytes of the frame
        self._is_ended = False

    def take(self, data: memoryview | bytes) -> None:
        """Pass on frames as they come; an end without ``END`` is none."""
        try:
            if not data:
                raise ConnectionResetError("the client has gone")
            self._take_frames(memoryview(data))
        except (MeshError, OSError) as error:
            self.end(error)
        else:
            self.go_on()

    def _take_frames(self, data: memoryview) -> None:
        while data and not self.is_over:
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                self._pass_on(part)
                continue
            missing = LENGTH.size - len(self._head)
            self._head, data = self._head + data[:missing], data[missing:]
            if len(self._head) == LENGTH.size:
                head, self._head = self._head, b""
                self._on_head(head)

    def _on_head(self, head: bytes) -> None:
        size = LENGTH.unpack(head)[0]
        if head == WHOLE:
            self.end(None)
            self._stream.stop_reading()
            self._stream.on_change()
        elif size > MAX_FRAME or self._is_ended:
            raise ConnectionResetError("a frame is too long, or behind the end")
        elif head == END:
            self._is_ended = True
            self._on_end(None)
        else:
            self._left = size


class ToClient(ToSocket):
    """Carries what the peer sends in frames. One that the client has a part of is finished, whatever becomes of it."""

    def __init__(self, sock: socket.socket, stream: Stream, on_end: OnEnd) -> None:
        super().__init__(sock, stream, free, b"", on_end)
        self._is_told = False  # ``END`` is in ``ahead``

    def _send_unread(self) -> None:
        pieces, size = self._stream.unread.first(MAX_FRAME)
        pieces.insert(0, LENGTH.pack(size))
        count = self._send(pieces, LENGTH.size + size)
        if count:
            self.ahead = b"".join(pieces)[count:] if count < LENGTH.size + size else b""
            self._stream.taken(size)

    def end_in_order(self) -> None:
        """Send ``END``, then end."""
        if self._is_told:
            self.end(None)
        else:
            self._is_told, self.ahead = True, END


class FramePump(Pump):
    """Carries a stream in frames."""

    def __init__(self, sock: socket.socket, stream: Stream) -> None:
        self.up = FromClient(sock, stream, self.on_program_end)
        self.down = ToClient(sock, stream, self.on_peer_end)
        self._join(sock, stream, self.up, self.down)

    def on_peer_end(self, error: Exception | None) -> None:
        """Take note that the client has been told of the end."""
        if error is not None:
            self.fail(error)
        elif not self.told.done():
            self.told.set_result(None)


async def carry(sock: socket.socket, sent: bytes, mesh: Carried) -> None:
    """Carry bytes both ways until both directions have ended, and tell the client how it ended.

    A client that goes away before it ended its direction resets the stream: the service must not take what came for
    the whole. Errors of the stream are told to the client and not raised. At most ``MAX_FRAME`` bytes are held beside
    the buffers of both ends. ``sent`` was read of the client already.
    """
    stream = mesh.writer._stream
    pump = FramePump(sock, stream)
    is_whole, last = False, WHOLE
    try:
        pump.begin(sent)
        await pump.told
        while not (pump.heard.done() or stream.fin_sent or stream.over):  # a terminal would never end
            await asyncio.wait([pump.heard], timeout=LOOK_S)
        is_heard = pump.heard.done()
        if is_heard:
            await pump.heard
        pump.close()
        if is_heard and pump.refused is None:
            await mesh.writer.wait_closed()  # raises when the connection was lost before the peer had everything
        lost = pump.refused or stream.error
        if lost is not None:
            raise lost
        is_whole = True
    except MeshError as error:
        last = BROKEN + json.dumps(error.to_json()).encode() + b"\n"
    except OSError:  # the client has gone
        last = b""
    finally:
        pump.close()
        if is_whole:
            mesh.writer.close()
        else:
            mesh.writer.reset()
        if mesh.ended is not None:
            mesh.ended.set()
    await _end(sock, pump.down.ahead + last if last else b"")


async def _end(sock: socket.socket, last: bytes) -> None:
    """Tell the client the last, and let it close first: one that writes to a closed socket reads no more of it."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        await loop.sock_sendall(sock, last)
        async with asyncio.timeout(GONE_S):
            while await loop.sock_recv(sock, MAX_FRAME):
                pass
