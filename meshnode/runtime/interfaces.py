"""Addresses of this host, and notice of their changes.

On Linux a raw netlink socket tells of address, link and route changes within milliseconds (no package for
it: the usual one costs 10 MB and 80 ms at import); elsewhere ``ifaddr`` is polled once a second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable

from meshnode.base.limits import BASE_MTU, LOOPBACK_MTU
from meshnode.base.timers import RETRY_S, OnError, reraise
from meshnode.nat.own_addresses import BRIDGE_TIER, HostAddress, HostView, Link, WayOut, host_view
from meshnode.runtime.descriptors import watch_on
from meshnode.runtime.netlink import WAYS_OUT, Change, Netlink, changes
from meshnode.runtime.routes import ioctl_addresses, source_towards

# linux/rtnetlink.h: link, IPv4 address, route and rule, IPv6 address, route and rule
GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
IP_MTU = 14  # linux/in.h
IP_AND_UDP = 48  # bytes of headers, the larger of the two families
DEBOUNCE_S = 0.003
POLL_S = 1.0
# where netlink does not tell an interface's kind, its name does
KIND_BY_NAME = {
    "bridge": ("docker", "br-", "virbr", "lxcbr", "lxdbr", "podman", "cni", "vmnet", "vboxnet", "bridge"),
    "veth": ("veth", "cali", "vnet", "tap"),
    "tun": ("tun", "utun", "wg", "tailscale", "zt", "ppp", "ipsec", "nebula"),
}
log = logging.getLogger("meshnode.node")


def local_networks(*, loopback: bool = False) -> list[tuple[str, int]]:
    """Return the addresses at which others may reach this host with their prefix lengths (``HostView.networks``).

    Loopback is listed only with ``loopback``.
    """
    try:
        netlink = Netlink()
        try:
            view = netlink.view()
        finally:
            netlink.close()
    except OSError:
        view = _view_without_netlink()
    return [(host, prefix) for host, prefix in view.networks() if loopback or not _is_loopback(host)]


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def _view_without_netlink() -> HostView:
    """Ask the C library, which on Linux needs netlink itself; where that fails, the older ioctls and ``/proc``."""
    import ifaddr  # 2 MB, which a node with netlink and without mDNS does not spend

    try:
        found = [
            (adapter.name, adapter.index or 0, item.ip if isinstance(item.ip, str) else item.ip[0], item.network_prefix)
            for adapter in ifaddr.get_adapters()
            for item in adapter.ips
        ]
    except OSError:
        found = ioctl_addresses()
    addresses = []
    for name, index, host, prefix in found:
        scoped = f"{host}%{name}" if host.startswith("fe80:") else host
        addresses.append(HostAddress(scoped, prefix, Link(index, name, _kind(name))))
    by_host = {address.host: address for address in addresses}
    sources = [source for target in WAYS_OUT if (source := source_towards(target)) in by_host]
    return host_view(addresses, tuple(WayOut(by_host[source].link.index, source) for source in sources))


def _kind(name: str) -> str:
    return next((kind for kind, prefixes in KIND_BY_NAME.items() if name.startswith(prefixes)), "")


class InterfaceWatcher:
    """Watcher of this host's addresses, links and routes: calls ``on_change`` once a burst of events."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_error: OnError = reraise
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self._on_error = on_error
        self._netlink: socket.socket | None = None
        self._missing = ""
        self._timer: asyncio.TimerHandle | None = None
        self._last: list[tuple[str, int]] = []
        self._query: Netlink | None = None
        self._view: HostView | None = None
        self._routed: set[int] | None = set()  # interfaces whose routes changed; None when events were lost

    def look(self) -> tuple[HostView, bool]:
        """Return what this host has now, and whether routes of it changed since the last look.

        Changes of routes by bridges and by interfaces that are left out of the view do not count.
        """
        try:
            self._query = self._query or Netlink()
            view = self._query.view()
        except OSError:
            view = _view_without_netlink()
        routed, self._routed = self._routed, set()
        addresses = view.addresses + (self._view.addresses if self._view is not None else ())
        counted = {0, *(a.link.index for a in addresses if a.link.tier != BRIDGE_TIER)}
        self._view = view
        return view, routed is None or not counted.isdisjoint(routed)

    def start(self) -> None:
        """Start watching: by netlink on Linux, else by a look once a second.

        Where a netlink socket is refused (some sandboxes), Linux polls too.
        """
        if sys.platform == "linux":
            netlink = None
            try:
                netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
                netlink.bind((0, GROUPS))
            except OSError as error:
                if netlink is not None:
                    netlink.close()
                self._missing = f"no netlink here ({error.strerror}): changes of addresses are noticed once a second"
                log.warning(self._missing)
                self._poll()
                return
            self._netlink = netlink
            self._loop.add_reader(netlink, self._readable)
        else:
            self._poll()

    def degraded(self) -> list[str]:
        """Return what is missing for a quick notice of changes, a sentence each."""
        return [self._missing] if self._missing else []

    def close(self) -> None:
        """Stop."""
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None
        if self._query is not None:
            self._query.close()
            self._query = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        assert self._netlink is not None
        matters = False
        try:
            while data := self._netlink.recv(65_536):
                matters = self._take(data) or matters
        except BlockingIOError:
            pass
        except OSError:
            self._routed, matters = None, True  # ENOBUFS: events were lost, which is itself an event
            watch_on(self._loop, self._netlink, self._readable)
        if matters and self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._fire)

    def _take(self, data: bytes) -> bool:
        """Return whether a batch of events may change the view: a container's cable, which has no address, does not."""
        view, matters = self._view, False
        for what, link in changes(data):
            if what is Change.ROUTE and self._routed is not None:
                self._routed.add(link)
            matters = matters or what is not Change.LINK or view is None or link in view.addressed
        return matters

    def _fire(self) -> None:
        self._timer = None
        try:
            self._on_change()
        except Exception as error:  # the change must not be lost: no event may come for it again
            self._timer = self._timer or self._loop.call_later(RETRY_S, self._fire)
            self._on_error(error)

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_S, self._poll)
        try:
            now = local_networks(loopback=True)
            if self._last and now != self._last:
                self._on_change()
            self._last = now
        except Exception as error:
            self._on_error(error)


def loopback_mtu() -> int:
    """Return the UDP payload that datagrams within this host may have, at most ``LOOPBACK_MTU``; 0 when unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", 9))  # sends nothing
            mtu = probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
    except OSError:
        return 0
    return min(LOOPBACK_MTU, mtu - IP_AND_UDP) if mtu - IP_AND_UDP > BASE_MTU else 0
