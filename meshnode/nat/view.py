"""The NAT in front of this node: its mapping and its filtering behaviour, joined."""

from __future__ import annotations

from meshnode.base.address import Addr, is_dialable
from meshnode.identity.node_id import NodeId
from meshnode.nat.filtering import FilterView
from meshnode.nat.mapping import MappingView


class NatView:
    """``mappings`` is learnt from what peers observe, ``filters`` from what arrives unsolicited."""

    def __init__(self) -> None:
        self.filters = FilterView()
        self.mappings = MappingView(on_other_host=self.filters.on_other_host)

    def observed(self, peer: NodeId, observer: Addr, seen: Addr, now: float) -> bool:
        """Take the address as which a peer at ``observer``, not on our own networks, saw this node.

        Returns True when that changes the reflexive addresses or the mapping behaviour.
        """
        if not is_dialable(seen):
            return False
        is_news = self.mappings.observed(peer, observer, seen, now)
        self.filters.seen(seen)
        return is_news

    def to_json(self, now: float) -> dict[str, object]:
        """Return the view as plain JSON for people and scripts.

        ``mapping`` and ``filtering`` are for IPv4 and the same with ``_ipv6`` for IPv6 (values of ``Mapping`` and
        ``Filtering``); ``reflexive`` lists outside addresses, ``observed`` which peer saw which address.
        """
        return {
            "mapping": self.mappings.behaviour(4, now).value,
            "mapping_ipv6": self.mappings.behaviour(6, now).value,
            "filtering": self.filters.filtering(4).value,
            "filtering_ipv6": self.filters.filtering(6).value,
            "reflexive": [str(addr) for addr in self.mappings.reflexive(now)],
            "observed": self.mappings.observations(),
        }
