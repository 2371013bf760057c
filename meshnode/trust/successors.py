"""Keys that have replaced others, as far as a node has heard of them: where an old id leads, and where two claim it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SUCCESSORS
from meshnode.errors import GrantError
from meshnode.identity.node_id import NodeId
from meshnode.trust.succession import is_signed_by_both, open_succession


class Successors:
    """The new key of each old one. Both keys have signed each that is noted."""

    def __init__(self) -> None:
        self._new: BoundedDict[NodeId, NodeId] = BoundedDict(MAX_SUCCESSORS)
        self._disputed: BoundedDict[NodeId, None] = BoundedDict(MAX_SUCCESSORS)
        self._said: BoundedDict[tuple[NodeId, NodeId], bytes] = BoundedDict(MAX_SUCCESSORS)
        self.on_new: list[Callable[[NodeId, NodeId], None]] = []  # what belonged to the old key is the new one's
        self.on_said: Callable[[], None] = lambda: None  # ``said`` has changed

    @property
    def said(self) -> list[bytes]:
        """Return the signed statements behind what is noted, the oldest first."""
        return list(self._said.values())

    def restore(self, statements: Iterable[bytes]) -> None:
        """Note what an earlier process had noted; what both keys have not signed is left out."""
        for encoded in statements:
            try:
                link = open_succession(encoded)
            except GrantError:
                continue
            if is_signed_by_both(encoded):
                self.note(link.issuer, link.subject, encoded)

    def note(self, old: NodeId | None, new: NodeId, encoded: bytes) -> bool:
        """Note a verified succession; returns whether it is a second, different one: both count no longer."""
        if old is None:
            return False
        is_said = (old, new) in self._said or (old in self._disputed)
        if not is_said:
            self._said.put((old, new), encoded)
        found = self._note(old, new)
        if not is_said:
            self.on_said()
        return found

    def _note(self, old: NodeId, new: NodeId) -> bool:
        before = self._new.get(old)
        if before is None:
            self._new.put(old, new)
            for follow in self.on_new:
                follow(old, new)
        if before in (None, new) or old in self._disputed:
            return False
        self._disputed.put(old, None)
        return True

    def is_disputed(self, old: NodeId | None) -> bool:
        """Return whether a key was replaced by two others: its holder, or a thief, has signed both."""
        return old is not None and old in self._disputed

    def disputed(self) -> list[NodeId]:
        """Return the keys that have two successors."""
        return list(self._disputed)

    def of(self, peer: NodeId) -> NodeId:
        """Return the key that has replaced a peer's, or that itself."""
        for _ in range(8):
            new = self._new.get(peer)
            if new is None or peer in self._disputed:
                break
            peer = new
        return peer
