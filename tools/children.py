"""The end of a command that starts other processes: what interrupts it ends them too, also those of other sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

GRACE_S = 5.0  # for a node, a namespace or a folder to be given back
POLL_S = 0.05


def _processes() -> dict[int, tuple[int, bool]]:
    """Return the parent of each process of this host, and whether it is over but for its parent's notice."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            found[int(path.parent.name)] = (int(parent), state == "Z")
    if not found:  # no Linux
        command = ["ps", "-A", "-o", "pid=,ppid=,stat="]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            pid, above, state = line.split()
            found[int(pid)] = (int(above), state.startswith("Z"))
    return found


def descendants() -> list[int]:
    """Return the ids of all processes that this one has started, and those of theirs, the nearest first."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in _processes().items():
        children.setdefault(parent, []).append(pid)
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


def _tell(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def end(pids: list[int]) -> None:
    """Wait until those processes, which were told to end, are over; kill them after ``GRACE_S``."""
    until = time.monotonic() + GRACE_S
    left = list(pids)
    while left and time.monotonic() < until:
        time.sleep(POLL_S)
        processes = _processes()
        left = [pid for pid in left if not processes.get(pid, (0, True))[1]]
    _tell(left, signal.SIGKILL)


def on_interruption(stop: Callable[[int], None], *numbers: signal.Signals) -> list[int]:
    """Have these signals tell all descendants to end and then call ``stop``; a signal that is ignored stays so.

    Returns the list in which those are that were told: taken at the signal, for the orphans of a process that has ended
    cannot be found any more.
    """
    told: list[int] = []

    def interrupted(number: int, frame: FrameType | None) -> None:
        told.extend(descendants())
        _tell(told, signal.SIGTERM)
        stop(number)

    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupted)
    return told


@contextmanager
def ended_together() -> Iterator[None]:
    """End what was started inside when SIGINT, SIGTERM or SIGHUP ends this command, with 128 + the signal."""

    def stop(number: int) -> None:
        raise SystemExit(128 + number)

    told = on_interruption(stop, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    try:
        yield
    finally:
        sys.stdout.flush()
        end(told)
