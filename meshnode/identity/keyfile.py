"""Key files: 0600, written atomically, optionally under a passphrase (argon2id and secretbox)."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from meshnode.base.files import is_volume, make_private, read_given, why_unsafe, write_atomic
from meshnode.base.limits import MAX_SETTINGS
from meshnode.base.refusals import in_shell, refusal, user_name
from meshnode.errors import KeyFileError
from meshnode.identity.keys import Identity
from meshnode.identity.price import make_identity as make_identity

PLAIN = b"meshnode-key-1 "
LOCKED = b"meshnode-key-1-locked "
KEY_FORMS = "a key is 64 hex digits, 52 base32 characters, or the contents of a key file without a passphrase"


def save(path: Path, identity: Identity, passphrase: str | None = None) -> None:
    """Write the key to ``path``, mode 0600, in a directory that is made with mode 0700 if there is none.

    With a passphrase the key is encrypted: argon2id (3 passes over 64 MiB) and XSalsa20-Poly1305. Raises KeyFileError.
    """
    if passphrase:
        from meshnode.identity.passphrase import lock  # few keys are locked, and every start would load it

        data = LOCKED + base64.b64encode(lock(identity.seed, passphrase))
    else:
        data = PLAIN + base64.b64encode(identity.seed)
    write_secret(path, data + b"\n")


def write_secret(path: Path, data: bytes) -> None:
    """Write a file (0600) into a directory of this user's own, made (0700) if there is none.

    Raises KeyFileError.
    """
    try:
        make_private(path.parent)
        unsafe = why_unsafe(path.parent)
        if unsafe is None:
            write_atomic(path, data)
    except OSError as error:
        reason, hint = refusal(error, path)
        raise KeyFileError(f"cannot write {path}: {reason}", hint=hint) from error
    if unsafe is not None:
        raise KeyFileError(f"cannot write {path}: {unsafe[0]}", hint=unsafe[1])


def is_locked(path: Path) -> bool:
    """Return whether a key file needs a passphrase; False where there is none that can be read."""
    try:
        return read_given(path, MAX_SETTINGS)[0].startswith(LOCKED)
    except OSError:
        return False


def load(path: Path, passphrase: str | None = None, variable: str = "MESHNODE_PASSPHRASE") -> Identity:
    """Read a key; ``variable`` is where the passphrase comes from, for what an error says.

    A regular file of this user must have no permission for others (mode & 077 is 0); mounted secrets, which have
    another owner, are taken with the mode they have. In a volume that others may write in that owner is root.

    Raises:
        KeyFileError: It is unreadable, readable by others, damaged, or under another passphrase or none given.
    """
    try:
        found = path.stat()
        data = read_given(path, MAX_SETTINGS)[0].strip()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise KeyFileError(
                f"{path} is a link to {os.readlink(path)}, where there is no file",
                hint="mount the secret that it means, or remove the link for a new key",
            ) from error
        raise KeyFileError(f"there is no key in {path.parent}", hint="`meshnode keygen` makes one") from error
    except OSError as error:
        reason, hint = refusal(error, path)
        raise KeyFileError(f"cannot read {path}: {reason}", hint=hint) from error
    if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077 and found.st_uid == os.geteuid():
        raise KeyFileError(f"others may read {path}", hint=f"chmod 600 {in_shell(path)}")
    if found.st_uid not in (0, os.geteuid()) and is_volume(path.parent):
        raise KeyFileError(f"{path} belongs to user {user_name(found.st_uid)}", hint="is it yours? remove it, if not")
    try:
        if data.startswith(LOCKED):
            return _unlock(path, base64.b64decode(data[len(LOCKED) :], validate=True), passphrase, variable)
        return parse_seed_text(data.decode())
    except ValueError as error:
        raise KeyFileError(f"{path} is not a key file", hint="restore it from a backup") from error


def _unlock(path: Path, data: bytes, passphrase: str | None, variable: str) -> Identity:
    if not passphrase:
        raise KeyFileError(f"{path} needs its passphrase", hint=f"set {variable}")
    from meshnode.identity.passphrase import unlock

    seed = unlock(data, passphrase)
    if seed is None:
        raise KeyFileError(f"that passphrase does not open {path}", hint=f"check {variable}")
    return Identity(seed)


def parse_seed_text(text: str) -> Identity:
    """Return the identity of a seed from an environment variable or a mounted secret.

    That is 64 hex digits, 52 base32 characters, or the contents of a key file without a passphrase; white space around
    it is dropped. Raises ValueError for anything else.
    """
    text = text.strip()
    plain = PLAIN.decode()
    if text.startswith(plain):
        return Identity(base64.b64decode(text[len(plain) :], validate=True))
    if len(text) == 64:
        return Identity(bytes.fromhex(text))
    if len(text) == 52:
        return Identity(base64.b32decode(text.upper() + "===="))
    raise ValueError(f"{len(text)} characters")


def given_key(text: str) -> Identity:
    """Return the key that a setting, the environment or a mounted secret holds.

    Raises KeyFileError.
    """
    try:
        return parse_seed_text(text)
    except ValueError as error:
        raise KeyFileError("MESHNODE_KEY, MESHNODE_KEY_FILE or key holds no key", hint=KEY_FORMS) from error


def load_or_create(path: Path, passphrase: str | None = None, new: Identity | None = None) -> Identity:
    """Read the key at ``path``, or save ``new`` there, or one that is made, under ``passphrase`` if there is one.

    A link that leads nowhere, as to a secret that is not mounted yet, is no reason for a new identity. Raises
    KeyFileError.
    """
    if os.path.lexists(path):
        return load(path, passphrase)
    identity = new or make_identity()
    save(path, identity, passphrase)
    return identity
