"""The lab with every kind of NAT: the models of meshnode/sim/nat.py in network namespaces.

    with NatLab() as lab:
        net = lab.switch()
        home = lab.nat_site("home", net, "symmetric", "198.51.100.11/24", inside="10.0.0.1/24")
        a = lab.host("a", home, "10.0.0.2/24", gateway="10.0.0.1")
        home.rebind(); home.block_udp(True); home.set_timeout(30)
        rehome({a: (other_site, "10.0.0.7/24", "10.0.0.1")})

A site may plug into another one (carrier-grade NAT; give it that one's inside address as ``gateway``), and any
number of sites may have the same inside. ``port_restricted`` and ``symmetric`` are nftables; what nftables cannot do
right, a program on a TUN device does (userspace_nat.py): the other cones, and hairpinning. TCP is always masqueraded.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from meshnode.demo import netns
from tests.netns import lab
from tests.netns.lab import BRIDGE, IFACE, Host, Lab, Namespace, Program, Router, Switch

USERSPACE_NAT = Path(__file__).with_name("userspace_nat.py")
CONNECT_PROXY = Path(__file__).with_name("connect_proxy.py")
TUN = "nat0"
SPARE = "spare0"
TABLE = 100
CARRIER_S = 1.2
KINDS = ("open", "full_cone", "address_restricted", "port_restricted", "symmetric", "blocked_udp")
USERSPACE = {"full_cone": "any", "address_restricted": "host", "port_restricted": "port", "symmetric": "port"}
T = TypeVar("T")


def require() -> None:
    """Skip the test, saying why, where NAT sites cannot be had; with CI=true fail instead."""
    lab.require("conntrack")
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        import pytest

        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the NAT lab, but there is no TUN device: {error}", pytrace=False)
        pytest.skip(f"no TUN device: {error}")


def inside_of(namespace: Namespace, action: Callable[[], T]) -> T:
    """Run something in a namespace, in this process: a socket that it makes stays there."""
    return namespace.inside(action)


def udp_socket(namespace: Namespace, host: str, port: int) -> socket.socket:
    """A UDP socket in a namespace; the caller closes it."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, port))
        return made

    return inside_of(namespace, make)


def rehome(moves: dict[Host, tuple[Switch, str, str | None]]) -> None:
    """Move hosts to other networks (switch, address, gateway) at the same moment, as if they changed to another Wi-Fi.

    The new cables are laid first and carry: a kernel tells of new carriers only once a second (linkwatch), which would
    hold up every third move by just that. Each host then swaps in one run of ``ip``.
    """
    swaps: dict[Host, list[str]] = {}
    for host, (switch, address, gateway) in moves.items():
        port = f"port{next(switch._ports)}"
        ends = ("ip", "link", "add", port, "netns", switch.name, "type", "veth", "peer", "name", SPARE)
        netns.run(*ends, "netns", host.name)
        switch.ip(f"link set {port} master {BRIDGE} up")
        host.ip(f"link set {SPARE} addrgenmode none", f"link set {SPARE} up")
        host._gateway = gateway
        swap = (f"link del {IFACE}", f"link set {SPARE} name {IFACE}")  # live renaming: Linux 6.2
        swaps[host] = [*swap, *host._address(address)]
    time.sleep(CARRIER_S)
    with ThreadPoolExecutor(len(moves)) as pool:
        list(pool.map(lambda host: host.ip(*swaps[host]), swaps))


class NatSite(Router):
    """A site behind one NAT of a named kind; it is the switch of the hosts inside.

    ``open`` is a router that translates nothing: its inside must be a part of the outside network.
    """

    def __init__(
        self,
        lab: Lab,
        label: str,
        switch: Switch,
        kind: str,
        outside: str,
        inside: str,
        *,
        gateway: str | None = None,
        hairpin: bool = False,
        timeout: float | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        self.kind = kind
        self.hairpin = hairpin
        self.blocked = kind == "blocked_udp"
        self.userspace = kind in ("full_cone", "address_restricted") or (hairpin and kind in USERSPACE)
        self._inside = inside
        self._timeout = timeout
        self._nat: Program | None = None
        super().__init__(lab, label, switch, outside, inside)
        try:
            if gateway is not None:
                self._gateway = gateway
                self.ip(f"route add default via {gateway}")
            if kind == "open":
                self._sysctl(f"net/ipv4/conf/{IFACE}/proxy_arp", 1)
            if self.userspace:
                self._divert()
                self._start_nat()
            elif timeout is not None:
                self.set_timeout(timeout)
        except BaseException:
            self.close()
            raise

    @property
    def outside(self) -> str:
        """The outside address, without its prefix length."""
        return self.address.partition("/")[0]

    def _sysctl(self, name: str, value: int) -> None:
        self.exec("sh", "-c", f"echo {value} >/proc/sys/{name}")

    def _masquerade(self) -> None:
        unasked = "" if self.kind == "open" else f'iifname "{IFACE}" ct state new drop;'
        how = "fully-random" if self.kind == "symmetric" else ""
        rules = [
            "flush ruleset",
            "table ip lab {",
            # a silent drop, as most home routers do; an ICMP answer would tell a prober at once
            "chain input { type filter hook input priority filter;",
            f'iifname "{BRIDGE}" ip daddr {self.outside} meta l4proto udp drop; {unasked} }}',
            "chain forward { type filter hook forward priority filter;",
            f"{'meta l4proto udp drop;' if self.blocked else ''} {unasked} }}",
        ]
        if self.userspace:
            # the program translates UDP; the kernel's own translation must not see it
            rules.append("chain raw { type filter hook prerouting priority raw; meta l4proto udp notrack; }")
        if self.kind != "open":
            rules.append("chain out { type nat hook postrouting priority srcnat;")
            rules.append(f'oifname "{IFACE}" masquerade {how}; }}')
        self.exec("nft", "-f", "-", stdin="\n".join([*rules, "}"]) + "\n")

    def _divert(self) -> None:
        """Route all UDP that comes in through the TUN device, also what is for the router's own addresses."""
        self.ip(
            f"tuntap add dev {TUN} mode tun",
            # a program is woken later than a kernel: bursts must find room
            f"link set {TUN} txqueuelen 4000 up",
            f"route add default dev {TUN} table {TABLE}",
            f"rule add pref 10 iif {BRIDGE} ipproto udp lookup {TABLE}",
            f"rule add pref 11 iif {IFACE} ipproto udp lookup {TABLE}",
            "rule add pref 20 lookup local",
            "rule del pref 0",
        )
        # what comes out of the device has this router's own source address
        for conf in ("all", TUN):
            self._sysctl(f"net/ipv4/conf/{conf}/rp_filter", 0)
        self._sysctl(f"net/ipv4/conf/{TUN}/accept_local", 1)

    def _start_nat(self) -> None:
        command = [sys.executable, str(USERSPACE_NAT), TUN, "--outside", self.outside]
        command += ["--inside", str(ipaddress.ip_interface(self._inside).network), "--filter", USERSPACE[self.kind]]
        if self.kind == "symmetric":
            command += ["--map", "port", "--random-ports"]
        if self.hairpin:
            command.append("--hairpin")
        if self._timeout is not None:
            command += ["--timeout", str(self._timeout)]
        self._nat = self.start(*command)
        self._nat.line()

    def mappings(self) -> set[str]:
        """The outside ports in use now."""
        if self._nat is None:
            return super().mappings()
        self._nat.signal(signal.SIGUSR2)
        return {str(port) for port in self._nat.line()["ports"]}

    def rebind(self) -> None:
        """Forget every mapping, as a router does that restarts."""
        if self._nat is not None:
            self._nat.signal(signal.SIGUSR1)
            self._nat.line()
        self.exec("conntrack", "-F")

    def renumber(self, address: str) -> None:
        """Get another outside address; every mapping is lost."""
        super().renumber(address)
        self._masquerade()
        if self._nat is not None:
            self._nat.stop()
            self._start_nat()
        self.exec("conntrack", "-F")

    def block_udp(self, blocked: bool) -> None:
        """Drop all UDP between inside and outside, or let it through again. TCP stays."""
        self.blocked = blocked
        self._masquerade()

    def cut(self, *others: str) -> None:
        """Drop UDP from and to these outside addresses only; without any, drop none."""
        drops = [f"ip {way} {{ {', '.join(others)} }} meta l4proto udp drop;" for way in ("saddr", "daddr") if others]
        hook = "type filter hook prerouting priority -400;"
        lines = ["table ip cut {", "}", "delete table ip cut", "table ip cut {", "chain cut {", hook, *drops, "}", "}"]
        self.exec("nft", "-f", "-", stdin="\n".join(lines) + "\n")

    def only_tcp_to(self, address: str) -> None:
        """Let nothing out but TCP to this address (a proxy): UDP must be blocked already."""
        rule = f'iifname "{BRIDGE}" meta l4proto tcp ip daddr != {address} drop'
        self.exec("nft", "add", "chain", "ip", "lab", "wall", "{ type filter hook forward priority -1; }")
        self.exec("nft", "add", "rule", "ip", "lab", "wall", *rule.split())

    def set_timeout(self, seconds: float) -> None:
        """How long an unused mapping lives; the kernel counts whole seconds. Existing ones keep their old term."""
        self._timeout = seconds
        if self.userspace:
            if self._nat is not None:
                self._nat.stop()
                self._start_nat()
            return
        for name in ("udp_timeout", "udp_timeout_stream"):
            self._sysctl(f"net/netfilter/nf_conntrack_{name}", max(1, round(seconds)))

    def no_multicast(self) -> None:
        """Let no multicast or broadcast UDP through between the hosts inside, as many Wi-Fi networks and clouds do."""
        rules = [
            "table bridge lab {",
            "chain forward { type filter hook forward priority 0;",
            "meta pkttype { multicast, broadcast } ip protocol udp drop",
            "ip6 daddr ff00::/8 meta l4proto udp drop",
            "}",
            "}",
        ]
        self.exec("nft", "-f", "-", stdin="\n".join(rules) + "\n")


class NatLab(Lab):
    """A lab that also makes NAT sites and proxies."""

    def nat_site(
        self,
        label: str,
        switch: Switch,
        kind: str,
        outside: str,
        *,
        inside: str = "10.0.0.1/24",
        gateway: str | None = None,
        hairpin: bool = False,
        timeout: float | None = None,
    ) -> NatSite:
        """Make a site behind a NAT. ``timeout`` in seconds; ``gateway`` is the way on from ``outside``."""
        made = NatSite(self, label, switch, kind, outside, inside, gateway=gateway, hairpin=hairpin, timeout=timeout)
        self._all.append(made)
        return made

    def connect_proxy(
        self, host: Host, port: int = 3128, *, credentials: str | None = None, rate: int | None = None
    ) -> Program:
        """Run an HTTPS proxy (CONNECT) on a host: ``user:password`` if it asks, bytes a second if it is slow."""
        address = host.address.partition("/")[0]
        command = [sys.executable, str(CONNECT_PROXY), "--listen", f"{address}:{port}"]
        if credentials is not None:
            command += ["--credentials", credentials]
        if rate is not None:
            command += ["--rate", str(rate)]
        program = host.start(*command)
        program.line()
        return program
