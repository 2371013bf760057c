"""Where a home's control socket is. AF_UNIX paths hold about 107 bytes, homes may be longer."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

MAX_UNIX_PATH = 100


def socket_path(home: Path) -> Path:
    """Return ``HOME/control.sock``, or a short stand-in under a private runtime directory for a long home."""
    path = home / "control.sock"
    if len(os.fsencode(path)) <= MAX_UNIX_PATH:
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    name = hashlib.blake2b(os.fsencode(home), digest_size=12).hexdigest()
    return Path(runtime) / f"meshnode-{os.getuid()}" / f"{name}.sock"


def is_private(path: Path) -> bool:
    """Return True when no other user can put a socket at ``path``.

    That is so when this user owns its folder and alone can write there.
    """
    try:
        found = path.parent.stat()
    except OSError:
        return True  # there is no folder, so there is no socket of another user
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
