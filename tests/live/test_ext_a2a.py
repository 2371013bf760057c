"""Agents of A2A over mesh streams: a task in progress through moves, the caller as the user, what hangs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import httpx
import pytest
from a2a.client import A2AClientError, create_client
from a2a.helpers import get_message_text, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Role, SendMessageRequest
from starlette.applications import Starlette

import meshnode
from meshnode.ext import asgi
from meshnode.ext.a2a import CallerContextBuilder, client_config
from tests.conftest import MakeNode
from tests.given_time import wait_for
from tests.live.ext_mesh import Pair, pair

URL = "http://agent.there.mesh"
NEVER: list[asyncio.Event] = []  # held, or the collector ends in its own way what waits for them


class Agent(AgentExecutor):
    """Takes 1.2 s to tell its user and what it said; never answers to "hang"."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        text = context.get_user_input()
        if text == "hang":
            NEVER.append(asyncio.Event())
            await NEVER[-1].wait()
        await asyncio.sleep(1.2)
        assert context.call_context is not None
        user: Any = context.call_context.user
        told = f"{user.user_name} {user.is_authenticated} {user.name} {text}"
        await event_queue.enqueue_event(new_text_message(told))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Nothing is left to end."""


def application() -> Starlette:
    card = AgentCard(
        name="agent",
        description="tells",
        version="1",
        capabilities=AgentCapabilities(streaming=True),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="tell", name="tell", description="tells", tags=["tell"])],
        supported_interfaces=[AgentInterface(url=URL, protocol_binding="JSONRPC", protocol_version="1.0")],
    )
    handler = DefaultRequestHandler(agent_executor=Agent(), task_store=InMemoryTaskStore(), agent_card=card)
    routes = create_jsonrpc_routes(handler, "/", context_builder=CallerContextBuilder())
    return Starlette(routes=[*create_agent_card_routes(card), *routes])


async def ask(node: meshnode.Node, text: str) -> list[str]:
    config = client_config(node)
    assert config.httpx_client is not None
    config.httpx_client.headers["x-forwarded-for"] = "nonsense"
    agent = await create_client(URL, config)
    try:
        request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
        return [get_message_text(answer.message) async for answer in agent.send_message(request)]
    finally:
        await agent.close()
        await config.httpx_client.aclose()


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


async def test_an_agent_answers_its_caller_by_its_proven_id_while_both_ends_move(nodes: Pair) -> None:
    async with asgi.serve(nodes.there, application(), "agent", allow=[nodes.here.id]), nodes.moving():
        assert await ask(nodes.here, "hello") == [f"{nodes.here.id} True here hello"]


async def test_an_agent_that_hangs_holds_no_other_question(nodes: Pair) -> None:
    async with asgi.serve(nodes.there, application(), "agent", allow="any", graceful_s=0.3):
        hanging = asyncio.create_task(ask(nodes.here, "hang"))
        assert len(await ask(nodes.here, "hello")) == 1
        assert not hanging.done()
    with suppress(A2AClientError, httpx.HTTPError):
        assert await wait_for(hanging, 10) == []


async def test_a_node_that_is_not_allowed_does_not_even_see_the_agents_card(nodes: Pair) -> None:
    async with asgi.serve(nodes.there, application(), "agent"):
        with pytest.raises(A2AClientError, match="does not allow"):
            await ask(nodes.here, "hello")
