"""A secret under a passphrase: argon2id (3 passes over 64 MiB) and XSalsa20-Poly1305."""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.utils import random

from meshnode.errors import KeyFileError


def lock(secret: bytes, passphrase: str) -> bytes:
    """Encrypt ``secret``; the salt comes first. Raises KeyFileError: the passphrase is no text."""
    salt = random(argon2id.SALTBYTES)
    return salt + bytes(SecretBox(_stretch(passphrase, salt)).encrypt(secret))


def unlock(data: bytes, passphrase: str) -> bytes | None:
    """Return the secret; None when the passphrase is another. Raises KeyFileError: it is no text."""
    salt, sealed = data[: argon2id.SALTBYTES], data[argon2id.SALTBYTES :]
    try:
        return SecretBox(_stretch(passphrase, salt)).decrypt(sealed)
    except CryptoError:
        return None


def _stretch(passphrase: str, salt: bytes) -> bytes:
    try:
        typed = passphrase.encode()
    except UnicodeEncodeError as error:
        raise KeyFileError("the passphrase is not UTF-8", hint="does the terminal use another encoding?") from error
    return argon2id.kdf(
        SecretBox.KEY_SIZE,
        typed,
        salt,
        opslimit=argon2id.OPSLIMIT_MODERATE,
        memlimit=argon2id.MEMLIMIT_INTERACTIVE,
    )
