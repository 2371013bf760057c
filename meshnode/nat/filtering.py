"""Passive detection of NAT filtering behaviour (RFC 4787 section 5) from unsolicited datagrams. Sans-IO.

Nothing is sent for it. An authentic datagram from a host that we never sent to came through a filter that ignores
addresses. One from another port of a host that we did send to shows at most that ports do not matter. That nothing
comes in proves nothing, so the answer is often "unknown"; it is never a guess. Whatever could have opened the filter,
or does not cross it, is no evidence: senders on our own networks or in private ranges, our own outside address
(hairpinning), hosts that an earlier process may have talked to from this port, and hosts with several addresses of
their own, for it is not known on which of them a datagram came in. Where a port is forwarded, this tells what the
forwarding lets in.
"""

from __future__ import annotations

import ipaddress
from enum import Enum
from functools import lru_cache

from meshnode.base.address import Addr
from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import FILTER_MOVE_S, FILTER_SETTLE_S, MAX_RECENT_SENDERS, MAX_SENT_ADDRESSES, MAX_SENT_PORTS
from meshnode.base.path import Path, udp_address
from meshnode.nat.local_networks import on_networks

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
HOST_BITS = {4: 32, 6: 64}  # what two addresses of one host on one network have in common
SITE_BITS = {4: 16, 6: 48}  # hosts that share this much of our address may be behind the same firewall
PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")
)


class Filtering(Enum):
    """Filtering behaviour. The strictest one cannot be told from silence, so it has no value here."""

    UNKNOWN = "unknown"
    AT_MOST_ADDRESS = "at-most-address-dependent"  # another port of a host that we sent to got in
    INDEPENDENT = "endpoint-independent"  # a host that we never sent to got in


@lru_cache(maxsize=1024)
def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.partition("%")[0])


def _is_private(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(ip in network for network in PRIVATE if network.version == ip.version)


class FilterView:
    """The filtering behaviour seen so far, by family (4 and 6); ``now`` is monotonic seconds.

    Attributes:
        noted: Addresses that ``sent`` need not be told of again.
    """

    def __init__(self) -> None:
        self.noted: dict[Path, None] = {}  # never forgotten while we run: use keeps a filter open
        self._hosts: dict[str, int] = {}  # how many addresses of it are in _sent
        self._full = False
        self._settled = float("inf")
        self._own: frozenset[str] = frozenset()
        self._networks: tuple[tuple[str, int], ...] = ()
        self._outside: dict[int, BoundedDict[str, None]] = {f: BoundedDict(MAX_RECENT_SENDERS) for f in (4, 6)}
        self._found = {4: Filtering.UNKNOWN, 6: Filtering.UNKNOWN}
        self._recent: BoundedDict[Addr, float] = BoundedDict(MAX_RECENT_SENDERS)

    def begin(self, now: float, *, fresh_port: bool) -> None:
        """Start at ``now``: with a fresh port, evidence counts at once.

        Else it counts after ``FILTER_SETTLE_S``, because an earlier process may have opened the filter for hosts
        unknown here.
        """
        self._settled = now + (0.0 if fresh_port else FILTER_SETTLE_S)

    def moved(self, own: frozenset[Addr], networks: tuple[tuple[str, int], ...], now: float, *, moved: bool) -> None:
        """Set this node's addresses and networks; start over when ``moved`` or when either has changed.

        ``networks`` are (address, prefix length). Another network may have another filter, and for ``FILTER_MOVE_S``
        datagrams for the old address may still arrive, so nothing counts meanwhile. The first call only sets the
        beginning.
        """
        hosts = frozenset(addr.host for addr in own)
        if not self._own and not moved:  # the beginning: nothing can be under way to an older place
            self._own, self._networks = hosts, networks
        elif moved or hosts != self._own or networks != self._networks:
            self._own, self._networks = hosts, networks
            self._recent.clear()
            for family in (4, 6):
                self.on_other_host(family, now)

    def on_other_host(self, family: int, now: float) -> None:
        """Drop the evidence: the outside host is another one, and for 5 s datagrams may arrive that are for the old."""
        self._found[family] = Filtering.UNKNOWN
        self._outside[family].clear()
        self._settled = max(self._settled, now + FILTER_MOVE_S)

    def seen(self, addr: Addr) -> None:
        """Take an outside address of this node, from a trusted observer."""
        self._outside[_ip(addr.host).version][addr.host] = None

    def sent(self, to: Path) -> None:
        """Take note of a datagram: from now on its address, and perhaps other ports of its host, may answer.

        Bounded by ``MAX_SENT_PORTS`` a host and ``MAX_SENT_ADDRESSES`` in all; what is beyond a bound counts as sent
        to, so the bounds can hide evidence and never make any. Tunnels, relays and link-local addresses are ignored.
        """
        if to in self.noted or not isinstance(to, Addr) or "%" in to.host:
            return
        ports = self._hosts.get(to.host, 0)
        if ports >= MAX_SENT_PORTS:
            return  # any of its ports counts as one that we sent to
        if len(self.noted) >= MAX_SENT_ADDRESSES:
            self._full = True  # from now on any host may be one that we sent to
            return
        self.noted[to] = None
        self._hosts[to.host] = ports + 1

    def stray(self, source: Path, now: float) -> None:
        """Take a datagram that proves nothing: early on, it may be for an earlier process at this port."""
        if now < self._settled:
            self.sent(source)

    def heard(self, source: Path, now: float) -> None:
        """Take the source of a datagram that a member sealed to this node, before it is answered.

        From a host never sent to, it shows endpoint-independent filtering; from another port of a host that was sent
        to, at most address-dependent filtering; both only where the datagram certainly crossed the filter.
        """
        addr = udp_address(source)
        if addr is None:
            return
        self._recent.put(addr, now)
        if not isinstance(source, Addr):
            return  # an extra socket has a filter of its own
        ports = self._hosts.get(source.host, 0)
        if source in self.noted or self._full or ports >= MAX_SENT_PORTS or "%" in source.host:
            return
        if now < self._settled:
            self.sent(source)
            return
        family = _ip(source.host).version
        if not self._crosses(source, family):
            return
        if not ports:
            self._found[family] = Filtering.INDEPENDENT
        elif self._found[family] is Filtering.UNKNOWN:
            self._found[family] = Filtering.AT_MOST_ADDRESS

    def _crosses(self, source: Addr, family: int) -> bool:
        """Return whether a datagram from there certainly passed the filter in question."""
        ip = _ip(source.host)
        outside = self._outside[family]
        own = [_ip(host) for host in sorted(self._own) if _ip(host).version == family]
        if len({_prefix(str(one), HOST_BITS[family]) for one in own}) != 1:
            return False
        if not outside or source.host in outside or on_networks(source, self._networks):
            return False
        return not _is_private(ip) and all(ip not in _prefix(str(one), SITE_BITS[family]) for one in own)

    def filtering(self, family: int) -> Filtering:
        """Return the behaviour for IPv4 (4) or IPv6 (6).

        ``UNKNOWN`` until evidence arrives, and again after a move; address-and-port-dependent filtering is never
        reported, since it cannot be told from silence.
        """
        return self._found[family]

    def quiet_s(self, now: float, *, outside: bool) -> float | None:
        """Return the seconds since a member was heard by UDP from this node's networks (or from ``outside``).

        None when none of the last ``MAX_RECENT_SENDERS`` senders was there.
        """
        at = [
            at
            for addr, at in self._recent.items()
            if (on_networks(addr, self._networks) or addr.host in self._own) != outside
        ]
        return max(0.0, now - max(at)) if at else None


@lru_cache(maxsize=1024)
def _prefix(host: str, bits: int) -> Network:
    return ipaddress.ip_network(f"{host}/{bits}", strict=False)
