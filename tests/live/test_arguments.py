"""Arguments of the SDK: they mean what they say, and a wrong one is an error that names it, where it is given."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest

import meshnode
from meshnode import Node
from meshnode.base.address import Addr
from meshnode.base.limits import LOG_KIND_BURST
from meshnode.errors import ConfigError, ConnectionLost, InvalidId, PolicyDenied
from tests.conftest import MakeNode, echo
from tests.given_time import wait_for


@pytest.fixture
async def pair(make_node: MakeNode) -> tuple[Node, Node]:
    there = await make_node()
    return there, await make_node(seed=there)


async def is_let_in(here: Node, there: Node, service: str) -> bool:
    try:
        (await here.open(there.id, service)).writer.close()
    except PolicyDenied:
        return False
    return True


async def test_allow_means_what_it_says(pair: tuple[Node, Node]) -> None:
    there, here = pair
    other = meshnode.Identity.generate().id
    cases: dict[str, tuple[Any, bool]] = {
        "word": ("any", True),
        "list with the word": (["any"], True),
        "id": (here.id, True),
        "text": (str(here.id), True),
        "text with .mesh": (f"{here.id}.mesh", True),
        "set": ({here.id, other}, True),
        "generator": ((str(one) for one in (other, here.id)), True),
        "another id": (other, False),
        "another's text": (str(other), False),
        "none": (None, False),
        "empty": ([], False),
    }
    found = {}
    for name, (allow, _) in cases.items():
        there.serve(name, echo, allow=allow, announce=False)
        found[name] = await is_let_in(here, there, name)
    there.serve("default", echo)
    assert found == {name: wanted for name, (_, wanted) in cases.items()}
    assert not await is_let_in(here, there, "default")


def serve(**wrong: Any) -> Callable[[Node], Any]:
    return lambda node: node.serve(**{"name": "s", "handler": echo, **wrong})


SYNC: dict[str, tuple[str, Callable[[Node], Any]]] = {
    "a name that is no text": ("service", serve(name=5)),
    "an empty name": ("service", serve(name="")),
    "a name of 300 characters": ("service", serve(name="s" * 300)),
    "a name that is no UTF-8": ("service", serve(name="\udcff")),
    "a handler that is none": ("handler", serve(handler="echo")),
    "a handler of no arguments": ("handler", serve(handler=lambda: None)),
    "a handler of two arguments": ("handler", serve(handler=functools.partial(echo, None))),
    "a number to allow": ("allow", serve(allow=7)),
    "bytes to allow": ("allow", serve(allow=b"any")),
    "bytes in allow": ("allow", serve(allow=[bytes(32)])),
    "a name in allow": ("allow", serve(allow=["bob"])),
    "half an id": ("allow", serve(allow="a" * 20)),
    "a limit of 0": ("limit", serve(limit=0)),
    "a limit that is text": ("limit", serve(limit="7")),
    "a limit that is a switch": ("limit", serve(limit=True)),
    "meta that is a list": ("meta", serve(meta=["a"])),
    "meta with a number": ("meta", serve(meta={"a": 1})),
    "accept that is text": ("accept", serve(accept="no")),
    "announce that is text": ("announce", serve(announce="no")),
    "healthy that is text": ("healthy", lambda node: node.serve("h", echo).update(healthy="no")),  # type: ignore[arg-type]
    "a load of 101": ("load", lambda node: node.serve("l", echo).update(load=101)),
    "a load of text": ("load", lambda node: node.serve("t", echo).update(load="1")),  # type: ignore[arg-type]
    "new meta with a number": ("meta", lambda node: node.serve("m", echo).update(meta={"a": 1})),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("what", SYNC)
async def test_a_wrong_argument_of_a_call_is_named_where_it_is_given(make_node: MakeNode, what: str) -> None:
    node = await make_node(dht=False)
    name, call = SYNC[what]
    with pytest.raises(ValueError, match=rf"^{name}\b") as error:
        call(node)
    assert isinstance(error.value, ConfigError | InvalidId)
    assert error.value.hint
    assert "s" not in node.status().get("services", [])


def _call_with(call: str, peer: Any, node: Node) -> Any:
    return getattr(node, call)(peer, *(["echo"] if call == "open" else []))


PEER: tuple[Any, ...] = (7, b"x" * 32, None, ["a"])
ASYNC: dict[str, tuple[str, Callable[[Node], Any]]] = {
    **{
        f"{call} of {peer!r}": (
            "peer",
            lambda node, c=call, p=peer: getattr(node, c)(p, *(["s"] if c == "open" else [])),
        )
        for call in ("open", "connect", "ping", "resolve", "identify")
        for peer in PEER
    },
    "open of a service that is a number": ("service", lambda node: node.open("a" * 52, 7)),
    "open of an empty service": ("service", lambda node: node.open("a" * 52, "")),
    "open_any of an id": ("service", lambda node: node.open_any(node.id)),
    "find of an empty name": ("service", lambda node: node.find("")),
    "ping in no time": ("timeout", lambda node: node.ping("a" * 52, timeout=0)),
    "ping in a text": ("timeout", lambda node: node.ping("a" * 52, timeout="2")),
    "a topic that is no UTF-8": ("topic", lambda node: node.join("\udcff")),
    "open of what is no UTF-8": ("service", lambda node: node.open("a" * 52, "\udcff")),
    "a topic of no name": ("topic", lambda node: node.join("")),
    "a topic of 100 characters": ("topic", lambda node: node.join("t" * 100)),
    "a topic that is bytes": ("topic", lambda node: node.join(b"news")),
    "a replay in text": ("replay", lambda node: node.join("news", replay="5")),
    "a replay of 1,000": ("replay", lambda node: node.join("news", replay=1000)),
    "a queue of none": ("limit", lambda node: node.join("news", limit=0)),
    "a place that is none": ("addr", lambda node: node.rebind("junk")),
    "a place that is a tuple": ("addr", lambda node: node.rebind(("127.0.0.1", 0))),
    "a place of many hosts": ("addr", lambda node: node.rebind("224.0.0.1:0")),
    "a port that is none": ("addr", lambda node: node.rebind(Addr("127.0.0.1", 99_999))),
}


@pytest.mark.parametrize("what", ASYNC)
async def test_a_wrong_argument_of_a_coroutine_is_named_before_anything_is_sent(make_node: MakeNode, what: str) -> None:
    node = await make_node(dht=False)
    name, call = ASYNC[what]
    with pytest.raises(ValueError, match=rf"^{name}\b") as error:
        await wait_for(call(node), 1.0)
    assert isinstance(error.value, ConfigError | InvalidId)
    assert error.value.hint


async def test_only_bytes_are_published(pair: tuple[Node, Node]) -> None:
    topic, _ = await asyncio.gather(*(node.join("news") for node in pair))
    wrong: tuple[Any, ...] = ("text", 5, None)
    for data in wrong:
        with pytest.raises(TypeError, match="bytes"):
            await topic.publish(data)
    assert await topic.publish(bytearray(b"x")) + await topic.publish(memoryview(b"y")) == 3


# ---- what handlers raise


async def _end_with(pair: tuple[Node, Node], handler: Any) -> None:
    there, here = pair
    there.serve("work", handler, allow="any")
    with pytest.raises(ConnectionLost):
        await (await here.open(there.id, "work")).reader.read()


async def test_a_handlers_error_is_logged_with_the_service_and_the_peer(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(reader: Any, writer: Any, peer: Any) -> None:
        raise KeyError("of the handler")

    await _end_with(pair, fail)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.name == "meshnode.services"
    assert all(part in record.getMessage() for part in ("work", str(pair[1].id), "KeyError('of the handler')"))
    assert record.exc_info
    assert pair[0].status()["counters"]["handlers_failed"] == 1


async def test_a_failed_connection_of_the_handler_is_an_error_of_the_handler(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    async def ask_database(reader: Any, writer: Any, peer: Any) -> None:
        raise ConnectionRefusedError("the database is down")

    await _end_with(pair, ask_database)
    assert "the database is down" in caplog.text


async def test_a_handler_that_is_no_coroutine_function_is_told_in_the_log(
    pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture
) -> None:
    await _end_with(pair, lambda reader, writer, peer: None)
    assert "work" in caplog.text
    assert "await" in caplog.text


async def test_a_crowd_of_failures_fills_no_log(pair: tuple[Node, Node], caplog: pytest.LogCaptureFixture) -> None:
    there, here = pair

    async def fail(reader: Any, writer: Any, peer: Any) -> None:
        raise KeyError("again")

    there.serve("fail", fail, allow="any")
    await asyncio.gather(*(here.open(there.id, "fail") for _ in range(60)), return_exceptions=True)
    await asyncio.sleep(0.1)
    assert there.status()["counters"]["handlers_failed"] == 60
    assert 1 <= sum("again" in record.getMessage() for record in caplog.records) <= LOG_KIND_BURST + 2


@pytest.mark.parametrize("how", ["close", "reset", "node", "half a message"])
async def test_a_peers_goodbye_is_no_error(pair: tuple[Node, Node], how: str, caplog: pytest.LogCaptureFixture) -> None:
    there, here = pair
    ended = asyncio.Event()

    async def talk(reader: Any, writer: Any, peer: Any) -> None:
        try:
            while await reader.readexactly(4):
                for _ in range(20):
                    writer.write(b"x" * 10_000)
                    await writer.drain()
        finally:
            ended.set()

    there.serve("talk", talk, allow="any")
    reader, writer = await here.open(there.id, "talk")
    writer.write(b"talkta")
    await reader.read(1)
    if how == "node":
        await here.close()
    elif how == "half a message":
        writer.write_eof()
    else:
        getattr(writer, how)()
    await wait_for(ended.wait(), 5)
    await asyncio.sleep(0.05)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- what does not exist


async def test_what_does_not_exist_is_not_found_within_the_documented_time(pair: tuple[Node, Node]) -> None:
    node, unknown = pair[1], "a" * 52
    by_name = [node.open("nothing", "echo"), node.open_any("nothing"), node.identify("nothing")]
    by_id = [node.open(unknown, "echo"), node.ping(unknown), node.connect(unknown), node.resolve(unknown)]
    waits = [wait_for(call, 4.5) for call in by_name] + [wait_for(call, 5.5) for call in by_id]
    *outcomes, found = await asyncio.gather(*waits, wait_for(node.find("nothing"), 4.5), return_exceptions=True)
    assert found == []
    assert all(isinstance(outcome, meshnode.NotFound) and outcome.hint for outcome in outcomes), outcomes
