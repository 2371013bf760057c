"""Threads that take work off the event loop: none of them holds it while it begins."""

from __future__ import annotations

import subprocess
import sys
import threading

from meshnode.runtime.background import begin


def test_work_begins_without_the_caller_waiting_for_it() -> None:
    before = sys.getswitchinterval()
    began = threading.Event()
    sys.setswitchinterval(10.0)  # so another thread runs only when this one waits, as it would in Thread.start()
    try:
        begin(began.set)
        waited = began.is_set()
    finally:
        sys.setswitchinterval(before)
    assert not waited
    assert began.wait(10.0)


def test_work_that_never_ends_does_not_keep_the_program() -> None:
    code = "import time\nfrom meshnode.runtime.background import begin\nbegin(time.sleep, 600)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
