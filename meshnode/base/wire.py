"""Deterministic CBOR (RFC 8949 section 4.2), strict in what it accepts.

Only integers, byte strings, text, arrays, maps, booleans and null; one encoding for each value. Signed
bytes are verified as received and never re-encoded for it; the re-encoding here only rejects variants.
"""

from __future__ import annotations

from typing import Any

import cbor2

from meshnode.base.limits import MAX_CBOR_DEPTH

SCALARS = (bytes, str, bool, type(None))
STRINGS = (2, 3)  # major types, RFC 8949 section 3.1
TAG = 6
ITEMS = (0, 0, 0, 0, 1, 2, 0, 0)  # by major type: the items that follow for one of its argument


class WireError(ValueError):
    """Bytes that are not what the protocol says."""


class NotCanonical(WireError):
    """CBOR, but not the one encoding of its value."""


def encode(value: Any) -> bytes:
    """Return the one canonical encoding of ``value`` (RFC 8949 section 4.2.1).

    ``value`` is made of the types that ``decode`` accepts; this does not check it, for what is encoded is our own.
    """
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, max_size: int) -> Any:
    """Parse one canonical item that fills ``data``.

    Args:
        data: The bytes, from any peer.
        max_size: The most bytes that this kind of message has.

    Raises:
        NotCanonical: It is CBOR, but not the one encoding of its value.
        WireError: It is empty, longer than ``max_size``, nested deeper than ``MAX_CBOR_DEPTH``, of another type than
            null, boolean, integer of 64 bits, text, bytes, array or map, or no CBOR. No other exception leaves here.
    """
    if not data or len(data) > max_size:
        raise WireError(f"{len(data)} bytes where 1 to {max_size} were expected")
    if _nesting(data) > MAX_CBOR_DEPTH:
        raise WireError("nested too deeply")
    try:
        value = cbor2.loads(data)
        _check(value, 0)
        if encode(value) != data:
            raise NotCanonical("not the canonical encoding")
    except WireError:
        raise
    except Exception as error:  # the parser's own exceptions are many, and all mean the same here
        raise WireError("not CBOR") from error
    return value


def as_number(value: object, first: int, last: int) -> int:
    """Return a decoded integer from ``first`` to ``last``, both included.

    Raises WireError for anything else, a boolean among it (which Python counts as an integer).
    """
    if type(value) is not int or not first <= value <= last:
        raise WireError("a number is missing or out of range")
    return value


def as_flag(value: object) -> bool:
    """Return a decoded boolean.

    Raises WireError for anything else.
    """
    if type(value) is not bool:
        raise WireError("a flag is missing")
    return value


def as_bytes(value: object, least: int, most: int) -> bytes:
    """Return a decoded byte string of ``least`` to ``most`` bytes.

    Raises WireError for anything else.
    """
    if type(value) is not bytes or not least <= len(value) <= most:
        raise WireError("bytes are missing or not of the right length")
    return value


def as_list(value: object, most: int) -> list[object]:
    """Return a decoded array of at most ``most`` items, which are of any type yet.

    Raises WireError for anything else.
    """
    if type(value) is not list or len(value) > most:
        raise WireError("an array is missing or too long")
    return value


def _nesting(data: bytes) -> int:
    """Return an upper bound of the nesting, without recursion: a parser must not be led into deep recursion."""
    deepest = 0
    remaining: list[int] = []
    i, end = 0, len(data)
    while i < end:
        major, info = data[i] >> 5, data[i] & 31
        i += 1
        n = info
        if info > 27:
            return MAX_CBOR_DEPTH + 1
        if info > 23:  # RFC 8949 section 3: the argument follows, in 1, 2, 4 or 8 bytes
            width = 1 << (info - 24)
            n = int.from_bytes(data[i : i + width], "big")
            i += width
        if major in STRINGS:
            i += n
        children = 1 if major == TAG else n * ITEMS[major]
        if children:
            remaining.append(children)
            deepest = max(deepest, len(remaining))
            if deepest > MAX_CBOR_DEPTH:
                return deepest
            continue
        while remaining:
            remaining[-1] -= 1
            if remaining[-1]:
                break
            remaining.pop()
    return deepest


def _check(value: Any, depth: int) -> None:
    if depth > MAX_CBOR_DEPTH:
        raise WireError("nested too deeply")
    if type(value) in SCALARS:
        return
    if type(value) is int:
        if not -(1 << 64) <= value < 1 << 64:  # a bignum is a tagged byte string, and tags have no place here
            raise WireError("an integer of more than 64 bits")
        return
    if type(value) is list:
        for item in value:
            if type(item) not in SCALARS:  # spares a call for most
                _check(item, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            _check(key, depth + 1)
            _check(item, depth + 1)
    else:
        raise WireError(f"type {type(value).__name__} has no place here")
