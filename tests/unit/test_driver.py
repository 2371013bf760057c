"""The driver's timer: never before the deadline, whatever the loop rounds to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshnode.base.clock import SystemClock
from meshnode.base.metrics import Metrics
from meshnode.quic.engines import pick_engine
from meshnode.runtime.driver import Driver
from meshnode.runtime.faults import Faults
from meshnode.sim.world import SimNode, Weather, World


class WholeMilliseconds(asyncio.SelectorEventLoop):
    """Rounds delays to the nearest millisecond, as uvloop does."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, **how: Any) -> asyncio.TimerHandle:
        self.delays.append(round(delay * 1000) / 1000)
        return super().call_later(delay, callback, *args, **how)


@pytest.mark.parametrize("ahead_s", [0.0001, 0.0004, 0.0014, 0.02, 1.00049])
def test_a_timer_never_fires_before_its_deadline(ahead_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = WholeMilliseconds()
    try:
        node = SimNode(World(1, Weather()), "10.0.0.1", pick_engine("aioquic"))
        clock = node.mesh.context.clock
        driver = Driver(loop, clock, Faults(Metrics()))
        driver.stack = node.mesh
        monkeypatch.setattr(node.mesh, "next_deadline", lambda: clock.monotonic() + ahead_s)
        driver.arm()
        assert ahead_s <= loop.delays[-1] < ahead_s + 0.0011
        driver.close()
    finally:
        loop.close()


def test_a_deadline_that_has_passed_into_the_distance_wakes_no_node_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = WholeMilliseconds()
    try:
        node = SimNode(World(1, Weather()), "10.0.0.1", pick_engine("aioquic"))
        clock, deadline = node.mesh.context.clock, [0.0]
        driver = Driver(loop, clock, Faults(Metrics()))
        driver.stack = node.mesh
        monkeypatch.setattr(clock, "monotonic", lambda: 100.0 + len(loop.delays) * 0.01)
        monkeypatch.setattr(node.mesh, "next_deadline", lambda: deadline[0])
        deadline[0] = 100.08  # of an answer
        driver.arm()
        deadline[0] = 109.0  # it has come
        driver.arm()
        assert loop.delays[-1] > 8.9
        for _ in range(20):  # a busy node leaves its timer alone: to cancel one per packet costs more
            deadline[0] = 100.2
            driver.arm()
            deadline[0] = 109.0
            driver.arm()
        assert len(loop.delays) < 6
        driver.close()
    finally:
        loop.close()


def test_what_an_answer_may_carry_is_flushed_with_it_or_a_millisecond_later(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = WholeMilliseconds()
    try:
        node = SimNode(World(1, Weather()), "10.0.0.1", pick_engine("aioquic"))
        driver, flushed = Driver(loop, SystemClock(), Faults(Metrics())), list[float]()
        driver.stack = node.mesh
        waits = [True]
        monkeypatch.setattr(node.mesh.connections, "may_wait", lambda now: waits[0])
        monkeypatch.setattr(node.mesh, "flush", flushed.append)

        def turn() -> None:
            loop.call_soon(loop.stop)
            loop.run_forever()

        driver.on_dirty()  # for what has come
        turn()
        assert flushed == []
        assert loop.delays[-1] <= 0.001
        waits[0] = False  # for the application has answered
        driver.on_dirty()
        turn()
        assert flushed
        waits[0] = True
        turn()
        flushed.clear()
        driver.on_dirty()
        loop.call_later(0.2, loop.stop)
        loop.run_forever()
        assert flushed
        driver.close()
    finally:
        loop.close()
