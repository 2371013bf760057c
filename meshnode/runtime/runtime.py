"""The asyncio side of a node: its sockets, timers, tasks, addresses and sources of records. It knows no SDK.

It drives one ``Mesh``, which holds all protocol state and does no I/O; ``node.py`` composes the two.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshnode.base.address import Addr, canonical_host, parse_addr, tunnel
from meshnode.base.clock import SystemClock
from meshnode.base.limits import MAX_ENDPOINTS
from meshnode.base.metrics import Metrics
from meshnode.config import Config, Seed
from meshnode.errors import AlreadyRunning, ConfigError
from meshnode.identity.record import Endpoint, EndpointKind, EndpointRecord
from meshnode.identity.sealing import Sealer
from meshnode.runtime.extra_sockets import ExtraSockets
from meshnode.runtime.files import save_contacts
from meshnode.runtime.interfaces import InterfaceWatcher, local_networks
from meshnode.runtime.udp import UdpSocket
from meshnode.runtime.websocket import WebSockets
from meshnode.stack.stack import Stack

if TYPE_CHECKING:
    from meshnode.runtime.mdns import MdnsSource
    from meshnode.runtime.port_mapping import PortMapping

log = logging.getLogger("meshnode.node")

SEED_RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)  # between attempts while no contact answers
MAPPING_SETTLE_S = 0.05  # a mapping that is lost and one that takes its place make one new record
HTTPS_PORT = 443


class Runtime:
    """What a node has of its host; ``Node`` adds what programs ask of it."""

    mesh: Stack
    _loop: asyncio.AbstractEventLoop
    _sealer: Sealer
    _mapping_secret: bytes

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self._clock = SystemClock()
        self._udp: UdpSocket | None = None
        self._sides: ExtraSockets | None = None
        self._tunnels: WebSockets | None = None
        self._watcher: InterfaceWatcher | None = None
        self._mdns: MdnsSource | None = None
        self._port_maps: PortMapping | None = None
        self._mapping_handle: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_soon = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock_fd: int | None = None
        self._closed = False

    # ---- one process a home, and its tasks

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

    def _listen_tunnels(self) -> bool:
        """A relay takes WebSockets too, on the TCP port with the UDP port's number."""
        assert self._udp is not None
        assert self._tunnels is not None
        config = self.config
        if not (config.is_relay and config.tunnel):
            return False
        return self._tunnels.listen(self._udp.local, config.home_path / "tunnel.pem")

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
            from meshnode.runtime.port_mapping import PortMapping

            self._port_maps = PortMapping(
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

    # ---- sources of records, and what outlives the process

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
            from meshnode.runtime.mdns import MdnsSource
        except ImportError:
            log.warning("mDNS is off: zeroconf cannot be imported")
            return

        def on_record(encoded: bytes) -> None:
            if not self._closed:
                self.mesh.offer_record(encoded, "mdns", self._clock.monotonic())
                self._pump()

        source = MdnsSource(self._sealer, self.mesh.id, on_record, self.metrics)
        self._mdns = source
        await source.start(self.mesh.record, *self._bound)

    def on_record(self, record: EndpointRecord) -> None:
        """Our own record changed (MeshEvents)."""
        if self._mdns is not None:
            self._mdns.update(record)

    def on_contacts(self) -> None:
        """The DHT's contacts changed, and it says so seldom (MeshEvents)."""
        if not self._closed:
            self._save()

    def _save(self) -> None:
        contacts = self.mesh.dht.contacts()
        if contacts:
            try:
                save_contacts(self.config.home_path / "contacts", contacts)
            except OSError as error:
                log.warning("cannot save contacts: %s", error)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")
