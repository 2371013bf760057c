"""What is exposed and forwarded, kept in ``services.json`` so that it survives kill -9."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from meshnode.errors import ConfigError, MeshError, NotFound
from meshnode.identity import NodeId
from meshnode.node import Node
from meshnode.services.tcp import Expose, Forward
from meshnode.storage import write_atomic

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
                self._expose(item["name"], item["target"], tuple(item["allow"]))
            except MeshError as error:
                log.warning("expose %s is not restored: %s", item.get("name"), error)
        for item in saved.get("forwards", []):
            try:
                await self._forward(item["listen"], item["to"])
            except MeshError as error:
                log.warning("forward %s is not restored: %s", item.get("listen"), error)

    def _save(self) -> None:
        data = {
            "exposes": [{"name": e.name, "target": e.target, "allow": list(e.allow)} for e in self.exposes.values()],
            "forwards": [{"listen": f.listen, "to": f"{f.peer}/{f.service}"} for f in self.forwards.values()],
        }
        write_atomic(self._path, json.dumps(data, indent=1).encode())

    def _expose(self, name: str, target: str, allow: tuple[str, ...]) -> None:
        self.exposes[name] = Expose(self._node, name, target, allow)

    def expose(self, name: str, target: str, allow: tuple[str, ...]) -> dict[str, Any]:
        """Serve a TCP target; exposing a name again replaces it. Raises ConfigError, InvalidId."""
        old = self.exposes.pop(name, None)
        if old is not None:
            old.close()
        try:
            self._expose(name, target, allow)
        except MeshError:
            if old is not None:
                self._expose(old.name, old.target, old.allow)
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

    async def _forward(self, listen: str, to: str) -> tuple[str, int]:
        peer_text, slash, service = to.partition("/")
        if not slash or not service:
            raise ConfigError(f"{to!r} is not ID/NAME", hint="write the peer's id, a slash and its service's name")
        forward = Forward(self._node, listen, NodeId.parse(peer_text), service)
        bound = await forward.start()
        forward.listen = f"{bound[0]}:{bound[1]}"
        self.forwards[forward.listen] = forward
        return bound

    async def forward(self, listen: str, to: str) -> dict[str, Any]:
        """Listen here for a peer's service. Raises AddressInUse, ConfigError, InvalidId."""
        host, port = await self._forward(listen, to)
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
