"""Records from the configuration as a source: signed ones that an operator or an invitation has handed over."""

from __future__ import annotations

from collections.abc import Iterable

from meshnode.discovery.source import RecordSource, Sink
from meshnode.identity.node_id import NodeId


class StaticSource(RecordSource):
    """The configured records. A node whose record has expired or is outdated is found by the other sources."""

    name = "static"

    def __init__(self, records: Iterable[bytes]) -> None:
        self._records = list(records)
        self._sink: Sink | None = None

    def start(self, sink: Sink, now: float) -> None:
        """Hand in all of them."""
        self._sink = sink
        self._hand_in()

    def resolve(self, peer: NodeId, now: float) -> None:
        """Hand them in again: the cache of records may have forgotten one, and invalid ones cost microseconds."""
        self._hand_in()

    def status(self) -> dict[str, object]:
        """Return how many records are configured."""
        return {"configured": len(self._records)}

    def _hand_in(self) -> None:
        assert self._sink is not None
        for encoded in self._records:
            self._sink.record(encoded)
