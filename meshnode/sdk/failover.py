"""Opening streams by service name: choice of the instance, hedging, and failover when an instance falls silent.

``Failover.open`` tries the instances that the directory chooses of those that are trusted, one after another as soon as
one refuses or fails, and the next one in parallel when one hesitates: the first to accept serves. A stream that was
opened so ends with ConnectionLost when its instance falls silent while another trusted one answers, so that its user
can open another at once; a stream to a node (by id or name) is never ended so, for that node may be moving. Where no
node is named as trusted, a service is the single node that offered it when it was first used (``Providers``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meshnode.base.metrics import describe
from meshnode.base.value import frozen
from meshnode.errors import (
    ConnectionLost,
    InvalidId,
    MeshError,
    NameChanged,
    NotFound,
    PeerRestarted,
    PeerSilent,
    PolicyDenied,
    ServiceNotFound,
    ServiceUnavailable,
)
from meshnode.identity.node_id import ID_FORM, NodeId, id_or_label, quoted
from meshnode.quic.connection import Connection as Link
from meshnode.quic.stream import Stream
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.connection import Connection
from meshnode.sdk.datagrams import Datagrams
from meshnode.sdk.rivals import Rivals, Trust, Use
from meshnode.sdk.streams import MeshStream
from meshnode.sdk.waits import Waits

if TYPE_CHECKING:
    from meshnode.directory.announcement import Instance
    from meshnode.directory.services import ServiceChanged
    from meshnode.gossip.effects import MemberChanged
    from meshnode.runtime.waking import Waker

T = TypeVar("T")

ANY = "any"

SETTLE_S = 0.3  # a young node waits so long for a second provider before it takes the first one for the only one
OPEN_S = 10.0
HEDGE_S, MAX_HEDGE_S = 0.1, 0.4  # an instance that hesitates for 3 round trips (within these) gets company
DIAL_HEDGE_S = 0.3  # the same where there is no connection yet
HEDGES = describe("service_hedges", "times that a second instance was tried because the first one hesitated")


@frozen
class Kind(Generic[T]):
    """What is opened to an instance: a stream or a flow of datagrams, how it is begun, and the stream below it."""

    begin: Callable[[NodeId, str], Coroutine[Any, Any, T]]
    stream: Callable[[T], Stream]


class Failover:
    """Opens by name for one node. The registry is None where gossip is off: then only ids are known."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._registry = runtime.stack.registry
        self._loop = asyncio.get_running_loop()
        self._waits = Waits(runtime)
        self._waker = _make_waker(runtime) if runtime.config.wake_allow else None
        self._rivals: Rivals | None = None
        if self._registry is not None:
            self._rivals = Rivals(runtime, self._registry)
            self._registry.on_peer_silent = self._rivals.on_silent

    # ---- names

    async def id_of(self, peer: NodeId | str) -> NodeId:
        """Return the id of an id, ``ID.mesh``, or a node's name.

        Raises InvalidId, NotFound, NameChanged, NameDisputed.
        """
        if isinstance(peer, NodeId):
            return peer
        label = id_or_label(peer)
        if isinstance(label, NodeId):
            return label
        if self._registry is None:
            raise InvalidId(f"{quoted(peer)} is a name, and names are found by gossip, which is off here", hint=ID_FORM)
        registry, deadline = self._registry, self._waits.deadline()
        seek = partial(registry.seek_name, label)
        if not registry.names.is_pinned(label):  # this use pins it, and gossip may not have told of all
            await self._waits.searched(seek)
        while True:
            try:
                return registry.names.resolve(label, self._runtime.clock.wall())
            except (NotFound, NameChanged):  # the pin may be known before the claims are
                if not await self._waits.news(deadline, seek):
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
        deadline = self._waits.deadline()
        while not self.instances(name):
            if self._registry is None or not await self._waits.news(
                deadline, partial(self._registry.seek_service, name)
            ):
                return []
        assert self._registry is not None
        return self._registry.choose(name, self._loop.time())

    def on_news(self) -> None:
        """Wake every call that waits for a service or a name: the directory or a name has changed."""
        self._waits.on_news()

    def close(self) -> None:
        """End the waits for news: the node was closed."""
        self._waits.close()

    # ---- opening

    async def open(self, name: str, *, trusted: tuple[NodeId | str, ...] = (), sticky: bool = False) -> MeshStream:
        """Open a stream to an instance of a service on one of the ``trusted`` nodes, or any with ``ANY`` among them.

        With none it is the node that the service means here, which the first use pins. Raises NotFound, NameDisputed,
        NameChanged, or what the last instance answered.
        """
        return await self._any(Kind(self.open_at, lambda opened: opened.writer._stream), name, trusted, sticky)

    async def flow(self, name: str, *, trusted: tuple[NodeId | str, ...] = (), sticky: bool = False) -> Datagrams:
        """Open a flow of datagrams to an instance, as ``open`` does a stream."""
        return await self._any(Kind(self.flow_at, lambda flow: flow._stream), name, trusted, sticky)

    async def _any(self, kind: Kind[T], name: str, trusted: tuple[NodeId | str, ...], sticky: bool) -> T:
        registry = self._registry
        if registry is None:
            raise NotFound("services are found by gossip, which is off here", hint="name the node too: open(id, name)")
        find_by, give_up = self._waits.deadline(), self._runtime.stack.context.ran() + OPEN_S
        use = name, await self._trust(name, trusted, find_by)
        attempts: dict[asyncio.Task[T], NodeId] = {}
        tried: dict[NodeId, None] = {}
        error: MeshError | None = None
        try:
            while True:
                fresh = [i for i in self._chosen(use, sticky=sticky) if i.node not in tried]
                if fresh:
                    tried[fresh[0].node] = None
                    if attempts:
                        self._runtime.metrics.count(HEDGES)
                    attempts[self._loop.create_task(kind.begin(fresh[0].node, name))] = fresh[0].node
                elif not attempts:
                    if error is not None and not _has_more(use, tried):
                        raise error
                    await self._wait_for_another(name, find_by, error, bool(trusted) and use[1] is not None)
                    continue
                wait = self._patience(use, fresh, tried, len(attempts), give_up - self._runtime.stack.context.ran())
                done = await self._first_done(attempts, wait)
                outcome = self._first_opened(kind, done, attempts, use)
                if isinstance(outcome, tuple):
                    peer, opened = outcome
                    if not trusted:
                        registry.providers.pin(name, peer)
                        registry.drain(self._loop.time())
                    return opened
                error = outcome or error
                if not done and self._runtime.stack.context.ran() >= give_up:
                    raise ConnectionLost(f"no instance of {name!r} answers", hint="`meshnode services` shows them")
        finally:
            for task in attempts:
                if not (task.cancel() or task.cancelled() or task.exception()):  # accepted as the caller gave up
                    kind.stream(task.result()).reset()

    async def _first_done(self, attempts: Collection[asyncio.Task[T]], wait: float) -> set[asyncio.Task[T]]:
        """Wait for an attempt to end, for so many seconds in which this process runs: an answer comes in no others."""
        ran = self._runtime.stack.context.ran
        until = ran() + wait
        while True:
            left = max(0.0, until - ran())
            done, _ = await asyncio.wait(attempts, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if done or not left or until <= ran():
                return done

    async def _trust(self, name: str, trusted: tuple[NodeId | str, ...], find_by: float) -> Trust:
        if ANY in trusted:
            return None
        if trusted:
            return frozenset([await self.id_of(peer) for peer in trusted])
        return frozenset([await self._provider(name, find_by)])

    async def _provider(self, name: str, find_by: float) -> NodeId:
        """Return the node that a service means here; waits a moment while there is none."""
        registry = self._registry
        assert registry is not None
        seek = partial(registry.seek_service, name)
        settled = registry.providers.pinned(name) is not None or not self._waits.is_young
        if registry.providers.pinned(name) is None:  # gossip may not have told of all
            await self._waits.searched(seek)
        while True:
            try:
                found = registry.provider(name, self._loop.time())
            except NameChanged:  # the pinned one may be heard of yet
                if not await self._waits.news(find_by, seek):
                    raise
                continue
            if found is None:
                await self._wait_for_another(name, find_by, None, False)
            elif settled:
                return found
            else:
                await asyncio.sleep(SETTLE_S)
                settled = True

    def _chosen(self, use: Use, *, sticky: bool = False) -> list[Instance]:
        """Return the instances that may serve, in the order in which to try them."""
        assert self._registry is not None
        name, trust = use
        return self._registry.choose(name, self._loop.time(), sticky=sticky, only=trust)

    async def _wait_for_another(self, name: str, find_by: float, error: MeshError | None, trusted: bool) -> None:
        """Every known instance has failed, or there is none: wait for news, else raise what the last one answered."""
        assert self._registry is not None
        seek = partial(self._registry.seek_service, name)
        if error is not None:
            if not seek(self._loop.time()):
                raise error
            find_by = self._runtime.stack.context.ran()
        if not await self._waits.news(find_by, seek):
            if error is not None:
                raise error
            those = "none of the nodes that are trusted for it" if trusted else "no other node"
            raise NotFound(f"{those} offers {name!r}", hint="`meshnode services` lists what is; is it exposed?")

    def _first_opened(
        self, kind: Kind[T], done: set[asyncio.Task[T]], attempts: dict[asyncio.Task[T], NodeId], use: Use
    ) -> tuple[NodeId, T] | MeshError | None:
        """Take the first of these attempts that was accepted; of others the error. A second acceptance is reset."""
        assert self._rivals is not None
        error: MeshError | None = None
        for task in done:
            peer = attempts.pop(task)
            found = self._outcome(task, peer, use[0])
            if not isinstance(found, MeshError):
                self._rivals.note(peer, use, kind.stream(found))
                for late in done:  # it accepted too, and is not needed
                    if late in attempts and late.exception() is None:
                        kind.stream(late.result()).reset()
                return peer, found
            error = found
        return error

    def _patience(self, use: Use, fresh: list[Instance], tried: dict[NodeId, None], running: int, left: float) -> float:
        """Return how long to wait until another instance is tried beside, or one is looked for in the DHT.

        Twice as long for each that hesitates already: where all do, the mesh is slow, and one more makes it slower.
        """
        assert self._registry is not None
        if len(fresh) > 1:
            return min(left, self._hedge_after(fresh[0]) * 2.0 ** (running - 1))
        if not _has_more(use, tried):
            return left
        if fresh:
            return min(left, self._hedge_after(fresh[0])) if self._registry.may_seek_service() else left
        return min(left, MAX_HEDGE_S) if self._registry.seek_service(use[0], self._loop.time()) else left

    def _hedge_after(self, instance: Instance) -> float:
        if instance.rtt is None:
            return DIAL_HEDGE_S
        return min(MAX_HEDGE_S, max(HEDGE_S, 3 * instance.rtt))

    async def open_at(self, peer: NodeId | str, name: str) -> MeshStream:
        """Open a stream to the service of one node.

        Once more when it turns out that the peer has restarted or connected again, or that an end slept for longer than
        the idle timeout.
        """
        return await self._begin(peer, lambda connection: connection.open(name))

    async def flow_at(self, peer: NodeId | str, name: str) -> Datagrams:
        """Open a flow of datagrams to the service of one node, as ``open_at`` does a stream."""
        return await self._begin(peer, lambda connection: connection.datagrams(name))

    async def _begin(self, peer: NodeId | str, begin: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        id = await self.id_of(peer)
        link = await self.connect(id)
        try:
            return await self._open(link, begin)
        except ConnectionLost as error:  # the caller has sent nothing yet, so nothing can happen twice
            is_replaced = link.error is not None and self._runtime.stack.context.peers.connection(id) is not None
            if not is_replaced and not isinstance(error, PeerRestarted | PeerSilent):
                raise
            return await self._open(await self.connect(id), begin)

    async def _open(self, link: Link, begin: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        opening = begin(Connection(link, self._runtime))
        return await (opening if self._waker is None else self._waker.opened(link, opening))

    async def connect(self, peer: NodeId) -> Link:
        """Return a connection to a node, the live one if there is one; a node that sleeps is woken where allowed.

        Raises as ``Runtime.connect``.
        """
        return await (self._runtime.connect(peer) if self._waker is None else self._waker.connect(peer))

    def _outcome(self, task: asyncio.Task[T], peer: NodeId, name: str) -> T | MeshError:
        """Return the outcome of an attempt, and tell it to the directory."""
        assert self._registry is not None
        assert self._rivals is not None
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
        self._rivals.on_answer(peer)
        return opened

    # ---- what the mesh believes

    def on_service(self, effect: ServiceChanged) -> None:
        """An instance of a service came, changed or went."""
        if effect.change == "down" and self._rivals is not None:
            self._rivals.on_gone(effect.instance.node)
        self.on_news()

    def on_member(self, change: MemberChanged) -> None:
        """The mesh believes something else of a member."""
        from meshnode.gossip.effects import Status  # loaded already: gossip calls this

        if change.status in (Status.GONE, Status.LEFT) and self._rivals is not None:
            self._rivals.on_gone(change.peer)


def _has_more(use: Use, tried: Collection[NodeId]) -> bool:
    """Return whether another node than those that were tried may serve."""
    trust = use[1]
    return trust is None or any(peer not in tried for peer in trust)


def _make_waker(runtime: Runtime) -> Waker:
    from meshnode.runtime.waking import Permission, Sleepers, Waker  # h11, for few nodes

    stack = runtime.stack

    def offer(encoded: bytes) -> None:
        stack.resolution.offer(encoded, "wake", runtime.clock.monotonic())
        runtime.driver.on_dirty()

    sleepers = Sleepers(runtime.connect, stack.resolution.cached, lambda: stack.record, offer, stack.context.ran)
    return Waker(Permission(runtime.config.wake_allow), sleepers, runtime.tasks.spawn, runtime.metrics)
