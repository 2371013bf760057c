"""Requests about topics."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon
    from meshnode.topics.inbox import TopicMessage

FLUSH_S = 0.05


@request("pub")
class Pub(Request):
    """Publish texts, or bytes in base64 when ``encoded``."""

    topic: str
    messages: tuple[str, ...]
    encoded: bool = False

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield one object a message."""
        import asyncio

        async with await daemon.node.join(self.topic) as joined:
            for text in self.messages:
                data = base64.b64decode(text) if self.encoded else text.encode()
                seq = await joined.publish(data)
                yield {"topic": self.topic, "seq": seq, "members": joined.members, "links": joined.links}
            await asyncio.sleep(FLUSH_S)


@request("sub", endless=True)
class Sub(Request):
    """Messages as they come, until ``count`` or until the client goes away."""

    topic: str
    replay: int = 0
    count: int | None = None

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield that it joined, then one object a message: ``sender``, ``seq``, ``lost``, ``text`` or ``base64``.

        ``lost`` counts what this reader has missed so far, being too slow. Raises ConfigError for a bad topic.
        """
        async with await daemon.node.join(self.topic, replay=self.replay) as joined:
            yield {"joined": self.topic, "members": joined.members, "links": joined.links}
            number = 0
            async for message in joined:
                yield _message(self.topic, message, joined.lost)
                number += 1
                if number == self.count:
                    return


def _message(topic: str, message: TopicMessage, lost: int) -> Json:
    found: Json = {"topic": topic, "sender": str(message.sender), "seq": message.seq, "lost": lost}
    try:
        found["text"] = message.data.decode()
    except UnicodeDecodeError:
        found["base64"] = base64.b64encode(message.data).decode()
    return found
