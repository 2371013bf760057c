"""Descriptors: the last ones are kept for some uses, and sockets that had an error are watched on.

The last ones are for the control socket, for moves and for state files. uvloop watches no socket any more that had an
error (libuv stops at POLLERR): netlink when it had more events than room, any socket that the system has ended
(SOCK_DESTROY, as by ``ss -K``, or by a VPN that begins).
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from meshnode.base.limits import ACCEPT_PAUSE_S, RESERVED_DESCRIPTORS
from meshnode.base.metrics import Metrics, describe

UDP_ENDED = describe("udp_ended", "times that the system had ended a UDP socket of a forward, the proxy or DNS")

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def is_reserved(sock: socket.socket) -> bool:
    """True when a socket has one of the last descriptors of this process: the kernel gives the lowest that is free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and sock.fileno() >= limit - min(RESERVED_DESCRIPTORS, limit // 4)


def unreserved(sock: socket.socket) -> socket.socket:
    """Return a socket that others make this node open; one that has a reserved descriptor is closed: OSError."""
    if is_reserved(sock):
        sock.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return sock


def watch_on(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, on_readable: Callable[..., object], *args: Any
) -> None:
    """Have ``on_readable`` called on for a socket that had an error."""
    loop.remove_reader(sock)
    loop.add_reader(sock, on_readable, *args)


def bound_again(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, name: Any, error: OSError, metrics: Metrics
) -> None:
    """Bind a UDP socket where it was if the error is that the system has ended it.

    One whose port was asked for is still bound. One that the kernel chose a port for has lost it, perhaps to another
    program: it is deaf then, and tries again until it is closed.
    """
    if error.errno == errno.ECONNABORTED:
        metrics.count(UDP_ENDED)
        _bind(loop, sock, name)


def _bind(loop: asyncio.AbstractEventLoop, sock: socket.socket, name: Any) -> None:
    try:
        sock.bind(name)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # it is bound still, or closed
            loop.call_later(ACCEPT_PAUSE_S, _bind, loop, sock, name)
