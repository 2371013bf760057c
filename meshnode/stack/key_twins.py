"""Keys that two hosts use at once, as a cloned machine does: told apart from a restart by the processes' boot ids.

A boot id is a fencing epoch: the time at which the process began (6 bytes, milliseconds, above all that the home has
used), a random byte, and what is to be done when two processes have one key: 0, the newest stays, or 1, the first does.
It is in each Hello and Welcome, and in the record as a capability, which the key has signed: so it proves a newer one.

A process that ends never comes back with its boot id. So a boot id that is seen again after another one of the same
node shows two processes that run.
"""

from __future__ import annotations

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_BOOTS, MAX_BOOTS_PEERS
from meshnode.base.metrics import describe
from meshnode.identity.node_id import NodeId
from meshnode.identity.record import EndpointRecord

TWICE_S = 600.0  # after the last sign of two hosts; they try again more often

USED_TWICE = describe("key_used_twice", "signs that two hosts use the same key: this node's, or a peer's")


CAPABILITY = "boot:"


def make_boot(number: int, first: bool, random: bytes) -> bytes:
    """Return the boot id of a process; ``number`` is Unix milliseconds, ``random`` one byte."""
    return number.to_bytes(6, "big") + random + bytes([first])


def first_stays(boot: bytes) -> bool:
    """Return whether of two processes the first is to stay, as this one's settings say."""
    return boot[-1:] == b"\x01"


def capability_of(boot: bytes) -> str:
    """Return how a record says the boot id of the process that signed it."""
    return CAPABILITY + boot.hex()


def boot_of(record: EndpointRecord | None) -> bytes:
    """Return the boot id in a record; empty when it says none."""
    for text in record.capabilities if record is not None else ():
        if text.startswith(CAPABILITY):
            try:
                return bytes.fromhex(text.removeprefix(CAPABILITY))
            except ValueError:
                return b""
    return b""


class KeyTwins:
    """The last boot ids of each peer, and the ids whose key is used twice. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._boots: BoundedDict[NodeId, tuple[bytes, ...]] = BoundedDict(MAX_BOOTS_PEERS)
        self._noted: BoundedDict[NodeId, float] = BoundedDict(MAX_BOOTS_PEERS)

    def on_boot(self, peer: NodeId, boot: bytes) -> bool:
        """Take the boot id of a process that has proven its key.

        Returns whether it shows a second one.
        """
        known = self._boots.get(peer, ())
        if known[-1:] == (boot,):
            return False
        rest = tuple(other for other in known if other != boot)
        self._boots.put(peer, (*rest[1 - MAX_BOOTS :], boot))
        return boot in known

    def note(self, node: NodeId, now: float) -> bool:
        """Note that a key is used twice; returns whether that is news."""
        is_news = not self.is_twice(node, now)
        self._noted.put(node, now)
        return is_news

    def is_twice(self, node: NodeId, now: float) -> bool:
        """Return whether a key was used by two hosts in the last ``TWICE_S``."""
        return now - self._noted.get(node, float("-inf")) < TWICE_S

    def noted(self, now: float) -> list[NodeId]:
        """Return the ids whose key is used twice."""
        return [node for node in self._noted if self.is_twice(node, now)]
