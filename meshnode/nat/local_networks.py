"""Networks and addresses of this host, and the peers' addresses that they rule out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from meshnode.base.address import Addr, ip_of
from meshnode.base.limits import MAX_SCOPES
from meshnode.base.value import value


@lru_cache(maxsize=256)
def _network(host: str, prefix: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(f"{host.partition('%')[0]}/{prefix}", strict=False)


def is_loopback(addr: Addr) -> bool:
    """Return True for an address that never leaves this host."""
    return addr.host.startswith("127.") or addr.host.partition("%")[0] == "::1"


@value
class LocalNetworks:
    """The addresses and networks of this node, against which the addresses that peers name are checked.

    ``networks`` are (address, prefix length); ``own`` what its record says; ``loopback`` is true when members of its
    mesh are on this very host, because it is bound there, was told of one, or has heard one there.
    """

    networks: tuple[tuple[str, int], ...] = ()
    own: frozenset[Addr] = frozenset()
    loopback: bool = False

    def believes(self, addr: Addr) -> bool:
        """Return False for an address that no other node can have, whatever its source.

        These are our own addresses, loopback unless members are on this host, and broadcast on our networks.
        """
        if addr in self.own or (is_loopback(addr) and not self.loopback):
            return False
        return not _is_broadcast(addr, self.networks)

    def reachable(self, addr: Addr) -> list[Addr]:
        """Return the addresses at which ``addr`` of a record may be reached from here; none when none can be.

        An IPv6 link-local address means one host on each link: it is returned with the scope of each of this host's
        links that have such addresses, at most ``MAX_SCOPES``.
        """
        if not self.believes(addr):
            return []
        if "%" in addr.host or not addr.host.startswith("fe80:"):
            return [addr]
        scopes = dict.fromkeys(host.partition("%")[2] for host, _ in self.networks if "%" in host)
        return [Addr(f"{addr.host}%{scope}", addr.port) for scope in list(scopes)[:MAX_SCOPES]]


def _is_broadcast(addr: Addr, networks: Iterable[tuple[str, int]]) -> bool:
    if ":" in addr.host:
        return False
    ip = ip_of(addr.host)
    known = (_network(host, prefix) for host, prefix in networks if ":" not in host and prefix < 31)
    return any(ip == network.broadcast_address for network in known)


def on_networks(addr: Addr, networks: Iterable[tuple[str, int]]) -> bool:
    """Return True for loopback, IPv6 link-local, and addresses in one of these networks (address, prefix length).

    An IPv4 link-local one (169.254/16) is named by hosts that found no DHCP server, and is no nearer than any other.

    ``networks`` are (address, prefix length). Raises ValueError when the host of ``addr`` is no IP address, as that of
    a relayed path.
    """
    ip = ip_of(addr.host)
    is_near = ip.is_loopback or (ip.is_link_local and ip.version == 6)
    return is_near or any(ip in _network(host, prefix) for host, prefix in networks)
