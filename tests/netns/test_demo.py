"""The demo in namespaces: real address changes, and nothing left behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from meshnode.demo.netns import existing
from meshnode.demo.stage import PREFIX
from tests.given_time import HANG_S, output_of, status_of
from tests.netns.lab import require

pytestmark = pytest.mark.netns
DEMO = [sys.executable, "-m", "meshnode", "demo", "--netns", "--json"]


def _namespaces_of(pid: int) -> list[str]:
    return [name for name in existing() if name.startswith(f"{PREFIX}-{pid}-")]


def test_the_demo_moves_real_addresses_and_loses_nothing() -> None:
    require()
    done = subprocess.run([*DEMO, "--rounds", "1"], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nodes"] == 8
    assert [move["who"] for move in found["moves"]] == [
        "dialler",
        "listener",
        "both",
    ]  # words: ok, a public key of the JSON
    assert all(move["lost"] == 0 and move["gap_ms"] < 1000 for move in found["moves"]), found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_namespace(number: signal.Signals) -> None:
    require()
    demo = subprocess.Popen(DEMO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while len(_namespaces_of(demo.pid)) < 9 and time.monotonic() < until:
        time.sleep(0.02)
    assert _namespaces_of(demo.pid)
    demo.send_signal(number)
    complaints = output_of(demo, 20)[1]
    assert "Traceback" not in complaints
    if number == signal.SIGKILL:  # it could not clear up: the next one does, even one that is stopped at once
        after = subprocess.Popen(DEMO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not _namespaces_of(after.pid) and time.monotonic() < until:
            time.sleep(0.02)
        after.send_signal(signal.SIGINT)
        status_of(after, 20)
    else:
        assert demo.returncode == 130
    assert not _namespaces_of(demo.pid)


def test_without_rights_or_tools_the_demo_says_what_is_missing() -> None:
    if os.geteuid() == 0:
        command, env = DEMO, {**os.environ, "PATH": "/nowhere"}
    else:
        command, env = DEMO, dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=env, check=False)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "--netns" in error["message"]
    assert error["hint"]
    assert "Traceback" not in done.stderr
