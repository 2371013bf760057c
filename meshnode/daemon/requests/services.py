"""Requests about services: those of this node, its forwards, and those of the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import field
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.carry import Carried
    from meshnode.daemon.carry_flow import CarriedFlow
    from meshnode.daemon.context import Daemon


@request("expose")
class Expose(Request):
    """Serve a target under a name."""

    name: str
    target: str
    allow: tuple[str, ...] = ()
    announce: bool | None = None
    meta: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    others: tuple[str, ...] = ()  # further targets
    health: str = "auto"
    proxy_protocol: bool = False
    rate: tuple[str, ...] = ()

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield what is exposed; names and short ids in ``allow`` are bound to the ids that they mean now.

        Raises ConfigError, InvalidId, NotFound, NameChanged, NameDisputed.
        """
        from meshnode.services.setting import Setting

        allow = await daemon.allowed(self.allow)
        targets = (self.target, *self.others)
        yield await daemon.book.put(
            Setting(
                self.name,
                targets,
                allow,
                self.announce,
                self.meta,
                self.limit,
                self.health,
                self.proxy_protocol,
                self.rate,
            )
        )


@request("unexpose")
class Unexpose(Request):
    """Withdraw a service; its connections have ``drain`` seconds to end by themselves."""

    name: str
    drain: float = 0.0

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield its name, and how many connections were ``cut``.

        Raises NotFound.
        """
        yield await daemon.book.unexpose(self.name, self.drain)


@request("forward")
class Forward(Request):
    """Listen for a service of one node, or of any."""

    listen: str
    to: str
    sticky: bool = False
    trusted: tuple[str, ...] = ()

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listens, and as ``problem`` why a connection would fail now (null when it would not).

        It is kept all the same, for what it leads to may come later; but not where a service's name alone means none.
        Raises AddressInUse, ConfigError, InvalidId, NameDisputed, NameChanged.
        """
        from meshnode.errors import NameChanged, NameDisputed
        from meshnode.services.check import why_not

        to = daemon.in_full(self.to)
        trusted = daemon.trusted(self.trusted)
        found = await daemon.book.forward(self.listen, to, self.sticky, trusted)
        first = daemon.book.forwards[found.get("listens", [found["listen"]])[0]]  # of a range of ports
        problem = await why_not(daemon.node, first.peer, first.service, trusted)
        if first.peer is None and isinstance(problem, NameDisputed | NameChanged):
            await daemon.book.unforward(found["listen"])
            raise problem
        yield {**found, "problem": problem.to_json()["error"] if problem is not None else None}


@request("exposes")
class Exposes(Request):
    """The services that this node exposes, those of ``meshnode run --expose`` among them."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a service; ``kept`` is false for one that is there as long as its program runs."""
        from meshnode.daemon.describe import describe_exposes, describe_passing

        for item in describe_exposes(daemon.book):
            yield {**item, "kept": True}
        for item in describe_passing(daemon.book):
            yield {**item, "kept": False}


@request("forwards")
class Forwards(Request):
    """The forwards of this node."""

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a forward."""
        from meshnode.daemon.describe import describe_forwards

        for item in describe_forwards(daemon.book):
            yield item


@request("unforward")
class Unforward(Request):
    """Stop a forward."""

    listen: str

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield where it listened.

        Raises NotFound.
        """
        yield await daemon.book.unforward(self.listen)


@request("connect", carries=True)
class Connect(Request):
    """A stream to a service of one node, or of any, carried over the control socket."""

    to: str
    trusted: tuple[str, ...] = ()

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json | Carried]:
        """Yield where it leads (``peer``, ``service``), then the stream itself.

        Raises ConfigError and InvalidId for what is no ``NODE/SERVICE``, and what ``Node.open`` raises.
        """
        from meshnode.daemon.carry import Carried, handed_over
        from meshnode.services.registry import parse_service, parse_trusted

        peer, service = parse_service(daemon.in_full(self.to))
        trusted = parse_trusted(self.to, daemon.trusted(self.trusted))
        if peer is None:
            reader, writer = await daemon.node.open_any(service, trusted=trusted or None)
        else:
            reader, writer = await daemon.node.open(peer, service)
        stream = Carried(reader, writer)
        with handed_over(stream):
            yield {"peer": str(writer.peer), "service": service}
        yield stream


@request("flow", carries=True)
class Flow(Request):
    """A flow of datagrams to a service of one node, or of any, carried over the control socket."""

    to: str
    trusted: tuple[str, ...] = ()

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json | CarriedFlow]:
        """Yield where it leads (``peer``, ``service``), then the flow itself.

        Raises ConfigError and InvalidId for what is no ``NODE/SERVICE``, and what ``Node.datagrams`` raises.
        """
        from meshnode.daemon.carry import handed_over
        from meshnode.daemon.carry_flow import CarriedFlow
        from meshnode.services.registry import parse_service, parse_trusted

        peer, service = parse_service(daemon.in_full(self.to))
        trusted = parse_trusted(self.to, daemon.trusted(self.trusted))
        if peer is None:
            flow = await daemon.node.datagrams_any(service, trusted=trusted or None)
        else:
            flow = await daemon.node.datagrams(peer, service)
        carried = CarriedFlow(flow)
        with handed_over(carried):
            yield {"peer": str(flow.peer), "service": service}
        yield carried


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
