"""What a stranger on the LAN, or beyond a router, gets by multicast DNS: announcements, no answers."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from tests.homes import make_home
from tests.netns import lab
from tests.netns.lab import IFACE, Host, Lab

pytestmark = pytest.mark.netns

GROUP, PORT = "224.0.0.251", 5353
SERVICE = "_meshnode._udp.local"
MEMBERS = ("10.81.0.1", "10.81.0.2")
BEYOND = "10.82.0.9"  # a host of another network, which the members reach by a router
MESH = "mk-" + "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"


def question(name: str, kind: int, *, unicast: bool) -> bytes:
    """A query (RFC 1035 section 4.1), with or without the QU bit (RFC 6762 section 5.4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    header = struct.pack("!HHHHHH", 7, 0, 1, 0, 0, 0)
    return header + labels + b"\0" + struct.pack("!HH", kind, 0x8001 if unicast else 1)


def queries() -> Iterator[bytes]:
    """Every way to ask."""
    for name in (SERVICE, "_services._dns-sd._udp.local", f"{'0' * 32}.{SERVICE}", "local"):
        for kind in (12, 16, 33, 255, 1, 28):
            for unicast in (False, True):
                yield question(name, kind, unicast=unicast)


class Wire:
    """All UDP datagrams that cross the stranger's link, as (source, destination, port, payload)."""

    def __init__(self, host: Host) -> None:
        def listen() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            made.bind((IFACE, 0x0800))
            made.setblocking(False)
            return made

        host.exec("ip", "link", "set", IFACE, "promisc", "on")
        self._socket = host.inside(listen)

    def seen(self) -> list[tuple[str, str, int, bytes]]:
        """What has crossed since the last call."""
        found = []
        while True:
            try:
                packet = self._socket.recv(65_535)
            except BlockingIOError:
                return found
            start = 4 * (packet[0] & 15)
            if packet[9] == socket.IPPROTO_UDP:
                source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
                (port,) = struct.unpack_from("!H", packet, start + 2)
                found.append((source, target, port, packet[start + 8 :]))

    def announcements(self) -> list[bytes]:
        """What the members have announced since the last call."""
        return [
            data for source, target, port, data in self.seen() if source in MEMBERS and (target, port) == (GROUP, PORT)
        ]

    def close(self) -> None:
        """End."""
        self._socket.close()


def sender(host: Host, source: str, port: int) -> socket.socket:
    """A UDP socket of the stranger."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.address.partition("/")[0]))
        made.bind((source, port))
        return made

    return host.inside(make)


def start(place: Lab, host: Host) -> str:
    """Start a node of a private mesh, without flags that concern the LAN; its id."""
    home = place.scratch / host.label
    make_home(home)
    command = [sys.executable, "-m", "meshnode", "up", "--json", "--home", str(home)]
    return str(host.start(*command, env={"MESHNODE_MESH": MESH}).line()["id"])


def test_queries_and_replays_bring_not_one_byte_and_no_name_comes_twice() -> None:
    lab.require()
    with Lab() as place:
        switch = place.switch()
        members = [place.host(f"m{n}", switch, f"{at}/24", gateway="10.81.0.66") for n, at in enumerate(MEMBERS)]
        stranger = place.host("stranger", switch, "10.81.0.66/24")
        stranger.ip(f"addr add {BEYOND}/32 dev {IFACE}")
        wire = Wire(stranger)
        for member in members:
            start(place, member)
        said: list[bytes] = []
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 4.5:  # longer than any wait of a series that has met another node
            time.sleep(0.1)
            heard = wire.announcements()
            said += heard
            if heard:
                quiet_since = time.monotonic()
        assert len(said) >= 6, "two nodes, three times each"

        sockets = [sender(stranger, source, port) for source in ("10.81.0.66", BEYOND) for port in (0, PORT)]
        for out in sockets:
            for target in (*MEMBERS, GROUP):
                for data in [*queries(), *said, os.urandom(1_100)]:
                    out.sendto(data, (target, PORT))
                    time.sleep(0.0005)
        time.sleep(1.5)
        answered = [
            (source, target, port, len(data))
            for source, target, port, data in wire.seen()
            if source in MEMBERS and (target not in MEMBERS or port == PORT)
        ]
        for out in sockets:
            out.close()

        members[0].renumber("10.81.0.41/24")
        time.sleep(1.0)
        moved = [d for s, t, p, d in wire.seen() if s == "10.81.0.41" and (t, p) == (GROUP, PORT)]
        wire.close()

    assert answered == []
    assert moved, "a node that has moved announces itself"
    names = [data[13:45] for data in said + moved]
    assert all(bytes([9]) + b"_meshnode" == data[45:55] for data in said + moved)
    assert len(set(names)) == len(names)
    assert len({len(data) for data in said + moved}) == 1
    assert not any(at.encode() in data or socket.inet_aton(at) in data[55:] for data in said for at in MEMBERS)


OTHER_RESPONDER = """
import json, socket, sys
group = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("", 5353))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print(json.dumps("ready"), flush=True)
while True:
    sock.recv(9_000)
"""


def test_nodes_find_each_other_beside_another_responder_at_port_5353() -> None:
    lab.require()
    with Lab() as place:
        switch = place.switch()
        ids = []
        for number, at in enumerate(MEMBERS):
            member = place.host(f"m{number}", switch, f"{at}/24")
            member.start(sys.executable, "-c", OTHER_RESPONDER, at).line()
            ids.append((member, start(place, member)))
        (asking, _), (_, asked) = ids
        home = str(place.scratch / asking.label)
        printed = asking.exec(sys.executable, "-m", "meshnode", "ping", asked, "-c", "1", "--json", "--home", home)
        assert json.loads(printed)["path"] == "lan"
