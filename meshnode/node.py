"""The public SDK object: a node on asyncio. The only place that knows everybody.

It owns the socket, the timers and the tasks, and drives one ``Mesh``, which holds all protocol state.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshnode.address import Addr, canonical_host, parse_addr, tunnel
from meshnode.calls import Caller
from meshnode.clock import SystemClock
from meshnode.config import Config, Seed, parse_seed
from meshnode.discovery.contacts import load_contacts, save_contacts
from meshnode.discovery.resolver import Resolution
from meshnode.driver.mesh import Mesh
from meshnode.driver.ports import MeshSettings
from meshnode.driver.probing import Pinged
from meshnode.driver.relaying import TUNNEL
from meshnode.errors import AlreadyRunning, ConfigError, MeshError, NodeClosed, NotFound
from meshnode.gossip.offers import Instance
from meshnode.identity import NodeId
from meshnode.keyfile import load_or_create, parse_seed_text
from meshnode.limits import MAX_ENDPOINTS, TOPIC_QUEUE
from meshnode.metrics import Metrics
from meshnode.net.interfaces import InterfaceWatcher, local_networks
from meshnode.net.sides import Sides
from meshnode.net.tunnel import Tunnels
from meshnode.net.udp import UdpSocket
from meshnode.paths.describe import describe_endpoint, describe_history
from meshnode.presence import Presence
from meshnode.quic.connection import Connection as Link
from meshnode.quic.connection import State
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream, StreamStatus
from meshnode.record import Endpoint, EndpointKind, EndpointRecord
from meshnode.relay.server import RelayLimits
from meshnode.sealing import MeshKey, Sealer
from meshnode.storage import SeqSource
from meshnode.streams import MeshReader, MeshWriter, accepted, wrap
from meshnode.topic import Topic, TopicBook

if TYPE_CHECKING:
    from meshnode.discovery.mdns import MdnsSource
    from meshnode.net.portmaps import PortMaps

Handler = Callable[[MeshReader, MeshWriter, NodeId], Awaitable[None]]
log = logging.getLogger("meshnode.node")

SEED_RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)  # between attempts while no contact answers
SAVE_DELAY_S = 1.0
MAPPING_SETTLE_S = 0.05  # a mapping that is lost and one that takes its place make one new record
HTTPS_PORT = 443
MAX_EVENTS = 256  # a slow reader of events() loses its oldest
MAX_HANDLERS = 1024  # streams served at once; more are refused until some end


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


class Node:
    """One node of a mesh: ``async with Node(config) as node``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self.services: dict[str, Service] = {}
        self.mesh: Mesh
        self.presence: Presence
        self._caller: Caller
        self._topics: TopicBook
        self._clock = SystemClock()
        self._udp: UdpSocket | None = None
        self._sides: Sides | None = None
        self._tunnels: Tunnels | None = None
        self._watcher: InterfaceWatcher | None = None
        self._mdns: MdnsSource | None = None
        self._port_maps: PortMaps | None = None
        self._mapping_handle: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_soon = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribers: list[asyncio.Queue[Event | None]] = []  # None ends them
        self._save_handle: asyncio.TimerHandle | None = None
        self._lock_fd: int | None = None
        self._closed = False
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
        self._sides = Sides(self._loop, self._on_batch, self.metrics)
        self._tunnels = Tunnels(self._loop, sealer.knock, sealer.check_knock, self._on_tunnelled, self.metrics)
        admitted, relayed = parse_allow(config.allow), parse_allow(config.relay_allow)
        capabilities = [name for name, on in (("seed", config.seed_role), ("relay", config.is_relay)) if on]
        if self._listen_tunnels():
            capabilities.append(TUNNEL)
        self.mesh = Mesh(
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
            settings=MeshSettings(
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
        self._caller = Caller(self, self.mesh.registry)
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

    def _listen_tunnels(self) -> bool:
        """A relay takes WebSockets too, on the TCP port with the UDP port's number."""
        assert self._udp is not None
        assert self._tunnels is not None
        config = self.config
        if not (config.is_relay and config.tunnel):
            return False
        return self._tunnels.listen(self._udp.local, config.home_path / "tunnel.pem")

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
        for handle in (self._timer, self._save_handle, self._mapping_handle):
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

    def _lock(self, home: Path) -> None:
        fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise AlreadyRunning(
                    f"a node runs in {home} already", hint="use another --home, or stop that one"
                ) from error
            raise
        self._lock_fd = fd

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def spawn(self, work: Any) -> None:
        """Run a coroutine until it ends or the node is closed; what it raises is logged."""
        if self._closed:
            work.close()
        else:
            self._spawn(work)

    def wall(self) -> float:
        """Unix seconds."""
        return self._clock.wall()

    @property
    def is_closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed

    @property
    def is_running(self) -> bool:
        """True from ``start`` to ``close``."""
        return self._lock_fd is not None and not self._closed

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task failed", exc_info=error)

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

    # ---- driving the mesh

    def _on_batch(self, batch: list[tuple[bytes, Addr]]) -> None:
        now = self._clock.monotonic()
        for data, source in batch:
            self.mesh.datagram(data, source, now)
        self.on_dirty()  # flushed behind the readers that this wakes: an answer and its ACK share a packet

    def _on_tunnelled(self, datagram: bytes, source: Addr) -> None:
        if not self._closed:
            self.mesh.datagram(datagram, source, self._clock.monotonic())
            self.on_dirty()

    def send(self, addr: Addr, datagrams: list[bytes]) -> bool:
        """The way out (Link): UDP by the node's socket or an extra one, or a WebSocket."""
        if not addr.is_udp:
            return self.config.tunnel and self._tunnels is not None and self._tunnels.send(addr, datagrams)
        if addr.side is not None:
            return self._sides is not None and self._sides.send(addr, datagrams)
        return self._udp is not None and self._udp.send(addr, datagrams)

    def open_sides(self, count: int) -> list[int]:
        """Open extra sockets (Link)."""
        return self._sides.open(count, self._udp.local) if self._sides is not None and self._udp is not None else []

    def close_side(self, side: int) -> None:
        """Close one (Link)."""
        if self._sides is not None:
            self._sides.close_one(side)

    def _pump(self) -> None:
        self._flush_soon = False
        if not self._closed:
            self.mesh.flush(self._clock.monotonic())
            self._arm()

    def _tick(self) -> None:
        self._timer = None
        if not self._closed:
            self.mesh.tick(self._clock.monotonic())
            self._arm()

    def _arm(self) -> None:
        at = self.mesh.next_deadline()
        timer = self._timer
        if timer is not None:
            if at is not None and self._timer_at <= at:
                return  # fires early at worst, and arms itself again: cheaper than a cancel per packet
            timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at
            delay = max(0.0, at - self._clock.monotonic())
            self._timer = self._loop.call_later(delay, self._tick)

    def on_dirty(self) -> None:
        """The mesh has something to send (MeshEvents)."""
        if not self._flush_soon and not self._closed:
            self._flush_soon = True
            self._loop.call_soon(self._pump)

    # ---- addresses

    @property
    def _bound(self) -> tuple[str, int]:
        assert self._udp is not None
        return self._udp.local.host, self._udp.local.port

    def _endpoints(self) -> tuple[tuple[Endpoint, ...], tuple[tuple[str, int], ...]]:
        assert self._udp is not None
        bound = self._udp.local
        networks = local_networks(loopback=True)
        found = [Endpoint(parse_addr(text), EndpointKind.MAPPED) for text in self.config.advertise]
        if bound.host in ("::", "0.0.0.0"):
            loopback = [n for n in networks if _is_loopback(n[0])]
            real = [n for n in networks if not _is_loopback(n[0]) and (bound.host == "::" or ":" not in n[0])]
            hosts = [host for host, _ in real if "%" not in host]
            if not hosts and not real:
                hosts = [host for host, _ in loopback if ":" not in host]
            found += [Endpoint(Addr(host, bound.port)) for host in hosts]
        else:
            found.append(Endpoint(bound))
        mapped = self._port_maps.mappings() if self._port_maps is not None else []
        known = {endpoint.addr for endpoint in found}
        more = [Endpoint(m.external, EndpointKind.MAPPED) for m in mapped if m.external not in known]
        found[MAX_ENDPOINTS - len(more) :] = more  # a host with many interfaces must not crowd them out
        return tuple(found), tuple(networks)

    def _announce(self, *, moved: bool) -> None:
        endpoints, networks = self._endpoints()
        self.mesh.set_addresses(endpoints, networks, self._clock.monotonic(), moved=moved)
        self._arm()

    def _on_interfaces(self) -> None:
        if not self._closed:
            self.metrics.count("interface_changes")
            self._announce(moved=True)
            self._update_port_maps()
            if self._mdns is not None:
                self._mdns.interfaces_changed(*self._bound)

    def _update_port_maps(self) -> None:
        """Our addresses or our port may be others: map them, unless nobody beyond this host could come in anyway."""
        if self._closed or self._udp is None or not self.config.port_mapping:
            return
        if self._port_maps is None:
            if _is_loopback(self._udp.local.host):
                return
            from meshnode.net.portmaps import PortMaps

            self._port_maps = PortMaps(
                self._loop,
                self._clock,
                self._mapping_secret,
                os.urandom,
                self._on_mappings,
                self.metrics,
                upnp=self.config.upnp,
            )
        self._port_maps.update(self._udp.local)

    def _on_mappings(self) -> None:
        if self._mapping_handle is None and not self._closed:
            self._mapping_handle = self._loop.call_later(MAPPING_SETTLE_S, self._publish_mappings)

    def _publish_mappings(self) -> None:
        self._mapping_handle = None
        if not self._closed:
            self._announce(moved=False)

    async def rebind(self, addr: str | Addr | None = None) -> Addr:
        """Move the socket to another local address (by default: the same address, a new port); returns it.

        Raises ConfigError, AddressInUse.
        """
        assert self._udp is not None
        if addr is None:
            target = Addr(self._udp.local.host, 0)
        else:
            try:
                target = parse_addr(addr) if isinstance(addr, str) else addr
            except ValueError as error:
                raise ConfigError(str(error), hint="as in 127.0.0.2:0") from error
        self._udp.bind(target)
        self._listen_tunnels()
        self._announce(moved=True)
        self._update_port_maps()
        if self._mdns is not None:
            self._mdns.interfaces_changed(*self._bound)
        return self._udp.local

    # ---- discovery

    async def _follow_seeds(self, seeds: list[Seed]) -> None:
        """Resolve the seeds' names now, and again with growing pauses while nobody answers."""
        attempt = 0
        while True:
            if self.mesh.dht.contacts():
                attempt = len(SEED_RETRY_S) - 1
            else:
                for seed in seeds:
                    await self._find_seed(seed)
            await asyncio.sleep(SEED_RETRY_S[min(attempt, len(SEED_RETRY_S) - 1)])
            attempt += 1

    async def _find_seed(self, seed: Seed) -> None:
        try:
            found = await self._loop.getaddrinfo(seed.host, seed.port, type=2)
        except OSError as error:
            self.metrics.count("seed_name_errors")
            log.debug("seed %s: %s", seed.host, error)
            return
        addrs = list(dict.fromkeys(Addr(canonical_host(str(item[4][0])), seed.port) for item in found))
        tunnels = [tunnel(str(seed.id), seed.host, port) for port in dict.fromkeys((seed.port, HTTPS_PORT))]
        self.mesh.add_seed(seed.id, [*addrs, *tunnels], self._clock.monotonic())
        self._arm()

    async def _start_mdns(self) -> None:
        try:
            from meshnode.discovery.mdns import MdnsSource
        except ImportError:
            log.warning("mDNS is off: zeroconf cannot be imported")
            return

        def on_record(encoded: bytes) -> None:
            if not self._closed:
                self.mesh.offer_record(encoded, "mdns", self._clock.monotonic())
                self._pump()

        source = MdnsSource(self._sealer, self.id, on_record, self.metrics)
        self._mdns = source
        await source.start(self.mesh.record, *self._bound)

    async def resolve(self, peer: NodeId | str) -> Resolution:
        """Return the verified record of ``peer`` (an id or a name), its source and how long it took.

        Raises NotFound, InvalidId, NameChanged.
        """
        self._alive()
        id = await self._caller.id_of(peer)
        future: asyncio.Future[Resolution] = self._loop.create_future()

        def answer(result: Resolution | NotFound) -> None:
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
        self._alive()
        id = await self._caller.id_of(peer)
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
        connection = await self.connect(peer)
        return await connection.open(service)

    async def find(self, service: str) -> list[Instance]:
        """The instances of a service on other nodes, with state, load, metadata and round trip."""
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

        When the peer turns out to have restarted meanwhile, the echo is sent once more on a new connection.
        """
        for last in (False, True):
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

    def on_record(self, record: EndpointRecord) -> None:
        """Our own record changed (MeshEvents)."""
        if self._mdns is not None:
            self._mdns.update(record)

    def on_contacts(self) -> None:
        """The DHT's contacts changed: write them soon (MeshEvents)."""
        if self._save_handle is None and not self._closed:
            self._save_handle = self._loop.call_later(SAVE_DELAY_S, self._save)

    def _save(self) -> None:
        self._save_handle = None
        contacts = self.mesh.dht.contacts()
        if contacts:
            try:
                save_contacts(self.config.home_path / "contacts", contacts)
            except OSError as error:
                log.warning("cannot save contacts: %s", error)

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


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")
