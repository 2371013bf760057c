"""Topics for applications: ``await node.join("news")``, ``await topic.publish(data)``, ``async for message in topic``.

Several parts of one program may join one topic: they share its tree, and each has its own queue. The tree is left a
while after the last of them, so that joining again (a command line that publishes line by line) costs the mesh nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from meshnode.base.limits import TOPIC_MAX_DATA, TOPIC_MAX_JOINED, TOPIC_MAX_NAME, TOPIC_MAX_REPLAY, TOPIC_QUEUE
from meshnode.errors import ConfigError, NodeClosed, PolicyDenied, StreamMisused, TopicClosed
from meshnode.runtime.runtime import Runtime
from meshnode.sdk.arguments import text, whole
from meshnode.sdk.transport import as_bytes
from meshnode.trust.decision import Decision
from meshnode.trust.policy import Act

if TYPE_CHECKING:
    from meshnode.stack.topic_link import TopicLink
    from meshnode.topics.inbox import Inbox, TopicMessage

READY_S, YOUNG_READY_S, YOUNG_S = 0.5, 3.0, 10.0  # how long join waits for the first link
LINGER_S = 20.0


class Topic:
    """A topic that this node has joined, as ``node.join`` returns it.

    Iterating yields ``TopicMessage`` objects until the topic is left, and raises ``PolicyDenied`` when a new policy
    takes the topic from this node. One coroutine reads it; a second one gets ``StreamMisused``. ``async with`` leaves
    it at the end. Several parts of a program may join the same topic; each has its own queue, and the node takes part
    once.

    Example:

        async with await node.join("news") as topic:
            await topic.publish(b"hello")
            async for message in topic:
                print(message.sender, message.seq, message.data, topic.lost)
    """

    def __init__(self, hub: _Hub, limit: int) -> None:
        self._hub = hub
        self._limit = limit
        self._queue: deque[TopicMessage] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._dropped = 0
        self._lost_before = hub.inbox.lost
        self._closed = False
        self._error: PolicyDenied | None = None

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._hub.name

    @property
    def lost(self) -> int:
        """How many messages this reader has not got: those that never came, and the oldest of a full queue."""
        return self._dropped + self._hub.inbox.lost - self._lost_before

    @property
    def links(self) -> int:
        """How many members this node exchanges messages with directly."""
        return self._hub.links()

    @property
    def members(self) -> int:
        """How many other nodes have joined, as far as this node knows."""
        return self._hub.members()

    async def publish(self, data: bytes) -> int:
        """Send a message to every member.

        Delivery is at most once, without confirmation. Waits above 300 messages or 768 kB a second, and, for a second
        at most, while a link of the topic is full.

        Args:
            data: At most 3,072 bytes.

        Returns:
            The message's number among those of this node in this topic, from 1.

        Raises:
            ConfigError: ``data`` is too long.
            PolicyDenied: The policy does not let this node publish to this topic; others would drop the message.
            TopicClosed: The topic was left, or the node was closed.
        """
        if self._closed:
            raise self._error or TopicClosed(f"the topic {self.name!r} was left")
        data = as_bytes(data)
        if len(data) > TOPIC_MAX_DATA:
            raise ConfigError(
                f"a message has at most {TOPIC_MAX_DATA} bytes, not {len(data)}", hint="publish it in parts"
            )
        return await self._hub.publish(data)

    def _push(self, message: TopicMessage) -> None:
        """Queue a message; the oldest goes when the queue is full."""
        self._queue.append(message)
        if len(self._queue) > self._limit:
            self._queue.popleft()
            self._dropped += 1
        self._wake()

    def _end(self, error: PolicyDenied | None = None) -> None:
        """Let the reader end once it has read what is queued, in order or by an error."""
        self._closed, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Topic:
        return self

    async def __anext__(self) -> TopicMessage:
        while not self._queue:
            if self._closed:
                raise self._error or StopAsyncIteration
            if self._waiter is not None and not self._waiter.done():
                raise StreamMisused(
                    "another coroutine waits for the topic's next message already",
                    hint="let one coroutine read it, or join it once more",
                )
            self._waiter = waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        return self._queue.popleft()

    async def leave(self) -> None:
        """Take part no longer; what is queued may still be read. Safe to call twice.

        The node stays linked for 20 s, so that joining again costs the mesh nothing.
        """
        if not self._closed:
            self._end()
            self._hub.drop(self)

    async def __aenter__(self) -> Topic:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()


class _Hub:
    """One topic of one node, shared by its ``Topic`` objects."""

    def __init__(
        self, runtime: Runtime, link: TopicLink, name: str, replay: int, on_over: Callable[[], object]
    ) -> None:
        self.name = name
        self._on_over = on_over
        self.handles: dict[Topic, None] = {}
        self._runtime = runtime
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._recent: deque[TopicMessage] = deque(maxlen=TOPIC_MAX_REPLAY)
        self._leaving: asyncio.TimerHandle | None = None
        self.over = False
        now = self._loop.time()
        self.inbox: Inbox = link.join(name, now, replay)
        self.inbox.on_ready = self._on_ready
        self.linked = asyncio.Event()
        self.inbox.on_linked = self.linked.set
        if self.links():
            self.linked.set()
        runtime.drain_directory()

    def links(self) -> int:
        return 0 if self.over else len(self._link.topics.neighbours(self.name))

    def members(self) -> int:
        return len(self._link.topics.known(self.name))

    def add(self, limit: int, replay: int) -> Topic:
        """Add a reader, with the latest messages first."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        topic = Topic(self, limit)
        for message in list(self._recent)[len(self._recent) - replay :] if replay else ():
            topic._push(message)
        self.handles[topic] = None
        return topic

    @property
    def idle_until(self) -> float | None:
        """When it is left for want of a reader; None while it has one."""
        return self._leaving.when() if self._leaving is not None else None

    def drop(self, topic: Topic) -> None:
        self.handles.pop(topic, None)
        if not self.handles and self._leaving is None:
            self._leaving = self._loop.call_later(LINGER_S, self.leave)

    def leave(self, error: PolicyDenied | None = None) -> None:
        """Leave for good; ``error`` is what readers meet, which did not ask for it."""
        if self.over:
            return
        self.over = True
        self._on_over()
        self.linked.set()
        if self._leaving is not None:
            self._leaving.cancel()
        try:
            self._link.topics.leave(self.name, self._loop.time())
            self._runtime.drain_directory()
        finally:
            for topic in list(self.handles):
                topic._end(error)

    async def publish(self, data: bytes) -> int:
        topics = self._link.topics
        while True:
            if self.over:
                raise TopicClosed(f"the topic {self.name!r} was left")
            guard = self._runtime.guard
            if not (decision := guard.ask(Act.PUBLISH, guard.own, self.name)).allowed:
                raise _denied(decision, f"publish to the topic {self.name!r}")
            now = self._loop.time()
            wait = topics.room(self.name, len(data), now)
            if wait <= 0:
                break
            await asyncio.sleep(wait)
        seq = topics.publish(self.name, data, now, self._runtime.clock.wall())
        self._runtime.drain_directory()
        return seq

    def _on_ready(self) -> None:
        while (message := self.inbox.pop()) is not None:
            self._recent.append(message)
            for topic in self.handles:
                topic._push(message)


class TopicBook:
    """All topics of one node."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._link = runtime.stack.topic_link
        self._hubs: dict[str, _Hub] = {}
        self._born = asyncio.get_running_loop().time()
        runtime.guard.on_change.append(self._cut)

    def _cut(self) -> None:
        """Leave the topics in which a new policy does not let this node take part."""
        guard = self._runtime.guard
        for hub in list(self._hubs.values()):
            if not guard.joins(guard.own, hub.name):
                hub.leave(self._refusal(hub.name))

    def _refusal(self, name: str) -> PolicyDenied:
        guard = self._runtime.guard
        return _denied(guard.ask(Act.SUBSCRIBE, guard.own, name), f"take part in the topic {name!r}")

    async def join(self, name: str, *, replay: int = 0, limit: int = TOPIC_QUEUE) -> Topic:
        """Take part. Returns once there is a link to another member, or after a moment when there is none.

        Raises ConfigError, NodeClosed, PolicyDenied.
        """
        if self._link is None:
            raise ConfigError("topics travel by gossip, which is off here", hint="set gossip = true")
        text("topic", name, 1, TOPIC_MAX_NAME)
        whole("replay", replay, 0, TOPIC_MAX_REPLAY)
        whole("limit", limit, 1)
        hub = self._hubs.get(name)
        if hub is None:
            hub, replay = self._take_part(self._link, name, replay), 0
        topic = hub.add(limit, replay)
        await self._await_link(hub, topic)
        return topic

    def _take_part(self, link: TopicLink, name: str, replay: int) -> _Hub:
        guard = self._runtime.guard
        if not guard.joins(guard.own, name):
            raise self._refusal(name)
        if len(self._hubs) >= TOPIC_MAX_JOINED:
            self._leave_idle()
        try:
            hub = self._hubs[name] = _Hub(self._runtime, link, name, replay, lambda: self._hubs.pop(name, None))
        except ValueError as error:
            raise ConfigError(str(error), hint="leave one first") from error
        return hub

    def _leave_idle(self) -> None:
        """Leave the topic without a reader that has been so longest, to make room for another."""
        idle = [(hub.idle_until, hub) for hub in self._hubs.values() if hub.idle_until is not None]
        if idle:
            min(idle, key=lambda each: each[0])[1].leave()

    async def _await_link(self, hub: _Hub, topic: Topic) -> None:
        """Wait a moment for a link to another member. Raises NodeClosed, PolicyDenied."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(YOUNG_READY_S if now - self._born < YOUNG_S else READY_S):
                await hub.linked.wait()
        except TimeoutError:
            pass  # there is no other member yet
        except asyncio.CancelledError:
            await topic.leave()
            raise
        if hub.over:
            raise topic._error or NodeClosed("the node was closed")

    def close(self) -> None:
        """Leave all; iterations end."""
        with ExitStack() as hubs:
            for hub in self._hubs.values():
                hubs.callback(hub.leave)  # one that fails keeps no other from its end


def _denied(decision: Decision, what: str) -> PolicyDenied:
    hint = f"{decision.why}; `meshnode policy explain self self TOPIC --act publish` asks again"
    return PolicyDenied(f"the policy does not let this node {what}", hint=hint, rule=decision.rule or "")
