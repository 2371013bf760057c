"""``node.events()``: what an iteration yields, and its end."""

from __future__ import annotations

import pytest

from meshnode.base.metrics import Metrics
from meshnode.identity.node_id import NodeId
from meshnode.sdk.events import MAX_EVENTS, Event, EventKind, EventStreams

HAPPENED = Event(EventKind.CONNECTED, NodeId(bytes(32)))


@pytest.mark.parametrize("later", [1, MAX_EVENTS + 1])
async def test_an_iteration_that_was_closed_yields_nothing_that_happens_later(later: int) -> None:
    events = EventStreams(Metrics())
    iteration = events.listen()
    events._emit(HAPPENED)
    assert await anext(iteration) == HAPPENED
    await iteration.aclose()
    for _ in range(later):
        events._emit(HAPPENED)
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(iteration)


async def test_the_end_of_the_node_ends_every_iteration_behind_what_is_queued() -> None:
    events = EventStreams(Metrics())
    iteration = events.listen()
    events._emit(HAPPENED)
    events.end()
    events._emit(HAPPENED)
    assert [event async for event in iteration] == [HAPPENED]
    with pytest.raises(StopAsyncIteration):
        await anext(iteration)
