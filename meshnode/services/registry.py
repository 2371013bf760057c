"""Exposed and forwarded services, kept in ``services.json`` so that they survive kill -9."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshnode.base.files import write_atomic
from meshnode.directory.announcement import Offer, is_service_name
from meshnode.errors import AddressInUse, ConfigError, MeshError, NotFound
from meshnode.identity.node_id import NodeId, id_or_label, quoted
from meshnode.sdk.node import Node
from meshnode.services.tcp import Expose, Forward, host_port, parse_listen

log = logging.getLogger("meshnode.services")

SERVICE_FORM = "a service's name has 1 to 64 visible characters and no slash"


def parse_service(to: str) -> tuple[NodeId | str | None, str]:
    """Parse ``NODE/SERVICE``, or ``SERVICE`` alone for any instance of it. Raises ConfigError, InvalidId."""
    node, slash, service = to.partition("/")
    if not service and not slash:
        node, service = "", node
    if not service or (slash and not node):
        raise ConfigError(f"{quoted(to)} is neither NODE/SERVICE nor SERVICE", hint="as in ID/web, laptop/web or web")
    if not is_service_name(service):
        raise ConfigError(f"{quoted(service)} is no name for a service", hint=SERVICE_FORM)
    return (id_or_label(node) if slash else None), service


class ServiceBook:
    """All exposes and forwards of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._path: Path = node.config.home_path / "services.json"
        self.exposes: dict[str, Expose] = {}
        self.forwards: dict[str, Forward] = {}

    async def restore(self) -> None:
        """Start again what ``services.json`` lists.

        A file that cannot be read restores nothing, and an item that fails (a port that is taken, say) is left out;
        either is logged and raises nothing. The file is not rewritten before the next change.
        """
        try:
            saved = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s is not readable, services are not restored: %s", self._path, error)
            return
        for item in saved.get("exposes", []):
            try:
                self._expose(item["name"], item["target"], tuple(item["allow"]), item.get("announce"), item.get("meta"))
            except MeshError as error:
                log.warning("expose %s is not restored: %s", item.get("name"), error)
        for item in saved.get("forwards", []):
            try:
                await self._forward(item["listen"], item["to"], bool(item.get("sticky")))
            except MeshError as error:
                log.warning("forward %s is not restored: %s", item.get("listen"), error)

    def _save(self) -> None:
        data = {
            "exposes": [
                {"name": e.name, "target": e.target, "allow": list(e.allow), "announce": e.announce, "meta": e.meta}
                for e in self.exposes.values()
            ],
            "forwards": [{"listen": f.listen, "to": f.to, "sticky": f.sticky} for f in self.forwards.values()],
        }
        write_atomic(self._path, json.dumps(data, indent=1).encode())

    def _expose(
        self,
        name: str,
        target: str,
        allow: tuple[str, ...],
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        if not is_service_name(name):
            raise ConfigError(f"{quoted(name)} is no name for a service", hint=SERVICE_FORM)
        try:
            Offer(meta=dict(meta or {})).encoded()
        except ValueError as error:
            raise ConfigError(str(error), hint="give fewer or shorter --meta KEY=TEXT") from error
        self.exposes[name] = Expose(self._node, name, target, allow, announce, meta)

    def expose(
        self,
        name: str,
        target: str,
        allow: tuple[str, ...],
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Serve a TCP target under ``name``; exposing a name again replaces the earlier one.

        Args:
            name: The name that peers open.
            target: ``tcp://HOST:PORT``, connected to for each stream.
            allow: Ids of the nodes that may open it, or "any" for every member; no node may unless named.
            announce: Whether it is announced in the service directory; None: if any node is allowed.
            meta: Text that is announced with it.

        Returns:
            The name, target and allowed ids as plain JSON.

        Raises:
            ConfigError, InvalidId, OSError: Nothing is changed, an earlier service of that name is served on.
        """
        old = self.exposes.pop(name, None)
        if old is not None:
            old.close()
        try:
            self._expose(name, target, allow, announce, meta)
            self._save()
        except (MeshError, OSError):
            if name in self.exposes:
                self.exposes.pop(name).close()
            if old is not None:
                self._expose(old.name, old.target, old.allow, old.announce, old.meta)
            raise
        return {"name": name, "target": self.exposes[name].target, "allow": list(allow)}

    def unexpose(self, name: str) -> dict[str, Any]:
        """Withdraw a service. Raises NotFound."""
        found = self.exposes.pop(name, None)
        if found is None:
            raise NotFound(f"nothing is exposed as {name!r}", hint="`meshnode status` lists what is")
        found.close()
        self._save()
        return {"name": name}

    async def _forward(self, listen: str, to: str, sticky: bool) -> Forward:
        forward = Forward(self._node, listen, *parse_service(to), sticky)
        host, port = parse_listen(listen)
        held = self.forwards.get(host_port(host, port))
        if held is not None and (held.to, held.sticky) == (forward.to, sticky):
            return held
        try:
            forward.listen = host_port(*await forward.start())
        except AddressInUse:
            rival = next((f for f in self.forwards.values() if port and f.listen.endswith(f":{port}")), None)
            if rival is None:
                raise
            raise AddressInUse(
                f"{rival.listen} is forwarded to {rival.to} already", hint=f"meshnode unforward {rival.listen}"
            ) from None
        self.forwards[forward.listen] = forward
        return forward

    async def forward(self, listen: str, to: str, sticky: bool = False) -> dict[str, Any]:
        """Listen here for a service: ``NODE/SERVICE``, or ``SERVICE`` alone for any instance of it.

        The same forward twice is one. Raises AddressInUse, ConfigError, InvalidId.
        """
        found = await self._forward(listen, to, sticky)
        try:
            self._save()
        except OSError:
            await self.forwards.pop(found.listen).close()
            raise
        return {"listen": found.listen, "to": to}

    async def unforward(self, listen: str) -> dict[str, Any]:
        """Stop a forward, named by its listen address (``HOST:PORT``) or by its port alone.

        Its connections are dropped. Returns the listen address as plain JSON. Raises NotFound.
        """
        found = next((k for k in self.forwards if k == listen or k.endswith(f":{listen}")), None)
        if found is None:
            raise NotFound(f"nothing is forwarded from {listen}", hint="`meshnode status` lists what is")
        await self.forwards.pop(found).close()
        self._save()
        return {"listen": found}

    async def close(self) -> None:
        """Stop everything; the file stays.

        The next start on the same home restores what was exposed and forwarded.
        """
        for forward in self.forwards.values():
            await forward.close()
        for expose in self.exposes.values():
            expose.close()
