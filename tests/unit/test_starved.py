"""What ``./dev bench starved`` makes of what it saw, and which means of limiting it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import quota, starved
from meshnode.demo.stage import Process

INF = float("inf")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[starved.Mesh]:
    group = quota.Governor()
    mesh = starved.Mesh(tmp_path, group)
    for number, lives in enumerate((1, 2)):
        process = Process(tmp_path, "127.0.0.1", [])
        process.id = f"n{number}"
        mesh.nodes.append(starved.Node(process, number, "other", began=100.0, lives=lives))
    yield mesh
    group.close()


def test_a_node_that_ran_is_wrongly_gone_and_one_that_was_killed_a_moment_ago_is_not(mesh: starved.Mesh) -> None:
    mesh.gone = [(101.0, "n0"), (101.0, "n1"), (99.0, "n0"), (101.0, "a node of another mesh")]
    assert mesh.wrongly_gone() == ["n0"]
    mesh.gone = [(101.0 + starved.GRACE_S, "n1")]
    assert mesh.wrongly_gone() == ["n1"]
    mesh.nodes[1].began = 0.0
    assert mesh.wrongly_gone() == [], "it does not run now"


def test_a_call_counts_by_the_cpu_that_was_given_meanwhile_and_one_without_an_answer_does_not(
    mesh: starved.Mesh,
) -> None:
    mesh.answers = [(1.0, 0.1), (2.0, 3.9), (31.0, 4.1), (32.0, INF)]
    mesh.counters.update(dht_rpcs=10, dht_timeouts=3)
    told = starved._told(mesh, 0.25, 0.0, 1.234)
    assert told["in_time"] == 0.5
    assert told["in_time_each_30_s"] == [1.0, 0.0]
    assert told["unanswered"] == 1
    assert told["p95_s"] is None
    assert told["timed_out"] == 0.3
    json.loads(json.dumps(told, allow_nan=False))


@pytest.mark.parametrize("unified", [False, True])
def test_where_no_group_with_a_quota_may_be_made_processes_are_stopped_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unified: bool
) -> None:
    monkeypatch.setattr(quota, "CGROUPS", tmp_path)
    (tmp_path / "cpu").mkdir()
    if unified:
        (tmp_path / "cgroup.controllers").touch()
    group = quota.make("some-name")
    assert isinstance(group, quota.Governor)
    group.close()
    assert not list(tmp_path.rglob("some-name")), "nothing is left of the attempt"
