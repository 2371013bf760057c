"""Where a home's control socket is. AF_UNIX paths hold about 107 bytes, homes may be longer."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from meshnode.base.files import MAX_FOLDER

MAX_UNIX_PATH = 100


def socket_path(home: Path) -> Path:
    """Return the path of a home's control socket: ``HOME/control.sock``, or a short stand-in for a long home.

    The stand-in is under ``XDG_RUNTIME_DIR`` or, without it, the directory for temporary files, in a folder of this
    user; its name follows from the home's path alone. Nothing is made or looked at here.
    """
    path = home / "control.sock"
    return path if len(os.fsencode(path)) <= MAX_UNIX_PATH else stand_in(home)


def stand_in(home: Path) -> Path:
    """Return where the socket of a home is that is too long for one, or on a read-only disk."""
    name = hashlib.blake2b(os.fsencode(home), digest_size=12).hexdigest()
    in_folder = Path(f"meshnode-{os.getuid()}", f"{name}.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = runtime and Path(runtime) / in_folder
    return path if path and len(os.fsencode(path)) <= MAX_UNIX_PATH else _temporary() / in_folder


def _temporary() -> Path:
    """Return the directory for temporary files, the same one whether or not it can be written to at the moment.

    So a node that listens there is found when the disk is full. ``/tmp`` where another one's path is too long.
    """
    named = os.environ.get("TMPDIR", "")
    fits = os.path.isabs(named) and len(os.fsencode(named)) <= MAX_FOLDER and os.path.isdir(named)
    return Path(named if fits else "/tmp")
