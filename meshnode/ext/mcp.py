"""The Model Context Protocol over the mesh: servers and clients of the MCP SDK and of FastMCP.

A stream carries a session: messages in JSON, one a line, as in MCP's stdio transport. It goes on while both nodes move,
so a tool call takes as long as it takes. It stands on the SDK's transports, pairs of anyio streams. Extra:
``meshnode[mcp]``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from meshnode.errors import ConfigError
from meshnode.ext.opener import Opener
from meshnode.ext.requirement import require
from meshnode.ext.serving import Serving
from meshnode.identity.node_id import NodeId
from meshnode.sdk.node import Node, runtime_of
from meshnode.sdk.service import LIMIT
from meshnode.sdk.streams import MeshReader, MeshWriter

require("mcp", "mcp", (2, 0), (3,))

from mcp.server import MCPServer, Server  # noqa: E402
from mcp.server.auth.middleware.auth_context import auth_context_var  # noqa: E402
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser  # noqa: E402
from mcp.server.auth.provider import AccessToken  # noqa: E402

from meshnode.ext.mcp_session import messages  # noqa: E402

_caller: ContextVar[NodeId | None] = ContextVar("meshnode.ext.mcp.caller", default=None)


def caller() -> NodeId | None:
    """Return the node that calls the tool, resource or prompt that runs; None outside of a session over the mesh."""
    return _caller.get()


@asynccontextmanager
async def client(node: Opener, peer: NodeId | str, service: str) -> AsyncIterator[tuple[Any, Any]]:
    """Open a session with an MCP server, as a transport of the SDK.

    Args:
        node: This node, which was started, or one by ``meshnode.attach``.
        peer: The server's node: an id, ``ID.mesh``, or a name.
        service: The name of its service.

    Yields:
        A stream to read messages from and one to write them to, for ``ClientSession``; ``mcp.Client`` takes the whole.

    Raises:
        As ``node.open``.

    Example:

        async with mcp.Client(meshnode.ext.mcp.client(node, "laptop", "tools")) as tools:
            print(await tools.call_tool("add", {"a": 1, "b": 2}))
    """
    async with messages(await node.open(peer, service)) as streams:
        yield streams


def serve(
    node: Node,
    server: Server[Any] | MCPServer | Any,
    service: str,
    allow: str | NodeId | Iterable[str | NodeId] | None = (),
    *,
    announce: bool | None = None,
    meta: Mapping[str, str] | None = None,
    limit: int = LIMIT,
) -> Serving:
    """Serve an MCP server: each stream of a peer is a session.

    The caller's node id is the authenticated principal: ``caller()`` returns it, and the SDK's ``get_access_token()``
    has it as ``client_id`` and ``subject``, with the node's roles as ``scopes`` and an empty token. Nothing that a
    client sends changes it.

    Args:
        node: The node, which was started.
        server: A ``Server`` or ``MCPServer`` of the SDK, or a ``FastMCP``.
        service: The name of the service.
        allow: The nodes that may use it, as in ``node.serve``: none by default.
        announce: As in ``node.serve``.
        meta: As in ``node.serve``.
        limit: How many sessions run at once.

    Returns:
        The service and the server's lifespan; ``async with`` ends both.

    Raises:
        ConfigError: ``server`` is none of these; also as ``node.serve``.
    """
    core = server if isinstance(server, Server) else getattr(server, "_lowlevel_server", None) or _fast(server)
    lifespan = getattr(server, "_lifespan_manager", nullcontext)  # FastMCP's: once for all sessions

    async def session(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
        await serving.began()
        _caller.set(peer)
        roles = sorted(runtime_of(node).roles_of(peer))
        token = AccessToken(token="", client_id=str(peer), scopes=roles, subject=str(peer))
        auth_context_var.set(AuthenticatedUser(token))
        async with messages((reader, writer)) as (read, write):
            await core.run(read, write, core.create_initialization_options())

    served = node.serve(service, session, allow, announce=announce, meta=meta, limit=limit)
    serving = Serving(node, served, lifespan())
    return serving


def _fast(server: Any) -> Server[Any]:
    core = getattr(server, "_mcp_server", None)
    if not isinstance(core, Server):
        form = "a Server or MCPServer of the MCP SDK, or a FastMCP"
        raise ConfigError(f"server is {form}, not {type(server).__name__}", hint="give the object itself")
    return core
