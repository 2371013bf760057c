"""Types that the parts of ``portmap`` and their host share: routes, mappings, effects, outcomes, counters."""

from __future__ import annotations

import ipaddress
from enum import Enum

from meshnode.base.address import Addr, is_dialable
from meshnode.base.metrics import describe
from meshnode.base.value import value

STRANGER = describe("portmap_stranger", "datagrams to the mapping client from another host than the router asked")
MALFORMED = describe("portmap_malformed", "mapping replies that cannot be parsed")
UNMATCHED = describe("portmap_unmatched", "well-formed mapping replies to nothing that we asked (nonce, port, step)")
BAD_GRANT = describe("portmap_bad_grant", "mappings granted at an impossible address, or for less than 10 s")
BAD_LOCATION = describe("portmap_bad_location", "UPnP addresses that are not on the router itself")
REFUSED = describe("portmap_refused", "mapping requests that the router refused")
UNANSWERED = describe("portmap_unanswered", "mapping requests that the router never answered")
ROUTER_RESTARTED = describe("portmap_router_restarted", "restarts of a router, told by its clock: it lost its mappings")
GRANTED = describe("portmap_granted", "mappings granted or renewed")


class Protocol(Enum):
    """Protocols for port mappings, in the order in which they are tried."""

    PCP = "pcp"  # RFC 6887
    NAT_PMP = "nat-pmp"  # RFC 6886
    UPNP = "upnp"  # UPnP Forum, WANIPConnection:1 and :2


@value
class Route:
    """A default route: packets from our address ``internal`` leave through ``router``.

    Both are canonical host texts of one family; a link-local router has its ``%scope``.
    """

    router: str
    internal: str

    @property
    def is_ipv6(self) -> bool:
        """True when there is no NAT to expect, only a firewall."""
        return ":" in self.internal


@value
class Mapping:
    """The router sends what arrives at ``external`` to ``internal``, until ``expires`` (monotonic s; may be inf)."""

    protocol: Protocol
    external: Addr
    internal: Addr
    expires: float

    @property
    def is_private(self) -> bool:
        """True when the outside address is itself not of the internet: another NAT stands behind the router."""
        return not ipaddress.ip_address(self.external.host).is_global

    def to_json(self, now: float) -> dict[str, object]:
        """Return the mapping for people and scripts.

        ``lifetime_s`` is what is left in whole seconds, null for a mapping without an end; ``private`` is true when
        another NAT stands behind the router.
        """
        left = self.expires - now
        return {
            "protocol": self.protocol.value,
            "external": str(self.external),
            "internal": str(self.internal),
            "lifetime_s": round(left) if left != float("inf") else None,
            "private": self.is_private,
        }


# ---- what the host must do


@value
class Send:
    """Send a datagram from our address ``internal``, any port. ``to`` is the router, or SSDP's group on its link."""

    internal: str
    to: Addr
    data: bytes


@value
class Fetch:
    """Write ``request`` to the router's TCP address ``to`` from ``internal``; hand what comes back to ``on_http``."""

    number: int
    internal: str
    to: Addr
    request: bytes


@value
class Changed:
    """Publish a record: the set of mappings has changed."""


Effect = Send | Fetch | Changed


# ---- how asking the router ended


@value
class Granted:
    """``external`` is mapped to this node for ``lifetime`` seconds (inf: until withdrawn)."""

    external: Addr
    lifetime: float


@value
class Refused:
    """The router said no; ``retry`` is for how many seconds it will go on saying so."""

    why: str
    retry: float = 0.0


@value
class Silent:
    """The router does not answer in this protocol, or says that it does not speak it."""


Outcome = Granted | Refused | Silent


def is_possible(external: Addr, internal: str) -> bool:
    """Return False for an outside address that no router can have: the record would send peers astray.

    A private or carrier-grade address is possible: peers behind the same outer NAT can use it.
    """
    if not is_dialable(external) or "%" in external.host or (":" in external.host) != (":" in internal):
        return False
    ip = ipaddress.ip_address(external.host)
    return not (ip.is_loopback or ip.is_link_local)
