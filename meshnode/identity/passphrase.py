"""A secret under a passphrase: argon2id (3 passes over 64 MiB) and XSalsa20-Poly1305."""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.utils import random


def lock(secret: bytes, passphrase: str) -> bytes:
    """Encrypt ``secret``; the salt comes first."""
    salt = random(argon2id.SALTBYTES)
    return salt + bytes(SecretBox(_stretch(passphrase, salt)).encrypt(secret))


def unlock(data: bytes, passphrase: str) -> bytes | None:
    """Return the secret; None when the passphrase is another."""
    salt, sealed = data[: argon2id.SALTBYTES], data[argon2id.SALTBYTES :]
    try:
        return SecretBox(_stretch(passphrase, salt)).decrypt(sealed)
    except CryptoError:
        return None


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return argon2id.kdf(
        SecretBox.KEY_SIZE,
        passphrase.encode(),
        salt,
        opslimit=argon2id.OPSLIMIT_MODERATE,
        memlimit=argon2id.MEMLIMIT_INTERACTIVE,
    )
