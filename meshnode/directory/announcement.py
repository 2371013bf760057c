"""A node's announcement of a service: the value of a SERVICE entry, whose name is the service's.

Canonical CBOR ``[policy, health, load, {text: text}]``, at most 1,024 bytes. Policy is 0 (every member may use it) or 1
(some members may, which are not named); health 0 (well) or 1 (failing); load 0 to 100. An instance is always the
entry's origin: no node announces for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from types import MappingProxyType

from meshnode.base.limits import (
    GOSSIP_MAX_NAME,
    GOSSIP_MAX_OPENED,
    SERVICE_MAX_META,
    SERVICE_MAX_META_TEXT,
    SERVICE_MAX_VALUE,
)
from meshnode.base.value import frozen
from meshnode.base.wire import WireError, decode, encode
from meshnode.foreign_text import visible
from meshnode.gossip.entry import Entry
from meshnode.identity.node_id import NodeId

NOTHING: Mapping[str, str] = MappingProxyType({})


@frozen
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
    meta: Mapping[str, str] = field(default_factory=lambda: NOTHING)

    def __hash__(self) -> int:
        return hash((self.restricted, self.healthy, self.load))

    def encoded(self) -> bytes:
        """Return the value of the entry.

        Raises ValueError for what receivers would drop: a load outside 0 to 100, over ``SERVICE_MAX_META`` metadata or
        one without a name, a text over ``SERVICE_MAX_META_TEXT`` characters, over ``SERVICE_MAX_VALUE`` bytes in all.
        """
        meta = dict(self.meta)
        texts = [*meta, *meta.values()]
        if not all(map(_is_meta_text, texts)):
            raise ValueError(f"metadata are texts of at most {SERVICE_MAX_META_TEXT} characters")
        if len(meta) > SERVICE_MAX_META or "" in meta:
            raise ValueError(f"at most {SERVICE_MAX_META} metadata, each with a name")
        if not 0 <= self.load <= 100:
            raise ValueError("a load is 0 to 100")
        value = encode([int(self.restricted), int(not self.healthy), self.load, meta])
        if len(value) > SERVICE_MAX_VALUE:
            raise ValueError(f"an announcement has at most {SERVICE_MAX_VALUE} bytes, not {len(value)}")
        return value


@frozen
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
        """Return the instance as plain JSON.

        ``rtt_ms`` has three decimals, and is None without a connection; ``expires`` is left out.
        """
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
    """Return whether a service of this name can be announced: 1 to 64 visible characters, no slash, no space."""
    if not 0 < len(name) <= GOSSIP_MAX_NAME or "/" in name or " " in name:
        return False
    return name.isprintable() and visible(name) == name


def is_offer(entry: Entry) -> bool:
    """Return whether a SERVICE entry is well-formed: an announcement or a withdrawal."""
    return is_service_name(entry.name) if entry.value is None else parse_offer(entry) is not None


def parse_offer(entry: Entry) -> Offer | None:
    """Return what a SERVICE entry announces; None when it is malformed or a withdrawal.

    The same bytes give the same object, which is frozen.
    """
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
    if not isinstance(meta, dict) or not _is_meta(meta):
        return None
    return Offer(bool(numbers[0]), not numbers[1], numbers[2], MappingProxyType(meta))


def _is_meta(meta: dict[object, object]) -> bool:
    texts = (text for pair in meta.items() for text in pair)
    return len(meta) <= SERVICE_MAX_META and "" not in meta and all(map(_is_meta_text, texts))


def _is_meta_text(text: object) -> bool:
    return isinstance(text, str) and len(text) <= SERVICE_MAX_META_TEXT
