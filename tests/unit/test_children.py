"""A development command that is interrupted leaves no process and no folder behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.children import _processes

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0

PARENT = """
import subprocess, sys, time
from tools.children import ended_together
with ended_together():
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'],"
    child += " start_new_session=True); print('ready', flush=True); time.sleep(99)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    time.sleep(99)
"""
TESTS = """
import subprocess, sys
from tests.conftest import *
def test_waits(tmp_path_factory):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
    try:
        print("ready", flush=True)
        subprocess.run([sys.executable, "-c", "import time; time.sleep(99)"])
    finally:
        open("given_back", "w").close()
"""


def _until(met: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _below(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += [child for child, (parent, _) in _processes().items() if parent == one]
    return found[1:]


def _over(pids: list[int]) -> bool:
    processes = _processes()
    return all(processes.get(pid, (0, True))[1] for pid in pids)


def _start(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_an_interrupted_command_has_started_ends_with_it_in_whatever_session(number: signal.Signals) -> None:
    command = _start("-c", PARENT)
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    below = _below(command.pid)
    assert len(below) == 2
    command.send_signal(number)
    assert command.wait(DEADLINE_S) == 128 + number
    assert _over(below)


def test_an_interrupted_mutate_leaves_no_test_running_and_no_copy_of_the_tree(tmp_path: Path) -> None:
    command = _start("-m", "bench.mutate", "--only", "gossip_numbers", "--workers", "1", TMPDIR=str(tmp_path))
    _until(lambda: _below(command.pid))
    (tests,) = _below(command.pid)
    command.terminate()
    assert command.wait(DEADLINE_S) == 128 + signal.SIGTERM
    assert _over([tests])
    assert list(tmp_path.iterdir()) == []


def test_interrupted_tests_give_back_what_they_have_and_end_what_they_started(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_unconfigure\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    tests = _start("-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert tests.stdout is not None
    _until(lambda: tests.stdout is not None and "ready" in tests.stdout.readline())
    _until(lambda: len(_below(tests.pid)) == 2)
    below = _below(tests.pid)
    tests.terminate()
    assert tests.wait(DEADLINE_S) == 2  # pytest's code of an interruption
    assert _over(below)
    assert (tmp_path / "given_back").exists()
