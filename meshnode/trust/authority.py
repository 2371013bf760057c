"""Makers of grants: a mesh's authority, and delegates."""

from __future__ import annotations

from collections.abc import Iterable

from meshnode.base.clock import Entropy
from meshnode.base.limits import MAX_CHAIN, MAX_GRANT
from meshnode.base.wire import as_bytes, as_list, decode, encode
from meshnode.errors import GrantError, GrantReject
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.trust.chain import Chain, check_narrows
from meshnode.trust.grant import SERIAL_LENGTH, Delegation, open_grant, sign_grant
from meshnode.trust.succession import without_succession


class Issuer:
    """A key that makes grants: an authority's (no chain), or that of a delegate, with the chain that allows it."""

    def __init__(self, identity: Identity, chain: Chain = ()) -> None:
        self.identity = identity
        self.chain = without_succession(chain)

    def issue(
        self,
        subject: NodeId,
        *,
        roles: Iterable[str] = (),
        services: Iterable[str] | None = None,
        not_before: int,
        expires: int,
        delegation: Delegation | None = None,
        lineage: tuple[bytes, ...] = (),
        entropy: Entropy,
    ) -> Chain:
        """Return the chain for ``subject``, its new grant last; times are Unix milliseconds.

        Raises GrantError: the grant would be wider than this issuer may make it, or the chain too long.
        """
        if len(self.chain) >= MAX_CHAIN:
            raise GrantError(GrantReject.TOO_LONG)
        grant = sign_grant(
            self.identity,
            subject,
            roles=tuple(sorted(set(roles))),
            services=None if services is None else tuple(sorted(set(services))),
            not_before=not_before,
            expires=expires,
            delegation=delegation,
            serial=entropy(SERIAL_LENGTH),
            lineage=lineage,
        )
        if self.chain:
            check_narrows(grant, open_grant(self.chain[-1]))
        return (*self.chain, grant.encoded)

    @property
    def may(self) -> Delegation | None:
        """What it may give; None for an authority, which may give all."""
        return open_grant(self.chain[-1]).delegation if self.chain else None

    @property
    def latest(self) -> int | None:
        """The latest expiry of what it makes, in Unix milliseconds; None for an authority: any."""
        return open_grant(self.chain[-1]).expires if self.chain else None


def pack_chain(chain: Chain) -> bytes:
    """Return a chain as the file of a home, a ticket and a gossip entry have it."""
    return encode(list(chain))


def parse_chain(data: bytes) -> Chain:
    """Return the chain that ``pack_chain`` packed; its grants are not looked at.

    Raises WireError.
    """
    items = as_list(decode(data, (MAX_CHAIN + 1) * (MAX_GRANT + 3) + 1), MAX_CHAIN + 1)
    return tuple(as_bytes(item, 1, MAX_GRANT) for item in items)
