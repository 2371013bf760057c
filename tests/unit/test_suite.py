"""What the tests themselves rely on, however they were started."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems

WAITS = "import time; print('ready', flush=True); time.sleep(30)"


def test_a_program_that_a_test_starts_can_be_interrupted() -> None:
    program = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGINT)
        assert program.wait(10) == -signal.SIGINT


def test_the_collected_tests_are_no_part_of_what_is_looked_at_for_garbage(request: pytest.FixtureRequest) -> None:
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] >= 50_000
    assert not any(one is request.node for one in gc.get_objects())


def test_it_can_be_also_when_a_script_has_started_the_tests_in_the_background() -> None:
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "that_a_test_starts"]
    script = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *inner]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_files_that_take_long_come_first_and_by_turns() -> None:
    class Item:
        def __init__(self, path: str) -> None:
            self.path = Path(path)

    paths = [
        "tests/unit/a.py",
        "tests/live/b.py",
        "tests/live/b.py",
        "tests/netns/c.py",
        "tests/sim/d.py",
        "tests/fuzz/e.py",
    ]
    items: list[Any] = [Item(path) for path in paths]
    pytest_collection_modifyitems(items)
    order = [
        "tests/live/b.py",
        "tests/live/b.py",
        "tests/sim/d.py",
        "tests/netns/c.py",
        "tests/fuzz/e.py",
        "tests/unit/a.py",
    ]
    assert [str(item.path) for item in items] == order
