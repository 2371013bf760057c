"""The asyncio side of a node: one ``Stack`` with the sockets, timers, tasks, files and record sources that it needs.

It exists from the node's start on. It knows no SDK: ``sdk/node.py`` gives it callbacks and shows programs what they
may use, daemons reach it by ``sdk.node.runtime_of``.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from meshnode.base.address import Addr, parse_addr
from meshnode.base.clock import SystemClock
from meshnode.base.metrics import Metrics
from meshnode.config import Config, parse_allow
from meshnode.errors import ConfigError, KeyFileError, MeshError, NotFound
from meshnode.identity.keyfile import given_key, load_or_create
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import Endpoint
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream
from meshnode.relay.server import RelayLimits
from meshnode.runtime.addresses import OwnAddresses
from meshnode.runtime.driver import Driver
from meshnode.runtime.faults import Faults
from meshnode.runtime.files import HomeLock, SeqSource, load_contacts, save_contacts
from meshnode.runtime.name_store import NameStore
from meshnode.runtime.sockets import Sockets
from meshnode.runtime.sources import Surroundings, make_sources
from meshnode.runtime.tasks import Tasks
from meshnode.stack.context import TUNNEL, OnPath, StackSettings
from meshnode.stack.probe import Pinged
from meshnode.stack.stack import Stack

if TYPE_CHECKING:
    from meshnode.discovery.resolver import Resolved

log = logging.getLogger("meshnode.node")

T = TypeVar("T")

OnStream = Callable[[Connection, Stream], None]
OnConnection = Callable[[Connection, bool], None]


@dataclass(frozen=True, slots=True)
class _Events:
    """The stack's events (``StackEvents``), each bound to the part that takes it: no call in between."""

    on_stream: OnStream
    on_connection: OnConnection
    on_path: OnPath
    on_contacts: Callable[[], None]
    on_dirty: Callable[[], None]


class Runtime:
    """A running node without its SDK; must be made while an asyncio loop runs.

    Raises ConfigError, KeyFileError, AlreadyRunning, AddressInUse.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        on_stream: OnStream,
        on_connection: OnConnection,
        on_path: OnPath,
    ) -> None:
        self.config = config
        self.metrics = metrics
        self.clock = SystemClock()
        self.started = self.clock.monotonic()
        self.is_closed = False
        loop, home = asyncio.get_running_loop(), config.home_path
        self.tasks = Tasks(loop)
        self.faults = Faults(metrics)
        self.driver = Driver(loop, self.clock, self.faults)
        with ExitStack() as undo:
            self._lock = HomeLock(home)
            undo.callback(self._lock.release)
            identity = _load_identity(config)
            self.sealer = Sealer(
                identity, MeshKey.from_text(config.mesh), self.clock, os.urandom, born=self.clock.wall()
            )
            driver = self.driver
            self.sockets = Sockets(loop, config, self.sealer, driver.on_batch, driver.on_tunnelled, self.metrics)
            undo.callback(self.sockets.abort)
            events = _Events(on_stream, on_connection, on_path, self._save_contacts, driver.on_dirty)
            self.stack = self._make_stack(identity, events)
            driver.stack = self.stack
            self.addresses = OwnAddresses(
                loop,
                self.clock,
                config,
                hashlib.blake2b(key=identity.seed, person=b"port mappings").digest(),
                lambda: self.sockets.local,
                self._on_addresses,
                self.metrics,
                self.faults.take,
            )
            undo.callback(self.addresses.stop)
            self.names = self._open_names(home)
            self._begin(home)
            undo.pop_all()

    def _make_stack(self, identity: Identity, events: _Events) -> Stack:
        config = self.config
        admitted, relayed = parse_allow(config.allow), parse_allow(config.relay_allow)
        capabilities = [name for name, on in (("seed", config.seed_role), ("relay", config.is_relay)) if on]
        if self.sockets.listen_for_tunnels():
            capabilities.append(TUNNEL)
        return Stack(
            identity,
            self.sealer,
            self.sockets,
            events,
            pick_engine(config.engine),
            clock=self.clock,
            rng=random.Random(os.urandom(16)),
            entropy=os.urandom,
            next_seq=SeqSource(config.home_path / "seq", self.clock).next,
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
            on_error=self.faults.take,
        )

    def _open_names(self, home: Path) -> NameStore | None:
        registry = self.stack.registry
        if registry is None:
            return None
        store = NameStore(registry.names, home)
        registry.on_pins = store.on_pins
        return store

    def _begin(self, home: Path) -> None:
        self.addresses.start()
        if self.names is not None and self.config.name:
            self.names.claim(self.config.name, self.clock.wall(), self.clock.monotonic())
            self.drain_directory()
        now = self.clock.monotonic()
        for peer, addr in load_contacts(home / "contacts"):
            self.stack.add_contact(peer, addr, now)
        self.tasks.spawn(self._start_sources())
        self.driver.pump()

    def stop(self) -> None:
        """Close every connection and start nothing more; returns at once.

        Peers are told with CONNECTION_CLOSE. Files, mappings and the TCP tunnels need ``wait_closed`` after it.
        """
        self.is_closed = True
        self.tasks.refuse()
        self.addresses.stop()
        if self.names is not None:
            self.names.close()
        self.stack.close(self.clock.monotonic())
        self.driver.close()

    async def wait_closed(self) -> None:
        """End every task and source, give the port mappings back, save the contacts, release the home.

        Call ``stop`` before. Waits at most 0.5 s for the router and 1 s for the mDNS goodbye.
        """
        await self.tasks.close()
        await self.addresses.release_mappings()
        await asyncio.gather(*(source.close() for source in self.stack.sources), return_exceptions=True)
        self._save_contacts()
        await self.sockets.close()
        self._lock.release()

    # ---- the stack's commands as coroutines

    async def resolve(self, peer: NodeId) -> Resolved:
        """Find the record of ``peer``, in the cache or from the sources.

        Raises NotFound when no source has it within the resolver's deadline.
        """
        future: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()

        def answer(result: Resolved | NotFound) -> None:
            _settle(future, result)

        self.stack.resolve(peer, self.clock.monotonic(), answer)
        self.driver.pump()
        return await future

    async def connect(self, peer: NodeId) -> Connection:
        """Return a ready connection to ``peer``, the live one if there is one.

        Raises NotFound, NoPathError, PeerIdentityError, PolicyDenied, HandshakeTimeout.
        """
        future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

        def answer(result: Connection | MeshError) -> None:
            _settle(future, result)

        self.stack.connect(peer, self.clock.monotonic(), answer)
        self.driver.on_dirty()
        return await future

    async def ping(self, peer: NodeId, timeout: float) -> Pinged:
        """Send one echo and wait at most ``timeout`` seconds for it.

        When the connection turns out to be dead because the peer has restarted, the echo is repeated on a new one,
        twice at most. ``rtt`` of the result is None when no answer came. Raises as ``connect``.
        """
        for last in (False, False, True):  # the first new one may lose to the peer's own dial
            connection = await self.connect(peer)
            future: asyncio.Future[Pinged] = asyncio.get_running_loop().create_future()
            self.stack.ping(connection, timeout, self.clock.monotonic(), future.set_result)
            self.driver.arm()
            outcome = await future
            if outcome.rtt is not None or connection.state is State.READY or last:
                break
        return outcome

    def drain_directory(self) -> None:
        """Carry out what a command to the directory, the names or the topics has caused."""
        registry, topics = self.stack.registry, self.stack.topic_link
        if registry is not None and topics is not None:
            now = self.clock.monotonic()
            registry.drain(now)
            topics.drain(now)
            self.driver.on_dirty()

    # ---- addresses

    def rebind(self, addr: str | Addr | None = None) -> Addr:
        """Move the socket to another local address (by default the same address, a new port); returns it.

        Raises ConfigError, AddressInUse.
        """
        if addr is None:
            target = Addr(self.sockets.local.host, 0)
        else:
            try:
                target = parse_addr(addr) if isinstance(addr, str) else addr
            except ValueError as error:
                raise ConfigError(str(error), hint="as in 127.0.0.2:0") from error
        self.sockets.bind(target)
        self.addresses.moved()
        return self.sockets.local

    def _on_addresses(
        self, endpoints: tuple[Endpoint, ...], networks: tuple[tuple[str, int], ...], moved: bool
    ) -> None:
        self.stack.set_addresses(endpoints, networks, self.clock.monotonic(), moved=moved)
        self.driver.arm()

    # ---- sources of records, and what outlives the process

    async def _start_sources(self) -> None:
        """Start the sources one a turn of the loop, behind the node's start: what one imports delays none before it."""
        node = Surroundings(
            self.stack.id,
            self.config,
            self.sealer,
            self.metrics,
            self.tasks.spawn,
            lambda: self.sockets.local,
            lambda: bool(self.stack.dht.contacts()),
        )
        for source in make_sources(node):
            self.stack.add_source(source)
            await asyncio.sleep(0)

    def _save_contacts(self) -> None:
        contacts = self.stack.dht.contacts()
        if contacts:
            try:
                save_contacts(self.config.home_path / "contacts", contacts)
            except OSError as error:
                log.warning("cannot save contacts: %s", error)


def _load_identity(config: Config) -> Identity:
    if config.key is None:
        return load_or_create(config.home_path / "key", config.passphrase)
    try:
        return given_key(config.key)
    except KeyFileError as error:
        raise ConfigError(error.message, hint=error.hint) from error


def _settle(future: asyncio.Future[T], result: T | MeshError) -> None:
    """Give an answer to its caller, which may have gone meanwhile."""
    if future.done():
        return
    if isinstance(result, MeshError):
        future.set_exception(result)
    else:
        future.set_result(result)
