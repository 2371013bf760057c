"""A serverless function that calls a service of the mesh: ``handler`` is what the platform runs (AWS Lambda's form).

Settings come from the function's environment: MESHNODE_TICKET (or MESHNODE_KEY_FILE), MESHNODE_SEEDS, and ORDERS, the
id of the node to call. The node lives as long as the platform keeps the process, through freezes between invocations.
"""

import asyncio
import os
from typing import Any

import meshnode

_runner = asyncio.Runner()
_node: meshnode.Node | None = None


async def ask(question: bytes) -> bytes:
    """Return what the service says."""
    global _node
    if _node is None:
        node = meshnode.Node(meshnode.Config.for_function())
        await node.start()
        _node = node
    reader, writer = await _node.open(os.environ["ORDERS"], "orders")
    writer.write(question)
    writer.write_eof()
    return await reader.read()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer one invocation."""
    return {"statusCode": 200, "body": _runner.run(ask(event["body"].encode())).decode()}
