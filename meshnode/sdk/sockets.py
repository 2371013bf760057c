"""A mesh stream as a connected socket of the operating system, for code that takes nothing else.

The program has one end of a pair of Unix sockets, this module carries the other one's bytes. Such a pair carries data,
back-pressure and half-close as TCP does, but no reset of its own: the kernel reports ECONNRESET only to an end whose
peer closes before it has read everything. So before a reset a byte is put there that this module never reads. A
program that has ended its direction could not be sent that byte any more; hence ``MeshSocket.shutdown`` leaves the
direction open in the kernel until that byte is in place.
"""

from __future__ import annotations

import asyncio
import select
import socket
import weakref
from contextlib import suppress

from meshnode.base.forks import close_in_child
from meshnode.identity.node_id import NodeId
from meshnode.quic.stream import Stream
from meshnode.sdk.asyncio_transport import ProtocolTransport

UNREAD = b"\0"  # what is left unread when the peer's end was lost


class MeshSocket(socket.socket):
    """One end of a pair of Unix sockets, whose other end is a service of a peer: a ``socket.socket`` like any other.

    Attributes:
        peer: The node at the other end.
        service: The service's name.
    """

    peer: NodeId
    service: str
    _bridge: _Bridge

    def shutdown(self, how: int) -> None:
        """End the sending direction (``SHUT_WR``), the receiving one (``SHUT_RD``) or both.

        Args:
            how: As for every socket. The peer sees the end of the sending direction behind all that was sent.
        """
        if how == socket.SHUT_RD or not self._bridge.end_writing():
            super().shutdown(how)
        elif how == socket.SHUT_RDWR:
            super().shutdown(socket.SHUT_RD)


class _Bridge:
    """Carries bytes between a Unix socket and a mesh stream, each with a transport of asyncio."""

    def __init__(self, inner: socket.socket, outer: MeshSocket) -> None:
        self.inner = inner
        self.local: asyncio.Transport
        self.mesh: asyncio.Transport
        self._outer = weakref.ref(outer)
        self._loop = asyncio.get_running_loop()
        self._ends_writing = False  # the program has called shutdown, and not all of what it sent is read
        self._is_marked = False  # ``UNREAD`` is in place
        self._heard_all = self._told_all = False  # of the program, and to it

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
        if not self._ends_writing or self._heard_all or self.inner.fileno() < 0:
            return
        try:
            if self.inner.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            pass
        except OSError:
            return  # the transport meets it too
        self.local.pause_reading()
        self._mark()
        with suppress(OSError):
            self.inner.shutdown(socket.SHUT_RD)  # what the program still writes is EPIPE
        self.on_local_eof()

    def read_on(self) -> None:
        """Read the program again, unless it has ended its direction: what is left there is ``UNREAD``."""
        if not self._heard_all and not self.local.is_closing():
            self.local.resume_reading()

    def _mark(self) -> None:
        """Put a byte where this end will not have read it."""
        outer = self._outer()
        if self._is_marked or outer is None or outer.fileno() < 0:
            return
        if not _polled(outer, select.POLLOUT) & select.POLLOUT:
            return  # something is unread already; to send would wait for as long as the program's timeout
        with suppress(OSError):  # closed meanwhile
            outer.send(UNREAD, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._is_marked = True

    def on_local_eof(self) -> None:
        """Pass on the end of the program's direction, or of both when it has closed its socket."""
        self._heard_all = True
        if not self._is_marked and _hung_up(self.inner):
            self.mesh.close()
            self.local.close()
            return
        self.mesh.write_eof()
        self._end_if_whole()

    # ---- the peer

    def on_mesh_eof(self) -> None:
        """Pass on the end of the peer's direction."""
        self._told_all = True
        self.local.write_eof()
        self._end_if_whole()

    def _end_if_whole(self) -> None:
        if self._heard_all and self._told_all:
            self.mesh.close()

    def on_mesh_lost(self, error: Exception | None) -> None:
        """End the program's socket: cleanly, or by a reset."""
        if error is None:
            if self._is_marked:
                with suppress(OSError):
                    self.inner.recv(1, socket.MSG_DONTWAIT)
            self.local.close()
        elif not self.local.is_closing():
            self.local.pause_reading()
            self._mark()
            self.local.abort()


class _Local(asyncio.Protocol):
    """The end of this module in the pair."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def data_received(self, data: bytes) -> None:
        self._bridge.mesh.write(data)
        self._bridge.after_data()

    def eof_received(self) -> bool:
        self._bridge.on_local_eof()
        return True

    def pause_writing(self) -> None:
        self._bridge.mesh.pause_reading()

    def resume_writing(self) -> None:
        self._bridge.mesh.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._bridge.mesh.abort()


class _Mesh(asyncio.Protocol):
    """The end of the stream."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def data_received(self, data: bytes) -> None:
        self._bridge.local.write(data)

    def eof_received(self) -> bool:
        self._bridge.on_mesh_eof()
        return True

    def pause_writing(self) -> None:
        self._bridge.local.pause_reading()

    def resume_writing(self) -> None:
        self._bridge.read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bridge.on_mesh_lost(exc)


def _polled(sock: socket.socket, events: int) -> int:
    """Return which of these events a socket has now, and POLLHUP and POLLERR, which are told unasked."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(0)
    return found[0][1] if found else 0


def _hung_up(sock: socket.socket) -> bool:
    """Return whether the other end of a Unix socket is closed, which is more than that it writes no more."""
    return bool(_polled(sock, 0))


async def as_socket(stream: Stream, ends: tuple[NodeId, NodeId]) -> MeshSocket:
    """Return the program's end of a pair that carries the stream.

    Raises OSError when no descriptor is left.
    """
    loop = asyncio.get_running_loop()
    try:
        inner, other = socket.socketpair()
    except OSError:
        stream.reset()
        raise
    inner.setblocking(False)
    close_in_child(inner)
    outer = MeshSocket(other.family, other.type, other.proto, fileno=other.detach())
    outer.peer, outer.service = ends[1], stream.service
    bridge = outer._bridge = _Bridge(inner, outer)
    try:
        bridge.local = (await loop.create_unix_connection(lambda: _Local(bridge), sock=inner))[0]
    except BaseException:
        stream.reset()
        inner.close()
        outer.close()
        raise
    bridge.mesh = ProtocolTransport(stream, ends, lambda: _Mesh(bridge))
    return outer
