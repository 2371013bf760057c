"""Multicast DNS: what queries bring, from the link and from beyond a router, and whether a node can be followed."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attacks import Row, Skipped
from meshnode.demo.netns import IFACE, Host, Network, missing

MEMBER, STRANGER, BEYOND = "10.84.0.1", "10.84.0.66", "10.85.0.9"
MOVED = "10.84.0.77"
PORT, GROUP = 5353, "224.0.0.251"
SERVICE = "_meshnode._udp.local"
ROWS = {
    "queries": Row(
        3, "high", "stranger, on the link and routed: 240 mDNS queries of all kinds", "discovery/lan.py",
        "bytes that come back", 9_944, 0, "B",
    ),
    "followed": Row(
        3, "high", "stranger on both networks: a node moves from one to the other", "discovery/lan.py",
        "instance names that are seen on both", 1, 0,
    ),
}  # fmt: skip


def _queries() -> Iterator[bytes]:
    for name in (SERVICE, "_services._dns-sd._udp.local"):
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        for kind in (12, 16, 33, 255, 1):
            for asked in (0x8001, 1):  # an answer by unicast is wished (RFC 6762 section 5.4), or not
                header = struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0)
                yield header + labels + b"\0" + struct.pack("!HH", kind, asked)


def _socket(source: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((source, port))
    made.setblocking(False)
    return made


def _ear() -> socket.socket:
    """Return a socket that hears what is multicast on the link."""
    made = _socket("", PORT)
    group = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(STRANGER))
    made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    return made


def _read(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(9_000))
        except BlockingIOError:
            return found


def _names(heard: list[bytes]) -> set[bytes]:
    """Return the instance names in announcements: the first label of the first record."""
    return {data[13 : 13 + data[12]] for data in heard if b"_meshnode" in data}


def _brought(stranger: Host) -> int:
    """Return the bytes that come back to the stranger's own sockets."""
    total = 0
    for source in (STRANGER, BEYOND):
        for port in (0, PORT):
            with stranger.inside(lambda source=source, port=port: _socket(source, port)) as asking:  # type: ignore[misc]
                for query in (*_queries(), *_queries(), *_queries()):
                    asking.sendto(query, (MEMBER, PORT))
                    time.sleep(0.005)
                time.sleep(1.2)
                total += sum(map(len, _read(asking)))
    return total


def run(short: bool) -> dict[str, float]:
    """Attack a node in a namespace."""
    reason = missing()
    if reason is not None:
        raise Skipped(reason)
    with Network("meshmdns") as net, tempfile.TemporaryDirectory() as folder:
        switch = net.switch()
        member = net.host("member", switch, f"{MEMBER}/24", gateway=STRANGER)
        stranger = net.host("stranger", switch, f"{STRANGER}/24")
        stranger.ip(f"addr add {BEYOND}/32 dev {IFACE}")
        command = member.command(sys.executable, "-m", "meshnode", "up", "--json", "--home", str(Path(folder) / "home"))
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as node,
            stranger.inside(_ear) as ear,
        ):
            try:
                assert node.stdout is not None
                json.loads(node.stdout.readline())
                time.sleep(2.5)
                before = _names(_read(ear))
                brought = _brought(stranger)
                before |= _names(_read(ear))
                member.renumber(f"{MOVED}/24")
                time.sleep(2.5)
                after = _names(_read(ear))
            finally:
                node.terminate()
    if not before or not after:
        raise Skipped("no announcement was heard")
    return {"queries": brought, "followed": len(before & after)}
