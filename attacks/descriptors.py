"""Descriptors: what clients and callers open and leave, at a forward, the control socket and services' targets."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from attacks import Row
from attacks.lab import Member, close_all, keepalive_time
from meshnode.errors import MeshError

LIMIT, HELD, ASKED = 128, 400, 5
ROWS = {
    "asked": Row(
        10, "high", f"client: {HELD} connections to a node with {LIMIT} descriptors", "runtime/acceptor.py",
        f"of {ASKED} commands that are answered", 0, ASKED, more=True,
    ),
    "moved": Row(
        10, "high", "the same", "runtime/acceptor.py", "the node moves (1), or cannot (0)", None, 1, more=True,
    ),
    "keepalive": Row(
        10, "high", "the same", "runtime/acceptor.py", "round trip to an established peer", None, 1.0, "s",
    ),
    "spin": Row(
        10, "high", "the same", "runtime/acceptor.py", "share of a core that accepting takes", 1.0, 0.5,
    ),
    "control": Row(
        10, "high", f"local program: {HELD} control connections that ask nothing", "daemon/server.py",
        f"of {ASKED} commands that are answered", None, ASKED, more=True,
    ),
    "callers": Row(
        10, "high", f"member: {HELD} flows and {HELD} streams to services, of which one target accepts none",
        "services/udp.py, runtime/host_names.py", "descriptors left for the control socket and moves", 0, LIMIT // 4,
        more=True,
    ),
}  # fmt: skip


def _answered(member: Member) -> int:
    count = 0
    for _ in range(ASKED):
        with suppress(MeshError, OSError, StopIteration):
            count += bool(member.ask("status")["id"])
    return count


def _forward(member: Member, peer: Member) -> dict[str, float]:
    listen = str(member.ask("forward", listen="127.0.0.1:0", to=f"{peer.id}/nothing")["listen"])
    host, _, port = listen.rpartition(":")
    held = [socket.socket() for _ in range(HELD)]
    for sock in held:
        sock.setblocking(False)
        sock.connect_ex((host, int(port)))
    time.sleep(0.5)
    found: dict[str, float] = {"asked": _answered(member), "keepalive": keepalive_time(member, peer)}
    used, began = member.cpu_s(), time.monotonic()
    time.sleep(3.0)  # with all of them held: what answering takes is not in it
    found["spin"] = (member.cpu_s() - used) / (time.monotonic() - began)
    with suppress(MeshError):
        found["moved"] = bool(member.ask("rebind", address="127.0.0.1:0"))
    close_all(held)
    return found


def _callers(member: Member, peer: Member) -> int:
    """Return how many descriptors a calling peer leaves: each flow and stream is a socket of the node to a target."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as slow, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        ports = []
        for name, kind, target in (("u", "udp://", udp), ("t", "tcp://", slow)):
            at = f"{kind}127.0.0.1:{target.getsockname()[1]}"
            member.ask("expose", name=name, target=at, allow=["any"], health="none")
            listen = f"{kind}127.0.0.1:0" if target is udp else "127.0.0.1:0"
            told = peer.ask("forward", listen=listen, to=f"{member.id}/{name}")["listen"]
            ports.append(int(str(told).rpartition(":")[2]))
        held = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(HELD)]
        for sock in held:
            sock.sendto(b"?", ("127.0.0.1", ports[0]))
        for _ in range(HELD):
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(("127.0.0.1", ports[1]))
        time.sleep(3.0)
        left = LIMIT - len(os.listdir(f"/proc/{member.pid}/fd"))
        close_all(held)
        return left


def _control(member: Member) -> int:
    held = []
    for _ in range(HELD):
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect_ex(str(member.home / "control.sock"))
        held.append(sock)
    time.sleep(0.5)
    count = _answered(member)
    close_all(held)
    return count


def run(short: bool) -> dict[str, float]:
    """Attack a node that has few descriptors."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with Member(root / "peer", command="seed") as peer, Member(root / "m", "--seed", peer.at) as member:
            resource.prlimit(member.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
            keepalive_time(member, peer, 1)
            found = _forward(member, peer)
            found["control"] = _control(member)
            found["callers"] = _callers(member, peer)
    if short:
        for name in ("keepalive", "spin"):
            found.pop(name, None)
    return found
