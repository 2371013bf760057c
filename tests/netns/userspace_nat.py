"""A NAT for UDP as a program on a TUN device: what the kernel's masquerading cannot be made to do.

Runs inside a router's namespace (natlab.py routes UDP to the device). Full-cone, address-restricted and
port-restricted filters, any mapping, hairpinning, time-out. It is written apart from meshnode/sim/nat.py on purpose: a
test compares the two. Not for TCP, ICMP or fragments.

SIGUSR1 forgets all mappings; SIGUSR2 prints them. Prints one JSON line for each and one when it is ready.
"""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
UDP = 17
BURST = 64
Peer = tuple[str, int]


def scope(peer: Peer, what: str) -> object:
    """The part of a peer's address that ``what`` (any, host, port) looks at."""
    return {"any": None, "host": peer[0], "port": peer}[what]


class UserNat:
    """The tables. A flow is [inside, outside port, last use, {peer: last use}]."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.outside: str = args.outside
        self.map_by: str = args.map
        self.filter_by: str = args.filter
        self.random_ports: bool = args.random_ports
        self.hairpin: bool = args.hairpin
        self.timeout: float = args.timeout
        net = ipaddress.ip_network(args.inside)
        self.net, self.mask = int(net.network_address), int(net.netmask)
        self.forget()

    def forget(self) -> None:
        """Lose every mapping."""
        self.flows: dict[tuple[Peer, object], list] = {}
        self.ports: dict[int, list] = {}

    def out(self, source: Peer, to: Peer, now: float) -> Peer:
        """The source that the outside sees."""
        key = (source, scope(to, self.map_by))
        flow = self.flows.get(key)
        if flow is None or now - flow[2] > self.timeout:
            if flow is not None:
                self.ports.pop(flow[1], None)
            port = random.randint(1024, 65535) if self.random_ports else source[1]
            while port in self.ports and now - self.ports[port][2] <= self.timeout:
                port = port + 1 if port < 65535 else 1024
            self.flows[key] = self.ports[port] = flow = [source, port, now, {}]
        flow[2] = flow[3][scope(to, self.filter_by)] = now
        return self.outside, flow[1]

    def back(self, source: Peer, port: int, now: float) -> Peer | None:
        """The receiver of a packet to an outside port, if there is one."""
        flow = self.ports.get(port)
        peer = scope(source, self.filter_by)
        if flow is None or peer not in flow[3] or now - flow[3][peer] > self.timeout:
            return None
        flow[2] = flow[3][peer] = now
        return flow[0]

    def packet(self, data: bytes, now: float) -> bytes | None:
        """Translate one IPv4 packet; None drops it."""
        if len(data) < 28 or data[0] >> 4 != 4 or data[9] != UDP:
            return None
        head = (data[0] & 15) * 4
        if struct.unpack_from("!H", data, 6)[0] & 0x3FFF or len(data) < head + 8:
            return None  # a fragment
        ports = struct.unpack_from("!HH", data, head)
        source, to = (socket.inet_ntoa(data[12:16]), ports[0]), (socket.inet_ntoa(data[16:20]), ports[1])
        if int.from_bytes(data[12:16], "big") & self.mask == self.net:
            if to[0] == self.outside and not self.hairpin:
                return None
            source = self.out(source, to, now)
        if to[0] == self.outside:
            inside = self.back(source, to[1], now)
            if inside is None:
                return None
            to = inside
        return rewritten(data, head, source, to)


def rewritten(data: bytes, head: int, source: Peer, to: Peer) -> bytes:
    """The packet with other addresses. UDP over IPv4 may go without a checksum (RFC 768), so this does."""
    made = bytearray(data)
    made[12:20] = socket.inet_aton(source[0]) + socket.inet_aton(to[0])
    struct.pack_into("!HH", made, head, source[1], to[1])
    struct.pack_into("!H", made, head + 6, 0)
    struct.pack_into("!H", made, 10, 0)
    total = sum(struct.unpack_from(f"!{head // 2}H", made))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", made, 10, total ^ 0xFFFF)
    return bytes(made)


def say(**what: object) -> None:
    """Print a JSON line."""
    print(json.dumps(what), flush=True)


def pump(tun: int, nat: UserNat) -> None:
    """Translate what waits, a bounded burst of it."""
    now = time.monotonic()
    for _ in range(BURST):
        try:
            data = os.read(tun, 65_535)
        except BlockingIOError:
            return
        made = nat.packet(data, now)
        if made is not None:
            try:
                os.write(tun, made)
            except OSError:
                pass  # unroutable: a router would drop it too


def main() -> None:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tun")
    parser.add_argument("--inside", required=True)
    parser.add_argument("--outside", required=True)
    parser.add_argument("--map", choices=("any", "host", "port"), default="any")
    parser.add_argument("--filter", choices=("any", "host", "port"), default="port")
    parser.add_argument("--random-ports", action="store_true", help="else they are preserved where possible")
    parser.add_argument("--hairpin", action="store_true")
    parser.add_argument("--timeout", type=float, default=120.0)
    args = parser.parse_args()
    nat = UserNat(args)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", args.tun.encode(), IFF_TUN_NO_PI))
    # signals are taken between packets, from a pipe: a handler may run in the midst of one
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    say(ready=True)
    while True:
        ready, _, _ = select.select([tun, wake_read, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        if tun in ready:
            pump(tun, nat)
        elif wake_read in ready:  # only when every packet before it has been seen to
            for number in os.read(wake_read, 64):
                if number == signal.SIGUSR1:
                    nat.forget()
                    say(forgot=True)
                elif number == signal.SIGUSR2:
                    now = time.monotonic()
                    say(ports=[port for port, flow in nat.ports.items() if now - flow[2] <= nat.timeout])


if __name__ == "__main__":
    main()
