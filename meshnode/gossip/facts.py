"""What cores may ask of each other, through the router. Sans I/O."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.gossip.dissemination.entry_store import EntryStore
from meshnode.gossip.effects import Status
from meshnode.gossip.membership.members import Members
from meshnode.gossip.membership.views import Views
from meshnode.gossip.messages import Contact
from meshnode.identity.node_id import NodeId


class Facts:
    """Facts of nodes. ``believed`` returns the state of any node, ``probeable`` whether datagrams reach one."""

    def __init__(
        self,
        believed: Callable[[NodeId], Status],
        store: EntryStore,
        members: Members,
        views: Views,
        probeable: Callable[[Contact], bool],
    ) -> None:
        self._believed = believed
        self._store = store
        self._members = members
        self._views = views
        self._probeable = probeable

    def incarnation(self, peer: NodeId) -> int:
        """Return the seq of the newest member entry of ``peer``, 0 when there is none."""
        return self._store.incarnation(peer) or 0

    def accusers(self, peer: NodeId) -> int:
        """Return how many nodes accuse ``peer``."""
        return self._members.accusers(peer)

    def status(self, peer: NodeId) -> Status:
        """Return the believed state of ``peer``; UNKNOWN when no entry says that it is a member."""
        return self._believed(peer)

    def is_neighbour(self, peer: NodeId) -> bool:
        """Return whether ``peer`` is in the active view."""
        return peer in self._views.active

    def may_be_probed(self, contact: Contact) -> bool:
        """Return whether datagrams reach a node, and it is neither suspected nor gone."""
        return self._probeable(contact) and self._members.status(contact.id) is Status.ALIVE

    def strangers(self) -> list[Contact]:
        """Return the nodes of the passive view that datagrams reach."""
        return [contact for contact in self._views.passive.values() if self._probeable(contact)]
