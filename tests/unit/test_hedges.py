"""When a second instance of a service is tried beside the first."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from meshnode.identity.node_id import NodeId
from meshnode.sdk.failover import DIAL_HEDGE_S, Failover, Kind

PEERS = [NodeId(bytes(31) + bytes([n])) for n in (1, 2, 3, 4)]


def _failover(ran: Any) -> Failover:
    failover = object.__new__(Failover)
    failover._registry = SimpleNamespace()  # type: ignore[assignment]
    failover._runtime = SimpleNamespace(stack=SimpleNamespace(context=SimpleNamespace(ran=ran)))  # type: ignore[assignment]
    return failover


def test_each_one_that_hesitates_makes_the_wait_for_the_next_twice_as_long() -> None:
    failover = _failover(lambda: 0.0)
    fresh: Any = [SimpleNamespace(rtt=None, node=peer) for peer in PEERS]
    waits = [failover._patience(("db", None), fresh, {}, running, 10.0) for running in (1, 2, 3)]
    assert waits == [DIAL_HEDGE_S, 2 * DIAL_HEDGE_S, 4 * DIAL_HEDGE_S]
    assert failover._patience(("db", None), fresh, {}, 3, 0.5) == 0.5, "no longer than the whole may take"


async def test_only_time_in_which_this_process_ran_counts_as_hesitation() -> None:
    times = iter([0.0, 0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    looks = 0

    def ran() -> float:
        nonlocal looks
        looks += 1
        return next(times)

    task = asyncio.ensure_future(asyncio.sleep(60))
    assert await _failover(ran)._first_done([task], 0.05) == set()
    assert looks >= 6
    task.cancel()


@pytest.mark.parametrize("wait", [0.0, 10.0])
async def test_an_attempt_that_ends_ends_the_wait(wait: float) -> None:
    task = asyncio.ensure_future(asyncio.sleep(0))
    await asyncio.sleep(0.001)
    assert await _failover(lambda: 0.0)._first_done([task], wait) == {task}


async def test_an_answer_that_comes_as_the_caller_gives_up_is_taken_and_dropped() -> None:
    failover, answered, opened = _failover(lambda: 0.0), asyncio.Event(), Mock()
    failover._loop = asyncio.get_running_loop()
    failover._waits = SimpleNamespace(deadline=lambda: 0.0)  # type: ignore[assignment]
    failover._registry.may_seek_service = lambda: False  # type: ignore[union-attr, method-assign]
    failover._chosen = lambda use, sticky=False: [SimpleNamespace(node=PEERS[0], rtt=None)]  # type: ignore

    async def begin(peer: NodeId, name: str) -> Mock:
        await answered.wait()
        return opened

    kind: Kind[Mock] = Kind(begin, lambda stream: stream)
    opening = asyncio.create_task(failover._any(kind, "db", ("any",), sticky=False))
    await asyncio.sleep(0.01)
    answered.set()  # before it is cancelled, and in the same turn of the loop
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await opening
    opened.reset.assert_called_once_with()
