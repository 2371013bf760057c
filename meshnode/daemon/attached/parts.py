"""What an attached node hands out beside streams: services and topics."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

from meshnode.daemon.attached.control import Answers, ask_one, begin
from meshnode.daemon.requests.attached import Events
from meshnode.daemon.requests.topics import Pub
from meshnode.identity.node_id import NodeId
from meshnode.sdk.events import Event, EventIteration, EventKind
from meshnode.topics.inbox import TopicMessage


class AttachedService:
    """A service of an attached program, as ``serve`` returns it."""

    def __init__(self, name: str, task: asyncio.Task[None], started: asyncio.Future[None]) -> None:
        self.name = name
        self._task = task
        self._started = started

    @property
    def is_served(self) -> bool:
        """True until it was closed, or its node has stopped."""
        return not (self._task.done() or self._task.cancelling())

    async def started(self) -> None:
        """Wait until the node serves it.

        Raises what it refused it with: ConfigError, InvalidId, NotRunning; the last also once the node has stopped.
        """
        await asyncio.shield(self._started)
        if self._task.done() and not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    def close(self) -> None:
        """Withdraw the service; handlers that run go on. Safe to call twice."""
        self._task.cancel()


class AttachedEvents(EventIteration):
    """What happens to the running node, from the first step of the iteration on."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._told: Answers | None = None
        self._is_over = False

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        if self._told is None:
            self._told = await begin(self._home, Events())
        while not (told := await anext(self._told)):
            pass  # it listens
        return Event(EventKind(told["kind"]), NodeId.parse(told["peer"]), told["detail"], told["service"])

    async def aclose(self) -> None:
        """End the iteration."""
        self._is_over = True
        if self._told is not None:
            self._told.close()


class AttachedTopic:
    """A topic that the node has joined for this program; iterating yields ``TopicMessage`` objects.

    A wait for the next message may be cancelled, as by a time limit, and made again; ``leave`` ends it.
    """

    def __init__(self, home: Path, name: str, messages: Answers) -> None:
        self.name = name
        self.lost = 0
        """How many messages this program has not got."""
        self._home = home
        self._messages = messages

    async def publish(self, data: bytes) -> int:
        """Send a message of at most 3,072 bytes to every member; return its number.

        Raises as ``Topic.publish``.
        """
        encoded = base64.b64encode(data).decode()
        found = await ask_one(self._home, Pub(self.name, (encoded,), encoded=True))
        return int(found["seq"])

    def __aiter__(self) -> AttachedTopic:
        return self

    async def __anext__(self) -> TopicMessage:
        told = await anext(self._messages)
        self.lost = told["lost"]
        data = base64.b64decode(told["base64"]) if "base64" in told else told["text"].encode()
        return TopicMessage(NodeId.parse(told["sender"]), data, told["seq"])

    async def leave(self) -> None:
        """Take part no longer. Safe to call twice."""
        self._messages.close()

    async def __aenter__(self) -> AttachedTopic:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()
