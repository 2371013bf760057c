"""The Agent2Agent protocol over the mesh: clients of agents, and the caller of an agent.

A2A is HTTP, so an agent is an ASGI application (``meshnode.ext.asgi.serve``) with ``http://SERVICE.NAME.mesh/`` as URL.
It stands on the SDK's configuration of clients and its builder of contexts. Extra: ``meshnode[a2a]``.
"""

from __future__ import annotations

from typing import Any

from meshnode.ext.requirement import require
from meshnode.sdk.node import Node

require("a2a", "a2a-sdk", (1, 0), (2,))

import httpx  # noqa: E402
from a2a.auth.user import User  # noqa: E402
from a2a.client import ClientConfig  # noqa: E402
from a2a.server.routes.common import DefaultServerCallContextBuilder  # noqa: E402
from starlette.requests import Request  # noqa: E402

from meshnode.ext.asgi_caller import EXTENSION  # noqa: E402
from meshnode.ext.httpx import MeshTransport  # noqa: E402

CONNECT_S = 10.0  # the rest has no limit: an agent thinks as long as it thinks


def client_config(node: Node, **options: Any) -> ClientConfig:
    """Return a configuration whose clients reach agents on other nodes.

    ``await create_client("http://agent.laptop.mesh", client_config(node))`` reads the agent's card and makes a client.
    Close the client: that closes the streams.

    Args:
        node: This node, which was started.
        options: As ``a2a.client.ClientConfig``, but for ``httpx_client``.
    """
    timeout = httpx.Timeout(None, connect=CONNECT_S)
    return ClientConfig(httpx_client=httpx.AsyncClient(transport=MeshTransport(node), timeout=timeout), **options)


class CallerContextBuilder(DefaultServerCallContextBuilder):
    """A builder of call contexts whose user is the node that calls; the ``context_builder`` of an agent's routes."""

    def build_user(self, request: Request) -> User:
        """Return the calling node, which has proven its id; no header changes it."""
        return NodeUser(**request.scope["extensions"][EXTENSION])


class NodeUser(User):
    """A node as the user of an agent: ``user_name`` is its id."""

    def __init__(self, id: str, name: str, roles: list[str]) -> None:
        self.id, self.name, self.roles = id, name, roles

    @property
    def is_authenticated(self) -> bool:
        """True, always: the node has proven its key."""
        return True

    @property
    def user_name(self) -> str:
        """The node's id."""
        return self.id
