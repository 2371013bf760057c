"""Requests about services: those of this node, its forwards, and those of the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import field
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("expose")
class Expose(Request):
    """Serve a TCP target under a name."""

    name: str
    target: str
    allow: tuple[str, ...] = ()
    announce: bool | None = None
    meta: dict[str, str] = field(default_factory=dict)

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what is exposed. Raises ConfigError, InvalidId."""
        yield daemon.book.expose(self.name, self.target, self.allow, self.announce, self.meta)


@request("unexpose")
class Unexpose(Request):
    """Withdraw a service."""

    name: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield its name. Raises NotFound."""
        yield daemon.book.unexpose(self.name)


@request("forward")
class Forward(Request):
    """Listen for a service of one node, or of any."""

    listen: str
    to: str
    sticky: bool = False

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listens. Raises AddressInUse, ConfigError, InvalidId."""
        node, slash, service = self.to.partition("/")
        short = daemon.from_short(node) if slash else None  # kept in full: what is known now decides
        to = f"{short}/{service}" if short is not None else self.to
        yield await daemon.book.forward(self.listen, to, self.sticky)


@request("unforward")
class Unforward(Request):
    """Stop a forward."""

    listen: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listened. Raises NotFound."""
        yield await daemon.book.unforward(self.listen)


@request("services")
class Services(Request):
    """The instances of all services, or of one (waited for a moment)."""

    name: str | None = None

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object an instance."""
        from meshnode.runtime.status import describe_services
        from meshnode.sdk.node import runtime_of

        if self.name is not None:
            await daemon.node.find(self.name)
        for item in describe_services(runtime_of(daemon.node), self.name):
            yield item
