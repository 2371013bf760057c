"""Atomic replacement of files."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` with ``data`` so that a crash leaves either the old or the new file.

    Args:
        path: The file; its directory must exist, and gets a hidden temporary file for the moment.
        data: All of the new contents, on the disk (fsync) before the old ones go.
        mode: Permissions, subject to the umask.

    Raises:
        OSError: Nothing was changed, and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.filename is None:  # write and fsync do not say which file
            error.filename = str(path)
        raise
