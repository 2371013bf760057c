"""A serverless function that serves a mesh, and sleeps while none of its nodes calls (AWS Lambda's form).

A node that calls it and gets no answer makes a request to WAKE_URL, which runs ``handler``. The request says which node
that is, and has its record: the function, which the platform lets nothing reach, connects to it and serves it until it
asks for nothing more. MESHNODE_KEY_FILE is the function's key, so that its id stays.
"""

import asyncio
import json
import os
from typing import Any

import meshnode

IDLE_S = 2.0
_runner = asyncio.Runner()


async def serve(caller: str, record: str) -> None:
    """Serve one node that woke this one; return when it has been quiet for ``IDLE_S``."""
    asked = asyncio.Event()

    async def greet(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        asked.set()
        writer.write(b"hello, " + await reader.read())

    config = meshnode.Config.for_function(records=[record], dht=True, wake=os.environ["WAKE_URL"])
    async with meshnode.Node(config) as node:
        node.serve("greeting", greet, allow=[caller])
        await node.connect(caller)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    await asked.wait()
                asked.clear()
        except TimeoutError:
            pass


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer one invocation."""
    said = json.loads(event["body"])
    _runner.run(serve(said["by"], said["record"]))
    return {"statusCode": 200, "body": ""}
