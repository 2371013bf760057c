"""CPU to spare: what the loop's thread used a moment ago, and not long ago."""

from __future__ import annotations

import time

from meshnode.runtime.spare_cpu import BUSY, LOOK_S, SpareCpu, busy_time


class Cpu:
    def __init__(self) -> None:
        self.used = 0.0

    def __call__(self) -> float:
        return self.used


def test_there_is_cpu_to_spare_while_the_thread_was_idle_a_moment_ago() -> None:
    cpu = Cpu()
    spare = SpareCpu(cpu)
    now, said = 100.0, []
    for share in (0.1, 0.1, BUSY + 0.01, 1.0, BUSY - 0.01):
        now += LOOK_S + 0.001
        cpu.used += share * (LOOK_S + 0.001)
        said.append(spare(now))
    assert said == [False, True, False, False, True]
    cpu.used += LOOK_S
    assert spare(now + LOOK_S / 2), "it does not look again at once"


def test_what_was_used_long_ago_says_nothing_of_now() -> None:
    cpu = Cpu()
    spare = SpareCpu(cpu)
    spare(0.0)
    assert spare(LOOK_S)
    cpu.used += 1.0  # of 10 s: all of it in the last one
    assert not spare(10.0)


def test_a_thread_that_works_is_busy_and_one_that_sleeps_is_not() -> None:
    began, busy = time.monotonic(), busy_time()
    while time.monotonic() - began < 0.05:
        pass
    worked, slept = busy_time() - busy, busy_time()
    time.sleep(0.05)
    assert worked > 0.03, "it ran, or waited for a core"
    assert busy_time() - slept < worked
