"""Successions: a key is replaced by a new one, to which its holder's grants and allow rules belong from then on.

An envelope (``identity/envelope.py``) of ``DOMAIN`` around the array ``[1, old key, new key, time ms, ends ms,
signature of the new key]``, signed by the old key. It stands behind the last grant of a chain, as one more link: so it
proves itself wherever a node shows its grants, and a revocation of either key covers it.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.base.limits import MAX_GRACE_S, MAX_GRANT
from meshnode.base.wire import WireError, as_bytes, as_list, as_number
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.envelope import SIGNATURE_LENGTH, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity, verify
from meshnode.identity.node_id import KEY_LENGTH, NodeId
from meshnode.trust.grant import LAST_MS, Grant, open_grant

DOMAIN = b"meshnode succession v1\x00"
VERSION = 1
FIELDS = 6
MAX_GRACE_MS = round(MAX_GRACE_S * 1000)
HEAD = bytes([0x80 + FIELDS])  # how the array begins; that of a grant has 9 or 10 items


def _said(old: bytes, new: bytes, time: int, ends: int) -> bytes:
    return DOMAIN + old + new + time.to_bytes(8, "big") + ends.to_bytes(8, "big")


def sign_succession(old: Identity, new: Identity, *, time: int, ends: int) -> bytes:
    """Return the statement that ``new`` replaces ``old``; until ``ends`` the old key counts too.

    No longer than ``MAX_GRACE_S`` from ``time`` on, whatever it says.
    """
    keys = bytes(old.id), bytes(new.id)
    item = [VERSION, *keys, time, ends, new.sign(_said(*keys, time, ends))]
    return sign_envelope(old, DOMAIN, item, MAX_GRANT)


def is_succession(encoded: bytes) -> bool:
    """Return whether a link of a chain is no grant but a succession."""
    return encoded[SIGNATURE_LENGTH : SIGNATURE_LENGTH + 1] == HEAD


def open_succession(encoded: bytes) -> Grant:
    """Parse a succession as a link from the old key to the new one; signatures are not checked.

    Raises GrantError.
    """
    try:
        return _parse(encoded)[0]
    except (ValueError, TypeError) as error:
        raise GrantError(GrantReject.MALFORMED) from error


def is_signed_by_both(encoded: bytes) -> bool:
    """Return whether the old key and the new one have signed it."""
    link, ends, signature = _parse(encoded)
    said = _said(bytes(link.issuer), bytes(link.subject), link.not_before, ends)
    return verify_envelope(link.issuer, DOMAIN, encoded) and verify(link.subject, said, signature)


def open_links(chain: Sequence[bytes]) -> list[Grant]:
    """Return the links of a chain that was verified, its succession among them."""
    return [open_succession(link) if is_succession(link) else open_grant(link) for link in chain]


def without_succession(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the grants of a chain."""
    return tuple(link for link in chain if not is_succession(link))


def _parse(encoded: bytes) -> tuple[Grant, int, bytes]:
    """Return the link, when it says that the old key's time ends, which counts up to ``MAX_GRACE_S``, and a signature.

    Raises ValueError.
    """
    fields = as_list(open_envelope(encoded, MAX_GRANT), FIELDS)
    if len(fields) != FIELDS:
        raise WireError("wrong fields")
    as_number(fields[0], VERSION, VERSION)
    old, new = (NodeId(as_bytes(key, KEY_LENGTH, KEY_LENGTH)) for key in fields[1:3])
    time, ends = (as_number(field, 0, LAST_MS) for field in fields[3:5])
    if old == new or time > ends:
        raise WireError("no succession")
    link = Grant(old, new, (), None, time, min(ends, time + MAX_GRACE_MS), None, encoded)
    return link, ends, as_bytes(fields[5], 64, 64)
