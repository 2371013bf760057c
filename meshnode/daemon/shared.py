"""What the control socket answers about what the mesh has in common: services, members, names, topics."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from meshnode.errors import NotFound
from meshnode.runtime.status import describe_members, describe_services, name_of
from meshnode.sdk.events import EventKind
from meshnode.sdk.node import Node, runtime_of
from meshnode.topics.inbox import TopicMessage

FLUSH_S = 0.05


def is_endless(line: bytes) -> bool:
    """True for a request whose answer ends with its client."""
    try:
        return json.loads(line)["method"] in ("watch", "sub")
    except (ValueError, KeyError, TypeError):
        return False


class Commons:
    """Methods of the control socket, as ``do_NAME``; each yields result objects."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def do_services(self, name: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The instances of all services, or of one (waited for a moment)."""
        if name is not None:
            await self._node.find(name)
        for item in describe_services(runtime_of(self._node), name):
            yield item

    async def do_watch(self) -> AsyncIterator[dict[str, Any]]:
        """What there is, then what changes, until the client goes away."""
        runtime = runtime_of(self._node)
        async with aclosing(self._node.events()) as events:
            first = asyncio.ensure_future(anext(events))  # begin to listen, then look: nothing is missed
            await asyncio.sleep(0)
            try:
                for member in describe_members(runtime):
                    yield {"event": "member", **member}
                for service in describe_services(runtime):
                    yield {"event": "service", "change": "up", **service}
                event = await first
            finally:
                first.cancel()
            while True:
                peer, name = str(event.peer), name_of(runtime, event.peer)
                if event.kind is EventKind.MEMBER:
                    yield {"event": "member", "id": peer, "status": event.detail, "name": name}
                elif event.kind.startswith("service_"):
                    yield {
                        "event": "service",
                        "change": event.kind.removeprefix("service_"),
                        "service": event.service,
                        "id": peer,
                        "state": event.detail,
                        "name": name,
                    }
                elif event.kind is EventKind.NAME_CONFLICT:
                    yield {"event": "name_conflict", "id": peer, "detail": event.detail}
                event = await anext(events)

    async def do_forget(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Drop what a node's name meant here."""
        runtime = runtime_of(self._node)
        if runtime.names is None or not runtime.names.forget(name):
            raise NotFound(f"the name {name!r} was not used here", hint="nothing needs to be forgotten")
        runtime.drain_directory()
        yield {"name": name}

    async def do_pub(self, topic: str, messages: list[str], encoded: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Publish texts (or base64)."""
        async with await self._node.join(topic) as joined:
            for text in messages:
                data = base64.b64decode(text) if encoded else text.encode()
                seq = await joined.publish(data)
                yield {"topic": topic, "seq": seq, "members": joined.members, "links": joined.links}
            await asyncio.sleep(FLUSH_S)

    async def do_sub(self, topic: str, replay: int = 0, count: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Messages as they come, until ``count`` or until the client goes away."""
        async with await self._node.join(topic, replay=replay) as joined:
            yield {"joined": topic, "members": joined.members, "links": joined.links}
            number = 0
            async for message in joined:
                yield _message(topic, message, joined.lost)
                number += 1
                if number == count:
                    return


def _message(topic: str, message: TopicMessage, lost: int) -> dict[str, Any]:
    found: dict[str, Any] = {"topic": topic, "sender": str(message.sender), "seq": message.seq, "lost": lost}
    try:
        found["text"] = message.data.decode()
    except UnicodeDecodeError:
        found["base64"] = base64.b64encode(message.data).decode()
    return found
