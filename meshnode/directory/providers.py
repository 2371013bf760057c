"""Providers: the node that a service means when it is used by its name alone, pinned by the first use. Sans I/O.

Any member can offer a service of any name, so a name alone says nothing of whose it is. The first use with a single
living provider pins that one, as ssh does with host keys; with several it is an error that names them. From then on the
service means that node or an error, until the user calls ``forget``. Uses that say which providers they trust ask
nothing here, and pin nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshnode.base.bounded import BoundedDict
from meshnode.base.limits import NAMES_MAX_CLAIMS, NAMES_MAX_PINS
from meshnode.base.metrics import Metrics, describe
from meshnode.base.value import value
from meshnode.directory.names import PinsChanged, follow
from meshnode.errors import NameChanged, NameDisputed
from meshnode.identity.node_id import NodeId

MAX_NAMED = 8  # providers in the text of an error

RIVALS = describe("providers_rivals", "times that another node began to offer a service that means one node here")


@value
class ProviderConflict:
    """``rival`` offers a service too that means ``holder`` here."""

    service: str
    holder: NodeId
    rival: NodeId


Effect = PinsChanged | ProviderConflict


class Providers:
    """The providers that services mean here. After each call, the caller carries out ``take_effects()``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pins: BoundedDict[str, NodeId] = BoundedDict(NAMES_MAX_PINS)
        self._told: BoundedDict[tuple[str, NodeId], None] = BoundedDict(NAMES_MAX_CLAIMS)
        self._effects: list[Effect] = []

    def take_effects(self) -> list[Effect]:
        """Return everything to do or to tell since the last call, in order."""
        effects, self._effects = self._effects, []
        return effects

    def restore(self, pins: Mapping[str, NodeId]) -> None:
        """Add pins of earlier runs."""
        self._pins.update(pins)

    @property
    def pins(self) -> dict[str, NodeId]:
        """Return the nodes that the services used here mean, the one used longest ago first."""
        return dict(self._pins)

    def pinned(self, service: str) -> NodeId | None:
        """Return the node that a service meant when it was first used here; None when it was not."""
        return self._pins.get(service)

    def pin(self, service: str, node: NodeId) -> None:
        """Note that a service was used by its name alone, and which node served."""
        if self._pins.get(service) != node:
            self._effects.append(PinsChanged())
        self._pins.put(service, node)

    def follow(self, old: NodeId, new: NodeId) -> None:
        """Let services that mean a node mean the key that has replaced its key."""
        if follow(self._pins, old, new):
            self._effects.append(PinsChanged())

    def forget(self, service: str) -> bool:
        """Drop the pin of a service; returns False when there was none."""
        if self._pins.pop(service, None) is None:
            return False
        self._effects.append(PinsChanged())
        return True

    def on_offer(self, service: str, node: NodeId) -> None:
        """Tell, once, that another node than the pinned one offers a service."""
        holder = self._pins.get(service)
        if holder is None or holder == node or (service, node) in self._told:
            return
        self._told[service, node] = None
        self._metrics.count(RIVALS)
        self._effects.append(ProviderConflict(service, holder, node))

    def choose(self, service: str, offered: Sequence[NodeId]) -> NodeId | None:
        """Return the node that a service means, of those that offer it now; None when no node offers it.

        Raises:
            NameDisputed: Several offer it, and it was never used here.
            NameChanged: Only other nodes than the pinned one offer it now.
        """
        if not offered:
            return None
        pinned = self._pins.get(service)
        if pinned is None:
            if len(offered) > 1:
                raise _disputed(service, offered)
            return offered[0]
        if pinned not in offered:
            raise NameChanged(
                f"{service} was {pinned}'s when it was first used here, and is offered by {_listed(offered)} now",
                hint=f"if that is right: `meshnode forget {service}`; else say which nodes are trusted, with --from ID",
            )
        return pinned


def _disputed(service: str, offered: Sequence[NodeId]) -> NameDisputed:
    ids = sorted(map(str, offered))
    return NameDisputed(
        f"{service} is offered by {len(ids)} nodes: {_listed(offered)}",
        claimants=tuple(ids),
        hint=f"name one ({ids[0]}/{service}), or all that are trusted: --from {ids[0]} --from ...; --from any is every "
        "member; in a program: open_any(service, trusted=[...])",
    )


def _listed(nodes: Sequence[NodeId]) -> str:
    ids = sorted(map(str, nodes))
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(ids[:MAX_NAMED]) + more
