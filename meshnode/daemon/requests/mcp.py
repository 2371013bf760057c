"""Requests of commands that put servers on stdin and stdout on the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshnode.daemon.request import Json, Request, request

if TYPE_CHECKING:
    from meshnode.daemon.context import Daemon


@request("stdio_while", endless=True)
class StdioWhile(Request):
    """Serve a name by what listens on a Unix socket, which is told each caller's id in a first line."""

    name: str
    path: str
    allow: tuple[str, ...] = ()
    limit: int = 1

    async def answer(self, daemon: Daemon) -> AsyncIterator[Json]:
        """Yield the name, and serve as long as this is asked.

        Raises ConfigError, also for a name that is served already; InvalidId, NotFound, NameChanged, NameDisputed.
        """
        import asyncio

        from meshnode.directory.announcement import is_service_name
        from meshnode.errors import ConfigError
        from meshnode.identity.node_id import NodeId, quoted
        from meshnode.sdk.streams import MeshReader, MeshWriter
        from meshnode.services.health import connect_unix
        from meshnode.services.setting import SERVICE_FORM
        from meshnode.services.splice import Before, splice

        async def session(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
            program = await connect_unix(self.path)
            await splice(program, (reader, writer), before=Before(f"{peer}\n".encode()))

        if not is_service_name(self.name):
            raise ConfigError(f"{quoted(self.name)} is no name for a service", hint=SERVICE_FORM)
        allow = await daemon.allowed(self.allow)
        async with daemon.node.serve(self.name, session, allow, limit=self.limit):
            yield {"name": self.name}
            await asyncio.Event().wait()
