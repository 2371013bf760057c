"""Commands as copies of a process: each is what a process of its own would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.forked import Forked
from tests.given_time import HANG_S
from tests.homes import make_home


@pytest.mark.parametrize("line", ["nothing", "status", "id", "id --json --home folder", "--version", "id --help", ""])
def test_a_copy_prints_and_returns_what_a_process_of_its_own_does(tmp_path: Path, line: str) -> None:
    make_home(tmp_path / "folder")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    env["MESHNODE_HOME"] = str(tmp_path / "folder" if "id" in line else tmp_path / "missing")
    args = line.split()
    copied = forked.run(args, HANG_S, env=env, cwd=tmp_path)
    command = [sys.executable, "-m", "meshnode", *args]
    own = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=HANG_S, check=False)
    assert (copied.returncode, copied.stdout, copied.stderr) == (own.returncode, own.stdout, own.stderr)
    assert copied.stdout + copied.stderr


def test_a_copy_ends_by_its_signals_and_others_live_on(tmp_path: Path) -> None:
    def up(name: str) -> Forked:
        make_home(tmp_path / name)
        line = ["up", "--home", str(tmp_path / name), "--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping"]
        return Forked(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    with up("killed") as killed, up("ended") as ended, up("living") as living:
        for node in (killed, ended, living):
            assert node.stdout is not None
            assert node.stdout.readline()
            assert os.getpgid(node.pid) == os.getpgrp()
        killed.kill()
        ended.send_signal(signal.SIGTERM)
        assert (killed.wait(HANG_S), ended.wait(HANG_S)) == (-signal.SIGKILL, 0)
        assert living.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            living.wait(0.01)
        living.send_signal(signal.SIGINT)
        assert living.wait(HANG_S) in (0, 130)


def test_what_is_said_to_a_copy_is_its_standard_input(tmp_path: Path) -> None:
    refused = forked.run(["join", "-", "--home", str(tmp_path / "home")], HANG_S, "no ticket\n")
    assert refused.returncode == 1
    assert "ticket" in refused.stderr
