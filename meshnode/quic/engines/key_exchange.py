"""Groups of the TLS 1.3 key exchange: X25519MLKEM768, a hybrid of ML-KEM-768 and X25519 (RFC 9794), and X25519 alone.

The hybrid's secret is secret while one of the two is, so what is recorded today cannot be read by a quantum computer
later. A dialler offers shares of all its groups at once, so nothing is ever asked again (HelloRetryRequest), and the
listener takes the first of its own groups that is among them. The transcript that both ends sign and authenticate
has all shares in it: what is stripped on the way ends the handshake.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

HYBRID, X25519 = 0x11EC, 0x001D
NAMES = {0: "", HYBRID: "X25519MLKEM768", X25519: "X25519"}

ON, OFF, REQUIRED = "on", "off", "required"
GROUPS = {ON: (HYBRID, X25519), OFF: (X25519,), REQUIRED: (HYBRID,)}  # by Config.post_quantum, best first

KEM_KEY, KEM_CIPHERTEXT, POINT = 1184, 1088, 32  # bytes: FIPS 203 section 8, RFC 7748
DIALLERS = {HYBRID: KEM_KEY + POINT, X25519: POINT}  # sizes of shares (draft-ietf-tls-ecdhe-mlkem section 4)
LISTENERS = {HYBRID: KEM_CIPHERTEXT + POINT, X25519: POINT}

MODULUS = 3329  # of ML-KEM
LANES = 384  # pairs of coefficients of 12 bits in an encapsulation key
ONES = sum(1 << 24 * lane for lane in range(LANES))
LOW = 0xFFF * ONES
OVER = (0x1000 - MODULUS) * ONES  # what lifts a coefficient that is too large into the bit above it
CARRY = 0x1000 * ONES

LISTENERS_SECRET = b"s ap traffic"  # the label of its 1-RTT secret (RFC 8446 section 7.1)

Share = tuple[int, bytes]
F = TypeVar("F", bound=Callable[..., Any])


def chosen(groups: Sequence[int], shares: Sequence[Share] | None) -> Share | None:
    """Return the share of the first of ``groups`` that a ClientHello has; None when it has none, or a wrong one."""
    for group in groups:
        for share in shares or ():
            if share[0] == group:
                return share if is_valid(share, DIALLERS) else None
    return None


def is_valid(share: Share, sizes: dict[int, int]) -> bool:
    """Return whether a share has its size, and an encapsulation key its form (FIPS 203 section 7.2)."""
    group, data = share
    if len(data) != sizes.get(group):
        return False
    if group != HYBRID or sizes is not DIALLERS:
        return True
    number = int.from_bytes(data[: 3 * LANES], "little")
    return not any(((number >> shift & LOW) + OVER) & CARRY for shift in (0, 12))


def binding_of(secret: bytes) -> bytes:
    """Return what binds a Hello to a connection: it follows from the listener's first 1-RTT secret, and tells none."""
    return hashlib.blake2b(key=secret, digest_size=32, person=b"mesh-tls").digest()


def rebound(function: F, **names: Any) -> F:
    """Return a function with other things behind some global names of its module, which is not changed."""
    made: Any = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__
    )
    return made  # type: ignore[no-any-return]


def check_names(library: str, function: Callable[..., Any], names: str) -> None:
    """Fail at start-up when a function of a library does not use these global names, separated by spaces."""
    missing = set(names.split()) - set(function.__code__.co_names)
    if missing:
        raise ImportError(f"this {library} has no {', '.join(sorted(missing))} in {function.__qualname__}")
