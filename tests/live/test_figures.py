"""The short forms of the benches that nothing else covers. The bounds are loose: this machine may be busy.

The targets are held by ``./dev bench``.
"""

from __future__ import annotations

import sys

import pytest

from bench import busy, footprint, guard, quic


def test_streams_and_connects_are_not_slower_than_those_of_the_engine_by_itself() -> None:
    found = quic.run(work=quic.Work(rounds=3, megabytes=4, echoes=150, connects=4, at_once=0, each=0))
    assert found["bulk_MBps"]["ratio_of_best"] > 1.0, found
    assert found["echo_p50_us"]["ratio_of_best"] < 3.0, found
    assert found["connect_p50_ms"]["ratio_of_best"] < 4.0, found


def test_what_is_kept_beside_busy_processes_is_a_share_of_what_each_has_alone() -> None:
    alone = [{"bulk_MBps": {"aioquic": 10.0, "meshnode": 100.0}, "echo_p50_us": {"aioquic": 400.0, "meshnode": 200.0}}]
    beside = [{"bulk_MBps": {"aioquic": 5.0, "meshnode": 20.0}, "echo_p50_us": {"aioquic": 800.0, "meshnode": 800.0}}]
    found = busy.compare(alone, beside)
    assert (found["bulk_MBps"]["meshnode_keeps"], found["bulk_MBps"]["ratio"]) == (0.2, 0.4)
    assert (found["echo_p50_us"]["aioquic_keeps"], found["echo_p50_us"]["ratio"]) == (0.5, 0.5)
    with busy.busy(1):
        pass


@pytest.mark.parametrize("engine", list(guard.baseline()["calls"]))
def test_no_call_has_come_onto_the_way_of_every_write_and_datagram(engine: str) -> None:
    if engine == "qh3":
        pytest.importorskip("qh3")
    assert guard.more_calls(engine) == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory and CPU time are read from /proc")
def test_a_node_is_quick_to_start_and_small_when_idle() -> None:
    found = footprint.run(footprint.Work(starts=1, peers=3, window=2.0, settle=1.0))
    assert found["import_s"] < 0.5, found
    assert found["start_to_ready_s"] < 5, found
    assert found["idle_rss_MB"] < 60, found
    assert found["idle_cpu_percent"] < 15, found
