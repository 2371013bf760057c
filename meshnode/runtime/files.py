"""Files in a node's home: the lock, the record's seq, and the DHT contacts that find the mesh without a seed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from meshnode.base.address import Addr, is_dialable, pack_addr, unpack_addr
from meshnode.base.clock import Clock
from meshnode.base.files import write_atomic
from meshnode.base.forks import close_in_child
from meshnode.base.limits import MAX_SAVED_CONTACTS
from meshnode.base.refusals import refusal
from meshnode.base.wire import decode, encode
from meshnode.errors import AlreadyRunning, ConfigError
from meshnode.identity.node_id import NodeId

log = logging.getLogger("meshnode.node")

MAX_FILE = 64 * MAX_SAVED_CONTACTS + 64


class HomeLock:
    """Lock of a home directory, which is made (0700) if need be; keeps other processes out until released.

    Raises AlreadyRunning, ConfigError.
    """

    def __init__(self, home: Path) -> None:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason, hint = refusal(error, home)
            raise ConfigError(f"cannot use {home}: {reason}", hint=hint) from error
        fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise AlreadyRunning(
                    f"a node runs in {home} already", hint="use another --home, or stop that one"
                ) from error
            raise
        self._file = os.fdopen(fd, "rb")
        close_in_child(self._file)

    def release(self) -> None:
        """Let others in; safe to call twice.

        The file stays: to delete it would let two processes hold locks on different files of that name.
        """
        self._file.close()


class SeqSource:
    """Numbers for our own records: strictly increasing over restarts and clock steps.

    Never below the wall clock's milliseconds, and on disk before it is used. Where the disk is full or read-only, or
    descriptors have run out, a number is given all the same, with one warning: a node that moves must be found. Without
    a path it only lives as long as the process.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._last = 0
        self._unsaved = False
        if path is not None and path.exists():
            try:
                self._last = int(path.read_text())
            except ValueError:
                self._last = 0  # the wall clock's milliseconds take over

    def next(self) -> int:
        """Return the next seq, which is on disk by then if there is a path that can be written.

        It is the wall clock in milliseconds, or one more than the last one where the clock stands behind that.
        """
        self._last = max(self._last + 1, int(self._clock.wall() * 1000))
        if self._path is not None:
            try:
                write_atomic(self._path, str(self._last).encode())
                self._unsaved = False
            except OSError as error:
                if not self._unsaved:
                    log.warning("cannot save the record's number (%s): it is published unsaved", error)
                self._unsaved = True
        return self._last


def save_contacts(path: Path, contacts: list[tuple[NodeId, Addr]]) -> None:
    """Write at most ``MAX_SAVED_CONTACTS`` contacts. Raises OSError."""
    write_atomic(path, encode([[bytes(peer), pack_addr(addr)] for peer, addr in contacts[:MAX_SAVED_CONTACTS]]))


def load_contacts(path: Path) -> list[tuple[NodeId, Addr]]:
    """Read what ``save_contacts`` wrote; a missing or damaged file means none."""
    try:
        items = decode(path.read_bytes(), MAX_FILE)
        found = [(NodeId(raw), unpack_addr(packed)) for raw, packed in items]
    except (OSError, ValueError, TypeError):
        return []
    return [(peer, addr) for peer, addr in found if is_dialable(addr)]
