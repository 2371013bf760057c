"""The life of a node: what it has between its start and its end, and an end that may be interrupted."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from meshnode.base.collector import paused
from meshnode.base.metrics import Metrics
from meshnode.config import Config
from meshnode.errors import AlreadyRunning, NodeClosed, NotRunning
from meshnode.identity import keyfile
from meshnode.identity.keys import Identity
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.events import EventStreams
from meshnode.sdk.failover import Failover
from meshnode.sdk.service import ServiceTable
from meshnode.sdk.topic import TopicBook

if TYPE_CHECKING:
    from meshnode.directory.services import ServiceChanged
    from meshnode.gossip.effects import MemberChanged

WITHDRAW_S = 1.5  # for withdrawals to reach the DHT before the end: a lookup and a round trip, as a rule under 1 s
ONE_LOOP = "use it in the loop that started it; from a thread: asyncio.run_coroutine_threadsafe(coroutine, loop)"
START = "async with Node(config) as node, or await node.start()"


class Running:
    """What a node has while it runs."""

    def __init__(self, runtime: Runtime, events: EventStreams) -> None:
        self.runtime = runtime
        self.failover = Failover(runtime)
        self.topics = TopicBook(runtime)
        self._events = events
        events.begin(runtime.journal.rate)
        registry = runtime.stack.registry
        if registry is not None:
            registry.on_service = self._on_service
            registry.on_member = self._on_member
            registry.on_conflict = events.on_conflict
            registry.on_name = registry.offers.on_end = self.failover.on_news

    def _on_service(self, effect: ServiceChanged) -> None:
        self._events.on_service(effect)
        self.failover.on_service(effect)

    def _on_member(self, change: MemberChanged) -> None:
        self._events.on_member(change)
        self.failover.on_member(change)

    async def withdraw_offers(self) -> None:
        """Take services and names back that the DHT has of this node, where a search would find them after its end.

        Returns at once where it has none, in a mesh of which gossip tells all; else when the holders have answered, or
        after ``WITHDRAW_S``.
        """
        registry = self.runtime.stack.registry
        if registry is None or not registry.withdraw_published(self.runtime.clock.monotonic()):
            return
        withdrawn = asyncio.Event()
        registry.offers.on_withdrawn = withdrawn.set
        self.runtime.driver.on_dirty()
        with suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await withdrawn.wait()

    def stop(self) -> None:
        """End everything that ends at once: streams, connections, topics and iterations; a part that fails no other."""
        with ExitStack() as parts:
            for end in (self._events.end, self.runtime.stop, self.topics.close, self.failover.close):
                parts.callback(end)  # the last goes first


class Life:
    """Not started, running, closed: a node passes through these once."""

    def __init__(self, config: Config, metrics: Metrics, services: ServiceTable, events: EventStreams) -> None:
        self.started: Running | None = None
        self.is_closed = False
        self._parts = (config, metrics, services, events)
        self._withdrawn: asyncio.Event | None = None  # is set when what the DHT has was taken back, or could not be
        self._ending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def running(self) -> Running:
        """Return what runs.

        Raises NotRunning before the start and in another event loop, and NodeClosed, which is one, after the end.
        """
        self.check_open()
        if self.started is None:
            raise NotRunning("the node was not started", hint=START)
        self._check_loop()
        return self.started

    def _check_loop(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # a thread without one may look at what there is
        if loop is not self._loop:
            raise NotRunning("the node was started in another event loop", hint=ONE_LOOP)

    def check_open(self) -> None:
        """Raise NodeClosed after the end."""
        if self.is_closed:
            raise NodeClosed("the node was closed", hint="a node runs once: make a new one")

    async def start(self) -> None:
        """Start. Raises ConfigError, KeyFileError, AlreadyRunning, AddressInUse, NodeClosed."""
        self._check_not_started()
        config, metrics, services, events = self._parts
        new_key = await _new_key(config)
        self._check_not_started()
        runtime: Runtime | None = None
        try:
            with paused():
                runtime = Runtime(
                    config,
                    metrics,
                    new_key=new_key,
                    on_stream=services.on_stream,
                    on_connection=events.on_connection,
                    on_path=events.on_path,
                )
                running = Running(runtime, events)
        except BaseException:
            if runtime is not None:
                await _undo(runtime)
            raise
        self._loop = asyncio.get_running_loop()
        self.started = running
        try:
            services.begin(runtime)
        except BaseException:
            await self.close()
            raise

    def _check_not_started(self) -> None:
        self.check_open()
        if self.started is not None:
            raise AlreadyRunning("this node was started already", hint="start a node once, or leave it to `async with`")

    async def close(self) -> None:
        """End it. May be called again, and cancelled.

        The home, the ports and the streams are free when it returns, and when it is cancelled too. What takes a moment
        (taking port mappings and announcements back) goes on without a caller that has gone. Where the loop of its
        start was closed nothing can go on, and the home and the ports are freed. Raises NotRunning in any other loop.
        Before all that, what the DHT has of this node is withdrawn (``Running.withdraw_offers``).
        """
        if self.started is not None and self._loop is not None and self._loop.is_closed():
            self.is_closed = True
            self.started.runtime.release()
            return
        if self.started is not None:
            self._check_loop()
        self.is_closed = True
        if self.started is None:
            return
        try:
            try:
                if self._ending is None:
                    await self._withdraw(self.started)
            finally:
                ending = self._end()
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            self.started.runtime.release()
            raise

    async def _withdraw(self, running: Running) -> None:
        """Take offers back; a second call of ``close`` waits for the first, and cuts nothing short."""
        if self._withdrawn is not None:
            await self._withdrawn.wait()
            return
        self._withdrawn = asyncio.Event()
        try:
            await running.withdraw_offers()
        finally:
            self._withdrawn.set()

    def _end(self) -> asyncio.Task[None]:
        """End what ends at once, and return the task that ends the rest."""
        assert self.started is not None
        try:
            if self._ending is None:
                self.started.stop()
        finally:
            if self._ending is None or self._ending.cancelled():
                self._ending = asyncio.get_running_loop().create_task(self.started.runtime.wait_closed())
        return self._ending


async def _undo(runtime: Runtime) -> None:
    try:
        runtime.stop()
    finally:
        await runtime.wait_closed()


async def _new_key(config: Config) -> Identity | None:
    """Return a key for a home that has none, made beside the loop: its price is up to a second or two of CPU.

    A node that is not in the DHT has no place there to pay for.
    """
    if config.key is not None or os.path.lexists(config.home_path / "key"):
        return None
    return await asyncio.to_thread(keyfile.make_identity) if config.dht else Identity.generate()
