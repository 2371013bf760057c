"""A socket of this host and a mesh stream, joined: bytes go out of one's buffer straight into the other's.

No task and no buffer is between. What a full socket does not take stays in the stream's buffer, where it gives the peer
no credit; while the stream's queue is full the socket is not read. A turn of the loop carries at most ``PIECE`` bytes
each way, so that other connections have their turn.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from meshnode.errors import MeshError
from meshnode.quic.stream import Stream
from meshnode.sdk.streams import MeshReader, MeshWriter

PIECE = 1 << 18  # bytes that are read or written at once
UNIX_BUFFER = 1 << 19  # bytes of the kernel's for what goes into a Unix socket: a piece passes whole
NOT_NOW = (BlockingIOError, InterruptedError)
ENDED_BEFORE = (errno.EPIPE, errno.ENOTCONN)  # of a write: how the program has ended is for the reads to tell

Toll = Callable[[int], float]  # the seconds after which to ask again whether so many bytes may pass; 0.0: now
OnEnd = Callable[[Exception | None], None]  # with why a direction was cut off; None when it has ended in order


class Guard(Protocol):
    """Looks at the first bytes of a program."""

    is_decided: bool  # all the others may pass

    def feed(self, data: bytes) -> bytes:
        """Return what may pass now; ``data`` is empty at the end.

        Raises OSError where nothing may.
        """


class _Room(threading.local):
    """Where a socket is read into; the stream has taken it before the next read."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(PIECE))


_room = _Room()


def free(_: int) -> float:
    """Let bytes pass, however many."""
    return 0.0


class Direction:
    """One of the two ways between a socket and a stream, until it ``is_over``."""

    def __init__(self, sock: socket.socket, stream: Stream, toll: Toll, on_end: OnEnd) -> None:
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._stream = stream
        self._toll = toll
        self._on_end = on_end
        self._pause: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Carry no more."""
        self.is_over = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def end(self, error: Exception | None) -> None:
        """Carry no more, and say why."""
        if not self.is_over:
            self.stop()
            self._on_end(error)


class ToStream(Direction):
    """Carries what a program sends."""

    def __init__(self, sock: socket.socket, stream: Stream, toll: Toll, guard: Guard | None, on_end: OnEnd) -> None:
        super().__init__(sock, stream, toll, on_end)
        self.refused: MeshError | None = None  # why the peer takes no more, whatever it still sends
        self._guard = guard
        self._held = b""  # is read, and may not pass yet
        self._is_reading = False

    def go_on(self) -> None:
        """Read, or pause, as the stream's queue says."""
        stream = self._stream
        if self.is_over:
            return
        self.refused = self.refused or stream.error
        if self._pause is not None:
            return
        if self._is_reading:
            if self.refused is None and not stream.drained():
                self._stop_reading()
        elif stream.low or self.refused is not None:
            self._is_reading = True
            self._loop.add_reader(self._sock, self._read)
        else:
            stream.await_low()

    def _read(self) -> None:
        view = _room.view
        try:
            count = self._sock.recv_into(view)
        except NOT_NOW:
            return
        except OSError as error:
            self.end(error)
            return
        self.take(view[:count])

    def take(self, data: memoryview | bytes) -> None:
        """Pass on what the program has sent; empty at its end."""
        is_end = not data
        try:
            if self._guard is not None:
                data = self._guard.feed(bytes(data))
                if self._guard.is_decided:
                    self._guard = None
            if data and (pause := self._toll(len(data))) > 0:
                self._held = bytes(data)
                self._stop_reading()
                self._pause = self._loop.call_later(pause, self._pay, is_end)
                return
            self._write(data, is_end)
        except (MeshError, OSError) as error:
            self.end(error)

    def _pay(self, is_end: bool) -> None:
        self._pause, data = None, self._held
        if (pause := self._toll(len(data))) > 0:
            self._pause = self._loop.call_later(pause, self._pay, is_end)
            return
        self._held = b""
        self._write(data, is_end)

    def _write(self, data: memoryview | bytes, is_end: bool) -> None:
        if data:
            self._pass_on(data)
        if is_end:
            self.end(None)
        else:
            self.go_on()

    def _pass_on(self, data: memoryview | bytes) -> None:
        """Write it, or drop it where the peer takes no more: what that has sent still goes to the program."""
        if self.refused is not None:
            return
        try:
            self._stream.write(data)
        except MeshError as error:
            self.refused = error
            self._stream.on_change()

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._sock)

    def stop(self) -> None:
        """Read no more."""
        super().stop()
        self._stop_reading()


class ToSocket(Direction):
    """Carries what the peer sends, behind what goes ahead of it (``ahead``)."""

    def __init__(self, sock: socket.socket, stream: Stream, toll: Toll, ahead: bytes, on_end: OnEnd) -> None:
        super().__init__(sock, stream, toll, on_end)
        self.ahead = ahead
        self._paid = 0  # bytes of the stream's that may pass and have not
        self._is_full = False  # the socket takes no more now

    def go_on(self) -> bool:
        """Write a piece, or the end; return whether there is more that may follow at once."""
        stream = self._stream
        if self.is_over or self._pause is not None or self._is_full:
            return False
        if self.ahead:
            self.ahead = self.ahead[self._send([self.ahead], len(self.ahead)) :]
        elif stream.unread:
            self._send_unread()
        elif stream.fin_received:
            self.end_in_order()
        elif stream.error is not None:
            self.end(stream.error)
        if self.is_over or self._pause is not None or self._is_full:
            return False
        return bool(self.ahead or stream.unread or stream.error is not None) or stream.fin_received

    def _send_unread(self) -> None:
        unread = self._stream.unread
        due = min(unread.size, PIECE) - self._paid
        if due > 0:
            if (pause := self._toll(due)) > 0:
                self._pause = self._loop.call_later(pause, self._resume)
                return
            self._paid += due
        pieces, size = unread.first(self._paid)
        count = self._send(pieces, size)
        if count:
            self._paid -= count
            self._stream.taken(count)

    def _send(self, pieces: list[bytes | memoryview], size: int) -> int:
        try:
            count = self._sock.sendmsg(pieces)
        except NOT_NOW:
            count = 0
        except OSError as error:
            self.end(error)
            return 0
        if count < size:
            self._is_full = True
            self._loop.add_writer(self._sock, self._on_room)
        return count

    def _on_room(self) -> None:
        self._is_full = False
        self.go_on()
        if not self._is_full:
            self._loop.remove_writer(self._sock)
            self._stream.on_change()

    def _resume(self) -> None:
        self._pause = None
        self._stream.on_change()

    def end_in_order(self) -> None:
        """Pass on the end of the peer's direction, behind all that it has sent."""
        self.end(None)

    def stop(self) -> None:
        """Write no more."""
        super().stop()
        if self._is_full:
            self._is_full = False
            self._loop.remove_writer(self._sock)


class Pump:
    """Carries bytes both ways between a socket, which does not block, and a stream, until both directions have ended.

    An end of one direction is passed on as such (half-close). An end that takes nothing more is heard out all the same.
    What a peer has sent that reads no more, or has reset the stream, still goes to the program; what the program sends
    meanwhile is dropped, and ``refused`` says why. What a program has sent that takes no more still goes to the peer,
    which is asked to stop.

    Attributes:
        heard: Is done when the program's direction has ended, or the peer has refused what it sent; raises OSError
            when the program has cut it off.
        told: Is done when the peer's has, or the program takes no more of it; raises MeshError behind all that has come
            of a stream that was lost, or what ``heard`` raises.
    """

    def __init__(
        self,
        sock: socket.socket,
        stream: Stream,
        tolls: tuple[Toll, Toll] = (free, free),
        ahead: bytes = b"",
        guard: Guard | None = None,
    ) -> None:
        """Make a pump that does nothing yet.

        ``tolls`` are asked for what comes from the mesh and for what goes to it, ``ahead`` goes to the program first.
        """
        up = ToStream(sock, stream, tolls[1], guard, self.on_program_end)
        self._join(sock, stream, up, ToSocket(sock, stream, tolls[0], ahead, self.on_peer_end))

    def _join(self, sock: socket.socket, stream: Stream, up: ToStream, down: ToSocket) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard: asyncio.Future[None] = self._loop.create_future()
        self.told: asyncio.Future[None] = self._loop.create_future()
        self._sock = sock
        self._stream = stream
        self._up, self._down = up, down
        self._before = stream.on_change
        self._is_scheduled = False
        self._cut: OSError | None = None  # a reset of the program's that a write has met: its reads tell an EOF then

    def begin(self, sent: bytes = b"") -> None:
        """Begin; ``sent`` was read of the program already."""
        self._stream.on_change = self._wake
        with suppress(OSError):
            if self._sock.family == socket.AF_UNIX:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
            else:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sent:
            self._up.take(sent)
        self._turn()

    @property
    def refused(self) -> MeshError | None:
        """Why the peer took not all that the program has sent; None where it did."""
        return self._up.refused

    def close(self) -> None:
        """Carry no more; the socket and the stream stay as they are."""
        self._stream.on_change = self._before
        self._up.stop()
        self._down.stop()
        for future in (self.heard, self.told):
            if future.done():
                future.cancelled() or future.exception()  # is asked for, or nothing waits
            else:
                future.cancel()

    def _wake(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self.told.done() and self.heard.done():
            return
        self._up.go_on()
        if self._up.refused is not None and not self.heard.done():
            self.heard.set_result(None)
        if self._down.go_on():
            self._wake()

    def on_program_end(self, error: Exception | None) -> None:
        """Pass on the end of the program's direction."""
        error = error or self._cut
        if error is None and not self._stream.write_end:
            try:
                self._stream.write(b"", fin=True)
            except MeshError as lost:
                self._up.refused = lost
        if error is not None:
            self.fail(error)
        elif not self.heard.done():
            self.heard.set_result(None)

    def on_peer_end(self, error: Exception | None) -> None:
        """Pass on the end of the peer's direction; or end it for a program that takes no more, and hear that out."""
        if error is None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as gone:
                error = gone
        if isinstance(error, MeshError):
            self.told.set_exception(error)
            return
        if isinstance(error, OSError):
            self._cut = None if error.errno in ENDED_BEFORE else error
            self._stream.stop_reading()
        self.told.set_result(None)

    def fail(self, error: Exception) -> None:
        """Carry no more, for an error of the program's side."""
        self._up.stop()
        self._down.stop()
        self._stream.stop_reading()
        for future in (self.heard, self.told):
            if not future.done():
                future.set_exception(error)


@contextmanager
def pumped(
    sock: socket.socket,
    mesh: tuple[MeshReader, MeshWriter],
    tolls: tuple[Toll, Toll],
    ahead: bytes = b"",
    guard: Guard | None = None,
) -> Iterator[Pump]:
    """Give a pump of a stream that has a reader and a writer, which have it back at the end."""
    reader, writer = mesh
    held, reader._held = bytes(reader._held), bytearray()
    pump = Pump(sock, writer._stream, tolls, ahead + held, guard)
    try:
        yield pump
    finally:
        pump.close()
