"""A mesh stream as a connected socket of the operating system, for code that takes nothing else.

The program has one end of a pair of Unix sockets, this module carries the other one's bytes. Such a pair carries data,
back-pressure and half-close as TCP does, but no reset of its own: the kernel reports ECONNRESET only to an end whose
peer closes before it has read everything. So before a reset a byte is put there that this module never reads. A
program that has ended its direction could not be sent that byte any more; hence ``MeshSocket.shutdown`` leaves the
direction open in the kernel until that byte is in place.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from meshnode.base.forks import close_in_child
from meshnode.errors import MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.buffers import Marks
from meshnode.quic.stream import Stream
from meshnode.sdk.pump import UNIX_BUFFER, OnEnd, Pump, ToSocket, ToStream, free

UNREAD = b"\0"  # what is left unread when the peer's end was lost
LOOK_S = 5.0  # between looks whether a program that has ended its direction has closed its socket since


class MeshSocket(socket.socket):
    """One end of a pair of Unix sockets, whose other end is a service of a peer: a ``socket.socket`` like any other.

    Attributes:
        peer: The node at the other end.
        service: The service's name.
    """

    peer: NodeId
    service: str
    _bridge: _Bridge

    def dup(self) -> Self:
        """Return another socket of the same end.

        Returns:
            A socket like this one. The stream is ended when both are closed.
        """
        other = super().dup()
        other.peer, other.service, other._bridge = self.peer, self.service, self._bridge
        self._bridge.outers.append(weakref.ref(other))
        return other

    def shutdown(self, how: int) -> None:
        """End the sending direction (``SHUT_WR``), the receiving one (``SHUT_RD``) or both.

        Args:
            how: As for every socket. The peer sees the end of the sending direction behind all that was sent.
        """
        if how == socket.SHUT_RD or not self._bridge.end_writing():
            super().shutdown(how)
        elif how == socket.SHUT_RDWR:
            super().shutdown(socket.SHUT_RD)


class _FromProgram(ToStream):
    """Carries what the program sends; ``after`` is called when that was taken."""

    def __init__(self, sock: socket.socket, stream: Stream, after: Callable[[], None], on_end: OnEnd) -> None:
        super().__init__(sock, stream, free, None, on_end)
        self._after = after

    def take(self, data: memoryview | bytes) -> None:
        """Pass on what the program has sent."""
        super().take(data)
        if data:
            self._after()


class _Bridge(Pump):
    """Carries bytes between the pair's other end and a stream, and ends both as TCP would.

    Attributes:
        ended: Is set when it carries no more, and its end of the pair is closed.
        outers: The program's sockets: one, and its duplicates.
    """

    def __init__(self, inner: socket.socket, outer: MeshSocket, stream: Stream) -> None:
        up = _FromProgram(inner, stream, self.after_data, self.on_program_end)
        self._join(inner, stream, up, ToSocket(inner, stream, free, b"", self.on_peer_end))
        self.ended = asyncio.Event()
        self.outers = [weakref.ref(outer)]
        self._ends_writing = False  # the program has called shutdown, and not all of what it sent is read
        self._is_marked = False  # ``UNREAD`` is in place
        self._is_closing = False  # nothing is carried any more, but the peer may not have everything yet
        self._look: asyncio.TimerHandle | None = None

    # ---- the program

    def end_writing(self) -> bool:
        """End the program's direction, from any thread; False when the loop is over."""
        try:
            self._loop.call_soon_threadsafe(self._on_shutdown)
        except RuntimeError:
            return False
        return True

    def _on_shutdown(self) -> None:
        self._ends_writing = True
        self.after_data()

    def after_data(self) -> None:
        """End the direction when the program has said so and everything was read."""
        if not self._ends_writing or self.heard.done() or self.ended.is_set():
            return
        try:
            if self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            pass
        except OSError:
            return  # the next read meets it too
        self._mark()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # what the program still writes is EPIPE
        self._up.end(None)

    def _mark(self) -> None:
        """Put a byte where this end will not have read it."""
        found = (ref() for ref in self.outers)
        outer = next((each for each in found if each is not None and each.fileno() >= 0), None)
        if self._is_marked or outer is None:
            return
        if not _polled(outer, select.POLLOUT) & select.POLLOUT:
            return  # something is unread already
        with suppress(OSError):  # closed meanwhile; or filled by another thread, and then something is unread too
            _send_at_once(outer, UNREAD)
            self._is_marked = True

    def on_program_end(self, error: Exception | None) -> None:
        """Pass on the end of the program's direction, or of both when it has closed its socket."""
        if error is not None:
            self.fail(error)
        elif not self._is_marked and _hung_up(self._sock):
            self._close()
            self._sock.close()
        else:
            super().on_program_end(None)
            self._close_if_whole()
            self._look_later()

    def _look_later(self) -> None:
        """Look from time to time, for a program that has ended its direction: its socket is read no more."""
        if not self._is_closing and not self.ended.is_set():
            self._look = self._loop.call_later(LOOK_S, self._on_look)

    def _on_look(self) -> None:
        if _hung_up(self._sock):
            self._close()
        self._look_later()

    # ---- the peer

    def on_peer_end(self, error: Exception | None) -> None:
        """Pass on the end of the peer's direction; as a reset where it was lost, or did not take all that was sent."""
        lost = self.refused or (error if isinstance(error, MeshError) else None)
        if lost is not None:
            self._end(lost)
            return
        super().on_peer_end(error)
        self._close_if_whole()

    def _close_if_whole(self) -> None:
        if self.heard.done() and self.told.done():
            self._close()

    def _close(self) -> None:
        """Carry no more, and end when the peer has everything."""
        stream = self._stream
        if self._is_closing or self.ended.is_set():
            return
        self._is_closing = True
        self._up.stop()
        self._down.stop()
        if not stream.write_end and stream.error is None:
            stream.write(b"", fin=True)
        stream.stop_reading()
        stream.marks = Marks(0, stream.marks.high)
        self._wake()

    def _turn(self) -> None:
        self._is_scheduled = False
        stream = self._stream
        if self.ended.is_set():
            return
        if self._is_closing:
            if stream.error is not None or not stream.queued:
                self._end(stream.error)
            else:
                stream.await_low()
        elif self.told.done() and (lost := stream.error or self.refused) is not None:
            self._end(lost)
        else:
            super()._turn()

    def fail(self, error: Exception) -> None:
        """End the program's socket by a reset, and the stream."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        if self._look is not None:
            self._look.cancel()
        self.close()
        self._stream.reset()
        if error is not None:
            self._mark()
        elif self._is_marked:
            with suppress(OSError):
                self._sock.recv(1, socket.MSG_DONTWAIT)
        self._sock.close()


def _polled(sock: socket.socket, events: int) -> int:
    """Return which of these events a socket has now, and POLLHUP and POLLERR, which are told unasked."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(0)
    return found[0][1] if found else 0


def _send_at_once(sock: socket.socket, data: bytes) -> None:
    """Send without waiting: a socket with a timeout waits that long, whatever the flags, for a thread that fills it.

    Raises OSError.
    """
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    number = sock.fileno()
    try:
        own = os.dup(number) if sock.gettimeout() else -1
    except OSError:  # no descriptor is left
        own = -1
    if own < 0:
        sock.send(data, flags)
        return
    try:
        other = socket.socket(sock.family, sock.type | socket.SOCK_NONBLOCK, sock.proto, fileno=own)
    except BaseException:
        os.close(own)
        raise
    with other:
        if sock.fileno() == number:  # it was not closed meanwhile: the copy is of no other file
            other.send(data, flags)


def _hung_up(sock: socket.socket) -> bool:
    """Return whether the other end of a Unix socket is closed, which is more than that it writes no more."""
    return bool(_polled(sock, 0))


async def as_socket(stream: Stream, ends: tuple[NodeId, NodeId]) -> MeshSocket:
    """Return the program's end of a pair that carries the stream.

    Raises OSError when no descriptor is left.
    """
    try:
        inner, other = socket.socketpair()
    except OSError:
        stream.reset()
        raise
    inner.setblocking(False)
    close_in_child(inner)
    outer = MeshSocket(other.family, other.type, other.proto, fileno=other.detach())
    outer.peer, outer.service = ends[1], stream.service
    with suppress(OSError):
        outer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
    outer._bridge = _Bridge(inner, outer, stream)
    outer._bridge.begin()
    return outer
