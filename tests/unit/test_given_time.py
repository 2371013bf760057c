"""Given time, with which tests hold what they wait for to a time beside other work."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest

from tests import given_time
from tests.given_time import GivenTime, status_of, wait_for, within


def test_time_in_which_a_process_waited_for_a_cpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = 100.0, 7.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(GivenTime, "_waits_now", lambda self: waits)
    clock = GivenTime()
    now, waits = 110.0, 15.0
    assert clock.seconds == 2.0
    assert clock.waited == 8.0
    assert clock.left_of(3.0) == 1.0
    assert clock.left_of(2.0) == 0.0
    assert clock.left_of(12.0) == 2.0, "by the wall clock"


async def test_what_takes_longer_than_it_was_given_is_ended_and_what_does_not_is_let_be() -> None:
    with pytest.raises(TimeoutError):
        await wait_for(asyncio.Event().wait(), 0.01)
    async with within(0.01):
        pass
    assert await wait_for(asyncio.sleep(0, "done"), 0.01) == "done"


def test_a_process_that_ends_while_its_threads_are_looked_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = GivenTime()
    waited = clock.waited
    monkeypatch.setattr(os, "scandir", Mock(side_effect=FileNotFoundError))
    assert clock.waited == waited


def test_threads_of_this_process_and_of_those_that_it_started_are_counted() -> None:
    clock = GivenTime()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert clock.waited >= 0
        assert {str(os.getpid()), str(child.pid)} <= clock._waits.keys()
        child.kill()


def test_a_process_that_does_not_end_in_time_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_time, "LOOK_S", 0.001)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            status_of(child, 0.01)
        child.kill()
