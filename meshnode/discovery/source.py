"""The seam between resolution and the ways in which records are found: one protocol, any number of sources.

A source publishes this node's record somewhere and finds the records of others there. All sources of a node run at
the same time, and each is only a hint: a record counts when its signature, its time and its seq do, and the newest
valid seq wins whatever the source. So a source need not verify what it hands in; a hostile one can delay, not deceive.
``docs/how-to/add-a-discovery-source.md`` adds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from meshnode.base.address import Addr
from meshnode.base.path import ViaTunnel
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord


class Sink(Protocol):
    """Receiver of what one source finds, asked or not, at any time after its ``start``.

    All methods are called in the node's own thread; they never raise, whatever the bytes are.
    """

    def record(self, encoded: bytes, via: str = "") -> None:
        """Hand in a signed record as its bytes; invalid and old ones are dropped and counted.

        ``via`` is the name shown as the record's source, by default the source's ``name``.
        """

    def seed(self, peer: NodeId, addrs: Iterable[Addr | ViaTunnel]) -> None:
        """Hand in unsigned addresses of a peer that the operator has configured.

        The last call for a peer counts.
        """

    def is_wanted(self, peer: NodeId) -> bool:
        """Return True while a caller waits for the record of ``peer``."""
        ...


class RecordSource:
    """One way to find records: publish, resolve, status. A source overrides what concerns it.

    Every method returns at once: a source with I/O starts a task, a core leaves effects for its next flush.
    ``now`` is monotonic seconds.

    Attributes:
        name: Shown in ``resolve`` and ``status``; letters, no spaces.
        introduces: True when its records should also make contacts for the DHT and gossip, which join the mesh by
            them. False for a source that is itself a part of the mesh.
    """

    name: str
    introduces: bool = True

    def start(self, sink: Sink, now: float) -> None:
        """Begin; everything that is found goes to ``sink``.

        Called once, before any other method, in the node's loop.
        """

    def publish(self, record: EndpointRecord, now: float) -> None:
        """Make this node's newest record findable, in place of the last one.

        ``record.encoded`` has at most ``MAX_RECORD`` bytes. Called at every change and several times in the record's
        lifetime, and never for another node's record.
        """

    def resolve(self, peer: NodeId, now: float) -> None:
        """Look for the record of ``peer``. A source that cannot be asked does nothing.

        Called for each caller that waits, and every few seconds while a connected peer does not answer, so a source
        that is looking for this peer already returns. To try again, ask ``Sink.is_wanted`` first.
        """

    def moved(self, now: float) -> None:
        """Note that this host's addresses have changed.

        A new record, if there is one, was published before. For sources that hold sockets or are
        known by their address.
        """

    def status(self) -> dict[str, object]:
        """Return a small JSON object for ``meshnode status --json``: whether it works, and the last error.

        Called at any time after ``start``.
        """
        return {}

    async def close(self) -> None:
        """Withdraw what was published, where that takes less than a second, and end all tasks."""
