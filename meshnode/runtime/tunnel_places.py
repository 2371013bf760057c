"""Places of members' tunnels: few of a member, and of all they are shared by source network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from meshnode.base.fair_table import FairTable, source_shares
from meshnode.base.limits import MAX_TUNNEL_CLIENTS, MAX_TUNNELS_PER_MEMBER
from meshnode.identity.node_id import NodeId

T = TypeVar("T", bound=Hashable)


class TunnelPlaces(Generic[T]):
    """The connections of members, from their knock until they are closed."""

    def __init__(self) -> None:
        self._all: FairTable[T] = FairTable(MAX_TUNNEL_CLIENTS)
        self._members: dict[NodeId, OrderedDict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: T, member: NodeId, host: str) -> tuple[T | None, T | None]:
        """Give a new connection its place.

        Returns the connections that have to go for it: the oldest of a member that has too many, whose place is free at
        once, and the one that gave its place up to another network, to be discarded by the caller: a member may knock
        many times before any is closed.
        """
        of_member = self._members.setdefault(member, OrderedDict())
        oldest = next(iter(of_member)) if len(of_member) >= MAX_TUNNELS_PER_MEMBER else None
        of_member[connection] = None
        if oldest is not None:
            self.discard(oldest, member)
        return oldest, self._all.add(connection, *source_shares(host))

    def discard(self, connection: T, member: NodeId) -> None:
        """Free the place of a connection that is closed."""
        self._all.discard(connection)
        of_member = self._members.get(member)
        if of_member is not None:
            of_member.pop(connection, None)
            if not of_member:
                del self._members[member]

    def all(self) -> list[T]:
        """Return all connections."""
        return [connection for of_member in self._members.values() for connection in of_member]
