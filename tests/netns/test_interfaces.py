"""A change of this host's addresses is noticed at once, not at the next poll."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import pytest

from tests.netns.lab import Lab, require

pytestmark = pytest.mark.netns

WATCH = Path(__file__).with_name("watch_interfaces.py")
CHANGES, RUNS = 9, 3
BOUND_MS = 50.0


def test_every_kind_of_change_of_our_addresses_is_seen_within_50_ms() -> None:
    require()
    with Lab() as lab:
        host = lab.host("host", lab.switch(), "10.77.0.10/24")
        program = host.start(sys.executable, str(WATCH))
        found = [program.line() for _ in range(CHANGES * RUNS)]
    took: dict[str, list[float]] = {}
    for change in found:
        took.setdefault(change["change"], []).append(change["ms"])
    # the best of three: a machine that stalls for a moment is not slow to notice
    slow = {change: times for change, times in took.items() if min(times) >= BOUND_MS}
    assert not slow, took
    print({change: median(times) for change, times in took.items()})
