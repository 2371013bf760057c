"""The lock of a node's home."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from meshnode.base.files import is_volume, make_private, open_lock, remove_temporary, why_unsafe
from meshnode.base.forks import close_in_child
from meshnode.base.refusals import refusal
from meshnode.errors import AlreadyRunning, ConfigError

log = logging.getLogger("meshnode.node")

LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # flock(2) at a file system that has no locks


class HomeLock:
    """Lock of a home directory, which is made (0700) if need be; keeps other processes out until released.

    Nothing is written before it is clear that the directory is this user's own. Raises AlreadyRunning, ConfigError.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        try:
            make_private(home)
        except OSError as error:
            reason, hint = refusal(error, home)
            raise ConfigError(f"cannot use {home}: {reason}", hint=hint) from error
        if (unsafe := why_unsafe(home)) is not None:
            raise ConfigError(unsafe[0], hint=unsafe[1])
        if is_volume(home):
            log.warning("%s is a volume that others may write in: they can replace this node's key", home)
        lock = home / "lock"
        try:
            if lock.is_dir():
                log.warning("%s is a directory: it is set aside", lock)
                os.replace(lock, lock.with_name(f"lock.damaged-{os.getpid()}"))
            fd = open_lock(lock)
        except OSError as error:
            raise _no_lock(home, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise AlreadyRunning(
                    f"a node runs in {home} already", hint="use another --home, or stop that one"
                ) from error
            raise _no_lock(home, error) from error
        self._file = os.fdopen(fd, "rb")
        close_in_child(self._file)
        remove_temporary(home)

    def release(self) -> None:
        """Let others in; safe to call twice.

        The file stays: to delete it would let two processes hold locks on different files of that name.
        """
        self._file.close()


def _no_lock(home: Path, error: OSError) -> ConfigError:
    """Return why a home cannot be locked, and what to do about it."""
    if error.errno in LOCKLESS:
        hint = "choose a --home on a disk of this host; a network file system (NFS) needs its lock service"
        return ConfigError(f"cannot lock {home}: its file system gives no locks", hint=hint)
    reason, hint = refusal(error, home / "lock")
    return ConfigError(f"cannot lock {home}: {reason}", hint=hint)
