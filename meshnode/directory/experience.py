"""What this node has experienced with instances of services: opens that failed, refusals, silence. Sans I/O.

It counts at once, long before the mesh agrees that a node is gone, and for a while only.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import DIRECTORY_MAX_SHUNNED, DIRECTORY_MAX_STICKY
from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import state
from meshnode.gossip.effects import Status
from meshnode.identity.node_id import NodeId

FAILED_S, MAX_FAILED_S = 2.0, 60.0  # a failing instance is tried last for this long, doubling
REFUSED_S = 60.0
FORGIVEN_S = 30.0  # after this long without a failure the doubling begins again

SHUNNED = describe("directory_shunned", "times that an instance failed, refused or fell silent, and is tried last")


@state
class _Shun:
    state: str
    until: float
    wait: float
    seq: int = 0


class Experience:
    """Outcomes of this node's streams to instances. ``now`` is monotonic seconds.

    ``status`` asks the membership; ``seq_of`` returns the seq of a node's announcement of a service, 0 without one.
    """

    def __init__(
        self, metrics: Metrics, status: Callable[[NodeId], Status], seq_of: Callable[[NodeId, str], int]
    ) -> None:
        self._metrics = metrics
        self._status = status
        self._seq_of = seq_of
        self._shunned: BoundedDict[tuple[NodeId, str], _Shun] = BoundedDict(DIRECTORY_MAX_SHUNNED)
        self._silent: dict[NodeId, None] = {}
        self._last: BoundedDict[str, NodeId] = BoundedDict(DIRECTORY_MAX_STICKY)

    # ---- what happens

    def on_opened(self, peer: NodeId, name: str) -> None:
        """Note that a stream to a service was accepted: earlier failures of it and of its node count no longer."""
        self._shunned.pop((peer, name), None)
        self._shunned.pop((peer, ""), None)
        self._silent.pop(peer, None)
        self._last.put(name, peer)

    def on_failed(self, peer: NodeId, now: float, name: str = "") -> None:
        """Note that a node could not be reached, or, with a name, that its service broke.

        It is tried last for ``FAILED_S``, and for twice as long each time that it fails again within ``FORGIVEN_S``
        after that, up to ``MAX_FAILED_S``.
        """
        self._shun(peer, name, "failed", FAILED_S, now)

    def on_refused(self, peer: NodeId, name: str, now: float) -> None:
        """Note that this node may not use the service: it is tried last for ``REFUSED_S``."""
        self._shun(peer, name, "refused", REFUSED_S, now)

    def on_missing(self, peer: NodeId, name: str, now: float) -> None:
        """Note that the node says that it has no such service.

        It is tried last for ``REFUSED_S``, or until it announces the service with a higher seq.
        """
        self._shun(peer, name, "missing", REFUSED_S, now, self._seq_of(peer, name))

    def on_announced(self, peer: NodeId, name: str, seq: int) -> None:
        """Note a new announcement: a service that was missing is there now."""
        shun = self._shunned.get((peer, name))
        if shun is not None and shun.state == "missing" and seq > shun.seq:
            del self._shunned[peer, name]

    def on_silent(self, peer: NodeId, now: float) -> None:
        """Note that something expected of ``peer`` has not come: other nodes are tried first until it is heard."""
        self._silent[peer] = None

    def on_heard(self, peer: NodeId) -> None:
        """Note that ``peer`` answers."""
        self._silent.pop(peer, None)

    def _shun(self, peer: NodeId, name: str, state: str, wait: float, now: float, seq: int = 0) -> None:
        self._metrics.count(SHUNNED)
        before = self._shunned.get((peer, name))
        if before is not None and now < before.until + FORGIVEN_S:
            wait = min(MAX_FAILED_S, max(wait, before.wait * 2))
        self._shunned.put((peer, name), _Shun(state, now + wait, wait, seq))

    # ---- questions

    def is_silent(self, peer: NodeId) -> bool:
        """Return whether something expected of ``peer`` has not come, or the mesh believes that it is gone."""
        return peer in self._silent or self._status(peer) in (Status.GONE, Status.LEFT)

    def state(self, peer: NodeId, name: str, now: float) -> str | None:
        """Return why an instance is to be tried late: ``failed``, ``refused``, ``missing`` or ``silent``; else None."""
        shun = self._shunned.get((peer, name)) or self._shunned.get((peer, ""))
        if shun is not None and shun.until > now:
            return shun.state
        return "silent" if peer in self._silent else None

    def last_opened(self, name: str) -> NodeId | None:
        """Return the node of the last stream to a service that was accepted."""
        return self._last.get(name)
