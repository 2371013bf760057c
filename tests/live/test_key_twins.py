"""One key on two hosts, as of a container that was started twice: real processes, told apart by a third."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import twins
from tests.given_time import eventually
from tests.live.cli_node import CliNode, stopping


@pytest.mark.parametrize("mode", ["newest", "first"])
def test_of_two_processes_with_one_key_one_stands_down_and_both_are_told(tmp_path: Path, mode: str) -> None:
    seed = CliNode(tmp_path / "seed", command="seed")
    with stopping(seed):
        twins = []
        for name in ("one", "other"):
            home = tmp_path / name
            home.mkdir(mode=0o700)
            (home / "meshnode.toml").write_text(f'duplicate = "{mode}"\nkey = "{"ab" * 32}"\n')
            (home / "meshnode.toml").chmod(0o600)
            twins.append(CliNode(home, seed=seed))
            eventually(lambda: seed.ask("ping", twins[-1].id, "-c", "1")["rtt_ms"] is not None)
        stays, loser = twins[::-1] if mode == "newest" else twins
        with stopping(*twins):
            eventually(lambda: loser.ask("status")["stood_down"])
            assert not stays.ask("status")["stood_down"]
            assert any("stands down" in text for text in loser.ask("status")["degraded"])
            said = loser.error("ping", seed.id, "-c", "1")["message"]  # its own, or a peer's that it asks
            assert re.search("another host (uses its|that uses this node's) key", said), said
            eventually(lambda: stays.ask("status")["degraded"] != [], 20.0)
            assert seed.ask("ping", stays.id, "-c", "1")["rtt_ms"] is not None
            assert "stands down" in loser.log


@pytest.mark.parametrize("mode", twins.MODES)
def test_once_it_is_decided_nothing_changes_and_streams_of_the_one_that_stays_go_on(mode: str) -> None:
    found = twins.run(mode, 4.0)
    assert found["decided_s"] < twins.DECIDE_S
    assert found["echoes"] > 3
    assert (found["flaps"], found["lost"]) == (0, 0)
