"""What a node says of a service of its own: the value of a SERVICE entry, whose name is the service's.

Canonical CBOR ``[policy, health, load, {text: text}]``, at most 1,024 bytes. Policy is 0 (every member may use it) or 1
(some may: whom is nobody else's business); health 0 (well) or 1 (failing); load 0 to 100. An instance is always the
entry's origin: nobody announces for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from meshnode.base.limits import (
    GOSSIP_MAX_NAME,
    GOSSIP_MAX_OPENED,
    SERVICE_MAX_META,
    SERVICE_MAX_META_TEXT,
    SERVICE_MAX_VALUE,
)
from meshnode.base.wire import WireError, decode, encode
from meshnode.gossip.entry import Entry
from meshnode.identity.node_id import NodeId

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node announces of its instance of a service.

    Attributes:
        restricted: True when not every member may use it.
        healthy: False while it says that it does not work.
        load: 0 (idle) to 100.
        meta: Texts of its own.
    """

    restricted: bool = False
    healthy: bool = True
    load: int = 0
    meta: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)

    def encoded(self) -> bytes:
        """The value of the entry. Raises ValueError for what no receiver would take."""
        meta = dict(self.meta)
        texts = [*meta, *meta.values()]
        if not all(isinstance(text, str) and len(text) <= SERVICE_MAX_META_TEXT for text in texts):
            raise ValueError(f"metadata are texts of at most {SERVICE_MAX_META_TEXT} characters")
        if len(meta) > SERVICE_MAX_META or "" in meta:
            raise ValueError(f"at most {SERVICE_MAX_META} metadata, each with a name")
        if not 0 <= self.load <= 100:
            raise ValueError("a load is 0 to 100")
        value = encode([int(self.restricted), int(not self.healthy), self.load, meta])
        if len(value) > SERVICE_MAX_VALUE:
            raise ValueError(f"an announcement has at most {SERVICE_MAX_VALUE} bytes, not {len(value)}")
        return value


@dataclass(frozen=True, slots=True)
class Instance:
    """A service as one node offers it.

    Attributes:
        node: The node.
        service: The service's name.
        offer: What the node announces of it.
        expires: Unix seconds after which the announcement is void, unless it is renewed.
        state: ``up``, or why it is tried late: ``failing`` (it says so itself), ``suspect`` (the mesh does), or what
            happened between it and this node: ``silent``, ``failed``, ``missing``, ``refused``.
        rtt: Seconds to the node and back; None without a connection.
    """

    node: NodeId
    service: str
    offer: Offer
    expires: float
    state: str = "up"
    rtt: float | None = None

    @property
    def meta(self) -> Mapping[str, str]:
        """The texts that its node announces with it."""
        return self.offer.meta

    def to_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "service": self.service,
            "id": str(self.node),
            "state": self.state,
            "load": self.offer.load,
            "restricted": self.offer.restricted,
            "rtt_ms": round(self.rtt * 1000, 3) if self.rtt is not None else None,
            "meta": dict(self.offer.meta),
        }


def is_service_name(name: str) -> bool:
    """True when a service of this name can be announced: 1 to 64 visible characters, no slash."""
    return 0 < len(name) <= GOSSIP_MAX_NAME and name.isprintable() and "/" not in name and " " not in name


def is_offer(entry: Entry) -> bool:
    """True when a SERVICE entry is what it should be: an announcement or a withdrawal."""
    return is_service_name(entry.name) if entry.value is None else parse_offer(entry) is not None


def parse_offer(entry: Entry) -> Offer | None:
    """What a SERVICE entry says; None when it is none, or a withdrawal."""
    if entry.value is None or not is_service_name(entry.name):
        return None
    return _offer(entry.value)


@lru_cache(maxsize=GOSSIP_MAX_OPENED)
def _offer(value: bytes) -> Offer | None:
    try:
        fields = decode(value, SERVICE_MAX_VALUE)
    except WireError:
        return None
    if not isinstance(fields, list) or len(fields) != 4:
        return None
    *numbers, meta = fields
    if any(type(n) is not int or not 0 <= n <= most for n, most in zip(numbers, (1, 1, 100), strict=True)):
        return None
    if not isinstance(meta, dict) or len(meta) > SERVICE_MAX_META:
        return None
    for key, text in meta.items():
        if not isinstance(key, str) or not isinstance(text, str) or not key:
            return None
        if len(key) > SERVICE_MAX_META_TEXT or len(text) > SERVICE_MAX_META_TEXT:
            return None
    return Offer(bool(numbers[0]), not numbers[1], numbers[2], MappingProxyType(meta))
