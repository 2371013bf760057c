"""Renewal of grants: what a node with the right to renew gives to one whose grant has run for half of its time."""

from __future__ import annotations

from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_LINEAGE
from meshnode.base.value import value
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.trust.authority import Issuer
from meshnode.trust.chain import Chain, Standing
from meshnode.trust.grant import Delegation, open_grant
from meshnode.trust.succession import without_succession

WINDOW = 0.5, 0.6  # the part of its lifetime after which a node asks, at random between these: a long time is left
EARLIEST = 0.4  # a renewal that is asked for sooner is refused: clocks and lifetimes differ, but not so much


@value
class Renewer:
    """A node that renews grants: its key, and what its own grants give."""

    identity: Identity
    standing: Standing

    @property
    def may(self) -> bool:
        """True when its own grants let it renew."""
        return self.standing.delegation is not None and self.standing.delegation.renews

    def renew(self, old: Standing, wall: float, entropy: Entropy) -> Chain:
        """Return grants like those of ``old``, for as long again. Raises GrantError: it may not give them."""
        if not self.may or not _is_renewable(old.chain):
            raise GrantError(GrantReject.NO_DELEGATE)
        lineage = lineage_of(old)
        if len(lineage) > MAX_LINEAGE:
            raise GrantError(GrantReject.TOO_LONG)
        now = max(round(wall * 1000), self.standing.not_before)
        expires = min(now + old.expires - old.not_before, self.standing.expires)
        if old.part_over(wall) < EARLIEST or expires <= old.expires:
            raise GrantError(GrantReject.OUTLIVES)
        return Issuer(self.identity, self.standing.chain).issue(
            old.id,
            roles=old.roles,
            services=old.services,
            not_before=now,
            expires=expires,
            delegation=_renewed(old.delegation, expires),
            lineage=lineage,
            entropy=entropy,
        )


def lineage_of(standing: Standing) -> tuple[bytes, ...]:
    """Return what a standing rests on beside its givers: its first grant, or the ticket, and replaced keys.

    Each renewal says it again, so no key gets grants that hide the ticket or the old key to which it owes them. What
    the holder of a ticket says itself counts for nothing.
    """
    *givers, last = (open_grant(encoded) for encoded in without_succession(standing.chain))
    by_ticket = bool(givers) and givers[-1].is_invitation
    found = [bytes.fromhex(givers[-1].id)] if by_ticket else [*(last.lineage or [bytes.fromhex(last.id)])]
    if standing.former is not None:
        found.append(bytes(standing.former))
    return tuple(dict.fromkeys(found))


def _is_renewable(chain: Chain) -> bool:
    """Return whether a chain is of the authority, of renewers and their tickets alone.

    What a delegate has handed on ends with it: a grant of a renewer would not name the delegate any more.
    """
    givers = [open_grant(encoded) for encoded in without_succession(chain)[:-1]]
    return all(each.is_invitation or (each.delegation is not None and each.delegation.renews) for each in givers)


def _renewed(old: Delegation | None, expires: int) -> Delegation | None:
    if old is None:
        return None
    return Delegation(old.roles, old.services, old.depth, expires, old.uses, old.renews)


def is_renewal(new: Standing, old: Standing) -> bool:
    """Return whether grants give the same as those before, for longer: no other node may change what this one has."""
    same = (new.id, new.roles, new.services) == (old.id, old.roles, old.services)
    return same and new.expires > old.expires and (new.delegation is None) == (old.delegation is None)
