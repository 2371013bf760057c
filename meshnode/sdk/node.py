"""The public SDK object, and the composition root: the only place that knows everybody.

``host.py`` has the sockets, timers and tasks, ``driver/mesh.py`` the protocol; here is what programs ask of a node.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshnode.base.address import Addr
from meshnode.base.limits import TOPIC_QUEUE
from meshnode.config import Config, parse_seed
from meshnode.directory.announcement import Instance
from meshnode.discovery.resolver import Resolved
from meshnode.errors import ConfigError, MeshError, NodeClosed, NotFound
from meshnode.identity.keyfile import load_or_create, parse_seed_text
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.paths.describe import describe_endpoint, describe_history
from meshnode.quic.connection import Connection as Link
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream, StreamStatus
from meshnode.relay.server import RelayLimits
from meshnode.runtime.extra_sockets import ExtraSockets
from meshnode.runtime.files import SeqSource, load_contacts
from meshnode.runtime.interfaces import InterfaceWatcher
from meshnode.runtime.runtime import Runtime
from meshnode.runtime.udp import UdpSocket
from meshnode.runtime.websocket import WebSockets
from meshnode.sdk.connection import Connection, Event, Handler, Service, parse_allow
from meshnode.sdk.failover import Failover
from meshnode.sdk.presence import Presence
from meshnode.sdk.streams import MeshReader, MeshWriter, wrap
from meshnode.sdk.topic import Topic, TopicBook
from meshnode.stack.context import StackSettings
from meshnode.stack.path_probes import Pinged
from meshnode.stack.relay_client import TUNNEL
from meshnode.stack.stack import Stack

if TYPE_CHECKING:
    pass

log = logging.getLogger("meshnode.node")

MAX_EVENTS = 256  # a slow reader of events() loses its oldest
MAX_HANDLERS = 1024  # streams served at once; more are refused until some end


class Node(Runtime):
    """One node of a mesh: ``async with Node(config) as node``."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.services: dict[str, Service] = {}
        self.presence: Presence
        self._caller: Failover
        self._topics: TopicBook
        self._subscribers: list[asyncio.Queue[Event | None]] = []  # None ends them
        self._started = time.monotonic()

    # ---- life

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Bind, load the key and begin. Raises ConfigError, KeyFileError, AlreadyRunning, AddressInUse."""
        config = self.config
        self._loop = asyncio.get_running_loop()
        home = config.home_path
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use {home}: {error.strerror}", hint="choose another --home") from error
        self._lock(home)
        try:
            await self._begin(home)
        except BaseException:
            self._unlock()
            if self._udp is not None:
                self._udp.close()
            raise

    async def _begin(self, home: Path) -> None:
        config = self.config
        if config.key is not None:
            try:
                identity = parse_seed_text(config.key)
            except ValueError as error:
                raise ConfigError(str(error), hint="MESHNODE_KEY holds 64 hex digits") from error
        else:
            identity = load_or_create(home / "key", config.passphrase)
        sealer = Sealer(identity, MeshKey.from_text(config.mesh), self._clock, os.urandom, born=self._clock.wall())
        self._sealer = sealer
        self._mapping_secret = hashlib.blake2b(key=identity.seed, person=b"port mappings").digest()
        self._udp = UdpSocket(self._loop, self._on_batch, self.metrics)
        self._udp.bind(config.listen_addr)
        self._sides = ExtraSockets(self._loop, self._on_batch, self.metrics)
        self._tunnels = WebSockets(self._loop, sealer.knock, sealer.check_knock, self._on_tunnelled, self.metrics)
        admitted, relayed = parse_allow(config.allow), parse_allow(config.relay_allow)
        capabilities = [name for name, on in (("seed", config.seed_role), ("relay", config.is_relay)) if on]
        if self._listen_tunnels():
            capabilities.append(TUNNEL)
        self.mesh = Stack(
            identity,
            sealer,
            self,
            self,
            pick_engine(config.engine),
            clock=self._clock,
            rng=random.Random(os.urandom(16)),
            entropy=os.urandom,
            next_seq=SeqSource(home / "seq", self._clock).next,
            admit=lambda peer: admitted is None or peer in admitted,
            relay_allow=lambda peer: relayed is None or peer in relayed,
            settings=StackSettings(
                idle_timeout=config.idle_timeout,
                seed_role=config.seed_role,
                dht=config.dht,
                gossip=config.gossip,
                capabilities=tuple(capabilities),
                relay=config.is_relay,
                fresh_port=config.listen_addr.port == 0,
                relay_limits=RelayLimits(
                    client_bytes=config.relay_mb_per_s * 1e6,
                    client_packets=config.relay_mb_per_s * 1e3,
                    total_bytes=config.relay_total_mb_per_s * 1e6,
                    total_packets=config.relay_total_mb_per_s * 1e3,
                ),
            ),
            metrics=self.metrics,
        )
        self._caller = Failover(self, self.mesh.registry)
        self._topics = TopicBook(self, self.mesh.registry)
        self._announce(moved=False)
        self.presence = Presence(self, self.mesh.registry, self._caller, home)
        self._watcher = InterfaceWatcher(self._loop, self._on_interfaces)
        self._watcher.start()
        now = self._clock.monotonic()
        for peer, addr in load_contacts(home / "contacts"):
            self.mesh.add_contact(peer, addr, now)
        if config.seeds:
            self._spawn(self._follow_seeds([parse_seed(text) for text in config.seeds]))
        if config.mdns:
            self._spawn(self._start_mdns())
        self._loop.call_soon(self._update_port_maps)  # after the start, which it must not delay
        self._pump()

    async def close(self) -> None:
        """Say goodbye, stop every task, write what must last. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.close()
        self._topics.close()
        self.presence.close()
        self.mesh.close(self._clock.monotonic())
        self._emit(None)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._port_maps is not None:
            await self._port_maps.close()
        if self._mdns is not None:
            await self._mdns.stop()
        for handle in (self._timer, self._mapping_handle):
            if handle is not None:
                handle.cancel()
        self._save()
        if self._tunnels is not None:
            await self._tunnels.close()
        if self._sides is not None:
            self._sides.close()
        if self._udp is not None:
            self._udp.close()
        self._unlock()

    # ---- what it is

    @property
    def id(self) -> NodeId:
        """The node's id: its public key."""
        return self.mesh.id

    @property
    def address(self) -> str:
        """The overlay IPv6 address."""
        return str(self.mesh.id.overlay)

    @property
    def record(self) -> EndpointRecord:
        """Our own newest record. Raises MeshError while this host has no address at all."""
        if self.mesh.record is None:
            raise MeshError("this host has no address to publish yet", hint="connect it to a network")
        return self.mesh.record

    # ---- discovery

    async def identify(self, who: NodeId | str) -> NodeId:
        """The id that is meant: an id, ``ID.mesh``, or a node's name. Raises InvalidId, NotFound, NameChanged."""
        self._alive()
        return await self._caller.id_of(who)

    async def resolve(self, peer: NodeId | str) -> Resolved:
        """Return the verified record of ``peer`` (an id or a name), its source and how long it took.

        Raises NotFound, InvalidId, NameChanged.
        """
        id = await self.identify(peer)
        future: asyncio.Future[Resolved] = self._loop.create_future()

        def answer(result: Resolved | NotFound) -> None:
            if not future.done():
                if isinstance(result, NotFound):
                    future.set_exception(result)
                else:
                    future.set_result(result)

        self.mesh.resolve(id, self._clock.monotonic(), answer)
        self._pump()
        return await future

    # ---- connecting

    def _alive(self) -> None:
        if self._closed:
            raise NodeClosed("the node was closed")

    async def connect(self, peer: NodeId | str) -> Connection:
        """Return a connection to ``peer`` (an id or a name), the live one if there is one.

        Raises NotFound, NoPathError, PeerIdentityError, PolicyDenied, HandshakeTimeout, InvalidId, NameChanged.
        """
        id = await self.identify(peer)
        future: asyncio.Future[Link] = self._loop.create_future()

        def answer(result: Link | MeshError) -> None:
            if not future.done():
                if isinstance(result, MeshError):
                    future.set_exception(result)
                else:
                    future.set_result(result)

        self.mesh.connect(id, self._clock.monotonic(), answer)
        self.on_dirty()
        return Connection(self, await future)

    async def open(
        self, peer: NodeId | str, service: str | None = None, *, sticky: bool = False
    ) -> tuple[MeshReader, MeshWriter]:
        """Open a stream, connecting first when needed. Raises as connect and Connection.open do.

        ``open(node, service)``: the service of that node, which an id, ``ID.mesh`` or a name means; the stream survives
        every move of both. ``open(service)``: any instance that works, near and idle ones first; ``sticky`` prefers the
        one of the last time. Such a stream ends with ConnectionLost when its instance falls silent while another one
        answers: open anew.
        """
        self._alive()
        if service is None:
            if isinstance(peer, NodeId):
                raise ConfigError("a node alone is no service", hint="open(id, service), or open(service)")
            return await self._caller.open(peer, sticky=sticky)
        return await self._caller.open_at(peer, service)

    async def find(self, service: str) -> list[Instance]:
        """The instances of a service on other nodes, with state, load, metadata, rtt; ``open``'s choice first."""
        self._alive()
        return await self._caller.find(service)

    async def join(self, topic: str, *, replay: int = 0, limit: int = TOPIC_QUEUE) -> Topic:
        """Take part in a topic, with up to ``replay`` (64) of its latest messages first.

        ``limit`` messages wait for a slow reader; then the oldest go, counted in ``topic.lost``. Returns once another
        member is linked, or after a moment (0.5 s; 3 s in a node that has just begun). Raises ConfigError, NodeClosed.
        """
        self._alive()
        return await self._topics.join(topic, replay=replay, limit=limit)

    async def ping(self, peer: NodeId | str, timeout: float = 2.0) -> Pinged:
        """Send one echo to ``peer`` (connecting first when needed) and wait at most ``timeout`` seconds for it.

        When the peer turns out to have restarted meanwhile, the echo is sent again on a new connection.
        """
        for last in (False, False, True):  # the first new one may lose to the peer's own dial
            connection = await self.connect(peer)
            future: asyncio.Future[Pinged] = self._loop.create_future()
            self.mesh.ping(connection._link, timeout, self._clock.monotonic(), future.set_result)
            self._arm()
            outcome = await future
            if outcome.rtt is not None or connection.is_open or last:
                break
        return outcome

    # ---- serving

    def serve(
        self,
        name: str,
        handler: Handler,
        allow: Iterable[str | NodeId] = (),
        *,
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> Service:
        """Serve ``name`` to those in ``allow`` (nobody unless named; ``any`` for every member).

        The mesh is told of it, with ``meta``, when somebody is allowed; ``announce`` True or False decides otherwise.
        Raises ConfigError when the name is taken or cannot be announced, InvalidId.
        """
        Presence.check(name, announce)
        if name in self.services:
            raise ConfigError(f"the service {name!r} exists already", hint="unexpose it first")
        service = self.services[name] = Service(self, name, handler, parse_allow(allow), announce, meta)
        if self.is_running:  # before the start there is no mesh to tell: it is told then
            try:
                self.presence.announce(service)
            except ConfigError:
                del self.services[name]
                raise
        return service

    def on_stream(self, link: Link, stream: Stream) -> None:
        """A peer asks for a service (MeshEvents)."""
        service = self.services.get(stream.service)
        if service is None:
            self.metrics.count("refused_no_service")
            stream.refuse(StreamStatus.NO_SUCH_SERVICE)
        elif not service.allows(link.peer) or len(self._tasks) >= MAX_HANDLERS:
            self.metrics.count("refused_service_policy")
            stream.refuse(StreamStatus.DENIED)
        else:
            if not service.decides:
                stream.accept()
            self._spawn(self._handle(service, stream, link.peer))

    async def _handle(self, service: Service, stream: Stream, peer: NodeId) -> None:
        reader, writer = wrap(stream, peer)
        try:
            await service.handler(reader, writer, peer)
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

    # ---- events and status

    def on_connection(self, link: Link, up: bool) -> None:
        """A connection came or went (MeshEvents)."""
        reason = "" if up or link.error is None else link.error.message
        self._emit(Event("connected" if up else "disconnected", link.peer, reason))

    def on_path(self, peer: NodeId, old: Addr | None, new: Addr | None, why: str) -> None:
        """A peer's path changed (MeshEvents)."""
        self._emit(Event("path", peer, f"{old} -> {new}: {why}"))

    def emit(self, kind: str, peer: NodeId, detail: str, service: str = "") -> None:
        """Tell those who listen to ``events()``."""
        self._emit(Event(kind, peer, detail, service))

    def _emit(self, event: Event | None) -> None:
        for queue in self._subscribers:
            if queue.full():
                queue.get_nowait()
                self.metrics.count("events_lost")
            queue.put_nowait(event)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what happens from now on, until the node is closed; a slow reader loses the oldest events."""
        self._alive()
        queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_EVENTS)
        self._subscribers.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._subscribers.remove(queue)

    def status(self) -> dict[str, Any]:
        """Return what a person wants to know of this node; values are plain JSON."""
        record = self.mesh.record
        live = [s for s in self.mesh.sessions.values() if s.connection is not None]
        return {
            "id": str(self.id),
            "name": self.config.name,
            "address": self.address,
            "endpoints": [str(e) for e in record.endpoints] if record is not None else [],
            "seq": record.seq if record is not None else 0,
            "peers": len(live),
            "contacts": len(self.mesh.dht.contacts()),
            "nat": {
                **self.mesh.nat.to_json(self._clock.monotonic()),
                "mappings": [],
                **(self._port_maps.to_json() if self._port_maps is not None else {}),
            },
            "relays": self.mesh.relaying.status(),
            "clock": self._sealer.skew.to_json(),
            "mdns": self._mdns.status() if self._mdns is not None else {"on": False},
            "gossip": self.mesh.gossip.summary() if self.mesh.gossip is not None else None,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "seed": self.config.seed_role,
            "services": sorted(self.services),
            "counters": {**self.metrics.counters, **self._sealer.drops},
        }

    def peers(self) -> list[dict[str, Any]]:
        """Return the live peers: id, path, address, round trip and recent path changes."""
        now = self._clock.monotonic()
        found = []
        for session in self.mesh.sessions.values():
            link = session.connection
            if link is None:
                continue
            paths = session.paths
            rtt = link.engine.rtt()
            found.append(
                {
                    "id": str(session.peer),
                    "address": str(session.peer.overlay),
                    **describe_endpoint(paths, paths.active),
                    "state": paths.connectivity.value,
                    "rtt_ms": round(rtt * 1000, 3) if rtt is not None else None,
                    "streams": len(link.streams),
                    "bytes_in": link.bytes_in,
                    "bytes_out": link.bytes_out,
                    "since_s": round(now - link.started, 1),
                    "dialled": link.dialler,
                    "history": describe_history(paths, now),
                }
            )
        return found
