"""What is left of a topic that a program has left."""

from __future__ import annotations

import asyncio

import pytest

from meshnode import ConfigError
from meshnode.base.limits import TOPIC_MAX_JOINED
from tests.conftest import MakeNode
from tests.given_time import within


async def test_topics_that_were_left_are_forgotten_and_may_be_joined_again(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.sdk.topic.LINGER_S", 0.0)
    monkeypatch.setattr("meshnode.sdk.topic.YOUNG_READY_S", 0.01)
    node = await make_node()
    for number in range(3):
        async with await node.join(f"topic {number}") as topic:
            await topic.publish(b"hello")
    topics = node._life.running().topics
    async with within(10):
        while topics._hubs:  # noqa: ASYNC110 - nothing is told of the end of what lingers
            await asyncio.sleep(0.01)
    async with await node.join("topic 0") as topic:
        assert list(topics._hubs) == ["topic 0"]
        await topic.publish(b"again")


async def test_topics_that_no_program_reads_any_more_make_room_for_others(
    make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.sdk.topic.YOUNG_READY_S", 0.01)
    node = await make_node()
    read = await node.join("read")
    for number in range(2 * TOPIC_MAX_JOINED):
        async with await node.join(f"topic {number}") as topic:
            await topic.publish(b"hello")
    hubs = node._life.running().topics._hubs
    assert list(hubs) == ["read", *(f"topic {number}" for number in range(TOPIC_MAX_JOINED + 1, 2 * TOPIC_MAX_JOINED))]
    used = [await node.join(f"used {number}") for number in range(TOPIC_MAX_JOINED - 1)]
    with pytest.raises(ConfigError, match="at most"):
        await node.join("one more")
    assert [topic._closed for topic in (read, *used)] == [False] * TOPIC_MAX_JOINED
