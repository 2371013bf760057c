"""The context of request handlers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshnode.errors import InvalidId
from meshnode.identity.node_id import TEXT_LENGTH, NodeId
from meshnode.runtime.status import describe_members, describe_services
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.registry import ServiceBook

MIN_SHORT = 8  # characters of a short id, as the commands show it


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running node of a home and what it exposes and forwards."""

    node: Node
    book: ServiceBook

    async def identify(self, text: str) -> NodeId:
        """Return the id that is meant by an id, a node's name, or the beginning of a known id.

        A name comes before the beginning of an id. Raises InvalidId, NotFound, NameChanged.
        """
        short = self.from_short(text)
        return short if short is not None else await self.node.identify(text)

    def from_short(self, text: str) -> NodeId | None:
        """Return the known id that begins with a text; None when none does, or when a node has that name.

        Raises InvalidId: several begin with it.
        """
        start = text.strip().lower()
        if not MIN_SHORT <= len(start) < TEXT_LENGTH:
            return None
        ids = [id for id in dict.fromkeys(self._known()) if id.startswith(start)]
        if not ids or start in self._names():
            return None
        if len(ids) > 1:
            raise InvalidId(f"{start} is the beginning of {len(ids)} known ids", hint="write more of it")
        return NodeId.parse(ids[0])

    def _known(self) -> Iterable[str]:
        """Yield the ids of this node, its peers, the members, and those that offer services."""
        runtime = runtime_of(self.node)
        yield str(self.node.id)
        for peer in runtime.stack.sessions:
            yield str(peer)
        for entry in (*describe_members(runtime), *describe_services(runtime)):
            yield str(entry["id"])

    def _names(self) -> set[str]:
        runtime = runtime_of(self.node)
        registry = runtime.stack.registry
        pinned = registry.names.pins if registry is not None else ()
        return {str(member["name"]) for member in describe_members(runtime)} | set(pinned)
