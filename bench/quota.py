"""A share of a core for a group of processes: by the kernel's groups where they may be made, else by stopping them.

``make`` returns the best there is; ``how`` says in words which. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Protocol

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000  # the kernel's default, which containers have
STEP_S = 0.01  # between two looks of the governor
BURST_S = 0.025  # of CPU that the governor lets a group save up: what the kernel gives in one period


class Quota(Protocol):
    """A group of processes and the share of a core that they have together."""

    how: str

    def add(self, pid: int) -> None:
        """Put a process into the group."""

    def limit(self, share: float | None) -> None:
        """Give the group so much of a core from now on; None: all that it takes."""

    def close(self) -> None:
        """End the limit and remove the group."""


class Cgroup:
    """A control group with a CPU quota. Raises OSError where none may be made."""

    def __init__(self, name: str) -> None:
        unified = (CGROUPS / "cgroup.controllers").exists()
        self._path = (CGROUPS if unified else CGROUPS / "cpu") / name
        self._limit, self._weight = ("cpu.max", "cpu.weight") if unified else ("cpu.cfs_quota_us", "cpu.shares")
        self._most = f"max {PERIOD_US}" if unified else "-1"
        self._form = f"{{}} {PERIOD_US}" if unified else "{}"
        self.how = f"cgroup {'v2' if unified else 'v1'}, {self._limit}"
        self._path.mkdir()
        try:
            self.limit(None)  # where the controller is not handed down there is no such file
            (self._path / self._weight).write_text("10000")  # what the quota allows comes, whatever else runs
        except OSError:
            self._path.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Put a process into the group."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def limit(self, share: float | None) -> None:
        """Set the quota."""
        told = self._most if share is None else self._form.format(int(share * PERIOD_US))
        file = self._path / self._limit
        if not file.exists():  # never make one: the group's folder is the kernel's
            raise FileNotFoundError(file)
        file.write_text(told)

    def close(self) -> None:
        """Remove the group; its processes have ended, or go to the group above."""
        with contextlib.suppress(OSError):
            self.limit(None)
        for pid in (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self._path.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            self._path.rmdir()


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that a process has used; 0 when it is over."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Governor:
    """Stops and continues the processes so that together they get the share, counted by what they have used."""

    how = "SIGSTOP and SIGCONT by a governor"

    def __init__(self) -> None:
        self._pids: dict[int, float] = {}  # and what each has used
        self._lock = threading.Lock()
        self._share: float | None = None
        self._stopped = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._govern, daemon=True)
        self._thread.start()

    def add(self, pid: int) -> None:
        """Put a process into the group."""
        with self._lock:
            self._pids[pid] = cpu_s(pid)

    def limit(self, share: float | None) -> None:
        """Set the share."""
        with self._lock:
            self._share = share

    def close(self) -> None:
        """Let all run."""
        self._over.set()
        self._thread.join()
        self._signal(signal.SIGCONT)

    def _govern(self) -> None:
        credit, last = 0.0, time.monotonic()
        while not self._over.wait(STEP_S):
            now = time.monotonic()
            with self._lock:
                used = {pid: cpu_s(pid) for pid in self._pids}
                spent = sum(max(0.0, cpu - self._pids[pid]) for pid, cpu in used.items())
                self._pids = {pid: cpu for pid, cpu in used.items() if cpu}
                credit = BURST_S if self._share is None else min(BURST_S, credit + self._share * (now - last) - spent)
                last = now
                self._signal(signal.SIGSTOP if credit < 0 else signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        stop = number is signal.SIGSTOP
        if not stop and not self._stopped:
            return
        self._stopped = stop  # stopped again each time: one that was added since runs
        for pid in self._pids:
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def make(name: str, *, by_signals: bool = False) -> Quota:
    """Return a group of processes with that name."""
    if not by_signals:
        with contextlib.suppress(OSError):
            return Cgroup(name)
    return Governor()
