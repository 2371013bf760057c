"""Grants: what the holder of one key gives the holder of another in a mesh, signed.

An envelope (``identity/envelope.py``) of ``DOMAIN`` around the array
``[version, issuer, subject, [role, ...], [service, ...] | null, not before ms, expires ms, delegation | null,
serial]``, and as a tenth item, in a renewed grant, ``[grant or key, ...]`` (``Grant.lineage``). A delegation, the right
to make further grants, is ``[[role, ...] | null, [service, ...] | null, depth, until ms, uses, renews]``. At most 1,024
bytes. Null stands for all. Which grants hold together is in ``chain.py``.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from meshnode.base.limits import (
    MAX_CHAIN,
    MAX_GRANT,
    MAX_INVITE_USES,
    MAX_LINEAGE,
    MAX_OPENED_GRANTS,
    MAX_ROLES,
    MAX_SERVICE_PATTERNS,
)
from meshnode.base.value import value
from meshnode.base.wire import WireError, as_bytes, as_flag, as_list, as_number
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.envelope import SIGNATURE_LENGTH, EnvelopeError, open_envelope, sign_envelope, verify_envelope
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH, NodeId, known_id
from meshnode.trust.caller import is_role
from meshnode.trust.names import Names, is_service_pattern

DOMAIN = b"meshnode grant v1\x00"
VERSION = 1
SERIAL_LENGTH = 8
ID_LENGTH = 8
FIELDS = 9  # without a lineage
ISSUER_AT = SIGNATURE_LENGTH + 4  # in the encoding: an array of 9 or 10, the version, and a byte string of 32
SUBJECT_AT = ISSUER_AT + KEY_LENGTH + 2
LAST_MS = 2**53


@value
class Delegation:
    """The right to make grants for others, each within what is here.

    Attributes:
        roles: That may be given.
        services: That a grant may cover.
        depth: How many grants may follow in a chain: at 1 those that are made may make none.
        until: Unix milliseconds after which no grant may be dated.
        uses: For how many keys; 0 for any number. Only where ``depth`` is 1, so that no grant goes uncounted.
        renews: Whether the holder renews other nodes' grants by itself.
    """

    roles: Names
    services: Names
    depth: int
    until: int
    uses: int = 0
    renews: bool = False


@value
class Grant:
    """One grant, its signature unchecked.

    Attributes:
        issuer: The key that signs it.
        subject: The key that it is for.
        roles: What the subject is, sorted.
        services: The services that it covers, by name, or by beginning where a ``*`` ends the text.
        not_before: Unix milliseconds; when it was made.
        expires: Unix milliseconds.
        delegation: The right to make further grants, or None.
        encoded: The signed bytes.
        lineage: What a renewed grant rests on and its chain shows no more: the id of the first grant, or of that of
            the ticket by which its subject joined, and the keys that this has replaced. It falls with each.
    """

    issuer: NodeId
    subject: NodeId
    roles: tuple[str, ...]
    services: Names
    not_before: int
    expires: int
    delegation: Delegation | None
    encoded: bytes
    lineage: tuple[bytes, ...] = ()

    @property
    def is_invitation(self) -> bool:
        """True when its subject is the key in a ticket, which makes grants for nodes and is none."""
        return self.delegation is not None and (self.delegation.uses > 0 or self.services == ())

    @property
    def id(self) -> str:
        """16 hexadecimal digits that name it in logs and rules."""
        return grant_id(self.encoded)


def grant_id(encoded: bytes) -> str:
    """Return the text that names a grant: BLAKE2b-64 of its encoding, in hexadecimal digits."""
    return hashlib.blake2b(encoded, digest_size=ID_LENGTH, person=b"mesh-grant").hexdigest()


def sign_grant(
    issuer: Identity,
    subject: NodeId,
    *,
    roles: tuple[str, ...],
    services: Names,
    not_before: int,
    expires: int,
    delegation: Delegation | None,
    serial: bytes,
    lineage: tuple[bytes, ...] = (),
) -> Grant:
    """Return a signed grant; what every receiver would refuse by itself raises GrantError."""
    item = [
        VERSION,
        bytes(issuer.id),
        bytes(subject),
        list(roles),
        _listed(services),
        not_before,
        expires,
        None if delegation is None else _packed(delegation),
        serial,
        *([list(lineage)] if lineage else []),
    ]
    try:
        encoded = sign_envelope(issuer, DOMAIN, item, MAX_GRANT)
    except EnvelopeError as error:
        raise GrantError(GrantReject.OVERSIZED) from error
    return open_grant(encoded)


def open_grant(encoded: bytes) -> Grant:
    """Parse a grant without checking its signature, or any date.

    Raises GrantError with the reason.
    """
    if len(encoded) > MAX_GRANT:
        raise GrantError(GrantReject.OVERSIZED)  # and is not kept in the cache
    found = _opened(encoded)
    if isinstance(found, GrantReject):
        raise GrantError(found)
    return found


def is_signed(grant: Grant) -> bool:
    """Return whether the issuer signed it: 43 us the first time."""
    return _signed(grant.issuer, grant.encoded)


@lru_cache(maxsize=MAX_OPENED_GRANTS)
def _opened(encoded: bytes) -> Grant | GrantReject:
    try:
        return _parse(open_envelope(encoded, MAX_GRANT), encoded)
    except EnvelopeError as error:
        return GrantReject(error.reason.value)
    except (ValueError, TypeError):
        return GrantReject.MALFORMED


@lru_cache(maxsize=MAX_OPENED_GRANTS)
def _signed(signer: NodeId, encoded: bytes) -> bool:
    return verify_envelope(signer, DOMAIN, encoded)


def _listed(names: Names) -> list[str] | None:
    return None if names is None else list(names)


def _packed(delegation: Delegation) -> list[object]:
    d = delegation
    return [_listed(d.roles), _listed(d.services), d.depth, d.until, d.uses, d.renews]


def _parse(fields: object, encoded: bytes) -> Grant:
    """Return the grant of an envelope's fields. Raises ValueError."""
    if not isinstance(fields, list) or not FIELDS <= len(fields) <= FIELDS + 1:
        raise WireError("wrong fields")
    version, issuer, subject, roles, services, not_before, expires, delegation, serial, *rest = fields
    as_number(version, VERSION, VERSION)
    as_bytes(serial, SERIAL_LENGTH, SERIAL_LENGTH)
    if as_number(not_before, 0, LAST_MS) > as_number(expires, 0, LAST_MS):
        raise WireError("expires before it begins")
    found = _roles(roles)
    if found is None:
        raise WireError("a node does not have all roles")
    return Grant(
        known_id(as_bytes(issuer, KEY_LENGTH, KEY_LENGTH)),
        known_id(as_bytes(subject, KEY_LENGTH, KEY_LENGTH)),
        found,
        _services(services),
        not_before,
        expires,
        None if delegation is None else _parse_delegation(delegation),
        encoded,
        _lineage(rest[0]) if rest else (),
    )


def _lineage(item: object) -> tuple[bytes, ...]:
    found = tuple(as_bytes(each, ID_LENGTH, KEY_LENGTH) for each in as_list(item, MAX_LINEAGE))
    if not found or len(set(found)) < len(found) or any(len(each) not in (ID_LENGTH, KEY_LENGTH) for each in found):
        raise WireError("neither keys nor grants, or twice")
    return found


def _parse_delegation(item: object) -> Delegation:
    fields = as_list(item, 6)
    if len(fields) != 6:
        raise WireError("wrong delegation")
    roles, services, depth, until, uses, renews = fields
    found = Delegation(
        _roles(roles),
        _services(services),
        as_number(depth, 1, MAX_CHAIN - 1),
        as_number(until, 0, LAST_MS),
        as_number(uses, 0, MAX_INVITE_USES),
        as_flag(renews),
    )
    if found.uses and found.depth != 1:
        raise WireError("uses are counted of the last grant only")
    return found


def _roles(item: object) -> Names:
    return _names(item, MAX_ROLES, is_role)


def _services(item: object) -> Names:
    return _names(item, MAX_SERVICE_PATTERNS, is_service_pattern)


def _names(item: object, most: int, fits: object) -> Names:
    """Return a list of texts, sorted and each once; null is all. Raises WireError."""
    if item is None:
        return None
    names = as_list(item, most)
    texts = tuple(name for name in names if isinstance(name, str) and fits(name))  # type: ignore[operator]
    if len(texts) != len(names) or list(texts) != sorted(set(texts)):
        raise WireError("names are wrong, or not in order")
    return texts
