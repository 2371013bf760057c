"""Where a home's control socket is. AF_UNIX paths hold about 107 bytes, homes may be longer."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from meshnode.base.refusals import as_user, user_name

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
    return why_open(path) is None


def why_open(path: Path) -> tuple[str, str] | None:
    """Return how another user could put a socket at ``path``, and what to do about it; None when none can."""
    folder = path.parent
    try:
        found = folder.stat()
    except OSError:
        return None  # there is no folder, so there is no socket of another user
    if found.st_uid != os.getuid():
        return f"{folder} belongs to user {user_name(found.st_uid)}", as_user(found.st_uid, folder)
    if found.st_mode & 0o022:
        mode = f"{found.st_mode & 0o777:o}"
        return f"others may write in {folder} (mode {mode}), so its socket is not safe", f"chmod 700 {folder}"
    return None
