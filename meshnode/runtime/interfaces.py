"""Addresses of this host, and notice of their changes.

On Linux a raw netlink socket tells of address, link and route changes within milliseconds (no package for
it: the usual one costs 10 MB and 80 ms at import); elsewhere ``ifaddr`` is polled once a second.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Callable

import ifaddr

from meshnode.base.timers import RETRY_S, OnError, reraise

# linux/rtnetlink.h: link, IPv4 address and route, IPv6 address and route
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
DEBOUNCE_S = 0.003
POLL_S = 1.0


def local_networks(*, loopback: bool = False) -> list[tuple[str, int]]:
    """Return this host's unicast addresses with their prefix lengths, best first.

    IPv4 comes before IPv6, then loopback (only with ``loopback``), then link-local addresses, whose IPv6 ones carry
    their ``%interface``.
    """
    found: dict[tuple[str, int], int] = {}
    for adapter in ifaddr.get_adapters():
        for item in adapter.ips:
            host = item.ip if isinstance(item.ip, str) else item.ip[0]
            ip = ipaddress.ip_address(host)
            if ip.is_loopback and not loopback:
                continue
            if ip.is_link_local:
                if ip.version == 6:
                    host = f"{host}%{adapter.name}"
                rank = 3
            else:
                rank = 2 if ip.is_loopback else ip.version == 6
            found[(host, item.network_prefix)] = int(rank)
    return sorted(found, key=lambda network: found[network])


class InterfaceWatcher:
    """Watcher of this host's addresses, links and routes: calls ``on_change`` once a burst of events."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None], on_error: OnError = reraise
    ) -> None:
        self._loop = loop
        self._on_change = on_change
        self._on_error = on_error
        self._netlink: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last: list[tuple[str, int]] = []

    def start(self) -> None:
        """Start watching: by netlink on Linux, else by a look once a second.

        Where a netlink socket is refused (some sandboxes), Linux polls too.
        """
        if sys.platform == "linux":
            try:
                netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
                netlink.bind((0, GROUPS))
            except OSError:
                self._poll()
                return
            self._netlink = netlink
            self._loop.add_reader(netlink, self._readable)
        else:
            self._poll()

    def close(self) -> None:
        """Stop."""
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        assert self._netlink is not None
        try:
            while self._netlink.recv(65_536):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: events were lost, which is itself an event
        if self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._fire)

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
