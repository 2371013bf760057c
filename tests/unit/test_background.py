"""Threads that take work off the event loop: none of them holds it while it begins."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from meshnode.runtime import host_names
from meshnode.runtime.background import begin
from meshnode.runtime.host_names import look_up
from tests.given_time import wait_for


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


async def test_a_lookup_that_fails_in_whatever_way_is_told_to_those_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve = socket.getaddrinfo

    def ask(host: str | bytes, *args: Any, flags: int = 0, **more: Any) -> Any:
        if flags or host != "full.example":
            return resolve(host, *args, flags=flags, **more)
        raise MemoryError

    monkeypatch.setattr(host_names.socket, "getaddrinfo", ask)
    for _ in range(2):
        with pytest.raises(OSError, match="MemoryError"):
            await wait_for(look_up("full.example"), 10)
