"""httpx2 over the mesh: ``httpx2.AsyncClient(transport=MeshTransport(node))``.

It stands on httpcore2's network backends and httpx2's transports, both documented. Extra: ``meshnode[httpx2]``.
"""

from __future__ import annotations

from meshnode.ext.http_pool import Body, Library, Transport
from meshnode.ext.opener import Opener
from meshnode.ext.requirement import require

require("httpx2", "httpx2", (2, 0), (3,))
require("httpx2", "httpcore2", (2, 0), (3,))

import httpcore2  # noqa: E402
import httpx2  # noqa: E402

LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60)


class _Body(Body, httpx2.AsyncByteStream): ...


class MeshTransport(Transport, httpx2.AsyncBaseTransport):
    """A transport that reaches services of nodes: ``http://SERVICE.NAME.mesh/`` and ``http://SERVICE.ID.mesh/``.

    ``http://NAME.mesh/`` is the service ``http`` of a node, ``http://NAME.mesh:8000/`` its service ``8000``. Requests
    in progress survive every move of both nodes. Errors are httpx2's, with the mesh's as their cause. An ``https`` URL
    is an error, for streams are encrypted already. Use it as ``transport``, or beside others by
    ``mounts={"all://*.mesh": MeshTransport(node)}``.

    Args:
        node: The node, which was started, or one by ``meshnode.attach``. It is not closed with the transport.
        limits: How many streams are open at once, and how many are kept for the next request.
        retries: How often a stream that cannot be opened is tried again.
    """

    library = Library(httpx2, httpcore2)
    body = _Body

    def __init__(self, node: Opener, *, limits: httpx2.Limits = LIMITS, retries: int = 0) -> None:
        super().__init__(node, limits, retries)
