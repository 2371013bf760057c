"""A home router that grants port mappings: miniupnpd, a program that we did not write, on a router of the lab.

    with Lab() as lab:
        net = lab.switch()
        home = IgdRouter(lab, "home", net, "44.128.0.11/24", "10.0.0.1/24", pcp=True, upnp=False)
        home.granted()      # {(outside port, "10.0.0.2", inside port)}
        home.restart()      # forgets everything, as when the power failed

It speaks PCP and NAT-PMP at one port and cannot be told to leave out one of them, so ``pcp=False`` drops PCP's
datagrams by their version byte on their way in.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import time

import pytest

from tests.netns import lab
from tests.netns.lab import BRIDGE, IFACE, Lab, Router, Switch

MINIUPNPD = shutil.which("miniupnpd") or "/usr/sbin/miniupnpd"
TABLE = "mnupnp"
# miniupnpd refuses private and documentation addresses outside: this one is real, and stays in the lab
OUTSIDE = "44.128.0.11/24"
OUTSIDE6, INSIDE6 = "2001:db8:1::1/64", "2001:db8:2::1/64"
UUID = "2f4d9a62-6f5c-4a52-9a4c-0f5d1c9f7a11"


def require() -> None:
    """Skip the test, saying why, where there is no lab or no miniupnpd; with CI=true fail instead."""
    lab.require()
    if not os.access(MINIUPNPD, os.X_OK):
        if os.environ.get("CI") == "true":
            pytest.fail("CI must run the port mapping tests, but miniupnpd is not installed", pytrace=False)
        pytest.skip("miniupnpd is not installed (Debian: miniupnpd-nftables)")


class IgdRouter(Router):
    """A NAT router, for IPv6 a firewall, on which miniupnpd opens ports."""

    def __init__(
        self,
        lab: Lab,
        label: str,
        switch: Switch,
        outside: str,
        inside: str,
        *,
        pcp: bool = False,
        natpmp: bool = False,
        upnp: bool = False,
        igd: int = 2,
        ipv6: bool = False,
        lifetimes: tuple[int, int] = (120, 86_400),
    ) -> None:
        self._pcp, self._natpmp, self._upnp, self._igd, self._ipv6 = pcp, natpmp, upnp, igd, ipv6
        self._lifetimes = lifetimes
        self._daemon: subprocess.Popen[bytes] | None = None
        self._inside = ipaddress.ip_interface(inside)
        self._boots = 0
        super().__init__(lab, label, switch, outside, inside)
        lab._all.append(self)
        if ipv6:
            self.ip(f"addr add {OUTSIDE6} dev {IFACE}", f"addr add {INSIDE6} dev {BRIDGE}")
            self.exec("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        self._start()

    def _masquerade(self) -> None:
        """What a router does: translate IPv4, drop unsolicited packets, let through what was mapped."""
        unasked = f'iifname "{IFACE}" ct state new'
        no_pcp = "" if self._pcp else f'iifname "{BRIDGE}" udp dport 5351 @th,64,8 2 drop;'
        rules = [
            "flush ruleset",
            "table ip lab {",
            "chain out { type nat hook postrouting priority srcnat;",
            f'oifname "{IFACE}" masquerade fully-random; }}',
            "}",
            "table inet lab {",
            "chain input { type filter hook input priority filter;",
            f"{no_pcp} meta l4proto ipv6-icmp accept; {unasked} drop; }}",
            "}",
            # miniupnpd's own tables; its chains decide what comes in
            f"table inet {TABLE} {{",
            "chain forward { type filter hook forward priority 0;",
            f"ct status dnat accept; jump opened; {unasked} drop; }}",
            "chain opened { }",
            "chain prerouting { type nat hook prerouting priority dstnat; jump mapped; }",
            "chain postrouting { type nat hook postrouting priority srcnat; jump masked; }",
            "chain mapped { }",
            "chain masked { }",
            "}",
        ]
        self.exec("nft", "-f", "-", stdin="\n".join(rules) + "\n")

    def _start(self) -> None:
        if not (self._pcp or self._natpmp or self._upnp):
            return  # a router that grants nothing; miniupnpd would refuse to run
        self._boots += 1
        yes = {True: "yes", False: "no"}
        low, high = self._lifetimes
        settings = {
            "ext_ifname": IFACE,
            "ext_ip": self.address.partition("/")[0],
            "listening_ip": BRIDGE,
            "enable_natpmp": yes[self._pcp or self._natpmp],
            "enable_upnp": yes[self._upnp],
            "secure_mode": "yes",
            "system_uptime": "no",
            "min_lifetime": low,
            "max_lifetime": high,
            "notify_interval": 60,
            "uuid": UUID,
            "upnp_table_name": TABLE,
            "upnp_nat_table_name": TABLE,
            "upnp_forward_chain": "opened",
            "upnp_nat_chain": "mapped",
            "upnp_nat_postrouting_chain": "masked",
            "force_igd_desc_v1": yes[self._igd == 1],
            "ipv6_disable": yes[not self._ipv6],
        }
        if self._ipv6:
            settings["ext_ifname6"] = IFACE
        lines = [f"{name}={value}" for name, value in settings.items()]
        lines += [f"allow 1024-65535 {self._inside.network} 1024-65535", "deny 0-65535 0.0.0.0/0 0-65535"]
        path = self.lab.scratch / f"{self.label}.miniupnpd.conf"
        path.write_text("\n".join(lines) + "\n")
        pid = self.lab.scratch / f"{self.label}.miniupnpd.pid"
        pid.unlink(missing_ok=True)
        with (self.lab.scratch / f"{self.label}.miniupnpd.{self._boots}.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["ip", "netns", "exec", self.name, MINIUPNPD, "-f", str(path), "-d", "-P", str(pid)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 5
        port = "5351" if self._pcp or self._natpmp else "1900"
        while f":{port}" not in self.exec("ss", "-lun") and self._daemon.poll() is None:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if self._daemon.poll() is not None:
            raise RuntimeError(f"miniupnpd ended: {self.said()}")

    def said(self) -> str:
        """What miniupnpd logged."""
        return (self.lab.scratch / f"{self.label}.miniupnpd.{self._boots}.log").read_text()[-4_000:]

    def _kill(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def restart(self) -> None:
        """Lose every mapping and restart, as when the power fails for a moment: what is granted behind it is new."""
        self._kill()
        self._masquerade()
        assert not self.granted(), "no process was there to grant it"
        assert "dport" not in self.pinholes()
        self.exec("conntrack", "-F")
        self._start()

    def granted(self) -> set[tuple[int, str, int]]:
        """The IPv4 mappings: outside port, inside address, inside port."""
        found = set()
        rules = json.loads(self.exec("nft", "-j", "list", "chain", "inet", TABLE, "mapped"))["nftables"]
        for rule in (item["rule"]["expr"] for item in rules if "rule" in item):
            matches = [e["match"] for e in rule if "match" in e]
            port = next(m["right"] for m in matches if m["left"].get("payload", {}).get("field") == "dport")
            to = next(e["dnat"] for e in rule if "dnat" in e)
            found.add((port, to["addr"], to["port"]))
        return found

    def pinholes(self) -> str:
        """The rules of the forward chain, as nft prints them: what is open for IPv6 is there."""
        return self.exec("nft", "list", "chain", "inet", TABLE, "opened")

    def close(self) -> None:
        """End miniupnpd and remove the namespace."""
        self._kill()
        super().close()
