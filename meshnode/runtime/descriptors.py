"""The last descriptors of this process, which are kept for the control socket, for moves and for state files."""

from __future__ import annotations

import errno
import os
import resource
import socket

from meshnode.base.limits import RESERVED_DESCRIPTORS

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
