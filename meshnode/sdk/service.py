"""Services that a node serves: their access, their announcements, and the streams that ask for them.

A service is announced when any node is allowed to use it: it must be found by those nodes, and by no others. An
announcement says whether every member may use it, never which nodes. ``announce=False`` keeps a service private.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

from meshnode.base.log_lines import Logger, rated_logger
from meshnode.base.metrics import Metrics, describe
from meshnode.directory.announcement import Offer, is_service_name
from meshnode.errors import ConfigError, ConnectionLost, FlowClosed
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.preface import Purpose, StreamStatus
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.arguments import allowed, flag, flow_of, handler_of, service_of, texts, whole
from meshnode.sdk.datagrams import DatagramHandler, Datagrams
from meshnode.sdk.places import Groups, Places
from meshnode.sdk.streams import MeshReader, MeshWriter, wrap
from meshnode.trust.parties import Parties

log = rated_logger("meshnode.services")

LIMIT = 1024  # streams that one service serves at once, unless it is told otherwise
FAILED = describe("handlers_failed", "handlers of services that raised an error of their own")
FULL = describe("refused_service_full", "streams over a service's limit that waited too long, or were too many")

Handler = Callable[[MeshReader, MeshWriter, NodeId], Awaitable[None]]


class Service:
    """A served name, as ``node.serve`` and its like return it.

    The mesh is told of ``healthy``, ``load`` and ``meta`` where the service is announced; change them by ``update``.
    ``async with`` withdraws it at the end.
    """

    def __init__(
        self,
        table: ServiceTable,
        name: str,
        handler: Handler | DatagramHandler,
        allow: Parties,
        *,
        purpose: Purpose,
        accept: bool,
        announce: bool | None,
        meta: Mapping[str, str] | None,
        limit: int,
    ) -> None:
        self._table = table
        self._places = Places(whole("limit", limit, 1))
        self._name = name
        takes = ("flow", "peer") if purpose is Purpose.FLOW else ("reader", "writer", "peer")
        self._handler: Callable[..., Awaitable[None]] = handler_of(handler, *takes)
        self._purpose = purpose
        self._allow = allow
        self._accept = flag("accept", accept)
        self._announce = flag("announce", announce, optional=True)
        self._offer = Offer(not allow.any, True, 0, texts("meta", meta))

    @property
    def name(self) -> str:
        """The service's name."""
        return self._name

    @property
    def healthy(self) -> bool:
        """True while the service is announced as working; True at first."""
        return self._offer.healthy

    @property
    def load(self) -> int:
        """The load that is announced, 0 to 100; 0 at first."""
        return self._offer.load

    @property
    def meta(self) -> Mapping[str, str]:
        """The texts that are announced with it."""
        return self._offer.meta

    @property
    def is_served(self) -> bool:
        """False once it was closed."""
        return self._table.get(self._name) is self

    def update(
        self, *, healthy: bool | None = None, load: int | None = None, meta: Mapping[str, str] | None = None
    ) -> None:
        """Tell the mesh how the service is: failing ones are tried last, busy ones later.

        Changes are announced at most once a second, and a load that moves by less than 10 not at all.

        Args:
            healthy: False when the service does not work now.
            load: 0 (idle) to 100 (as busy as it can be).
            meta: Texts that replace those of before: at most 16, of at most 128 characters each.

        Raises:
            ConfigError: A value is out of range, or all together do not fit 1,024 bytes; nothing has changed then.
        """
        old = self._offer
        self._offer = Offer(
            old.restricted,
            old.healthy if healthy is None else bool(flag("healthy", healthy)),
            old.load if load is None else whole("load", load, 0, 100),
            old.meta if meta is None else texts("meta", meta),
        )
        if self.is_served:
            try:
                self._table.announce(self)
            except ConfigError:
                self._offer = old
                raise

    def withdraw(self) -> None:
        """Tell the mesh that the service is gone, and go on serving those that have not heard of it yet.

        What ends in order does this first, and ``close`` a second later: a caller by name then meets no refusal.
        """
        self._announce = False
        if self.is_served:
            self._table.withdraw(self)

    def close(self) -> None:
        """Withdraw the service; streams that run go on.

        Safe to call twice.
        """
        if self.is_served:
            self._table.remove(self)

    async def __aenter__(self) -> Service:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


class ServiceTable:
    """All services of one node. They may be added before the node starts: they are announced then."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._services: dict[str, Service] = {}
        self._runtime: Runtime | None = None
        self._log: Logger = log

    def begin(self, runtime: Runtime) -> None:
        """Announce through a runtime from now on.

        Raises ConfigError.
        """
        self._runtime = runtime
        self._log = runtime.journal.rate.of_node(log)
        for service in self._services.values():
            runtime.guard.set_service(service.name, service._allow)
            self.announce(service)

    def names(self) -> list[str]:
        """The names of all services, sorted."""
        return sorted(self._services)

    def get(self, name: str) -> Service | None:
        """The service of a name."""
        return self._services.get(name)

    def add(
        self,
        name: str,
        handler: Handler | DatagramHandler,
        allow: str | NodeId | Iterable[str | NodeId] | None,
        *,
        purpose: Purpose = Purpose.USE,
        accept: bool = True,
        announce: bool | None,
        meta: Mapping[str, str] | None,
        limit: int,
    ) -> Service:
        """Serve a name by streams, or by flows of datagrams. Raises ConfigError, InvalidId."""
        (flow_of if purpose is Purpose.FLOW else service_of)(name)
        if announce and not is_service_name(name):
            raise ConfigError(
                f"{name!r} cannot be announced", hint="1 to 64 visible characters without a slash, or announce=False"
            )
        if name in self._services:
            raise ConfigError(f"the service {name!r} exists already", hint="close it first")
        parties = allowed(allow)
        service = Service(
            self, name, handler, parties, purpose=purpose, accept=accept, announce=announce, meta=meta, limit=limit
        )
        self._services[name] = service
        if self._runtime is not None:
            self._runtime.guard.set_service(name, service._allow)
        try:
            self.announce(service)
        except ConfigError:
            self._drop(service)
            raise
        return service

    def _drop(self, service: Service) -> None:
        del self._services[service.name]
        if self._runtime is not None:
            self._runtime.guard.set_service(service.name, None)

    def remove(self, service: Service) -> None:
        """Serve it no more, and tell the mesh."""
        self._drop(service)
        self.withdraw(service)

    def withdraw(self, service: Service) -> None:
        """Tell the mesh that it is gone."""
        runtime = self._runtime
        if runtime is not None and not runtime.is_closed and (registry := runtime.stack.registry) is not None:
            registry.directory.withdraw(service.name, runtime.clock.monotonic())
            runtime.drain_directory()

    def announce(self, service: Service) -> None:
        """Tell the mesh of a service, or of what has changed about it.

        Raises ConfigError.
        """
        runtime = self._runtime
        registry = runtime.stack.registry if runtime is not None and not runtime.is_closed else None
        wanted = service._announce if service._announce is not None else bool(service._allow)
        if runtime is None or registry is None or not wanted or not is_service_name(service.name):
            return
        try:
            registry.directory.announce(service.name, service._offer, runtime.clock.monotonic())
        except ValueError as error:
            raise ConfigError(str(error), hint="announce=False keeps a service private") from error
        runtime.drain_directory()

    def on_stream(self, link: Link, stream: Stream) -> None:
        """Serve a stream that a peer may open, or refuse it.

        One that only asks for a service gets the answer.
        """
        service, runtime, purpose = self._services.get(stream.service), self._runtime, stream.purpose
        if service is None or runtime is None or purpose not in (service._purpose, Purpose.ASK):
            self._metrics.count("refused_no_service")
            stream.refuse(StreamStatus.NO_SUCH_SERVICE)
        elif purpose is Purpose.ASK:
            _answer_ask(service, stream)
        else:
            runtime.audit.on_served(link, stream)
            source = runtime.stack.connections.source_of(link)
            runtime.tasks.spawn(self._serve(service, stream, link, (*source, link.peer)))

    async def _serve(self, service: Service, stream: Stream, link: Link, groups: Groups) -> None:
        """Run the handler once the service has a free place; a service that hangs takes none of another's."""
        try:
            if not await service._places.take(*groups):
                self._metrics.count(FULL)
                stream.refuse(StreamStatus.UNAVAILABLE)
            elif stream.error is None:
                await self._handle(service, stream, link)
            else:
                stream.discard()
        finally:
            service._places.leave()

    async def _handle(self, service: Service, stream: Stream, link: Link) -> None:
        """Run the handler. What it raises is logged with the service and the peer, and goes no further."""
        flow = link.streams.flows.open(stream.id) if service._purpose is Purpose.FLOW else None
        if service._purpose is Purpose.FLOW and flow is None:
            stream.refuse(StreamStatus.UNAVAILABLE)
            return
        if service._accept:
            stream.accept()
        taken = (Datagrams(stream, flow, link),) if flow is not None else wrap(stream, (link.own, link.peer))
        end = taken[-1]
        try:
            await service._handler(*taken, link.peer)
        except Exception as error:
            if is_goodbye(error, stream):
                self._log.debug("service %s: stream of %s ended: %s", service.name, link.peer.short, error)
            else:
                self._complain(service, link.peer, error)
            stream.reset()  # one that the handler has closed before is delivered
        except BaseException:
            end.reset()
            raise
        else:
            if stream.status is None:
                stream.refuse(StreamStatus.UNAVAILABLE)
            else:
                end.close()

    def _complain(self, service: Service, peer: NodeId, error: Exception) -> None:
        """Count and log what a handler raised; a peer that has it raise again and again fills no log."""
        self._metrics.count(FAILED)
        self._log.error("service %s: its handler failed for %s: %r", service.name, peer, error, exc_info=error)


def is_goodbye(error: Exception, stream: Stream) -> bool:
    """Return whether a handler only met the end of its stream, which is no error of its own."""
    over = stream.fin_received or stream.fin_sent or stream.error is not None
    return error is stream.error or (
        over and isinstance(error, ConnectionLost | FlowClosed | asyncio.IncompleteReadError)
    )


def _answer_ask(service: Service, stream: Stream) -> None:
    """Say that the service is there for the asker, without its handler; a target that fails is told as such."""
    if not service.healthy:
        stream.refuse(StreamStatus.UNAVAILABLE)
        return
    stream.accept()
    stream.write(b"", fin=True)
    stream.stop_reading()
