"""The SDK's root: a node of a mesh, as a program holds it.

``Node`` has a ``Runtime`` (sockets, timers and the protocol) from its start on, and is none: it shows what programs
need, and nothing else. Other rooms of this package reach the runtime by ``runtime_of``.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

from meshnode.base.address import Addr
from meshnode.base.limits import TOPIC_QUEUE
from meshnode.base.metrics import Metrics
from meshnode.config import Config
from meshnode.discovery.resolver import Resolved
from meshnode.errors import ConfigError, MeshError, NotRunning
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.runtime.runtime import Runtime
from meshnode.runtime.status import describe_node, describe_peers
from meshnode.sdk.arguments import peer_of, seconds, service_of, trusted_of, wrong
from meshnode.sdk.connection import Connection
from meshnode.sdk.events import Event, EventStreams
from meshnode.sdk.life import START, Life
from meshnode.sdk.primitives import Primitives
from meshnode.sdk.service import LIMIT, Handler, Service, ServiceTable
from meshnode.sdk.streams import MeshStream
from meshnode.sdk.topic import Topic
from meshnode.stack.probe import Pinged

if TYPE_CHECKING:
    from meshnode.directory.announcement import Instance


class Node(Primitives):
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
        if not isinstance(config, Config):
            raise wrong("config", "a meshnode.Config", config)
        metrics = Metrics()
        self._config = config
        self._services = ServiceTable(metrics)
        self._events = EventStreams(metrics)
        self._life = Life(config, metrics, self._services, self._events)

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
        await self._life.start()

    async def close(self) -> None:
        """Say goodbye to every peer, end all tasks and streams, and write what must last.

        Waits at most 0.5 s for a router to take its port mapping back and, in a mesh of more than 512 services or
        names, at most 1.5 s for the DHT to take back what this node offers. ``async with`` calls it. It may be called
        again and cancelled: the home, the ports and the streams are free then too.
        """
        await self._life.close()

    @property
    def is_closed(self) -> bool:
        """True once ``close`` was called."""
        return self._life.is_closed

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
        return runtime_of(self).stack.id

    @property
    def address(self) -> str:
        """The overlay IPv6 address that follows from the id, as text.

        Raises:
            NotRunning: As ``id``.
        """
        return str(runtime_of(self).stack.id.overlay)

    @property
    def roles(self) -> frozenset[str]:
        """This node's own roles, as its grants give them; empty where the mesh has no authority.

        Raises:
            NotRunning: The node was not started; NodeClosed, a kind of it, when it was closed.
        """
        runtime = self._life.running().runtime
        return runtime.roles_of(runtime.stack.id)

    @property
    def record(self) -> EndpointRecord:
        """The newest signed record of where this node is; ``record.endpoints`` print as ``HOST:PORT``.

        Raises:
            MeshError: This host has no address at all yet.
            NotRunning: The node was not started.
        """
        record = self._life.running().runtime.stack.record
        if record is None:
            raise MeshError("this host has no address to publish yet", hint="connect it to a network")
        return record

    # ---- discovery

    async def identify(self, peer: NodeId | str) -> NodeId:
        """Return the id that is meant by an id, its text, ``ID.mesh``, or a node's name.

        An unknown name is waited for: 0.6 s, and 4 s in a node that is younger than 15 s.

        Args:
            peer: An id, its text, ``ID.mesh``, or a node's name.

        Raises:
            InvalidId: The text is neither an id nor a possible name.
            NotFound: No node of that name is known.
            NameChanged: The name means another node now than when it was first used here.
            NameDisputed: Several nodes claim the name, and it was never used here; ``claimants``.
            NodeClosed, NotRunning: This node is over, or was not started.
        """
        return await self._life.running().failover.id_of(peer_of(peer))

    async def resolve(self, peer: NodeId | str) -> Resolved:
        """Find the newest record of a peer, in the cache or by asking all sources at once.

        Args:
            peer: As ``identify``.

        Returns:
            The verified record, the source that brought it first, and how long that took.

        Raises:
            NotFound: No source knows a record within 5 s; also as ``identify``.
        """
        running = self._life.running()
        return await running.runtime.resolve(await running.failover.id_of(peer_of(peer)))

    async def find(self, service: str) -> list[Instance]:
        """Return the instances of a service on other nodes, in the order in which ``open_any`` tries them.

        Waits a moment (as ``identify``) while there is none.

        Args:
            service: The service's name.

        Returns:
            The instances, with their state, round trip, load and metadata; none when no other node offers it, or where
            gossip is off.

        Raises:
            ConfigError: The name is empty or longer than 255 bytes.
            NodeClosed, NotRunning: This node is over, or was not started.
        """
        return await self._life.running().failover.find(service_of(service))

    # ---- connecting

    async def connect(self, peer: NodeId | str) -> Connection:
        """Return a connection to a peer: the live one if there is one, else a new one.

        Connections are shared; closing one ends the streams of everything in this node that uses it.

        Args:
            peer: As ``identify``.

        Raises:
            NotFound: No source knows a record of the peer within 5 s.
            NoPathError: No address of the peer answers; ``attempts`` lists each with its outcome.
            PeerIdentityError: Another key than the peer's answered.
            PolicyDenied: The peer does not admit this node.
            HandshakeTimeout: The peer stopped answering during the handshake.
            InvalidId, NameChanged, NameDisputed, NodeClosed, NotRunning: As ``identify``.
        """
        running = self._life.running()
        link = await running.failover.connect(await running.failover.id_of(peer_of(peer)))
        return Connection(link, running.runtime)

    @overload
    async def open(self, peer: NodeId | str, service: str) -> MeshStream: ...

    @overload
    async def open(self, peer: str, *, sticky: bool = False) -> MeshStream: ...

    async def open(self, peer: NodeId | str, service: str | None = None, *, sticky: bool = False) -> MeshStream:
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
            return await self._life.running().failover.open(service_of(peer), sticky=sticky)
        return await self._life.running().failover.open_at(peer_of(peer), service_of(service))

    async def open_any(
        self, service: str, *, trusted: str | NodeId | Iterable[str | NodeId] | None = None, sticky: bool = False
    ) -> MeshStream:
        """Open a stream to an instance of a service that works, near and idle ones first.

        Any member can offer a service of any name, so ``trusted`` says which nodes may serve it. Without it the service
        is the node that was the only one to offer it when it was first used here; that is pinned in the home, and
        another node's later is an error.

        An instance that refuses or fails is followed by the next trusted one; one that hesitates gets company, and the
        first to accept serves. The stream ends with ConnectionLost when its instance falls silent while another trusted
        one answers: call this again then.

        Args:
            service: The service's name.
            trusted: The nodes that may serve it, as ids or names, or ``"any"`` for every member. Several make failover.
            sticky: Prefer the instance of the last time while it works.

        Returns:
            A reader and a writer, as ``open``.

        Raises:
            NotFound: No other node, or none that is trusted, offers the service, or gossip is off here.
            NameDisputed: Several nodes offer it, none is named as trusted, and it was never used here; ``claimants``.
            NameChanged: Other nodes offer it than the one that did when it was first used here.
            ConnectionLost: No instance answers within 10 s.
            And what the last instance answered, as ``open``.

        Example:

            reader, writer = await node.open_any("db", trusted=["rack1", "rack2"])
        """
        failover = self._life.running().failover
        return await failover.open(service_of(service), trusted=trusted_of(trusted), sticky=sticky)

    async def ping(self, peer: NodeId | str, timeout: float = 2.0) -> Pinged:
        """Send one echo to a peer, connecting first when needed.

        When the peer turns out to have restarted meanwhile, the echo is sent again on a new connection.

        Args:
            peer: The node.
            timeout: Seconds to wait for the echo, and three round trips of the path at least; connecting has its own
                time.

        Returns:
            The round trip, None when the echo was lost, and the kind of path that it took.

        Raises:
            As ``connect``.
        """
        running = self._life.running()
        return await running.runtime.ping(await running.failover.id_of(peer_of(peer)), seconds("timeout", timeout))

    # ---- serving

    def serve(
        self,
        name: str,
        handler: Handler,
        allow: str | NodeId | Iterable[str | NodeId] | None = (),
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
            allow: The nodes that may use it: an id, several ids, or ``"any"`` for every member. None and an empty list
                allow no node.
            accept: False leaves it to the handler to call ``writer.accept()``; when it returns without, the peer gets
                ServiceUnavailable and ``open_any`` there goes on to another instance.
            announce: Tell the mesh of it. By default, when any node is allowed.
            meta: Texts that are announced with it: at most 16, of at most 128 characters each.
            limit: How many of its handlers run at once. A stream over it waits for one to end, 10 s at most and with
                512 others at most; then its opener gets ServiceUnavailable. After 1 s it takes the place of the newest
                stream of the network, host and peer with most, unless that is its own; its handler is cancelled.

        Returns:
            The service, which tells the mesh of its load and health, and is withdrawn by ``close``.

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
        self._life.check_open()
        return self._services.add(name, handler, allow, accept=accept, announce=announce, meta=meta, limit=limit)

    async def join(self, topic: str, *, replay: int = 0, limit: int = TOPIC_QUEUE) -> Topic:
        """Take part in a topic.

        Returns once another member is linked, or after a moment when there is none (0.5 s; 3 s in a node that is
        younger than 10 s).

        Args:
            topic: The name, 1 to 64 characters.
            replay: How many of the latest messages to receive first, 0 to 64.
            limit: How many messages wait for a slow reader; then the oldest go, counted in ``topic.lost``.

        Returns:
            The topic, with a queue of its own; iterate it, and ``leave`` it.

        Raises:
            ConfigError: A bad argument, too many topics, or gossip is off here.
            NodeClosed, NotRunning: This node is over, or was not started.
        """
        return await self._life.running().topics.join(topic, replay=replay, limit=limit)

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
        runtime = self._life.running().runtime
        if not isinstance(addr, str | Addr | None):
            raise wrong("addr", "HOST:PORT in a text, or None", addr)
        try:
            return runtime.rebind(addr)
        except ConfigError as error:
            raise ConfigError(f"addr: {error.message}", hint=error.hint) from error

    def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens from now on, until the node is closed.

        256 events wait for a slow reader; then the oldest go. A wait for the next one may be cancelled, as by a time
        limit, and made again.

        Example:

            async for event in node.events():
                if event.kind is meshnode.EventKind.CONNECTED:
                    print(event.peer)
        """
        self._life.running()
        return self._events.listen()

    def status(self) -> dict[str, Any]:
        """Return what ``meshnode status --json`` prints of this node: addresses, NAT, relays, sources, counters.

        Raises:
            NotRunning: The node was not started, or (NodeClosed) is closed.
        """
        return describe_node(self._life.running().runtime, self._services.names())

    def peers(self) -> list[dict[str, Any]]:
        """Return the live peers as ``meshnode peers --json`` prints them: path, round trip, recent path changes.

        Raises:
            NotRunning: The node was not started, or (NodeClosed) is closed.
        """
        return describe_peers(self._life.running().runtime)


def runtime_of(node: Node) -> Runtime:
    """The runtime of a node that was started: how daemons, services and tests of this package reach what is inside.

    No part of the SDK: it changes without notice. Raises NotRunning.
    """
    if node._life.started is None:
        raise NotRunning("the node was not started", hint=START)
    return node._life.started.runtime
