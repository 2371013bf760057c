"""Keys that have replaced others, as far as a node has heard of them: where an old id leads, and where two claim it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import MAX_SUCCESSORS
from meshnode.errors import GrantError
from meshnode.identity.node_id import NodeId
from meshnode.trust.grant import LAST_MS, Grant
from meshnode.trust.succession import is_signed_by_both, open_succession

MAX_STEPS = 8  # of a way from key to key


class Successors:
    """The new keys of each old one. Both keys have signed each that is noted.

    A key replaces one other: a member that signs for ever new old keys has one place here, and pushes out no dispute.
    """

    def __init__(self) -> None:
        self._said: BoundedDict[tuple[NodeId, NodeId], Grant] = BoundedDict(MAX_SUCCESSORS)
        self._new: dict[NodeId, list[NodeId]] = {}  # of an old key; two where they are disputed
        self._old: dict[NodeId, NodeId] = {}  # by the new key
        self.on_new: list[Callable[[NodeId, NodeId], None]] = []  # what belonged to the old key is the new one's
        self.on_said: Callable[[], None] = lambda: None  # ``said`` has changed

    @property
    def said(self) -> list[bytes]:
        """Return the signed statements behind what is noted, the oldest first."""
        return [link.encoded for link in self._said.values()]

    def restore(self, statements: Iterable[bytes]) -> None:
        """Note what an earlier process had noted; what both keys have not signed is left out."""
        for encoded in statements:
            try:
                link = open_succession(encoded)
            except GrantError:
                continue
            if is_signed_by_both(encoded):
                self.note(link)

    def replaces_another(self, link: Grant) -> bool:
        """Return whether the new key of a succession has replaced another old key already."""
        return self._old.get(link.subject, link.issuer) != link.issuer

    def note(self, link: Grant) -> bool:
        """Note a verified succession; returns whether it is a second, different one: both count no longer."""
        old, new = link.issuer, link.subject
        found = self._new.get(old, [])
        if new in found or len(found) > 1 or self.replaces_another(link):
            return False
        if found:
            self._said.move_to_end((old, found[0]))  # so that the second one does not push it out
        self._put(link)
        if not found:
            for follow in self.on_new:
                follow(old, new)
        self.on_said()
        return bool(found)

    def _put(self, link: Grant) -> None:
        pushed_out = self._said.put((link.issuer, link.subject), link)
        self._new.setdefault(link.issuer, []).append(link.subject)
        self._old[link.subject] = link.issuer
        if pushed_out is not None:
            old, new = pushed_out[0]
            self._forget(old, new)

    def _forget(self, old: NodeId, new: NodeId) -> None:
        del self._old[new]
        self._new[old].remove(new)
        if not self._new[old]:
            del self._new[old]

    def is_disputed(self, old: NodeId | None) -> bool:
        """Return whether a key was replaced by two others: its holder, or a thief, has signed both."""
        return old is not None and len(self._new.get(old, ())) > 1

    def disputed(self) -> list[NodeId]:
        """Return the keys that have two successors."""
        return [old for old in self._new if self.is_disputed(old)]

    def of(self, peer: NodeId) -> NodeId:
        """Return the key that has replaced a peer's, or that itself."""
        for _ in range(MAX_STEPS):
            found = self._new.get(peer, ())
            if len(found) != 1:
                break
            peer = found[0]
        return peer

    def formers(self, peer: NodeId) -> list[NodeId]:
        """Return the keys that a peer's has replaced, the last one first."""
        found: list[NodeId] = []
        while len(found) < MAX_STEPS and (old := self._old.get(peer)) is not None:
            found.append(old)
            peer = old
        return found

    def ends(self, peer: NodeId) -> int:
        """Return until when a key that was replaced counts too, in Unix milliseconds; ``LAST_MS`` for all others."""
        return min((self._said[peer, new].expires for new in self._new.get(peer, ())), default=LAST_MS)
