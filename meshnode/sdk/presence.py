"""What a node says of itself by name: its own name, and its services; and the events that others' sayings make.

A service is announced when somebody is allowed to use it: who may use it must be able to find it, and what nobody may
use is nobody's business. An announcement says whether everybody may, never who. ``announce=False`` keeps it private.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.base.files import write_atomic
from meshnode.directory.announcement import Offer, is_service_name
from meshnode.directory.names import NameConflict
from meshnode.directory.services import ServiceChanged
from meshnode.errors import ConfigError
from meshnode.gossip.effects import MemberChanged, Status
from meshnode.identity.node_id import NodeId, is_label, label_of

if TYPE_CHECKING:
    from meshnode.sdk.connection import Service
    from meshnode.sdk.failover import Failover
    from meshnode.sdk.node import Node
    from meshnode.stack.directory_link import DirectoryLink

log = logging.getLogger("meshnode.presence")

PINS_FILE, NAME_FILE = "known_names.json", "name.json"
SAVE_DELAY_S = 0.2


class Presence:
    """Announces, claims, keeps pins on disk, and turns what happens into the node's events."""

    def __init__(self, node: Node, registry: DirectoryLink | None, caller: Failover, home: Path) -> None:
        self._node = node
        self._registry = registry
        self._caller = caller
        self._home = home
        self._loop = asyncio.get_running_loop()
        self._saving: asyncio.TimerHandle | None = None
        if registry is None:
            return
        registry.names.restore(_load_pins(home / PINS_FILE))
        registry.on_service = self._on_service
        registry.on_conflict = self._on_conflict
        registry.on_member = self._on_member
        registry.on_pins = self._on_pins
        registry.on_name = caller.tell
        if node.config.name:
            self._claim(registry, node.config.name)
        for service in node.services.values():
            self.announce(service)

    def _claim(self, registry: DirectoryLink, label: str) -> None:
        """Claim our name, since when we first did."""
        path, first = self._home / NAME_FILE, int(self._node.wall() * 1000)
        try:
            saved = json.loads(path.read_text())
            if saved["name"] == label and isinstance(saved["first"], int) and 0 < saved["first"] < first:
                first = saved["first"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is of no use: the claim begins now
        write_atomic(path, json.dumps({"name": label, "first": first}).encode())
        registry.names.claim(label, first, self._loop.time())
        self._drain(registry)

    # ---- services

    @staticmethod
    def check(name: str, announce: bool | None) -> None:
        """Raise ConfigError for a name that cannot be announced, when it must be."""
        if announce and not is_service_name(name):
            raise ConfigError(
                f"{name!r} cannot be announced", hint="1 to 64 visible characters without a slash, or announce=False"
            )

    def announce(self, service: Service) -> None:
        """Tell the mesh of a service, or of what has changed about it. Raises ConfigError."""
        registry = self._registry
        wanted = service.announce if service.announce is not None else service.is_allowed_to_some
        if registry is None or not wanted or not is_service_name(service.name):
            return
        offer = Offer(service.allow is not None, service.healthy, service.load, service.meta)
        try:
            registry.directory.announce(service.name, offer, self._loop.time())
        except ValueError as error:
            raise ConfigError(str(error), hint="announce=False keeps a service private") from error
        self._drain(registry)

    def withdraw(self, name: str) -> None:
        """Tell the mesh that a service is gone."""
        if self._registry is not None:
            self._registry.directory.withdraw(name, self._loop.time())
            self._drain(self._registry)

    def services(self, name: str | None = None) -> list[dict[str, object]]:
        """All instances of one or of all services, ours included; plain JSON."""
        registry = self._registry
        if registry is None:
            return []
        now = self._loop.time()
        found: list[dict[str, object]] = []
        own = registry.directory.announced()
        for service in sorted({*registry.directory.names(), *own}) if name is None else [name]:
            if service in own:
                offer = own[service]
                found.append(
                    {
                        "service": service,
                        "id": str(self._node.id),
                        "state": "up" if offer.healthy else "failing",
                        "load": offer.load,
                        "restricted": offer.restricted,
                        "rtt_ms": 0.0,
                        "meta": dict(offer.meta),
                    }
                )
            found += [instance.to_json() for instance in registry.instances(service, now)]
        for item in found:
            item["name"] = self.name_of(NodeId.parse(str(item["id"])))
        return found

    def members(self) -> list[dict[str, object]]:
        """All nodes of which gossip knows, ourselves included; plain JSON."""
        gossip = self._node.mesh.gossip
        if gossip is None:
            return []
        ids = {self._node.id: None, **dict.fromkeys(gossip.members())}
        return [
            {"id": str(peer), "status": gossip.status(peer).value, "name": self.name_of(peer)} for peer in sorted(ids)
        ]

    def name_of(self, peer: NodeId) -> str:
        """The name that a node holds; "" when it has none."""
        return self._registry.names.name_of(peer, self._node.wall()) if self._registry is not None else ""

    def forget_name(self, text: str) -> bool:
        """Drop the pin of a name; False when there was none."""
        label = label_of(text)
        if self._registry is None or label is None:
            return False
        found = self._registry.names.forget(label)
        self._drain(self._registry)
        return found

    def close(self) -> None:
        """Write what must last."""
        if self._saving is not None:
            self._save()

    # ---- what happens

    def _drain(self, registry: DirectoryLink) -> None:
        registry.drain(self._loop.time())
        self._node.on_dirty()

    def _on_service(self, effect: ServiceChanged) -> None:
        instance = effect.instance
        self._node.emit(f"service_{effect.change}", instance.node, instance.state, instance.service)
        if effect.change != "up" and effect.change != "changed":
            self._caller.on_gone(instance.node)
        self._caller.tell()

    def _on_member(self, change: MemberChanged) -> None:
        self._node.emit("member", change.peer, change.status.value)
        if change.status in (Status.GONE, Status.LEFT):
            self._caller.on_gone(change.peer)

    def _on_conflict(self, effect: NameConflict) -> None:
        holder, rival = effect.holder.short, effect.rival.short
        log.warning("the name %s is claimed by %s too; it stays with %s here", effect.name, rival, holder)
        self._node.emit("name_conflict", effect.rival, f"{effect.name} stays with {effect.holder}")

    def _on_pins(self) -> None:
        if self._saving is None:
            self._saving = self._loop.call_later(SAVE_DELAY_S, self._save)

    def _save(self) -> None:
        assert self._registry is not None
        if self._saving is not None:
            self._saving.cancel()
        self._saving = None
        pins = {name: str(peer) for name, peer in self._registry.names.pins.items()}
        try:
            write_atomic(self._home / PINS_FILE, json.dumps(pins, indent=1).encode())
        except OSError as error:
            log.warning("cannot save what names mean: %s", error)


def _load_pins(path: Path) -> Mapping[str, NodeId]:
    try:
        saved = json.loads(path.read_text())
        return {name: NodeId.parse(text) for name, text in saved.items() if is_label(name)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s is not readable; names are learnt anew: %s", path, error)
        return {}
