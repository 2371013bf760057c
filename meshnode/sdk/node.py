"""The SDK's root: a node of a mesh, as a program holds it.

``Node`` has a ``Runtime`` (sockets, timers and the protocol) from its start on, and is none: it shows what programs
need, and nothing else. Other rooms of this package reach the runtime by ``runtime_of``.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, overload

from meshnode.base.address import Addr
from meshnode.base.limits import TOPIC_QUEUE
from meshnode.base.metrics import Metrics
from meshnode.config import Config
from meshnode.directory.announcement import Instance
from meshnode.directory.services import ServiceChanged
from meshnode.discovery.resolver import Resolved
from meshnode.errors import ConfigError, MeshError, NodeClosed, NotRunning
from meshnode.gossip.effects import MemberChanged
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.runtime.runtime import Runtime
from meshnode.runtime.status import describe_node, describe_peers
from meshnode.sdk.connection import Connection
from meshnode.sdk.events import Event, EventStreams
from meshnode.sdk.failover import Failover
from meshnode.sdk.service import LIMIT, Handler, Service, ServiceTable
from meshnode.sdk.streams import MeshReader, MeshWriter
from meshnode.sdk.topic import Topic, TopicBook
from meshnode.stack.probe import Pinged
from meshnode.stack.stack import Stack

START = "async with Node(config) as node, or await node.start()"


class _Running:
    """What a node has between its start and its end."""

    def __init__(self, config: Config, metrics: Metrics, services: ServiceTable, events: EventStreams) -> None:
        self.runtime = Runtime(
            config,
            metrics,
            on_stream=services.on_stream,
            on_connection=events.on_connection,
            on_path=events.on_path,
        )
        self.failover = Failover(self.runtime)
        self.topics = TopicBook(self.runtime)
        self._events = events
        registry = self.runtime.stack.registry
        if registry is not None:
            registry.on_service = self._on_service
            registry.on_member = self._on_member
            registry.on_conflict = events.on_conflict
            registry.on_name = self.failover.on_news

    def _on_service(self, effect: ServiceChanged) -> None:
        self._events.on_service(effect)
        self.failover.on_service(effect)

    def _on_member(self, change: MemberChanged) -> None:
        self._events.on_member(change)
        self.failover.on_member(change)


class Node:
    """One node of a mesh.

    A node has a home (a directory with its key and state), one UDP port, and any number of services, streams and
    topics. It belongs to one asyncio loop; nothing of it may be called from another thread. Wherever a method takes
    a peer, that is a ``NodeId``, its text, ``ID.mesh``, or a node's name (``laptop`` or ``laptop.mesh``).

    Args:
        config: The settings. Nothing is opened before ``start``.

    Example:

        async with meshnode.Node(meshnode.Config(home="~/.meshnode")) as node:
            reader, writer = await node.open("laptop", "echo")
            writer.write(b"hello")
            writer.write_eof()
            print(await reader.read())
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = Metrics()
        self._services = ServiceTable(self._metrics)
        self._events = EventStreams(self._metrics)
        self._started: _Running | None = None
        self._closed = False

    def _running(self) -> _Running:
        if self._closed:
            raise NodeClosed("the node was closed")
        if self._started is None:
            raise NotRunning("the node was not started", hint=START)
        return self._started

    # ---- life

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Bind the socket, load the key or make one, announce the services, and begin to find others.

        Returns at once: peers are found in the background. ``async with`` calls it.

        Raises:
            ConfigError: A setting cannot be had on this host.
            KeyFileError: The key file is damaged, readable by others, or needs a passphrase.
            AlreadyRunning: A node runs in this home already.
            AddressInUse: The listen address is taken.
            NodeClosed: The node was closed; make a new one.
        """
        if self._closed:
            raise NodeClosed("the node was closed")
        running = _Running(self._config, self._metrics, self._services, self._events)
        self._started = running
        try:
            self._services.begin(running.runtime)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Say goodbye to every peer, end all tasks and streams, and write what must last.

        Waits at most 0.5 s for a router to take its port mapping back. Safe to call twice. ``async with`` calls it.
        """
        running = self._started
        if self._closed or running is None:
            self._closed = True
            return
        self._closed = True
        running.topics.close()
        running.runtime.stop()
        self._events.end()
        await running.runtime.wait_closed()

    @property
    def is_closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    # ---- what it is

    @property
    def config(self) -> Config:
        """The settings that the node was made with."""
        return self._config

    @property
    def id(self) -> NodeId:
        """The node's id, which is its public key.

        Raises:
            NotRunning: The node was not started, so no key is loaded yet.
        """
        return self._stack.id

    @property
    def address(self) -> str:
        """The overlay IPv6 address that follows from the id, as text.

        Raises:
            NotRunning: As ``id``.
        """
        return str(self._stack.id.overlay)

    @property
    def record(self) -> EndpointRecord:
        """The newest signed record of where this node is; ``record.endpoints`` print as ``HOST:PORT``.

        Raises:
            MeshError: This host has no address at all yet.
            NotRunning: The node was not started.
        """
        record = self._stack.record
        if record is None:
            raise MeshError("this host has no address to publish yet", hint="connect it to a network")
        return record

    # ---- discovery

    async def identify(self, peer: NodeId | str) -> NodeId:
        """Return the id that is meant by an id, its text, ``ID.mesh``, or a node's name.

        An unknown name is waited for: 0.6 s, and 4 s in a node that is younger than 15 s.

        Raises:
            InvalidId: The text is neither an id nor a possible name.
            NotFound: No node of that name is known.
            NameChanged: The name means another node now than when it was first used here.
            NodeClosed, NotRunning: This node is over, or was not started.
        """
        return await self._running().failover.id_of(peer)

    async def resolve(self, peer: NodeId | str) -> Resolved:
        """Find the newest record of a peer, in the cache or by asking all sources at once.

        Returns:
            The verified record, the source that brought it first, and how long that took.

        Raises:
            NotFound: No source knows a record; also as ``identify``.
        """
        running = self._running()
        return await running.runtime.resolve(await running.failover.id_of(peer))

    async def find(self, service: str) -> list[Instance]:
        """Return the instances of a service on other nodes, in the order in which ``open_any`` tries them.

        Waits a moment (as ``identify``) while there is none.

        Returns:
            The instances, with their state, round trip, load and metadata; none when no other node offers it, or where
            gossip is off.
        """
        return await self._running().failover.find(service)

    # ---- connecting

    async def connect(self, peer: NodeId | str) -> Connection:
        """Return a connection to a peer: the live one if there is one, else a new one.

        Connections are shared; closing one ends the streams of everything in this node that uses it.

        Raises:
            NotFound: No record of the peer is known.
            NoPathError: No address of the peer answers; ``attempts`` lists each with its outcome.
            PeerIdentityError: Another key than the peer's answered.
            PolicyDenied: The peer does not admit this node.
            HandshakeTimeout: The peer stopped answering during the handshake.
            InvalidId, NameChanged, NodeClosed, NotRunning: As ``identify``.
        """
        running = self._running()
        return Connection(await running.runtime.connect(await running.failover.id_of(peer)))

    @overload
    async def open(self, peer: NodeId | str, service: str) -> tuple[MeshReader, MeshWriter]: ...

    @overload
    async def open(self, peer: str, *, sticky: bool = False) -> tuple[MeshReader, MeshWriter]: ...

    async def open(
        self, peer: NodeId | str, service: str | None = None, *, sticky: bool = False
    ) -> tuple[MeshReader, MeshWriter]:
        """Open a stream to a service of one node, connecting first when needed.

        The stream survives every move of both nodes. A peer that restarts meanwhile is tried once more.

        Args:
            peer: The node: an id, ``ID.mesh``, or a node's name.
            service: The service's name there.
            sticky: Only for ``open(service)``, which is deprecated: call ``open_any(service)``.

        Returns:
            A reader and a writer with asyncio's semantics.

        Raises:
            ServiceNotFound: The peer has no such service.
            ServiceUnavailable: It has, but what is behind it does not answer.
            PolicyDenied: This node may not use it.
            StreamLimitError: The peer granted no more streams within 10 s.
            ConnectionLost: The connection ended meanwhile.
            ConfigError: The service's name is empty or longer than 255 bytes.
            And as ``connect``.
        """
        if service is None:
            if isinstance(peer, NodeId):
                raise ConfigError("a node alone is no service", hint="open(id, service), or open_any(service)")
            warnings.warn("open(service) is deprecated: call open_any(service)", DeprecationWarning, stacklevel=2)
            return await self._running().failover.open(peer, sticky=sticky)
        return await self._running().failover.open_at(peer, service)

    async def open_any(self, service: str, *, sticky: bool = False) -> tuple[MeshReader, MeshWriter]:
        """Open a stream to any instance of a service that works, near and idle ones first.

        An instance that refuses or fails is followed by the next; one that hesitates gets company, and the first to
        accept serves. The stream ends with ConnectionLost when its instance falls silent while another one answers:
        call this again then.

        Args:
            service: The service's name.
            sticky: Prefer the instance of the last time while it works.

        Raises:
            NotFound: No other node offers the service, or gossip is off here.
            ConnectionLost: No instance answers within 10 s.
            And what the last instance answered, as ``open``.
        """
        return await self._running().failover.open(service, sticky=sticky)

    async def ping(self, peer: NodeId | str, timeout: float = 2.0) -> Pinged:
        """Send one echo to a peer, connecting first when needed.

        When the peer turns out to have restarted meanwhile, the echo is sent again on a new connection.

        Args:
            peer: The node.
            timeout: Seconds to wait for the echo; connecting has its own time.

        Returns:
            The round trip, None when the echo was lost, and the kind of path that it took.

        Raises:
            As ``connect``.
        """
        running = self._running()
        return await running.runtime.ping(await running.failover.id_of(peer), timeout)

    # ---- serving

    def serve(
        self,
        name: str,
        handler: Handler,
        allow: Iterable[str | NodeId] = (),
        *,
        accept: bool = True,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int = LIMIT,
    ) -> Service:
        """Serve a name: each stream that a peer opens to it runs ``handler(reader, writer, peer)``.

        The writer is closed when the handler returns, and reset when it raises. May be called
        before the start.

        Args:
            name: 1 to 64 visible characters without a slash, where it is announced.
            handler: A coroutine function of a MeshReader, a MeshWriter and the peer's NodeId (type ``Handler``).
            allow: The ids of the nodes that may use it, or ``"any"`` for every member. No node may unless named.
            accept: False leaves it to the handler to call ``writer.accept()``; when it returns without, the peer gets
                ServiceUnavailable and ``open_any`` there goes on to another instance.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it: at most 16, of at most 128 characters each.
            limit: How many of its handlers run at once. A stream over it waits for one to end, 10 s at most and with
                512 others at most; then its opener gets ServiceUnavailable.

        Raises:
            ConfigError: The name is served already, or cannot be announced, or the limit is below 1.
            InvalidId: Something in ``allow`` is no id.
            NodeClosed: The node was closed.

        Example:

            async def echo(reader, writer, peer):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()


            node.serve("echo", echo, allow=["any"])
        """
        if self._closed:
            raise NodeClosed("the node was closed")
        return self._services.add(name, handler, allow, accept=accept, announce=announce, meta=meta, limit=limit)

    async def join(self, topic: str, *, replay: int = 0, limit: int = TOPIC_QUEUE) -> Topic:
        """Take part in a topic.

        Returns once another member is linked, or after a moment when there is none (0.5 s; 3 s in a node that is
        younger than 10 s).

        Args:
            topic: The name, 1 to 64 characters.
            replay: How many of the latest messages to receive first, 0 to 64.
            limit: How many messages wait for a slow reader; then the oldest go, counted in ``topic.lost``.

        Raises:
            ConfigError: A bad argument, too many topics, or gossip is off here.
            NodeClosed, NotRunning: This node is over, or was not started.
        """
        return await self._running().topics.join(topic, replay=replay, limit=limit)

    # ---- moves, events and status

    async def rebind(self, addr: str | Addr | None = None) -> Addr:
        """Move the node's socket to another local address, as a move to another network would.

        Streams go on. A node notices changed interfaces by itself; this is for moves that it cannot see, and for tests.

        Args:
            addr: ``HOST:PORT``; port 0 takes a free one. By default the same host, a new port.

        Returns:
            The address that is bound now; prints as ``HOST:PORT``.

        Raises:
            ConfigError: No such address is on this host.
            AddressInUse: It is taken.
        """
        return self._running().runtime.rebind(addr)

    def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens from now on, until the node is closed.

        256 events wait for a slow reader; then the oldest go.

        Example:

            async for event in node.events():
                if event.kind is meshnode.EventKind.CONNECTED:
                    print(event.peer)
        """
        if self._closed:
            raise NodeClosed("the node was closed")
        return self._events.listen()

    def status(self) -> dict[str, Any]:
        """Return what ``meshnode status --json`` prints of this node: addresses, NAT, relays, sources, counters."""
        return describe_node(runtime_of(self), self._services.names())

    def peers(self) -> list[dict[str, Any]]:
        """Return the live peers as ``meshnode peers --json`` prints them: path, round trip, recent path changes."""
        return describe_peers(runtime_of(self))

    @property
    def _stack(self) -> Stack:
        return runtime_of(self).stack


def runtime_of(node: Node) -> Runtime:
    """The runtime of a node that was started: how daemons, services and tests of this package reach what is inside.

    No part of the SDK: it changes without notice. Raises NotRunning.
    """
    if node._started is None:
        raise NotRunning("the node was not started", hint=START)
    return node._started.runtime
