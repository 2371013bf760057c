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
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, ParamSpec

from meshnode.base.address import Addr, parse_addr
from meshnode.base.clock import SystemClock
from meshnode.base.limits import AWAY_S, CLOCK_MARK_S, MAX_RECORD_TTL_S, RECORD_TTL_S, SEAL_WINDOW_S
from meshnode.base.metrics import Metrics
from meshnode.base.value import value
from meshnode.base.wake_url import WAKE
from meshnode.config import Config
from meshnode.errors import ConfigError, GrantError, KeyFileError, MeshError, NotFound
from meshnode.identity.keyfile import given_key, load_or_create
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import LEAF, Endpoint
from meshnode.identity.sealing import MeshKey, Sealer
from meshnode.quic.connection import Connection, State
from meshnode.quic.engines import pick_engine
from meshnode.quic.stream import Stream
from meshnode.relay.server import RelayLimits
from meshnode.runtime.addresses import OwnAddresses
from meshnode.runtime.audit import Audit
from meshnode.runtime.audit_files import AuditFiles
from meshnode.runtime.driver import Driver
from meshnode.runtime.faults import Faults
from meshnode.runtime.files import HomeLock
from meshnode.runtime.grant_store import GrantStore
from meshnode.runtime.interfaces import loopback_mtu
from meshnode.runtime.journal import Journal
from meshnode.runtime.name_store import NameStore
from meshnode.runtime.policy_file import PolicyFile, keep_mesh_policy
from meshnode.runtime.revocation_store import keep_revocations
from meshnode.runtime.saved import CONTACTS_FILE, SEQ_FILE, SeqSource, pack_contacts, parse_contacts, parse_seq
from meshnode.runtime.sockets import Sockets
from meshnode.runtime.sources import Surroundings, make_sources
from meshnode.runtime.spare_cpu import SpareCpu
from meshnode.runtime.state_files import StateFiles, read_state
from meshnode.runtime.tasks import Tasks, settle
from meshnode.stack.context import TUNNEL, OnPath, StackSettings
from meshnode.stack.dialing import live_connection
from meshnode.stack.probe import Pinged
from meshnode.stack.stack import Stack
from meshnode.trust.chain import Chain
from meshnode.trust.decision import Decision
from meshnode.trust.guard import Guard, Lists
from meshnode.trust.home_mesh import load_chain
from meshnode.trust.operator import drop_old_key
from meshnode.trust.parties import parse_parties
from meshnode.trust.policy import Act
from meshnode.trust.revocation import Revocation
from meshnode.trust.succession import open_links

if TYPE_CHECKING:
    from meshnode.discovery.resolver import Resolved

ECHO_RTTS = 3  # before an echo is lost, however short the time is that it was given
SLEPT_S = 20.0  # that the wall clock is ahead: a NAT forgets a mapping after 30 s, and no interface need tell of it
log = logging.getLogger("meshnode.node")

P = ParamSpec("P")

OnStream = Callable[[Connection, Stream], None]
OnConnection = Callable[[Connection, bool], None]


@value
class _Events:
    """The stack's events (``StackEvents``), each bound to the part that takes it: no call in between."""

    on_stream: OnStream
    on_connection: OnConnection
    on_path: OnPath
    on_refused: Callable[[NodeId, Act, str, Decision], None]
    on_cut: Callable[[NodeId, Act, str, Decision], None]
    on_key_used_twice: Callable[[NodeId], None]
    on_stood_down: Callable[[bool], None]
    on_revoked: Callable[[Revocation], None]
    on_clock_set: Callable[[float], None]
    on_contacts: Callable[[], None]
    on_dirty: Callable[[], None]


class Runtime:
    """A running node without its SDK; must be made while an asyncio loop runs.

    ``new_key`` is for a home that has none; without it one is made, which holds the loop for a while.

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
        new_key: Identity | None = None,
    ) -> None:
        self.config = config
        self.clock = SystemClock()
        self.is_closed = False
        loop, home = asyncio.get_running_loop(), config.home_path
        self.journal = journal = Journal(metrics, self.clock.monotonic)
        self.tasks = Tasks(loop, journal.rate)
        self.driver = Driver(loop, self.clock, Faults(metrics))
        with ExitStack() as undo:
            self.state = StateFiles(loop, HomeLock(home))
            undo.callback(self.state.lock.release)
            identity = _load_identity(config, new_key)
            sealer = Sealer(identity, MeshKey.from_text(config.mesh), self.clock, os.urandom, born=self.clock.wall())
            sealer.senders.strangers.spare = SpareCpu()
            driver = self.driver
            self.sockets = Sockets(loop, config, sealer, driver.on_batch, driver.on_tunnelled, metrics)
            undo.callback(self.sockets.abort)
            lists = Lists(parse_parties(config.allow, names=False), parse_parties(config.relay_allow, names=False))
            guard = Guard(identity.id, lists)
            guard.on_observed = journal.on_observed
            files = AuditFiles(loop, home, identity, self.clock.wall, metrics) if config.audit else None
            self.audit = audit = Audit(files, guard)
            undo.callback(audit.close)
            events = _Events(
                on_stream,
                _both(_both(journal.on_connection, audit.on_connection), on_connection),
                _both(journal.on_path, on_path),
                _both(journal.on_refused, audit.on_refused),
                _both(journal.on_cut, audit.on_cut),
                partial(journal.on_key_used_twice, identity.id),
                journal.on_stood_down,
                _both(journal.on_revoked, audit.on_revoked),
                self._on_clock_set,
                self._save_contacts,
                driver.on_dirty,
            )
            self._seqs = self._open_seqs(sealer)
            self.stack = self._make_stack(identity, sealer, events, guard, metrics)
            driver.stack = self.stack
            peers = self.stack.context.peers
            self.sockets.refuse(self.stack.refused, self.stack.refused_tunnels, peers.paths_in_use)
            self.sockets.tunnels.may_dial = self.stack.may_dial
            self.addresses = OwnAddresses(
                loop,
                self.clock,
                config,
                hashlib.blake2b(key=identity.seed, person=b"port mappings").digest(),
                lambda: self.sockets.local,
                self._on_addresses,
                metrics,
                self.driver.faults.take,
            )
            undo.callback(self.addresses.stop)
            self.sockets.on_reopened = self.addresses.moved
            self.policy = PolicyFile(loop, home, guard)
            self.stack.looks.append(self.policy.look)
            is_whole = keep_mesh_policy(self.stack.context.policies, self.state)
            undo.callback(self.policy.close)
            self.names = self._open_names()
            GrantStore(self.stack, self.state, self.clock.monotonic())
            keep_revocations(self.stack.context.revoking, self.state)
            if not is_whole:
                self.stack.context.revoking.restore(None)
            self._begin()
            undo.pop_all()

    def _make_stack(self, identity: Identity, sealer: Sealer, events: _Events, guard: Guard, metrics: Metrics) -> Stack:
        config = self.config
        roles = (("seed", config.seed_role), ("relay", config.is_relay), (LEAF, config.role == LEAF))
        capabilities = [name for name, on in roles if on]
        if self.sockets.listen_for_tunnels():
            capabilities.append(TUNNEL)
        if config.wake:
            capabilities.append(WAKE + config.wake)
        grants = load_chain(config.home_path) if config.authority else ()
        return Stack(
            identity,
            sealer,
            self.sockets,
            events,
            pick_engine(config.engine, config.post_quantum),
            clock=self.clock,
            rng=random.Random(os.urandom(16)),
            entropy=os.urandom,
            next_seq=self._seqs.next,
            guard=guard,
            grants=grants,
            settings=StackSettings(
                authority=NodeId.parse(config.authority) if config.authority else None,
                needs_grant=config.admit == "grant",
                first_stays=config.duplicate == "first",
                was_away=self._was_away(grants),
                revocation_wait=config.revocation_wait,
                idle_timeout=config.idle_timeout,
                loopback_mtu=loopback_mtu(),
                seed_role=config.seed_role,
                leaf=config.role == LEAF,
                dht=config.dht,
                gossip=config.gossip,
                capabilities=tuple(capabilities),
                relay=config.is_relay,
                record_ttl=MAX_RECORD_TTL_S if config.wake else RECORD_TTL_S,
                fresh_port=config.listen_addr.port == 0,
                relay_limits=RelayLimits(
                    client_bytes=config.relay_mb_per_s * 1e6,
                    client_packets=config.relay_mb_per_s * 1e3,
                    total_bytes=config.relay_total_mb_per_s * 1e6,
                    total_packets=config.relay_total_mb_per_s * 1e3,
                ),
            ),
            metrics=metrics,
            on_error=self.driver.faults.take,
        )

    @property
    def metrics(self) -> Metrics:
        """Return the node's counters."""
        return self.stack.metrics

    @property
    def sealer(self) -> Sealer:
        """Return what seals and opens this node's datagrams."""
        return self.stack.context.sealer

    @property
    def guard(self) -> Guard:
        """Return what decides about all that peers ask of this node."""
        return self.stack.context.guard

    def roles_of(self, node: NodeId) -> frozenset[str]:
        """Return the roles of a connected peer, or of this node."""
        return self.guard.callers(node).roles

    def _open_seqs(self, sealer: Sealer) -> SeqSource:
        last = read_state(self.state.home / SEQ_FILE, parse_seq) or 0
        if last / 1000 > self.clock.wall() + 1.0:
            log.warning(
                "the clock says an earlier time than when this node ran last: it answers no other node until one has "
                "answered; if the clock is wrong, set it"
            )
            sealer.doubt.begin(last / 1000 + CLOCK_MARK_S + SEAL_WINDOW_S, self.clock.monotonic())
        return SeqSource(last, self.clock, partial(self.state.save, SEQ_FILE))

    def _was_away(self, grants: Chain) -> bool:
        """Return whether this node may have missed revocations: it ran last, or got its first grants, some time ago."""
        last = self._seqs.last / 1000
        if grants and not last:
            with suppress(GrantError):  # they are damaged, and the node has none that holds
                last = open_links(grants)[-1].not_before / 1000
        return abs(self.clock.wall() - last) > AWAY_S  # a clock that was set back says nothing of how long that was

    async def _mark_time(self) -> None:
        while True:
            self._drop_old_key()
            await asyncio.sleep(CLOCK_MARK_S)
            self._seqs.mark()

    def _drop_old_key(self) -> None:
        try:
            if drop_old_key(self.state.home, self.clock.wall()):
                log.info("the key that this one has replaced counts no longer; it was removed")
        except (MeshError, OSError) as error:
            log.warning("the replaced key in %s could not be removed: %s", self.state.home, error)

    def _open_names(self) -> NameStore | None:
        registry = self.stack.registry
        if registry is None:
            return None
        store = NameStore(registry.names, registry.providers, self.state)
        registry.on_pins = store.on_pins
        return store

    def _begin(self) -> None:
        self.addresses.start()
        self._claim_name()
        now = self.clock.monotonic()
        for peer, addr in read_state(self.state.home / CONTACTS_FILE, parse_contacts) or ():
            self.stack.add_contact(peer, addr, now)
        self.tasks.spawn(self._start_sources())
        self.tasks.spawn(self._mark_time())
        self.driver.pump()
        self.journal.on_start(self.stack.id, self.addresses.endpoints(), self.clock.wall())

    def _claim_name(self) -> None:
        if self.names is not None and self.config.name:
            self.names.claim(self.config.name, self.clock.wall(), self.clock.monotonic())
            self.drain_directory()

    def stop(self) -> None:
        """Close every connection and start nothing more; returns at once.

        Peers are told with CONNECTION_CLOSE. Files, mappings and the TCP tunnels need ``wait_closed`` after it.
        """
        self.is_closed = True
        self.journal.on_stop(self.stack.id)
        self.tasks.refuse()
        self.addresses.stop()
        self.policy.close()
        if self.names is not None:
            self.names.close()
        self.stack.close(self.clock.monotonic())
        self.driver.close()
        self.audit.close()

    async def wait_closed(self) -> None:
        """End every task and source, give the port mappings back, save the contacts, release the home.

        Call ``stop`` before. Waits at most 0.5 s for the router and 1 s for the mDNS goodbye.
        """
        try:
            await self.tasks.close()
            await self.addresses.release_mappings()
            await asyncio.gather(*(source.close() for source in self.stack.sources), return_exceptions=True)
            self._save_contacts()
            self._seqs.mark()
            await self.sockets.close()
            await self.state.close()
        finally:
            self.release()

    def release(self) -> None:
        """Save what waits to be saved, close the sockets and release the home, at once; safe to call twice.

        For a ``wait_closed`` that was interrupted, or is not awaited any more.
        """
        self.state.finish()
        self.sockets.abort()
        self.state.lock.release()

    # ---- the stack's commands as coroutines; the end of the node ends them with NodeClosed

    async def resolve(self, peer: NodeId) -> Resolved:
        """Find the record of ``peer``, in the cache or from the sources.

        Raises NotFound when no source has it within the resolver's deadline.
        """
        future: asyncio.Future[Resolved] = self.tasks.ask()

        def answer(result: Resolved | NotFound) -> None:
            settle(future, result)

        self.stack.resolve(peer, self.clock.monotonic(), answer)
        self.driver.pump()
        return await future

    async def connect(self, peer: NodeId) -> Connection:
        """Return a ready connection to ``peer``, the live one if there is one.

        Raises NotFound, NoPathError, PeerIdentityError, PolicyDenied, HandshakeTimeout.
        """
        if (live := live_connection(self.stack.context, peer)) is not None:
            return live
        future: asyncio.Future[Connection] = self.tasks.ask()

        def answer(result: Connection | MeshError) -> None:
            settle(future, result)

        self.stack.connect(peer, self.clock.monotonic(), answer)
        self.driver.on_dirty()
        return await future

    async def ping(self, peer: NodeId, timeout: float) -> Pinged:
        """Send one echo and wait ``timeout`` seconds for it, or ``ECHO_RTTS`` round trips where they take longer.

        When the connection turns out to be dead because the peer has restarted, the echo is repeated on a new one,
        twice at most. ``rtt`` of the result is None when no answer came. Raises as ``connect``.
        """
        for last in (False, False, True):  # the first new one may lose to the peer's own dial
            connection = await self.connect(peer)
            future: asyncio.Future[Pinged] = self.tasks.ask()
            wait = max(timeout, ECHO_RTTS * (connection.engine.rtt() or 0.0))
            self.stack.ping(connection, wait, self.clock.monotonic(), partial(settle, future))
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
                target = parse_addr(str(addr))
            except ValueError as error:
                raise ConfigError(str(error), hint="as in 127.0.0.2:0") from error
        self.sockets.bind(target)
        self.addresses.moved()
        return self.sockets.local

    def _on_addresses(
        self, endpoints: tuple[Endpoint, ...], networks: tuple[tuple[str, int], ...], moved: bool
    ) -> None:
        if moved:
            self.journal.on_move(endpoints)
        self.sockets.on_addresses(networks)
        self.sockets.on_ways_out(self.addresses.ways_out, networks, self.stack.context.credit.proven)
        self.stack.set_addresses(endpoints, networks, self.clock.monotonic(), moved=moved)
        self.driver.arm()

    def _on_clock_set(self, step: float) -> None:
        """Claim the node's name as of now where the wrong clock was ahead; take a long sleep of the host for a move."""
        self.journal.on_clock_set(step, self.clock.wall())
        self._claim_name()
        if step >= SLEPT_S:
            asyncio.get_running_loop().call_soon(self.addresses.moved)  # behind the tick that found it

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
            lambda: bool(self.stack.dht.contacts(good=True)),
            self.stack.hears,
        )
        for source in make_sources(node, self.driver.faults.take):
            try:
                self.stack.add_source(source)
            except Exception as error:  # the others find records all the same
                self.driver.faults.take(error)
            await asyncio.sleep(0)

    def _save_contacts(self) -> None:
        contacts = self.stack.dht.contacts()
        if contacts:
            self.state.save(CONTACTS_FILE, pack_contacts(contacts))


def _both(first: Callable[P, None], second: Callable[P, None]) -> Callable[P, None]:
    """Return a callback that calls two."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        first(*args, **kwargs)
        second(*args, **kwargs)

    return call


def _load_identity(config: Config, new_key: Identity | None) -> Identity:
    if config.key is None:
        return load_or_create(config.home_path / "key", config.passphrase, new_key)
    try:
        return given_key(config.key)
    except KeyFileError as error:
        raise ConfigError(error.message, hint=error.hint) from error
