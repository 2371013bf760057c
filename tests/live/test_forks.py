"""Programs that fork: a child that lives on holds neither the home nor the port of its parent's node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os, sys, time, meshnode

async def main():
    settings = meshnode.Config(home=sys.argv[1], listen=sys.argv[2], mdns=False, relay="on")
    async with meshnode.Node(settings) as node:
        child = os.fork() if sys.argv[3] == "fork" else 0
        if sys.argv[3] == "fork" and not child:
            time.sleep(60)
            os._exit(0)
        print(child, node.record.endpoints[0], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def _start(home: Path, listen: str, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(home), listen, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_program_that_was_killed_starts_again_beside_its_child(tmp_path: Path) -> None:
    first = _start(tmp_path / "home", "127.0.4.150:0", "fork")
    assert first.stdout is not None
    child, listen = first.stdout.readline().split()
    first.kill()
    first.wait()
    again = _start(tmp_path / "home", listen, "alone")
    try:
        assert again.stdout is not None
        assert again.stdout.readline().split() == ["0", listen]
    finally:
        again.kill()
        again.wait()
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_only_the_child_closes_what_it_must_not_hold(tmp_path: Path) -> None:
    program = (
        "import os, sys; from meshnode.base.forks import close_in_child\n"
        "f = open(sys.argv[1], 'w'); close_in_child(f)\n"
        "if not os.fork(): os._exit(0 if f.closed else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) or (4 if f.closed else 0))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=False).returncode == 0
