"""Chains of grants: from a mesh's authority by way of delegates to one key; checked offline, cheapest checks first.

Each grant is signed by the subject of the one before it, the first by the authority. What a grant gives lies within the
delegation of the one before: roles, services, lifetime and depth only ever narrow. So the last grant alone says what
its subject may; the others prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from meshnode.base.limits import GRANT_SKEW_S, MAX_CHAIN, MAX_GRANT
from meshnode.base.value import value
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.node_id import KEY_LENGTH, NodeId
from meshnode.trust.grant import ISSUER_AT, SUBJECT_AT, Delegation, Grant, is_signed, open_grant
from meshnode.trust.names import Names, roles_within, within
from meshnode.trust.succession import is_signed_by_both, is_succession, open_succession

SKEW_MS = round(GRANT_SKEW_S * 1000)

Chain = tuple[bytes, ...]  # encoded grants, the authority's first
IsRevoked = Callable[[Sequence[Grant]], bool]  # of a chain's grants


def none_revoked(grants: Sequence[Grant]) -> bool:
    """Return False: nothing is known to be revoked."""
    return False


@value
class Invite:
    """The delegation by which a key was invited, where that may be used for so many keys only."""

    id: str
    uses: int


@value
class Standing:
    """What a verified chain gives to a key.

    Attributes:
        id: The key.
        roles: Its roles.
        services: Patterns of the services that its grants cover; None for all.
        not_before: Unix milliseconds, when the last grant was made.
        expires: Unix milliseconds. It holds ``GRANT_SKEW_S`` longer, for clocks differ.
        grants: The ids of the grants, the authority's first.
        keys: All keys that signed, or that it was given to: when one of them is revoked, so is this.
        delegation: The right to make grants for others, or None.
        invite: Where the last delegate's grants are counted.
        chain: The encoded grants, with the succession behind them.
        former: The key that this one has replaced, or None.
    """

    id: NodeId
    roles: frozenset[str]
    services: Names
    not_before: int
    expires: int
    grants: tuple[str, ...]
    keys: tuple[NodeId, ...]
    delegation: Delegation | None
    invite: Invite | None
    chain: Chain
    former: NodeId | None = None

    def part_over(self, wall: float) -> float:
        """Return which part of the lifetime is over, 0.0 to 1.0 and above."""
        return (wall * 1000 - self.not_before) / max(1, self.expires - self.not_before)


def verify_chain(
    chain: Sequence[bytes],
    subject: NodeId,
    authority: NodeId,
    wall: float,
    is_revoked: IsRevoked = none_revoked,
    *,
    of_ticket: bool = False,
) -> Standing:
    """Verify that ``chain`` leads from ``authority`` to ``subject``; no signature is checked before all else holds.

    Args:
        chain: Encoded grants, as a peer sent them.
        subject: The key that the peer has proven.
        authority: The mesh's authority.
        wall: Unix seconds. Dates may be ``GRANT_SKEW_S`` off.
        is_revoked: Says whether one of the grants, or of their keys, was revoked.
        of_ticket: Whether it is that of a ticket. Its key is no node: a holder of the ticket that took part with it
            would be counted by no node, bound to no service, and stay when the ticket is over.

    Raises:
        GrantError: It does not; ``reason`` says why.
    """
    if chain and is_succession(chain[-1]):
        return _verify_successor(chain, subject, authority, wall, is_revoked)
    _check_keys(chain, subject, authority)
    grants = [open_grant(encoded) for encoded in chain]
    _check_dates(grants[-1], wall)
    for parent, grant in pairwise(grants):
        check_narrows(grant, parent)
    if grants[-1].is_invitation and not of_ticket:
        raise GrantError(GrantReject.INVITATION)
    if is_revoked(grants):
        raise GrantError(GrantReject.REVOKED)
    if not all(is_signed(grant) for grant in grants):
        raise GrantError(GrantReject.FORGED)
    return standing_of(grants)


def _verify_successor(
    chain: Sequence[bytes], subject: NodeId, authority: NodeId, wall: float, is_revoked: IsRevoked
) -> Standing:
    """Verify a chain with a succession behind it: its grants are those of the old key, or of the new one already."""
    grants, link = _parted(chain)
    now, renewed = wall * 1000, bool(grants) and _key(grants[-1], SUBJECT_AT) == bytes(link.subject)
    if subject not in (link.issuer, link.subject) or (renewed and subject == link.issuer):
        raise GrantError(GrantReject.OTHER_KEY)
    if now < link.not_before - SKEW_MS:
        raise GrantError(GrantReject.NOT_YET)
    if subject == link.issuer and now > link.expires + SKEW_MS:
        raise GrantError(GrantReject.EXPIRED)
    if is_revoked([link]):
        raise GrantError(GrantReject.REVOKED)
    standing = verify_chain(grants, link.subject if renewed else link.issuer, authority, wall, is_revoked)
    if not is_signed_by_both(link.encoded):
        raise GrantError(GrantReject.FORGED)
    former = link.issuer if subject == link.subject and (not renewed or _attests(grants, link.issuer)) else None
    delegation = standing.delegation if renewed or former is None else None  # its grants name the old key
    return Standing(
        subject,
        standing.roles,
        standing.services,
        standing.not_before,
        standing.expires,
        standing.grants,
        (*standing.keys, link.issuer, link.subject),
        delegation,
        standing.invite,
        tuple(chain),
        former,
    )


def _parted(chain: Sequence[bytes]) -> tuple[Sequence[bytes], Grant]:
    """Return the grants of a chain, and the link of its one succession. Raises GrantError."""
    if len(chain) > MAX_CHAIN + 1 or len(chain[-1]) > MAX_GRANT:
        raise GrantError(GrantReject.TOO_LONG)
    *grants, encoded = chain
    if any(is_succession(grant) for grant in grants):  # only the last is held to what else its old key has signed
        raise GrantError(GrantReject.BROKEN)
    return grants, open_succession(encoded)


def _attests(chain: Sequence[bytes], old: NodeId) -> bool:
    """Return whether the authority or a renewer says that the subject of the last grant has replaced a key.

    Else a key that has no grants that hold could lend its place in a list to a member.
    """
    *givers, last = (open_grant(encoded) for encoded in chain)
    by_renewer = not givers or ((may := givers[-1].delegation) is not None and may.renews)
    return by_renewer and bytes(old) in last.lineage


def _check_keys(chain: Sequence[bytes], subject: NodeId, authority: NodeId) -> None:
    """Compare sizes, and the keys where the one encoding has them, before anything is parsed. Raises GrantError."""
    if not chain:
        raise GrantError(GrantReject.MISSING)
    if len(chain) > MAX_CHAIN:
        raise GrantError(GrantReject.TOO_LONG)
    if any(len(encoded) > MAX_GRANT for encoded in chain):
        raise GrantError(GrantReject.OVERSIZED)
    if _key(chain[-1], SUBJECT_AT) != bytes(subject):
        raise GrantError(GrantReject.OTHER_KEY)
    if _key(chain[0], ISSUER_AT) != bytes(authority):
        raise GrantError(GrantReject.OTHER_AUTHORITY)
    for parent, grant in pairwise(chain):
        if _key(parent, SUBJECT_AT) != _key(grant, ISSUER_AT):
            raise GrantError(GrantReject.BROKEN)


def _key(encoded: bytes, at: int) -> bytes:
    return encoded[at : at + KEY_LENGTH]


def _check_dates(grant: Grant, wall: float) -> None:
    now = wall * 1000
    if now < grant.not_before - SKEW_MS:
        raise GrantError(GrantReject.NOT_YET)
    if now > grant.expires + SKEW_MS:
        raise GrantError(GrantReject.EXPIRED)


def check_narrows(grant: Grant, parent: Grant) -> None:
    """Check that ``grant`` gives nothing that its issuer, ``parent``'s subject, may not give.

    Raises GrantError.
    """
    may = parent.delegation
    if may is None:
        raise GrantError(GrantReject.NO_DELEGATE)
    if not roles_within(grant.roles, may.roles) or not within(grant.services, may.services):
        raise GrantError(GrantReject.WIDER)
    if grant.not_before < parent.not_before or grant.expires > parent.expires:
        raise GrantError(GrantReject.OUTLIVES)
    if grant.not_before > may.until:
        raise GrantError(GrantReject.TOO_LATE)
    if grant.delegation is not None:
        _check_delegation(grant.delegation, may)


def _check_delegation(given: Delegation, may: Delegation) -> None:
    if given.depth >= may.depth:
        raise GrantError(GrantReject.TOO_DEEP)
    if not roles_within(given.roles, may.roles) or not within(given.services, may.services):
        raise GrantError(GrantReject.WIDER)
    if given.until > may.until or given.renews > may.renews:
        raise GrantError(GrantReject.WIDER)


def standing_of(grants: Sequence[Grant]) -> Standing:
    """Return what a chain gives that was verified."""
    last = grants[-1]
    invite = None
    if len(grants) > 1 and (may := grants[-2].delegation) is not None and may.uses:
        invite = Invite(grants[-2].id, may.uses)
    return Standing(
        last.subject,
        frozenset(last.roles),
        last.services,
        last.not_before,
        last.expires,
        tuple(grant.id for grant in grants),
        (grants[0].issuer, *(grant.subject for grant in grants)),
        last.delegation,
        invite,
        tuple(grant.encoded for grant in grants),
    )
