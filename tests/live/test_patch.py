"""``meshnode.patch``: libraries that know nothing of the mesh, unchanged, by their hosts' names."""

from __future__ import annotations

import asyncio
import errno
import http.client
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import requests

import meshnode
from meshnode import NotFound, NotRunning, PolicyDenied
from meshnode.runtime.tunnel_tls import client_context, server_context
from tests.given_time import HANG_S
from tests.live.cli_node import CliNode, clean_environment, stopping

URL = "http://web.laptop.mesh/"


class Site(http.server.BaseHTTPRequestHandler):
    """Says hello."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliNode]:
    folder = tmp_path_factory.mktemp("patch")
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    there = CliNode(folder / "there", "--name", "laptop", command="seed")
    with stopping(there):
        there.ask("expose", "web", str(site.server_address[1]), "--allow", "any")
        there.ask("expose", "http", str(site.server_address[1]), "--allow", "any")
        there.ask("expose", "closed", "9")
        yield there
    site.shutdown()
    site.server_close()


@pytest.fixture(scope="module")
def home(there: CliNode) -> Iterator[Path]:
    here = CliNode(there.home.parent / "here", seed=there)
    with stopping(here):
        yield here.home


@pytest.fixture
def patched(home: Path) -> Iterator[None]:
    with meshnode.patch(home):
        yield


@pytest.mark.usefixtures("patched")
def test_http_of_the_standard_library_and_requests_reach_a_service_by_name() -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(URL, timeout=HANG_S).read() == b"hello"
    assert opener.open("http://laptop.mesh/", timeout=HANG_S).read() == b"hello"
    connection = http.client.HTTPConnection("web.laptop.mesh", timeout=HANG_S)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"hello"
    connection.close()
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(URL, timeout=HANG_S).content == b"hello"


@pytest.mark.usefixtures("patched")
async def test_asyncio_connects_by_name() -> None:
    reader, writer = await asyncio.open_connection("web.laptop.mesh", 80)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await reader.read()).endswith(b"hello")
    writer.close()


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="a real Redis is asked")
@pytest.mark.usefixtures("patched")
def test_redis_py_unchanged(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as server:
        try:
            from tests.live.cli_node import run

            run(home.parent / "there", "expose", "redis", str(port), "--allow", "any")
            client = redis.Redis("laptop.mesh", 6379, socket_timeout=HANG_S)
            for attempt in range(50):
                try:
                    client.set("key", b"value")
                    break
                except redis.ConnectionError:
                    assert attempt < 49
                    time.sleep(0.1)
            assert client.get("key") == b"value"
            client.close()
        finally:
            server.terminate()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_plain_socket_connects_and_keeps_its_timeout(family: socket.AddressFamily) -> None:
    for timeout in (None, 20.0, 0.0):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            (found,) = socket.getaddrinfo("web.laptop.mesh", "http", family, socket.SOCK_STREAM)
            sock.connect(found[4])
            assert sock.gettimeout() == timeout
            sock.settimeout(HANG_S)
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.0 200"
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        assert sock.connect_ex(("web.laptop.mesh", 80)) == 0


@pytest.mark.usefixtures("patched")
def test_a_host_with_a_line_end_in_it_is_none_and_says_nothing_to_a_service() -> None:
    host = "web.laptop.mesh:80 HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n.mesh"
    with pytest.raises(socket.gaierror, match="is no host"):
        socket.getaddrinfo(host, 80)
    with socket.socket() as sock:
        sock.settimeout(HANG_S)
        with pytest.raises(socket.gaierror, match="is no host"):
            sock.connect((host, 80))


@pytest.mark.usefixtures("patched")
def test_a_socket_of_tls_that_is_not_connected_yet_connects(there: CliNode, tmp_path: Path) -> None:
    context = server_context(tmp_path / "certificate")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as taken:
                taken.sendall(b"hello")

        threading.Thread(target=serve, daemon=True).start()
        there.ask("expose", "tls", str(listener.getsockname()[1]), "--allow", "any", "--health", "none")
        with client_context().wrap_socket(socket.socket(), server_hostname="tls.laptop.mesh") as sock:
            sock.settimeout(HANG_S)
            sock.connect(("tls.laptop.mesh", 443))
            assert sock.recv(5) == b"hello"
        with client_context().wrap_socket(socket.socket()) as sock, pytest.raises(ConnectionRefusedError):
            sock.settimeout(HANG_S)
            sock.connect(("none.laptop.mesh", 443))


def test_a_node_that_was_started_again_is_found(there: CliNode, tmp_path: Path) -> None:
    to = f"web.{there.id}.mesh", 80
    node = CliNode(tmp_path / "node", seed=there)
    try:
        with meshnode.patch(node.home):
            socket.create_connection(to, HANG_S).close()
            node.stop()
            with pytest.raises(ConnectionRefusedError) as refused:
                socket.create_connection(to, HANG_S)
            assert isinstance(refused.value.__cause__, NotRunning)
            node = CliNode(node.home, seed=there)
            for _ in range(2):
                socket.create_connection(to, HANG_S).close()
            proxy = socket.create_connection(to, HANG_S).getpeername()
            node.stop()
            with socket.create_server(proxy) as other:  # another program, whoever started it, has the port
                other.settimeout(0.5)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(to, HANG_S)
                node = CliNode(node.home, seed=there)
                socket.create_connection(to, HANG_S).close()
                with pytest.raises(TimeoutError):
                    other.accept()
    finally:
        node.stop()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("host", "kind", "number", "cause"),
    [
        ("none.laptop.mesh", ConnectionRefusedError, errno.ECONNREFUSED, meshnode.ServiceNotFound),
        ("closed.laptop.mesh", PermissionError, errno.EACCES, PolicyDenied),
        ("web.nobody.mesh", socket.gaierror, socket.EAI_NONAME, NotFound),
        ("a b.mesh", OSError, None, None),
        ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}ro.mesh", OSError, None, None),
    ],
)
def test_errors_are_those_of_sockets_with_the_meshs_as_cause(
    host: str, kind: type[OSError], number: int | None, cause: type[Exception] | None
) -> None:
    with pytest.raises(kind) as refused:
        socket.create_connection((host, 80), HANG_S)
    if cause is not None:
        assert refused.value.errno == number
        assert isinstance(refused.value.__cause__, cause)
        assert str(refused.value.__cause__) in str(refused.value)
    with socket.socket() as sock:
        sock.settimeout(HANG_S)
        assert sock.connect_ex((host, 80)) not in (0, None)
    with pytest.raises(urllib.error.URLError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://none.laptop.mesh:{80}/", timeout=HANG_S
        )


@pytest.mark.usefixtures("patched")
def test_all_else_is_untouched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = server.getsockname()
        socket.create_connection(to, HANG_S).close()
        with socket.socket() as sock:
            assert sock.connect_ex(to) == 0
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(to)
    assert socket.getaddrinfo("127.0.0.1", 80)[0][4] == ("127.0.0.1", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", 9))
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("laptop.mesh", 53, type=socket.SOCK_DGRAM)
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("web.laptop.mesh", 80, flags=socket.AI_NUMERICHOST)


def test_it_is_undone_at_the_end_and_a_second_one_inside_ends_alone(home: Path) -> None:
    before = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex
    with meshnode.patch(home) as outer:
        with meshnode.patch(home):
            socket.create_connection(("web.laptop.mesh", 80), HANG_S).close()
        kept = socket.create_connection(("web.laptop.mesh", 80), HANG_S)
        assert before[0] is not socket.getaddrinfo
        outer.undo()
    assert (socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex) == before
    kept.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert kept.recv(12) == b"HTTP/1.0 200", "what was open goes on"
    kept.close()


def test_a_whole_program_is_patched_by_its_environment(home: Path) -> None:
    code = (
        "import meshnode, urllib.request; meshnode.patch()\n"
        f"print(urllib.request.urlopen({URL!r}, timeout={HANG_S}).read().decode())"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=clean_environment(MESHNODE_HOME=str(home)))
    assert done.stdout == "hello\n", done.stderr


def test_without_a_node_nothing_is_changed(tmp_path: Path) -> None:
    before = socket.getaddrinfo
    with pytest.raises(NotRunning):
        meshnode.patch(tmp_path)
    assert socket.getaddrinfo is before
