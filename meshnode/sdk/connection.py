"""What a program holds of a node: connections, served names, events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.connection import State
from meshnode.sdk.streams import MeshReader, MeshWriter, accepted, wrap

if TYPE_CHECKING:
    from meshnode.sdk.node import Node

Handler = Callable[[MeshReader, MeshWriter, NodeId], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``kind`` is connected, disconnected, path; member (detail: alive, suspect, gone, left);
    service_up, service_changed, service_down (with the ``service``); name_conflict."""

    kind: str
    peer: NodeId
    detail: str = ""
    service: str = ""


class Connection:
    """A live, authenticated connection to one peer."""

    def __init__(self, node: Node, link: Link) -> None:
        self._node = node
        self._link = link

    @property
    def peer(self) -> NodeId:
        """Whose key was proven."""
        return self._link.peer

    @property
    def is_open(self) -> bool:
        """False once it is over; its error then says why."""
        return self._link.state is State.READY

    @property
    def error(self) -> MeshError | None:
        """Why it is over."""
        return self._link.error

    async def open(self, service: str) -> tuple[MeshReader, MeshWriter]:
        """Open a stream. Raises ServiceNotFound, PolicyDenied, ConnectionLost, StreamLimitError, ValueError."""
        stream = self._link.open(service)
        reader, writer = wrap(stream, self._link.peer)
        try:
            await accepted(stream, reader)
        except asyncio.CancelledError:
            stream.reset()
            raise
        return reader, writer

    def close(self) -> None:
        """Close the connection, and with it every stream."""
        from meshnode.quic.hello import CloseCode

        self._link.close(CloseCode.NORMAL, "closed by the application")


class Service:
    """A served name; ``close`` withdraws it (streams that run go on)."""

    def __init__(
        self,
        node: Node,
        name: str,
        handler: Handler,
        allow: frozenset[NodeId] | None,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.handler = handler
        self.allow = allow
        self.announce = announce
        self.meta: Mapping[str, str] = dict(meta or {})
        self.healthy = True
        self.load = 0
        self.decides = False  # the handler itself accepts a stream, or leaves it refused as unavailable
        self._node = node

    @property
    def is_allowed_to_some(self) -> bool:
        """True when there is anybody who may use it."""
        return self.allow is None or bool(self.allow)

    def update(
        self, *, healthy: bool | None = None, load: int | None = None, meta: Mapping[str, str] | None = None
    ) -> None:
        """Tell the mesh how the service is: failing ones are tried last, busy ones (``load``, 0 to 100) later.

        Changes are announced at most once a second, and a load that moves by less than 10 not at all.
        Raises ConfigError.
        """
        self.healthy = self.healthy if healthy is None else healthy
        self.load = self.load if load is None else load
        self.meta = self.meta if meta is None else dict(meta)
        if self._node.is_running and self._node.services.get(self.name) is self:
            self._node.presence.announce(self)

    def allows(self, peer: NodeId) -> bool:
        """True when ``peer`` may use it."""
        return self.allow is None or peer in self.allow

    def close(self) -> None:
        """Withdraw the service."""
        if self._node.services.get(self.name) is self:
            del self._node.services[self.name]
            if self._node.is_running:
                self._node.presence.withdraw(self.name)


def parse_allow(allow: Iterable[str | NodeId]) -> frozenset[NodeId] | None:
    """``any`` allows every member (None); otherwise the ids. Raises ConfigError, InvalidId."""
    ids = set()
    for who in allow:
        if who == "any":
            return None
        if isinstance(who, str) and who.startswith("role:"):
            raise ConfigError(
                f"{who}: roles need a mesh authority, which this version does not have", hint="name ids instead"
            )
        ids.add(NodeId.parse(who))
    return frozenset(ids)
