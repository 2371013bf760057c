"""How busy the machine was with other things: times under attack mean little when others had the CPU."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.3  # cores that others may have had before times are to be doubted


@dataclass(frozen=True, slots=True)
class Clock:
    """The time, the CPU seconds of all processes, and those of this one and its children that have ended."""

    at: float
    used: float
    own: float


def clock() -> Clock:
    """Return all three now; without /proc others are taken to have done nothing."""
    usage = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(one.ru_utime + one.ru_stime for one in usage)
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return Clock(time.monotonic(), own, own)
    idle = fields[3] + fields[4]
    return Clock(time.monotonic(), (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), own)


def others(since: Clock) -> float:
    """Return how many cores other processes used since then, of this host or its virtual machine's owner."""
    now = clock()
    return max(0.0, ((now.used - since.used) - (now.own - since.own)) / max(now.at - since.at, 0.001))
