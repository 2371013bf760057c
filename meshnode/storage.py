"""What a node keeps on disk: atomic files, and the seq that never goes back."""

from __future__ import annotations

import os
from pathlib import Path

from meshnode.clock import Clock


class SeqSource:
    """Numbers for our own records: strictly increasing over restarts and clock steps.

    Never below the wall clock's milliseconds, and on disk before anyone sees it. Without a path it only
    lives as long as the process. Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._last = 0
        if path is not None and path.exists():
            try:
                self._last = int(path.read_text())
            except ValueError:
                self._last = 0  # the wall clock's milliseconds take over

    def next(self) -> int:
        """Return the next seq."""
        self._last = max(self._last + 1, int(self._clock.wall() * 1000))
        if self._path is not None:
            write_atomic(self._path, str(self._last).encode())
        return self._last


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data`` so that a crash leaves either the old or the new file. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
