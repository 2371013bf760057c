"""Unix sockets that a forward listens at: for this user alone, and never in the place of one that is in use."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress

from meshnode.errors import AddressInUse

OWNER_ONLY = 0o600
Inode = tuple[int, int]


class UnixListener:
    """A listening Unix socket in the file system."""

    def __init__(self, path: str, backlog: int) -> None:
        """Listen at a path; a socket file at which nothing listens any more is replaced.

        Raises:
            AddressInUse: A program listens there, it is a file of another kind, or no socket can be made there.
        """
        self.path = path
        try:
            with _Folder(path):
                _clear(path)
                self.socket = _bound(path)
            self._inode: Inode = _inode(os.lstat(path))
            self.socket.listen(backlog)
        except AddressInUse:
            raise
        except OSError as error:
            words = (error.strerror or str(error)).lower()
            hint = "choose a path in a folder that this user may write to"
            raise AddressInUse(f"cannot listen on unix:{path}: {words}", hint=hint) from error

    def remove(self) -> None:
        """Remove the file, unless another program has put its own there. Does not close the socket."""
        with suppress(OSError), _Folder(self.path):
            if _inode(os.lstat(self.path)) == self._inode:
                os.unlink(self.path)


class _Folder:
    """A lock on the folder of a path: two nodes that look at one socket file at once would each replace it."""

    def __init__(self, path: str) -> None:
        self._path = os.path.dirname(path)

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(errno.EBUSY, "another program holds its folder") from error
            raise

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def _inode(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino


def _clear(path: str) -> None:
    """Remove a socket file at which nothing listens. Raises AddressInUse, OSError."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressInUse(
            f"cannot listen on unix:{path}: there is a file that is no socket", hint="choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # it listens, and its backlog is full
    raise AddressInUse(f"cannot listen on unix:{path}: another program listens there", hint="choose another path")


def _bound(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with suppress(OSError):  # Linux makes the file with the mode of the socket: no moment with another one
            os.fchmod(sock.fileno(), OWNER_ONLY)
        sock.bind(path)
        os.chmod(path, OWNER_ONLY)
    except BaseException:
        sock.close()
        raise
    return sock
