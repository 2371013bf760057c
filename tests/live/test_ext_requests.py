"""requests and urllib3 over mesh streams, from threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import requests
import urllib3

import meshnode
from meshnode.ext.requests import MeshAdapter, MeshPoolManager
from tests.conftest import MakeNode
from tests.given_time import HANG_S
from tests.live.ext_mesh import LINES, HttpServer, Pair, pair


@pytest.fixture
async def nodes(make_node: MakeNode) -> Pair:
    return await pair(make_node)


@pytest.fixture
async def session(nodes: Pair) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.mount("http://", MeshAdapter(nodes.here))
    return made


async def test_a_response_streams_on_while_both_ends_move(nodes: Pair, session: requests.Session) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])

    def lines() -> list[int]:
        with session.get(f"http://web.{nodes.there.id}.mesh/lines", stream=True, timeout=HANG_S) as got:
            return [int(line) for line in got.iter_lines()]

    async with nodes.moving():
        assert await asyncio.to_thread(lines) == list(range(LINES))
    assert (server.streams, len(server.requests)) == (1, 1)


async def test_threads_share_a_session_and_its_streams(nodes: Pair, session: requests.Session) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    found = await asyncio.gather(
        *(
            asyncio.to_thread(lambda n=n: session.get(f"http://web.there.mesh/{n}", timeout=HANG_S).text)
            for n in range(20)
        )
    )
    assert found == [f"/{n}" for n in range(20)]
    assert server.streams <= 20
    again = await asyncio.to_thread(lambda: session.get("http://web.there.mesh/again", timeout=HANG_S).text)
    assert (again, len(server.requests)) == ("/again", 21)
    session.close()


async def test_urllib3_alone(nodes: Pair) -> None:
    nodes.there.serve("web", HttpServer(), allow=[nodes.here.id])
    manager = MeshPoolManager(nodes.here, retries=False)
    got = await asyncio.to_thread(manager.request, "GET", "http://web.there.mesh/x")
    assert got.data == b"/x"
    with pytest.raises(urllib3.exceptions.NewConnectionError) as error:
        await asyncio.to_thread(manager.request, "GET", "http://nothing.there.mesh/")
    assert isinstance(error.value.__cause__, meshnode.ServiceNotFound)


async def test_no_proxy_of_the_environment_takes_what_is_for_the_mesh(
    nodes: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow=[nodes.here.id])
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(nodes.here))
        got = await asyncio.to_thread(session.get, "http://web.there.mesh/x", timeout=HANG_S)
        assert got.text == "/x"
        got = await asyncio.to_thread(
            session.get, "http://web.there.mesh/y", timeout=HANG_S, proxies={"http": "http://127.0.0.1:9"}
        )
        assert got.text == "/y"
    assert [head.split()[1] for head in server.requests] == [b"/x", b"/y"]


async def test_https_is_an_error_of_the_library_for_the_stream_is_encrypted_already(
    nodes: Pair, session: requests.Session
) -> None:
    async def moved(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 301 Moved\r\nlocation: https://web.there.mesh/\r\ncontent-length: 0\r\n\r\n")

    nodes.there.serve("web", moved, allow=[nodes.here.id])
    manager = MeshPoolManager(nodes.here)
    for url in ("https://web.there.mesh/", "http://web.there.mesh/"):
        with pytest.raises(urllib3.exceptions.URLSchemeUnknown, match="https"):
            await asyncio.to_thread(manager.request, "GET", url)
    session.mount("https://", MeshAdapter(nodes.here))
    with pytest.raises(requests.exceptions.InvalidURL, match="https"):
        await asyncio.to_thread(session.get, "http://web.there.mesh/", timeout=HANG_S)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("http://nothing.there.mesh/", requests.ConnectionError, "no service 'nothing'"),
        ("http://mine.there.mesh/", requests.ConnectionError, "--allow"),
        ("http://example.org/", requests.ConnectionError, "SERVICE.NAME.mesh"),
        ("http://web.there.mesh/hang", requests.ReadTimeout, "timed out"),
        ("http://web.there.mesh/half", requests.RequestException, "reset"),
    ],
)
async def test_what_fails_is_an_error_of_requests(
    nodes: Pair, session: requests.Session, url: str, kind: type[Exception], words: str
) -> None:
    nodes.there.serve("web", HttpServer(), allow="any")
    nodes.there.serve("mine", HttpServer(), allow=[nodes.there.id])
    with pytest.raises(kind, match=words):
        await asyncio.to_thread(session.get, url, timeout=1)


async def test_on_the_nodes_own_loop_it_is_an_error_and_no_deadlock(nodes: Pair, session: requests.Session) -> None:
    with pytest.raises(requests.ConnectionError, match="to_thread"):
        session.get("http://web.there.mesh/")


def test_the_end_of_the_nodes_loop_is_an_error_of_the_library() -> None:
    asked = threading.Event()

    class Silent:
        async def socket(self, peer: object, service: str) -> object:
            asked.set()
            return await asyncio.get_running_loop().create_future()

    node: Any = Silent()

    async def program() -> MeshPoolManager:
        manager = MeshPoolManager(node, retries=False)
        requesting.append(threads.submit(manager.request, "GET", "http://web.there.mesh/"))
        await asyncio.to_thread(asked.wait, HANG_S)
        return manager

    requesting: list[Future[Any]] = []
    with ThreadPoolExecutor(1) as threads:
        manager = asyncio.run(program())
        with pytest.raises(urllib3.exceptions.NewConnectionError, match="loop of the node has ended"):
            requesting[0].result(HANG_S)
    with pytest.raises(urllib3.exceptions.NewConnectionError, match="loop of the node has ended"):
        manager.request("GET", "http://web.there.mesh/")


@pytest.mark.parametrize("value", ["a\r\nx-forged: 1", "a\nb"])
async def test_no_header_is_injected_by_the_value_of_another(
    nodes: Pair, session: requests.Session, value: str
) -> None:
    server = HttpServer()
    nodes.there.serve("web", server, allow="any")
    headers: dict[str, Any] = {"x-value": value}
    with pytest.raises(requests.exceptions.InvalidHeader):
        await asyncio.to_thread(session.get, "http://web.there.mesh/", headers=headers)
    assert server.requests == []
