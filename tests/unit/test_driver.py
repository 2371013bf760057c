"""The driver's timer: never before the deadline, whatever the loop rounds to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

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
