"""The node at the other end of a connection, as rules of access see it."""

from __future__ import annotations

import re

from meshnode.base.value import value
from meshnode.identity.node_id import NodeId

ROLE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
ROLE_FORM = "a role is 1 to 32 of a-z, 0-9, dot, hyphen and underscore, as in db-reader"


def is_role(text: str) -> bool:
    """Return whether a text may be a role."""
    return ROLE.fullmatch(text) is not None


@value
class Caller:
    """A peer whose key is proven, with what its grants say of it.

    Attributes:
        id: Its key.
        name: The name that it has here, or None.
        roles: What its grants give it; empty without grants, as in the open mesh.
        services: Patterns of the services that its grants cover; None when they cover all.
        former: The key that its own has replaced: lists that have that one mean this node.
        grant: The id of the grant that gave the roles, as text; None without one.
    """

    id: NodeId
    name: str | None = None
    roles: frozenset[str] = frozenset()
    services: tuple[str, ...] | None = None
    grant: str | None = None
    former: NodeId | None = None
