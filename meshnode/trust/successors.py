"""Keys that have replaced others, as far as a node has heard of them: where an old id leads, and where two claim it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshnode.base.fair_table import FairTable
from meshnode.base.limits import MAX_SUCCESSORS
from meshnode.errors import GrantError
from meshnode.identity.node_id import NodeId
from meshnode.trust.chain import Standing
from meshnode.trust.grant import LAST_MS, Grant, open_grant
from meshnode.trust.succession import is_signed_by_both, open_succession, without_succession

MAX_STEPS = 8  # of a way from key to key

Share = tuple[str, str]  # the first grant of a chain, "" of the authority alone, and the ticket or giver behind it


def share_of(standing: Standing) -> Share:
    """Return whose place a key takes: that of the delegate, renewer or ticket through which its grants came."""
    first, *others = standing.grants
    if not others:
        return "", ""
    lineage = open_grant(without_succession(standing.chain)[-1]).lineage
    return first, lineage[0].hex() if lineage else others[0] if len(others) > 1 else ""


class Successors:
    """The new keys of each old one. Both keys have signed each that is noted.

    A key replaces one other. Places are shared by what let the keys in: where none is free the newest of the largest
    share goes, so a crowd that came by one ticket takes no place of others, and what was there first stays. A second
    successor takes none: no dispute is lost for want of one.
    """

    def __init__(self) -> None:
        self._places: FairTable[NodeId] = FairTable(MAX_SUCCESSORS, newest_goes=True)
        self._said: dict[NodeId, list[Grant]] = {}  # by the old key; two where they are disputed
        self._shares: dict[NodeId, Share] = {}
        self._old: dict[NodeId, NodeId] = {}  # by the new key
        self.on_new: list[Callable[[NodeId, NodeId], None]] = []  # what belonged to the old key is the new one's
        self.on_said: Callable[[], None] = lambda: None  # ``saved`` has changed

    @property
    def said(self) -> list[bytes]:
        """Return the signed statements behind what is noted."""
        return [link.encoded for links in self._said.values() for link in links]

    def saved(self) -> list[list[object]]:
        """Return what ``restore`` takes: each statement with its share."""
        return [[link.encoded, *self._shares[old]] for old, links in self._said.items() for link in links]

    def restore(self, saved: Iterable[tuple[bytes, Share]]) -> None:
        """Note what an earlier process had noted; what both keys have not signed is left out."""
        for encoded, share in saved:
            try:
                link = open_succession(encoded)
            except GrantError:
                continue
            if is_signed_by_both(encoded):
                self.note(link, share)

    def replaces_another(self, link: Grant) -> bool:
        """Return whether the new key of a succession has replaced another old key already."""
        return self._old.get(link.subject, link.issuer) != link.issuer

    def note(self, link: Grant, share: Share) -> bool:
        """Note a verified succession; returns whether it is news, and has a place.

        Of one key the second, different one makes a dispute: both count no longer.
        """
        old, new = link.issuer, link.subject
        found = self._said.get(old, [])
        if new in self._after(old) or len(found) > 1 or self.replaces_another(link):
            return False
        if not found and not self._has_place(old, share):
            return False
        self._said[old] = [*found, link]
        self._old[new] = old
        if not found:
            for follow in self.on_new:
                follow(old, new)
        self.on_said()
        return True

    def _has_place(self, old: NodeId, share: Share) -> bool:
        gone = self._places.add(old, *share)
        if gone == old:
            return False
        self._shares[old] = share
        if gone is not None:
            del self._shares[gone]
            for link in self._said.pop(gone):
                del self._old[link.subject]
        return True

    def _after(self, old: NodeId | None) -> list[NodeId]:
        """Return the keys that are known to have replaced one."""
        return [link.subject for link in self._said.get(old, ())] if old is not None else []

    def has_another(self, old: NodeId, new: NodeId) -> bool:
        """Return whether another key than ``new`` is known to have replaced ``old``."""
        return any(found != new for found in self._after(old))

    def is_disputed(self, old: NodeId | None) -> bool:
        """Return whether a key was replaced by two others: its holder, or a thief, has signed both."""
        return len(self._after(old)) > 1

    def disputed(self) -> list[NodeId]:
        """Return the keys that have two successors."""
        return [old for old in self._said if self.is_disputed(old)]

    def line(self, peer: NodeId) -> list[NodeId]:
        """Return the keys that have replaced a peer's one after the other, as far as none is disputed."""
        found: list[NodeId] = []
        while len(after := self._after(peer)) == 1 and len(found) < MAX_STEPS:
            peer = after[0]
            found.append(peer)
        return found

    def of(self, peer: NodeId) -> NodeId:
        """Return the key that has replaced a peer's, or that itself."""
        return [peer, *self.line(peer)][-1]

    def formers(self, peer: NodeId) -> list[NodeId]:
        """Return the keys that a peer's has replaced, the last one first."""
        found: list[NodeId] = []
        while len(found) < MAX_STEPS and (old := self._old.get(peer)) is not None:
            found.append(old)
            peer = old
        return found

    def ends(self, peer: NodeId) -> int:
        """Return until when a key that was replaced counts too, in Unix milliseconds; ``LAST_MS`` for all others."""
        return min((link.expires for link in self._said.get(peer, ())), default=LAST_MS)
