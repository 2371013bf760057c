"""Services that a node serves: their access, their announcements, and the streams that ask for them.

A service is announced when any node is allowed to use it: it must be found by those nodes, and by no others. An
announcement says whether every member may use it, never which nodes. ``announce=False`` keeps a service private.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from meshnode.base.metrics import Metrics, describe
from meshnode.config import parse_allow
from meshnode.directory.announcement import Offer, is_service_name
from meshnode.errors import ConfigError, MeshError
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection as Link
from meshnode.quic.stream import Stream, StreamStatus
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.streams import MeshReader, MeshWriter, wrap

log = logging.getLogger("meshnode.services")

LIMIT = 1024  # streams that one service serves at once, unless it is told otherwise
MAX_WAITING = 512  # streams over its limit that wait; more are refused
WAIT_S = 10.0  # until a stream over the limit is refused
FULL = describe("refused_service_full", "streams over a service's limit that waited too long, or were too many")

Handler = Callable[[MeshReader, MeshWriter, NodeId], Awaitable[None]]


class Service:
    """A served name, as ``node.serve`` returns it.

    The mesh is told of ``healthy``, ``load`` and ``meta`` where the service is announced; change them by ``update``.
    """

    def __init__(
        self,
        table: ServiceTable,
        name: str,
        handler: Handler,
        allow: frozenset[NodeId] | None,
        *,
        accept: bool,
        announce: bool | None,
        meta: Mapping[str, str] | None,
        limit: int,
    ) -> None:
        if limit < 1:
            raise ConfigError(f"a service with a limit of {limit} serves no stream", hint="a limit of at least 1")
        self._table = table
        self._slots = asyncio.Semaphore(limit)
        self._room = limit + MAX_WAITING
        self._name = name
        self._handler = handler
        self._allow = allow
        self._accept = accept
        self._announce = announce
        self._offer = Offer(allow is not None, True, 0, dict(meta or {}))

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
            old.healthy if healthy is None else healthy,
            old.load if load is None else load,
            old.meta if meta is None else dict(meta),
        )
        if self.is_served:
            try:
                self._table.announce(self)
            except ConfigError:
                self._offer = old
                raise

    def close(self) -> None:
        """Withdraw the service; streams that run go on. Safe to call twice."""
        if self.is_served:
            self._table.remove(self)


class ServiceTable:
    """All services of one node. They may be added before the node starts: they are announced then."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._services: dict[str, Service] = {}
        self._runtime: Runtime | None = None

    def begin(self, runtime: Runtime) -> None:
        """Announce through a runtime from now on. Raises ConfigError."""
        self._runtime = runtime
        for service in self._services.values():
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
        handler: Handler,
        allow: Iterable[str | NodeId],
        *,
        accept: bool,
        announce: bool | None,
        meta: Mapping[str, str] | None,
        limit: int,
    ) -> Service:
        """Serve a name. Raises ConfigError, InvalidId."""
        if announce and not is_service_name(name):
            raise ConfigError(
                f"{name!r} cannot be announced", hint="1 to 64 visible characters without a slash, or announce=False"
            )
        if name in self._services:
            raise ConfigError(f"the service {name!r} exists already", hint="unexpose it first")
        service = Service(
            self, name, handler, parse_allow(allow), accept=accept, announce=announce, meta=meta, limit=limit
        )
        self._services[name] = service
        try:
            self.announce(service)
        except ConfigError:
            del self._services[name]
            raise
        return service

    def remove(self, service: Service) -> None:
        """Serve it no more, and tell the mesh."""
        del self._services[service.name]
        runtime = self._runtime
        if runtime is not None and not runtime.is_closed and (registry := runtime.stack.registry) is not None:
            registry.directory.withdraw(service.name, runtime.clock.monotonic())
            runtime.drain_directory()

    def announce(self, service: Service) -> None:
        """Tell the mesh of a service, or of what has changed about it. Raises ConfigError."""
        runtime = self._runtime
        registry = runtime.stack.registry if runtime is not None and not runtime.is_closed else None
        wanted = service._announce if service._announce is not None else service._allow is None or service._allow
        if runtime is None or registry is None or not wanted or not is_service_name(service.name):
            return
        try:
            registry.directory.announce(service.name, service._offer, runtime.clock.monotonic())
        except ValueError as error:
            raise ConfigError(str(error), hint="announce=False keeps a service private") from error
        runtime.drain_directory()

    def on_stream(self, link: Link, stream: Stream) -> None:
        """Serve a stream that a peer opened, or refuse it."""
        service, runtime = self._services.get(stream.service), self._runtime
        if service is None or runtime is None:
            self._metrics.count("refused_no_service")
            stream.refuse(StreamStatus.NO_SUCH_SERVICE)
        elif service._allow is not None and link.peer not in service._allow:
            self._metrics.count("refused_service_policy")
            stream.refuse(StreamStatus.DENIED)
        elif not service._room:
            self._refuse_full(stream)
        else:
            service._room -= 1
            runtime.tasks.spawn(self._serve(service, stream, link.peer))

    def _refuse_full(self, stream: Stream) -> None:
        self._metrics.count(FULL)
        stream.refuse(StreamStatus.UNAVAILABLE)

    async def _serve(self, service: Service, stream: Stream, peer: NodeId) -> None:
        """Run the handler once the service has a free place; a service that hangs takes none of another's."""
        try:
            if not await _acquire(service._slots):
                self._refuse_full(stream)
                return
            try:
                if stream.error is None:
                    await _handle(service, stream, peer)
            finally:
                service._slots.release()
        finally:
            service._room += 1


async def _acquire(slots: asyncio.Semaphore) -> bool:
    try:
        async with asyncio.timeout(WAIT_S):
            return await slots.acquire()
    except TimeoutError:
        return False


async def _handle(service: Service, stream: Stream, peer: NodeId) -> None:
    if service._accept:
        stream.accept()
    reader, writer = wrap(stream, peer)
    try:
        await service._handler(reader, writer, peer)
        if stream.status is None:
            stream.refuse(StreamStatus.UNAVAILABLE)
        else:
            writer.close()
    except (MeshError, asyncio.IncompleteReadError, ConnectionError) as error:
        log.debug("service %s: stream of %s ended: %s", service.name, peer.short, error)
        writer.reset()
    except BaseException:
        writer.reset()
        raise
