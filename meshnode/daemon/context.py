"""The context of request handlers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from meshnode.base.value import frozen
from meshnode.daemon.waiting import Waiting
from meshnode.errors import InvalidId, NotFound
from meshnode.identity.node_id import TEXT_LENGTH, NodeId
from meshnode.runtime.status import describe_members, describe_services
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.proxy.book import ProxyBook
from meshnode.services.registry import ServiceBook
from meshnode.trust.caller import Caller
from meshnode.trust.expectations import as_caller
from meshnode.trust.parties import ANY, NAME, ROLE

MIN_SHORT = 8  # characters of a short id, as the commands show it
MIN_TRUSTED = 12  # of one that is given access, or trusted with a service: 60 bits


@frozen
class Daemon:
    """The running node of a home, what it exposes and forwards, its proxies, and streams for attached programs."""

    node: Node
    book: ServiceBook
    proxies: ProxyBook
    waiting: Waiting = field(default_factory=Waiting)

    async def identify(self, text: str) -> NodeId:
        """Return the id that is meant by an id, a node's name, or the beginning of a known id.

        A name that was used here comes before the beginning of an id. Raises InvalidId, NotFound, NameChanged,
        NameDisputed.
        """
        short = self.from_short(text)
        if short is not None:
            return short
        try:
            return await self.node.identify(text)
        except NotFound as error:
            start = text.strip().lower()
            if len(start) < MIN_SHORT and any(id.startswith(start) for id in self._known()):
                hint = f"the beginning of an id has at least {MIN_SHORT} characters"
                raise NotFound(error.message, hint=hint) from error
            raise

    async def described(self, text: str) -> Caller:
        """Return what is known of a node, or a node of which only this is known: ``role:R``, ``name:N``, ``any``.

        ``self`` is this node; several facts are joined by commas. Raises ConfigError and as ``identify``.
        """
        guard = runtime_of(self.node).guard
        facts = [part.strip() for part in text.split(",")]
        if text == "self":
            return guard.known(guard.own)
        if len(facts) > 1 or facts[0] == ANY or facts[0].startswith((ROLE, NAME)):
            return as_caller(facts)
        return guard.known(await self.identify(text))

    def from_short(self, text: str) -> NodeId | None:
        """Return the known id that begins with a text; None when none does, or when it is a name that was used here.

        Raises InvalidId: several begin with it, or another node has that name, which it may have chosen for that.
        """
        start = text.strip().lower()
        if not MIN_SHORT <= len(start) < TEXT_LENGTH:
            return None
        ids = [id for id in dict.fromkeys(self._known()) if id.startswith(start)]
        if not ids or self._is_used_name(start):
            return None
        if len(ids) > 1:
            raise InvalidId(f"{start} is the beginning of {len(ids)} known ids", hint="write more of it")
        if self._names().get(start, ids[0]) != ids[0]:
            hint = f"write more of the id, or {start}.mesh for the name"
            raise InvalidId(f"{start} is the beginning of a known id, and another node's name", hint=hint)
        return NodeId.parse(ids[0])

    def in_full(self, to: str) -> str:
        """Return ``NODE/SERVICE`` with the id in full where NODE is the beginning of one.

        What is known now decides, so that a forward that is kept means the same node later. A name stays a name.
        Raises InvalidId when several known ids begin so.
        """
        node, slash, service = to.partition("/")
        short = self.from_short(node) if slash else None
        return f"{short}/{service}" if short is not None else to

    def trusted(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Return nodes to trust, with their ids in full. Raises InvalidId for a short one of too few characters.

        An id with the same ``MIN_SHORT`` characters, 40 bits, takes a day to find, and whether the right one is known
        too is chance.
        """
        for node in nodes:
            if len(node.strip()) < MIN_TRUSTED and self.from_short(node) is not None:
                message = f"{node} is too short a beginning of an id to trust it: others can have the same"
                raise InvalidId(message, hint=f"write at least {MIN_TRUSTED} characters of it")
        return tuple(str(self.from_short(node) or node) for node in nodes)

    async def allowed(self, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """Return nodes that may use a service, names and short ids bound to the ids that they mean now.

        Raises InvalidId, NotFound, NameChanged, NameDisputed.
        """
        return tuple(
            [
                item if item == ANY or item.startswith(ROLE) else str(await self.identify(item))
                for item in self.trusted(nodes)
            ]
        )

    def _known(self) -> Iterable[str]:
        """Yield the ids of this node, its peers, the members, and those that offer services."""
        runtime = runtime_of(self.node)
        yield str(self.node.id)
        for peer in runtime.stack.sessions:
            yield str(peer)
        for entry in (*describe_members(runtime), *describe_services(runtime)):
            yield str(entry["id"])

    def _names(self) -> dict[str, str]:
        """Return the members by the names that they hold."""
        return {str(member["name"]): str(member["id"]) for member in describe_members(runtime_of(self.node))}

    def _is_used_name(self, label: str) -> bool:
        """Return whether a text is this node's own name, or one that was used here and means that node since."""
        registry = runtime_of(self.node).stack.registry
        return registry is not None and (label == registry.names.own_name or registry.names.is_pinned(label))
