"""Files with a mesh's secret key: 0600, so that it stands in no argument, history or process list."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

from meshnode.base.files import create_secret, read_given
from meshnode.base.refusals import refusal
from meshnode.errors import ConfigError, KeyFileError

log = logging.getLogger("meshnode.config")

KEY_PREFIX = "mk-"
KEY_LENGTH = 32
MAX_MESH_FILE = 1_024  # bytes; the key has 55 characters
IS_FILE = "@"  # before the name of a file, in the setting ``mesh``


def make_mesh_key(path: Path, *, replace: bool = False) -> None:
    """Write a new key to ``path``, mode 0600.

    Raises KeyFileError: there is a file already, or it cannot be written.
    """
    import secrets

    text = mesh_key_text(secrets.token_bytes(KEY_LENGTH))
    try:
        create_secret(path, text.encode() + b"\n", replace=replace)
    except FileExistsError as error:
        hint = "name another file" if replace else f"use it: --mesh {IS_FILE}{path}; --force would replace it"
        raise KeyFileError(f"{path} exists already", hint=hint) from error
    except OSError as error:
        reason, hint = refusal(error, path)
        raise KeyFileError(f"cannot write {path}: {reason}", hint=hint) from error


def read_mesh_key(path: Path) -> str:
    """Return the key in a file, ``mk-...``; a file that other users may read is warned of. Raises ConfigError.

    It is never the name of a mesh: a file that is empty or another one must lead into no open mesh.
    """
    try:
        data, mode = read_given(path, MAX_MESH_FILE + 1)
    except OSError as error:
        reason, hint = refusal(error, path)
        raise ConfigError(f"cannot read the mesh key in {path}: {reason}", hint=hint) from error
    text = data.decode("ascii", "replace").strip()
    if not text.startswith(KEY_PREFIX) or len(data) > MAX_MESH_FILE:
        raise ConfigError(f"{path} holds no mesh key", hint="`meshnode keygen --mesh FILE` makes one")
    if mode & 0o077:
        log.warning("others may read the mesh key: chmod 600 %s", path)
    return text


def mesh_key_text(raw: bytes) -> str:
    """Return a key as files and settings have it."""
    return KEY_PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()


def mesh_key_bytes(text: str) -> bytes:
    """Return the 32 bytes of such a text. Raises ConfigError."""
    try:
        raw = base64.b32decode(text[len(KEY_PREFIX) :].upper() + "====")
    except ValueError as error:
        raise ConfigError("the mesh key is damaged", hint="copy it again, all of it") from error
    if len(raw) != KEY_LENGTH or not text.startswith(KEY_PREFIX):
        raise ConfigError("the mesh key is damaged", hint="copy it again, all of it")
    return raw
