"""httpx over the mesh: ``httpx.AsyncClient(transport=MeshTransport(node))``.

It stands on httpcore's network backends and httpx's transports, both documented. Extra: ``meshnode[httpx]``.
"""

from __future__ import annotations

from meshnode.ext.http_pool import Body, Library, Transport
from meshnode.ext.opener import Opener
from meshnode.ext.requirement import require

require("httpx", "httpx", (0, 28), (1,))
require("httpx", "httpcore", (1, 0), (2,))

import httpcore  # noqa: E402
import httpx  # noqa: E402

LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60)


class _Body(Body, httpx.AsyncByteStream): ...


class MeshTransport(Transport, httpx.AsyncBaseTransport):
    """A transport that reaches services of nodes: ``http://SERVICE.NAME.mesh/`` and ``http://SERVICE.ID.mesh/``.

    ``http://NAME.mesh/`` is the service ``http`` of a node, ``http://NAME.mesh:8000/`` its service ``8000``. Requests
    in progress survive every move of both nodes. Errors are httpx's, with the mesh's as their cause. An ``https`` URL
    is an error, for streams are encrypted already. Use it as ``transport``, or beside others by
    ``mounts={"all://*.mesh": MeshTransport(node)}``.

    Args:
        node: The node, which was started, or one by ``meshnode.attach``. It is not closed with the transport.
        limits: How many streams are open at once, and how many are kept for the next request.
        retries: How often a stream that cannot be opened is tried again.
    """

    library = Library(httpx, httpcore)
    body = _Body

    def __init__(self, node: Opener, *, limits: httpx.Limits = LIMITS, retries: int = 0) -> None:
        super().__init__(node, limits, retries)
