"""Key files: 0600, written atomically, optionally under a passphrase (argon2id and secretbox)."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from nacl import pwhash, secret, utils
from nacl.exceptions import CryptoError

from meshnode.base.files import write_atomic
from meshnode.base.refusals import refusal
from meshnode.errors import KeyFileError
from meshnode.identity.keys import Identity

PLAIN = b"meshnode-key-1 "
LOCKED = b"meshnode-key-1-locked "
KEY_FORMS = "a key is 64 hex digits, 52 base32 characters, or the contents of a key file without a passphrase"


def save(path: Path, identity: Identity, passphrase: str | None = None) -> None:
    """Write the key to ``path``, mode 0600, in a directory that is made with mode 0700 if there is none.

    With a passphrase the key is encrypted: argon2id (3 passes over 64 MiB) and XSalsa20-Poly1305. Raises KeyFileError.
    """
    if passphrase:
        salt = utils.random(pwhash.argon2id.SALTBYTES)
        box = secret.SecretBox(_stretch(passphrase, salt))
        data = LOCKED + base64.b64encode(salt + bytes(box.encrypt(identity.seed)))
    else:
        data = PLAIN + base64.b64encode(identity.seed)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, data + b"\n")
    except OSError as error:
        reason, hint = refusal(error, path)
        raise KeyFileError(f"cannot write {path}: {reason}", hint=hint) from error


def load(path: Path, passphrase: str | None = None) -> Identity:
    """Read a key.

    A regular file of this user must have no permission for others (mode & 077 is 0); mounted secrets, which have
    another owner, are taken with the mode they have.

    Raises:
        KeyFileError: It is unreadable, readable by others, damaged, or under another passphrase or none given.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes().strip()
    except FileNotFoundError as error:
        raise KeyFileError(f"there is no key in {path.parent}", hint="`meshnode keygen` makes one") from error
    except OSError as error:
        reason, hint = refusal(error, path)
        raise KeyFileError(f"cannot read {path}: {reason}", hint=hint) from error
    if stat.S_ISREG(mode) and mode & 0o077 and os.name == "posix" and os.stat(path).st_uid == os.getuid():
        raise KeyFileError(f"others may read {path}", hint=f"chmod 600 {path}")
    try:
        if data.startswith(LOCKED):
            return _unlock(path, base64.b64decode(data[len(LOCKED) :], validate=True), passphrase)
        return parse_seed_text(data.decode())
    except ValueError as error:
        raise KeyFileError(f"{path} is not a key file", hint="restore it from a backup") from error


def _unlock(path: Path, data: bytes, passphrase: str | None) -> Identity:
    if not passphrase:
        raise KeyFileError(f"{path} needs its passphrase", hint="set MESHNODE_PASSPHRASE")
    salt, sealed = data[: pwhash.argon2id.SALTBYTES], data[pwhash.argon2id.SALTBYTES :]
    try:
        return Identity(secret.SecretBox(_stretch(passphrase, salt)).decrypt(sealed))
    except CryptoError as error:
        raise KeyFileError(f"that passphrase does not open {path}", hint="check MESHNODE_PASSPHRASE") from error


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return pwhash.argon2id.kdf(
        secret.SecretBox.KEY_SIZE,
        passphrase.encode(),
        salt,
        opslimit=pwhash.argon2id.OPSLIMIT_MODERATE,
        memlimit=pwhash.argon2id.MEMLIMIT_INTERACTIVE,
    )


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
    """Return the key that a setting, the environment or a mounted secret holds. Raises KeyFileError."""
    try:
        return parse_seed_text(text)
    except ValueError as error:
        raise KeyFileError("MESHNODE_KEY, MESHNODE_KEY_FILE or key holds no key", hint=KEY_FORMS) from error


def load_or_create(path: Path, passphrase: str | None = None) -> Identity:
    """Read the key at ``path``, or make one there, under ``passphrase`` if there is one. Raises KeyFileError."""
    if path.exists():
        return load(path, passphrase)
    identity = Identity.generate()
    save(path, identity, passphrase)
    return identity
