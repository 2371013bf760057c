"""An A2A agent of one node, asked by a client on another; the answer comes though both move meanwhile.

    pip install 'meshnode[a2a,asgi]' 'a2a-sdk[http-server]'
    python examples/a2a_agent.py

prints

    You are client, and said: hello
"""

from __future__ import annotations

import asyncio

from a2a.client import create_client
from a2a.helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, SendMessageRequest
from nodes import two_nodes
from starlette.applications import Starlette

import meshnode.ext.a2a
import meshnode.ext.asgi

URL = "http://agent.server.mesh"


class Parrot(AgentExecutor):
    """An agent that thinks for half a second, and says what it was told, and by which node."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer."""
        await asyncio.sleep(0.5)
        caller = context.call_context.user.name
        await event_queue.enqueue_event(new_text_message(f"You are {caller}, and said: {context.get_user_input()}"))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Do nothing: there is nothing to stop."""


def make_app() -> Starlette:
    """Make the agent's application."""
    card = AgentCard(
        name="parrot",
        description="says what it was told",
        version="1",
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="say", name="say", description="says it", tags=["say"])],
        supported_interfaces=[AgentInterface(url=URL, protocol_binding="JSONRPC", protocol_version="1.0")],
    )
    handler = DefaultRequestHandler(agent_executor=Parrot(), task_store=InMemoryTaskStore(), agent_card=card)
    builder = meshnode.ext.a2a.CallerContextBuilder()
    routes = create_jsonrpc_routes(handler, "/", context_builder=builder)
    return Starlette(routes=[*create_agent_card_routes(card), *routes])


async def main() -> None:
    async with two_nodes() as (server, client), meshnode.ext.asgi.serve(server, make_app(), "agent", [client.id]):
        agent = await create_client(URL, meshnode.ext.a2a.client_config(client))
        request = SendMessageRequest(message=new_text_message("hello", role=Role.ROLE_USER))
        moving = asyncio.gather(server.rebind(), client.rebind())  # both move to other ports
        async for answer in agent.send_message(request):
            print(get_message_text(answer.message))
        await moving
        await agent.close()


asyncio.run(main())
