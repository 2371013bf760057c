"""The sources of records that a node has besides the DHT: each is one line of ``SOURCES``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from meshnode.base.address import Addr
from meshnode.base.metrics import Metrics
from meshnode.base.value import value
from meshnode.config import Config, parse_record_text, parse_seed
from meshnode.discovery.source import RecordSource
from meshnode.identity.node_id import NodeId
from meshnode.identity.sealing import Sealer
from meshnode.runtime.seeds import SeedSource
from meshnode.runtime.static_records import StaticSource
from meshnode.runtime.tasks import Spawn

log = logging.getLogger("meshnode.node")


@value
class Surroundings:
    """Parts of a node that a source may use.

    ``spawn`` runs a coroutine until the node closes and logs what it raises, ``local`` returns the address that the
    socket is bound to, ``is_joined`` whether a DHT contact answers, ``is_reached`` whether that node does. Only
    members of the mesh can read what ``sealer`` seals with ``encrypt_hint``.
    """

    id: NodeId
    config: Config
    sealer: Sealer
    metrics: Metrics
    spawn: Spawn
    local: Callable[[], Addr]
    is_joined: Callable[[], bool]
    is_reached: Callable[[NodeId], bool]


def _seeds(node: Surroundings) -> RecordSource | None:
    seeds = [parse_seed(text) for text in node.config.seeds]
    return SeedSource(seeds, node.spawn, node.is_joined, node.is_reached, node.metrics) if seeds else None


def _static(node: Surroundings) -> RecordSource | None:
    records = [parse_record_text(text) for text in node.config.records]
    return StaticSource(records) if records else None


def _mdns(node: Surroundings) -> RecordSource | None:
    if not node.config.mdns:
        return None
    try:
        from meshnode.runtime.mdns import MdnsSource  # loads zeroconf
    except ImportError:
        log.warning("mDNS is off: zeroconf cannot be imported")
        return None
    return MdnsSource(node.id, node.sealer, node.local, node.metrics)


# Each makes one source, or None where the configuration has no use for it. They start in this order.
SOURCES: list[Callable[[Surroundings], RecordSource | None]] = [
    _seeds,
    _static,
    _mdns,
]


def make_sources(node: Surroundings, on_error: Callable[[Exception], None]) -> Iterator[RecordSource]:
    """Make the configured sources one by one, in the order of ``SOURCES``.

    Each is made when the iterator asks for it, so that the import of one (zeroconf takes longest) delays none before
    it. ``on_error`` gets what one raises that cannot be made.
    """
    for make in SOURCES:
        try:
            source = make(node)
        except Exception as error:
            on_error(error)
            continue
        if source is not None:
            yield source
