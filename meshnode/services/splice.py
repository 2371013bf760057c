"""A TCP or Unix connection carried by a mesh stream: half-close both ways, back-pressure, resets, bounded buffers."""

from __future__ import annotations

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from contextlib import suppress

from meshnode.base.log_lines import rated_logger
from meshnode.base.value import value
from meshnode.errors import MeshError
from meshnode.sdk.pump import Guard, pumped
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.usage import FREE, Toll

log = rated_logger("meshnode.services")

KEEP_ALIVE_S = 15
GONE_S = 5.0  # between looks whether the other end of a half-closed connection is there
LINGER_S = 5.0  # for a program to take what came, before a reset says that not all it has sent was taken
LINGER_LOOK_S = 0.05  # between looks whether it has
UNIX_GONE_LOOKS = 12  # for so many a Unix client was gone: what it has written has had as long as TCP gives (FIN_WAIT2)
TCP_CLOSE = 7  # linux/tcp_states.h
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: closing sends RST

Mesh = tuple[MeshReader, MeshWriter]
Count = Callable[[int], float]


async def paid(toll: Count, size: int) -> None:
    """Wait until bytes may pass."""
    pause = toll(size)
    while pause > 0:
        await asyncio.sleep(pause)
        pause = toll(size)


def end_by_reset(sock: socket.socket | TransportSocket, reset: bool) -> None:
    """Have the kernel end a connection by RST, or by FIN again.

    It does so too when this process is killed.
    """
    with suppress(OSError, ValueError):  # over already; uvloop's socket is without a descriptor then
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))


def _keep_alive(sock: socket.socket | TransportSocket) -> None:
    """Have the kernel ask whether the other end is there (tcp(7)); where it cannot, a dead one is met by writing."""
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_S)


class OtherEnd:
    """The other end of a half-closed connection, which is read no more."""

    def __init__(self, sock: socket.socket | TransportSocket) -> None:
        self._sock = sock
        self._gone = 0
        if sock.family != socket.AF_UNIX:
            _keep_alive(sock)

    def check(self) -> None:
        """Raise ConnectionResetError when it has gone: TCP by the kernel's word, a Unix client for a minute."""
        if self._sock.family == socket.AF_UNIX:
            self._gone = self._gone + 1 if _hung_up(self._sock) else 0
            over = self._gone >= UNIX_GONE_LOOKS
        else:
            over = sys.platform == "linux" and self._tcp_state() == TCP_CLOSE
        if over:
            raise ConnectionResetError("the other end of a half-closed connection has gone")

    async def gone(self) -> None:
        """Look from time to time. Raises ConnectionResetError when it has gone."""
        while True:
            await asyncio.sleep(GONE_S)
            self.check()

    def _tcp_state(self) -> int:
        state: bytes = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return state[0]


def _hung_up(sock: socket.socket | TransportSocket) -> bool:
    """Return whether the peer of a Unix socket has closed it, which is more than that it writes no more."""
    poll = select.poll()
    poll.register(sock, 0)  # what is told unasked: POLLHUP and POLLERR
    return bool(poll.poll(0))


def abort(sock: socket.socket) -> None:
    """End a connection by RST: its other end must not take what it got for the whole.

    A Unix socket has no reset: its other end sees one where something that it wrote was not read, else an EOF.
    """
    end_by_reset(sock, True)
    sock.close()


async def _taken(sock: socket.socket) -> None:
    """Wait until the other end's kernel has all that was written, which a reset would drop; not without end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while _is_under_way(sock):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(LINGER_LOOK_S)


def _is_under_way(sock: socket.socket) -> bool:
    """Return whether the kernel has bytes yet that the other end's has not; a Unix socket's are there at once."""
    if sock.family == socket.AF_UNIX:
        return False
    try:
        return any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))  # tcp(7)
    except OSError:
        return False


@value
class Before:
    """What goes before the bytes of a spliced connection: ``ahead`` to the program, ``sent`` by it; and its guard."""

    ahead: bytes = b""
    sent: bytes = b""
    guard: Guard | None = None


NOTHING = Before()


async def splice(sock: socket.socket, mesh: Mesh, toll: Toll = FREE, before: Before = NOTHING) -> None:
    """Carry bytes both ways until both directions have ended, as fast as ``toll`` lets them, and close both.

    An end of one direction is passed on as such (half-close). Any other end than that of both, an error or the
    cancellation of this task, resets both sides; errors are logged and not raised. Beside the buffers of both ends
    nothing is held, but for one piece that waits for its ``toll``. ``sock`` does not block.
    """
    end_by_reset(sock, True)
    other_end = OtherEnd(sock)
    is_whole = False
    try:
        with pumped(sock, mesh, (toll.into, toll.out), before.ahead, before.guard) as pump:
            pump.begin(before.sent)
            await pump.heard
            while not pump.told.done():
                await asyncio.wait([pump.told], timeout=GONE_S)
                if not pump.told.done():
                    other_end.check()
            await pump.told
            if pump.refused is not None:
                await _taken(sock)  # while what comes is dropped: a program that sends before it reads would wait
                raise pump.refused
        await mesh[1].wait_closed()  # raises when the connection was lost before the peer had everything
        is_whole = True
    except (MeshError, OSError) as error:
        log.debug("a spliced connection ended: %s", error)
        if pump.refused is None and pump.told.done() and not pump.told.cancelled() and pump.told.exception() is None:
            await _taken(sock)
    finally:
        if is_whole:
            end_by_reset(sock, False)
            sock.close()
            mesh[1].close()
        else:
            mesh[1].reset()
            abort(sock)
