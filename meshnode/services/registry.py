"""What is exposed and forwarded, kept in ``services.json`` so that it survives kill -9."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meshnode.base.files import write_atomic
from meshnode.errors import ConfigError, MeshError, NotFound
from meshnode.identity.node_id import MESH_SUFFIX, NodeId, label_of
from meshnode.sdk.node import Node
from meshnode.services.tcp import Expose, Forward

log = logging.getLogger("meshnode.services")


class ServiceBook:
    """All exposes and forwards of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._path: Path = node.config.home_path / "services.json"
        self.exposes: dict[str, Expose] = {}
        self.forwards: dict[str, Forward] = {}

    async def restore(self) -> None:
        """Begin again what an earlier run was told; what fails is logged and kept out."""
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
        self.exposes[name] = Expose(self._node, name, target, allow, announce, meta)

    def expose(
        self,
        name: str,
        target: str,
        allow: tuple[str, ...],
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Serve a TCP target; exposing a name again replaces it. Raises ConfigError, InvalidId."""
        old = self.exposes.pop(name, None)
        if old is not None:
            old.close()
        try:
            self._expose(name, target, allow, announce, meta)
        except MeshError:
            if old is not None:
                self._expose(old.name, old.target, old.allow, old.announce, old.meta)
            raise
        self._save()
        return {"name": name, "target": target, "allow": list(allow)}

    def unexpose(self, name: str) -> dict[str, Any]:
        """Withdraw a service. Raises NotFound."""
        found = self.exposes.pop(name, None)
        if found is None:
            raise NotFound(f"nothing is exposed as {name!r}", hint="`meshnode status` lists what is")
        found.close()
        self._save()
        return {"name": name}

    async def _forward(self, listen: str, to: str, sticky: bool) -> tuple[str, int]:
        peer_text, slash, service = to.rpartition("/")
        if not service or (slash and not peer_text):
            raise ConfigError(f"{to!r} is neither NODE/SERVICE nor SERVICE", hint="as in ID/web, laptop/web or web")
        peer: NodeId | str | None = None
        if slash:
            peer = label_of(peer_text) or NodeId.parse(peer_text.lower().removesuffix(MESH_SUFFIX))
        forward = Forward(self._node, listen, peer, service, sticky)
        bound = await forward.start()
        forward.listen = f"{bound[0]}:{bound[1]}"
        self.forwards[forward.listen] = forward
        return bound

    async def forward(self, listen: str, to: str, sticky: bool = False) -> dict[str, Any]:
        """Listen here for a service: ``NODE/SERVICE``, or ``SERVICE`` alone for any instance of it.

        Raises AddressInUse, ConfigError, InvalidId.
        """
        host, port = await self._forward(listen, to, sticky)
        self._save()
        return {"listen": f"{host}:{port}", "to": to}

    async def unforward(self, listen: str) -> dict[str, Any]:
        """Stop a forward, named by its address or its port alone. Raises NotFound."""
        found = next((k for k in self.forwards if k == listen or k.endswith(f":{listen}")), None)
        if found is None:
            raise NotFound(f"nothing is forwarded from {listen}", hint="`meshnode status` lists what is")
        await self.forwards.pop(found).close()
        self._save()
        return {"listen": found}

    async def close(self) -> None:
        """Stop everything; the file stays, so the next start begins it again."""
        for forward in self.forwards.values():
            await forward.close()
        for expose in self.exposes.values():
            expose.close()
