"""The TCP port on which a program or what it has started listens (Linux, proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # the state, in /proc/net/tcp
SOCKET = "socket:["


def listening_port(process: int) -> int | None:
    """Return the port that a process, or else what descends from it, listens on; the lowest of several."""
    listeners = dict(_listeners())
    for each in _family(process):
        ports = [listeners[inode] for inode in _sockets(each) if inode in listeners]
        if ports:
            return min(ports)
    return None


def _listeners() -> Iterator[tuple[str, int]]:
    """Yield the inode and the port of each listener."""
    for name in ("net/tcp", "net/tcp6"):
        try:
            lines = (PROC / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING:
                yield fields[9], int(fields[1].rpartition(":")[2], 16)


def _family(process: int) -> list[int]:
    """Return a process and what descends from it, the nearest first."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for each in found:
        found += children.get(each, ())
    return found


def _sockets(process: int) -> Iterator[str]:
    """Yield the inodes of a process's sockets."""
    try:
        links = list((PROC / str(process) / "fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(SOCKET):
            yield target[len(SOCKET) : -1]
