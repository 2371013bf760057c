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
from meshnode.quic.stream import Stream
from meshnode.sdk.pump import Guard, Pump, pumped
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.services.usage import FREE, Toll

log = rated_logger("meshnode.services")

KEEP_ALIVE_S = 15
GONE_S = 5.0  # between looks whether the other end of a half-closed connection is there
LINGER_S = 5.0  # without anything taken of what a reset would drop, until the reset is sent all the same
LINGER_LOOKS_S = 0.001, 0.05  # between looks whether it was: at first, and at most
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


async def _taken(left: Callable[[], int]) -> None:
    """Wait until nothing is left of what a reset would drop, as long as it becomes less."""
    loop = asyncio.get_running_loop()
    pause, most = LINGER_LOOKS_S
    least, since = left(), loop.time()
    while least and loop.time() - since < LINGER_S:
        await asyncio.sleep(pause)
        pause = min(2 * pause, most)
        if (now := left()) < least:
            least, since = now, loop.time()


def _under_way(sock: socket.socket) -> int:
    """Return the bytes that the kernel has and the other end's has not; a Unix socket's are there at once."""
    if sock.family == socket.AF_UNIX:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)  # tcp(7)
    except OSError:
        return 0


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
    cancellation of this task, resets both sides, behind what has come of the side that ended so; errors are logged and
    not raised. Beside the buffers of both ends nothing is held, but for one piece that waits for its ``toll``. ``sock``
    does not block.
    """
    end_by_reset(sock, True)
    other_end, stream = OtherEnd(sock), mesh[1]._stream
    is_whole = False
    try:
        with pumped(sock, mesh, (toll.into, toll.out), before.ahead, before.guard) as pump:
            try:
                pump.begin(before.sent)
                await _carried(pump, other_end, stream)
            except MeshError:  # meanwhile what comes is dropped: a program that sends before it reads would wait
                await _taken(lambda: _under_way(sock))
                raise
            except OSError:
                await _taken(lambda: stream.queued)
                raise
        try:
            await mesh[1].wait_closed()  # raises when the connection was lost before the peer had everything
        except MeshError:
            await _taken(lambda: _under_way(sock))
            raise
        is_whole = True
    except (MeshError, OSError) as error:
        log.debug("a spliced connection ended: %s", error)
    finally:
        if is_whole:
            end_by_reset(sock, False)
            sock.close()
            mesh[1].close()
        else:
            mesh[1].reset()
            abort(sock)


async def _carried(pump: Pump, other_end: OtherEnd, stream: Stream) -> None:
    """Wait until both directions have ended.

    Raises OSError when the program has cut its own off or is gone; MeshError when the peer has, or takes no more.
    """
    await pump.heard
    left = 0
    while not pump.told.done():
        await asyncio.wait([pump.told], timeout=GONE_S)
        if pump.told.done():
            break
        other_end.check()
        if stream.error is not None and not stream.fin_received and stream.unread.size == left:
            raise stream.error  # the program does not take what has come of a stream that is lost
        left = stream.unread.size
    await pump.told
    if pump.refused is not None:
        raise pump.refused
