"""Opening streams by service name: choice of the instance, hedging, and failover when an instance falls silent.

``Failover.open`` tries the instances that the directory chooses, one after another as soon as one refuses or fails, and
the next one in parallel when one hesitates: the first to accept serves. A stream that was opened by a service's name
alone ends with ConnectionLost when its instance falls silent while another one answers, so that its user can open
another at once; a stream to a node (by id or name) is never ended so, for that node may be moving.
"""

from __future__ import annotations

import asyncio
import logging

from meshnode.base.metrics import describe
from meshnode.directory.announcement import Instance
from meshnode.directory.services import ServiceChanged
from meshnode.errors import (
    ConnectionLost,
    InvalidId,
    MeshError,
    NotFound,
    PeerRestarted,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
)
from meshnode.gossip.effects import MemberChanged, Status
from meshnode.identity.node_id import ID_FORM, NodeId, id_or_label, quoted
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.connection import Connection
from meshnode.sdk.streams import MeshReader, MeshWriter

log = logging.getLogger("meshnode.calls")

Opened = tuple[MeshReader, MeshWriter]
Attempts = dict[asyncio.Task[Opened], NodeId]

FIND_YOUNG_S, FIND_S = 4.0, 0.6  # how long to wait for an unknown name: a young node has much to hear yet
YOUNG_S = 15.0
OPEN_S = 10.0
HEDGE_S, MAX_HEDGE_S = 0.1, 0.4  # an instance that hesitates for 3 round trips (within these) gets company
DIAL_HEDGE_S = 0.3  # the same where there is no connection yet
CUT_S = 0.12  # a silence is noticed after 80 ms and 1.25 round trips; so much later its streams are given up
CUT_RTTS = 1.5
AGAIN_S, MAX_AGAIN_S = 0.05, 1.0  # between looks whether another instance answers by now
PROOF_S = 1.0  # an instance that answered within this time is alive

FAILOVERS = describe("service_failovers", "streams ended because their instance fell silent and another one answered")
HEDGES = describe("service_hedges", "times that a second instance was tried because the first one hesitated")


class Failover:
    """Opens by name for one node. The registry is None where gossip is off: then only ids are known."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._registry = runtime.stack.registry
        self._loop = asyncio.get_running_loop()
        self._born = self._loop.time()
        self._streams: dict[NodeId, dict[Stream, str]] = {}
        self._proven: dict[NodeId, float] = {}
        self._warming: dict[NodeId, None] = {}
        self._waiters: dict[asyncio.Future[None], None] = {}
        if self._registry is not None:
            self._registry.on_peer_silent = self._on_silent

    # ---- names

    async def id_of(self, peer: NodeId | str) -> NodeId:
        """Return the id of an id, ``ID.mesh``, or a node's name. Raises InvalidId, NotFound, NameChanged."""
        if isinstance(peer, NodeId):
            return peer
        label = id_or_label(peer)
        if isinstance(label, NodeId):
            return label
        if self._registry is None:
            raise InvalidId(f"{quoted(peer)} is a name, and names are found by gossip, which is off here", hint=ID_FORM)
        registry, deadline = self._registry, self._deadline()
        while True:
            try:
                return registry.names.resolve(label, self._runtime.clock.wall())
            except NotFound:
                if not await self._news(deadline):
                    raise
            finally:
                registry.drain(self._loop.time())

    def instances(self, name: str) -> list[Instance]:
        """All instances of a service on other nodes that are known now."""
        if self._registry is None:
            return []
        return self._registry.instances(name, self._loop.time())

    async def find(self, name: str) -> list[Instance]:
        """The same in the order in which ``open`` tries them; waits a moment while there are none."""
        deadline = self._deadline()
        while not self.instances(name):
            if self._registry is None or not await self._news(deadline):
                return []
        assert self._registry is not None
        return self._registry.choose(name, self._loop.time())

    def on_news(self) -> None:
        """Wake every call that waits for a service or a name: the directory or a name has changed."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _deadline(self) -> float:
        now = self._loop.time()
        return now + (FIND_YOUNG_S if now - self._born < YOUNG_S else FIND_S)

    async def _news(self, deadline: float) -> bool:
        """Wait for the next change; False when it does not come in time."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters[waiter] = None
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.pop(waiter, None)
        return True

    # ---- opening

    async def open(self, name: str, *, sticky: bool = False) -> Opened:
        """Open a stream to any instance of a service. Raises NotFound, or what the last instance answered."""
        registry = self._registry
        if registry is None:
            raise NotFound("services are found by gossip, which is off here", hint="name the node too: open(id, name)")
        attempts: Attempts = {}
        tried: dict[NodeId, None] = {}
        find_by, give_up = self._deadline(), self._loop.time() + OPEN_S
        error: MeshError | None = None
        try:
            while True:
                chosen = registry.choose(name, self._loop.time(), sticky=sticky)
                fresh = [instance for instance in chosen if instance.node not in tried]
                if fresh:
                    tried[fresh[0].node] = None
                    if attempts:
                        self._runtime.metrics.count(HEDGES)
                    attempts[self._loop.create_task(self.open_at(fresh[0].node, name))] = fresh[0].node
                elif not attempts:
                    await self._wait_for_another(name, find_by, error)
                    continue
                wait = self._hedge_after(fresh[0]) if len(fresh) > 1 else give_up - self._loop.time()
                done, _ = await asyncio.wait(attempts, timeout=max(0.0, wait), return_when=asyncio.FIRST_COMPLETED)
                outcome = self._first_opened(done, attempts, name)
                if isinstance(outcome, tuple):
                    return outcome
                error = outcome or error
                if not done and self._loop.time() >= give_up:
                    raise ConnectionLost(f"no instance of {name!r} answers", hint="`meshnode services` shows them")
        finally:
            for task in attempts:
                task.cancel()

    async def _wait_for_another(self, name: str, find_by: float, error: MeshError | None) -> None:
        """Every known instance has failed, or there is none: wait for news, else raise what the last one answered."""
        if error is not None:
            raise error
        if not await self._news(find_by):
            raise NotFound(f"no other node offers {name!r}", hint="`meshnode services` lists what is; is it exposed?")

    def _first_opened(
        self, done: set[asyncio.Task[Opened]], attempts: Attempts, name: str
    ) -> Opened | MeshError | None:
        """Take the first of these attempts that was accepted; of others the error. A second acceptance is reset."""
        error: MeshError | None = None
        for task in done:
            peer = attempts.pop(task)
            found = self._outcome(task, peer, name)
            if not isinstance(found, MeshError):
                self._note(peer, name, found[1])
                for late in done:  # it accepted too, and is not needed
                    if late in attempts and late.exception() is None:
                        late.result()[1].reset()
                return found
            error = found
        return error

    def _hedge_after(self, instance: Instance) -> float:
        if instance.rtt is None:
            return DIAL_HEDGE_S
        return min(MAX_HEDGE_S, max(HEDGE_S, 3 * instance.rtt))

    async def open_at(self, peer: NodeId | str, name: str) -> Opened:
        """Open a stream to the service of one node; once more when it turns out to have restarted meanwhile."""
        id = await self.id_of(peer)
        try:
            return await Connection(await self._runtime.connect(id)).open(name)
        except PeerRestarted:  # the caller has sent nothing yet, so nothing can happen twice
            return await Connection(await self._runtime.connect(id)).open(name)

    def _outcome(self, task: asyncio.Task[Opened], peer: NodeId, name: str) -> Opened | MeshError:
        """Return the outcome of an attempt, and tell it to the directory."""
        assert self._registry is not None
        experience, now = self._registry.directory.experience, self._loop.time()
        try:
            opened = task.result()
        except ServiceNotFound as error:
            experience.on_missing(peer, name, now)
            return error
        except PolicyDenied as error:
            experience.on_refused(peer, name, now)
            return error
        except ServiceUnavailable as error:
            experience.on_failed(peer, now, name)
            return error
        except MeshError as error:
            experience.on_failed(peer, now)
            return error
        experience.on_opened(peer, name)
        self._proven[peer] = now
        return opened

    # ---- when an instance dies

    def _note(self, peer: NodeId, name: str, writer: MeshWriter) -> None:
        streams = self._streams.setdefault(peer, {})
        for old in [s for s in streams if s.over]:
            del streams[old]
        streams[writer._stream] = name

    def _on_silent(self, peer: NodeId) -> None:
        """Handle a silence: something expected of ``peer`` does not come. Prove other instances, then decide."""
        names = self._names_of(peer)
        if not names or self._registry is None:
            return
        rtt = self._registry.rtt(peer) or 0.0
        began = self._loop.time()
        for name in names:
            self._warm(name, peer)
        self._loop.call_later(CUT_S + CUT_RTTS * min(rtt, 0.5), self._decide, peer, began, AGAIN_S)

    def on_service(self, effect: ServiceChanged) -> None:
        """An instance of a service came, changed or went."""
        if effect.change == "down":
            self._on_gone(effect.instance.node)
        self.on_news()

    def on_member(self, change: MemberChanged) -> None:
        """The mesh believes something else of a member."""
        if change.status in (Status.GONE, Status.LEFT):
            self._on_gone(change.peer)

    def _on_gone(self, peer: NodeId) -> None:
        """The mesh believes that ``peer`` is gone, or its service was withdrawn as failed."""
        for name in self._names_of(peer):
            self._warm(name, peer)
        self._decide(peer, self._loop.time() - PROOF_S, AGAIN_S)

    def _names_of(self, peer: NodeId) -> list[str]:
        streams = self._streams.get(peer)
        if streams is None:
            return []
        for old in [s for s in streams if s.over]:
            del streams[old]
        if not streams:
            del self._streams[peer]
        return list(dict.fromkeys(streams.values()))

    def _decide(self, peer: NodeId, began: float, again: float) -> None:
        """End the streams to a silent peer for whose service another instance answers; else look again later."""
        assert self._registry is not None
        names = self._names_of(peer)
        if not names or self._runtime.is_closed or not self._registry.directory.experience.is_silent(peer):
            return
        waiting = False
        for name in names:
            rivals = [i.node for i in self._registry.choose(name, self._loop.time()) if i.node != peer]
            if any(self._proven.get(rival, 0.0) >= began for rival in rivals):
                self._cut(peer, name)
            elif rivals:
                waiting = True
                self._warm(name, peer)
        if waiting:
            self._loop.call_later(again, self._decide, peer, began, min(MAX_AGAIN_S, again * 1.5))

    def _cut(self, peer: NodeId, name: str) -> None:
        assert self._registry is not None
        self._registry.directory.experience.on_failed(peer, self._loop.time())
        for stream, opened in list(self._streams.get(peer, {}).items()):
            if opened == name:
                self._runtime.metrics.count(FAILOVERS)
                del self._streams[peer][stream]
                stream.error = ConnectionLost(
                    f"{name} at {peer.short} fell silent, and another instance answers", hint="open it again"
                )
                stream.reset()

    def _warm(self, name: str, silent: NodeId) -> None:
        """Have a connection to the next instance before it is needed, and proof that it lives."""
        assert self._registry is not None
        for instance in self._registry.choose(name, self._loop.time())[:3]:
            rival = instance.node
            if rival == silent or instance.state not in ("up", "suspect") or rival in self._warming:
                continue
            self._warming[rival] = None
            self._runtime.tasks.spawn(self._prove(rival))
            return

    async def _prove(self, rival: NodeId) -> None:
        try:
            outcome = await self._runtime.ping(rival, PROOF_S)
            if outcome.rtt is not None:
                self._proven[rival] = self._loop.time()
        except MeshError as error:
            log.debug("another instance, %s, does not answer either: %s", rival.short, error)
        finally:
            self._warming.pop(rival, None)
