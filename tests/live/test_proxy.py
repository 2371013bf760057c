"""The proxy as programs use it that know nothing of the mesh: curl, and clients that misbehave."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnode.base.limits import MAX_PROXY_SILENT
from tests.given_time import HANG_S, eventually
from tests.live.cli_node import CliNode, clean_environment, stopping

BIG = os.urandom(3_000_000)


class Site(http.server.BaseHTTPRequestHandler):
    """Tells what it was asked, and has a large file."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            self.close_connection = True
            return
        seen = f"{self.command} {self.path}\n{self.headers}".encode()
        self._answer(BIG if self.path == "/big" else seen, chunked=self.path == "/chunked")

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(hashlib.sha256(body).hexdigest().encode())

    def _answer(self, body: bytes, chunked: bool = False) -> None:
        self.send_response(200)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 50):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body[at : at + 50]), body[at : at + 50]))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Ways:
    """A node with services, and one with a proxy."""

    there: CliNode
    here: CliNode
    proxy: str
    port: int

    def curl(self, *args: str, timeout: float = 30.0) -> subprocess.CompletedProcess[bytes]:
        """Run curl without proxies of the environment."""
        line = ["curl", "-sS", "--noproxy", "", "-m", "20", *args]
        kept = {name: value for name, value in clean_environment().items() if "proxy" not in name.lower()}
        return subprocess.run(line, capture_output=True, timeout=timeout, check=False, env=kept)

    def talk(self, sent: bytes, *, end: bool = True) -> bytes:
        """Send bytes to the proxy's port, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), HANG_S) as client:
            client.sendall(sent)
            if end:
                client.shutdown(socket.SHUT_WR)
            parts = []
            with suppress(ConnectionResetError):
                while data := client.recv(1 << 16):
                    parts.append(data)
            return b"".join(parts)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    home = tmp_path_factory.mktemp("proxy")
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    port = site.server_address[1]
    there = CliNode(home / "there", "--name", "laptop", command="seed")
    here = CliNode(home / "here", seed=there)
    with stopping(here, there):
        there.ask("expose", "web", str(port), "--allow", "any")
        there.ask("expose", "8088", str(port), "--allow", "any")
        there.ask("expose", "closed", str(port))
        there.ask("expose", "dead", "127.0.0.1:1", "--allow", "any")
        proxy = here.ask("proxy", "127.0.0.1:0")["listen"]
        yield Ways(there, here, proxy, int(proxy.rpartition(":")[2]))
    site.shutdown()
    site.server_close()


@pytest.mark.parametrize("how", ["--socks5-hostname", "-x", "-px"])
@pytest.mark.parametrize("host", ["web.laptop.mesh", "laptop.mesh", "laptop.mesh:8088", "web.{id}.mesh", "{id}.mesh"])
def test_curl_reaches_services_by_name_and_by_id(ways: Ways, how: str, host: str) -> None:
    to = host.format(id=ways.there.id)
    way = ["-p", "-x", ways.proxy] if how == "-px" else [how, ways.proxy]
    done = ways.curl(*way, f"http://{to}/path?query")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"GET /path?query\n")
    assert b"Host: %s\n" % to.encode() in done.stdout


@pytest.mark.parametrize("way", [["--socks5-hostname"], ["-p", "-x"], ["-x"]])
def test_large_bodies_come_whole_both_ways(ways: Ways, way: list[str], tmp_path: Path) -> None:
    done = ways.curl(*way, ways.proxy, "http://web.laptop.mesh/big")
    assert done.stdout == BIG
    (tmp_path / "big").write_bytes(BIG)
    digest = hashlib.sha256(BIG).hexdigest().encode()
    for more in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect:"]):
        sent = ways.curl(*way, ways.proxy, *more, "-T", str(tmp_path / "big"), "-X", "POST", "http://web.laptop.mesh/")
        assert sent.stdout == digest, sent.stderr


def test_a_request_through_the_proxy_keeps_its_framing_and_tells_the_service_its_own_host(ways: Ways) -> None:
    done = ways.curl("-x", ways.proxy, "-H", "Host: evil.example", "-U", "me:secret", "http://web.laptop.mesh/chunked")
    assert b"Host: web.laptop.mesh\n" in done.stdout
    assert b"Via: 1.1 meshnode\n" in done.stdout
    assert b"Proxy" not in done.stdout
    assert ways.curl("-x", ways.proxy, "-I", "-X", "GET", "http://web.laptop.mesh/big").returncode == 0


def test_a_response_that_is_cut_is_no_whole_one(ways: Ways) -> None:
    for way in (["-x"], ["-p", "-x"], ["--socks5-hostname"]):
        done = ways.curl(*way, ways.proxy, "http://web.laptop.mesh/cut")
        assert done.returncode != 0
        assert done.stdout in (b"", b"half")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("http://example.org/", b"403", b"not_in_mesh"),
        ("http://127.0.0.1:22/", b"403", b"not_in_mesh"),
        ("http://localhost/", b"403", b"not_in_mesh"),
        ("http://nothing.laptop.mesh/", b"502", b"service_not_found"),
        ("http://laptop.mesh:9/", b"502", b"service_not_found"),
        ("http://closed.laptop.mesh/", b"403", b"policy_denied"),
        ("http://dead.laptop.mesh/", b"503", b"service_unavailable"),
        ("http://web.nobody.mesh/", b"502", b"not_found"),
    ],
)
def test_what_leads_nowhere_is_refused_with_the_reason(ways: Ways, url: str, status: bytes, code: bytes) -> None:
    plain = ways.curl("-x", ways.proxy, "-i", url)
    assert plain.stdout.startswith(b"HTTP/1.1 " + status), plain.stdout
    assert b'details="' + code + b'"' in plain.stdout
    tunnel = ways.curl("-p", "-x", ways.proxy, url)
    assert (tunnel.returncode, status in tunnel.stderr) == (56, True)
    socks = ways.curl("--socks5-hostname", ways.proxy, url)
    assert socks.returncode == 97
    found = ways.here.ask("proxy")
    assert found["last_error"]["code"] == code.decode()


def test_this_node_itself_is_refused(ways: Ways) -> None:
    assert b"this node itself" in ways.curl("-x", ways.proxy, f"http://web.{ways.here.id}.mesh/").stdout


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: rebound.example:1080\r\nOrigin: http://rebound.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: web.laptop.mesh\r\nContent-Length: 70\r\n\r\n"
        b"CONNECT web.laptop.mesh:80 HTTP/1.1\r\nHost: web.laptop.mesh:80\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET http://web.laptop.mesh/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"CONNECT web.laptop.mesh:80\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\r\n\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    ],
)
def test_what_a_web_page_or_another_protocol_sends_gets_400_and_no_tunnel(ways: Ways, request_: bytes) -> None:
    answer = ways.talk(request_)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"GET /" not in answer.partition(b"\r\n\r\n")[2].replace(b"for GET /", b"")


def test_bytes_sent_ahead_of_the_answer_are_the_first_of_the_stream(ways: Ways) -> None:
    request_ = b"GET /ahead HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    socks = b"\x05\x01\x00\x05\x01\x00\x03\x0fweb.laptop.mesh\x00\x50"
    assert b"GET /ahead" in ways.talk(socks + request_)
    assert b"GET /ahead" in ways.talk(b"CONNECT web.laptop.mesh:80 HTTP/1.1\r\nHost: x\r\n\r\n" + request_)


def test_a_client_that_ends_its_direction_behind_a_request_is_answered(ways: Ways) -> None:
    answer = ways.talk(b"GET http://web.laptop.mesh/big HTTP/1.1\r\nHost: x\r\n\r\n", end=True)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(BIG[-100:])


def test_a_second_request_behind_the_first_is_not_answered(ways: Ways) -> None:
    request_ = b"GET http://web.laptop.mesh/one HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = ways.talk(request_ + request_.replace(b"one", b"two"), end=False)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert b"two" not in answer


def test_silent_clients_push_out_one_another_and_no_client_that_has_asked(ways: Ways) -> None:
    asked = socket.create_connection(("127.0.0.1", ways.port), HANG_S)
    asked.sendall(b"CONNECT web.laptop.mesh:80 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert asked.recv(100).startswith(b"HTTP/1.1 200")
    silent = [socket.create_connection(("127.0.0.1", ways.port), HANG_S) for _ in range(MAX_PROXY_SILENT + 3)]
    try:
        ended = []
        for client in silent[:3]:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            ended.append(client)
        assert len(ended) == 3, "the oldest have gone"
        assert ways.curl("-x", ways.proxy, "http://web.laptop.mesh/").returncode == 0
        asked.sendall(b"GET /still HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for client in (asked, *silent):
            client.close()
    eventually(lambda: ways.here.ask("proxy")["connections"] == 0)


def test_silent_and_refused_clients_of_a_host_push_out_none_of_another(ways: Ways) -> None:
    def flood(sends: bytes) -> list[socket.socket]:
        made = []
        for _ in range(MAX_PROXY_SILENT + 20):
            made.append(socket.create_connection(("127.0.0.1", ways.port), 20, source_address=("127.9.9.9", 0)))
            if sends:
                made[-1].sendall(sends)
                assert made[-1].recv(20).startswith(b"HTTP/1.1 4")
        return made

    honest = socket.create_connection(("127.0.0.1", ways.port), HANG_S)
    held: list[socket.socket] = []
    try:
        held += flood(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # refused, and does not go
        held += flood(b"")
        honest.sendall(b"CONNECT web.laptop.mesh:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert honest.recv(100).startswith(b"HTTP/1.1 200")
        assert ways.here.ask("proxy")["connections"] <= MAX_PROXY_SILENT + 2
    finally:
        for client in (honest, *held):
            client.close()
    eventually(lambda: ways.here.ask("proxy")["connections"] == 0)


def test_a_client_that_goes_away_leaves_nothing(ways: Ways) -> None:
    for sent in (
        b"GET http://web.laptop.mesh/big HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST http://web.laptop.mesh/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf",
    ):
        with socket.create_connection(("127.0.0.1", ways.port), HANG_S) as client:
            client.sendall(sent)
    eventually(lambda: ways.here.ask("proxy")["connections"] == 0)


def test_it_listens_on_loopback_alone_unless_told(ways: Ways) -> None:
    error = ways.here.error("proxy", "0.0.0.0:0")
    assert (error["code"], "--public" in error["hint"]) == ("config_error", True)
    found = ways.here.ask("proxy", "0.0.0.0:0", "--public")["listen"]
    assert ways.here.ask("unproxy", found.rpartition(":")[2]) == {"listen": found}
    assert ways.here.error("unproxy", found)["code"] == "not_found"
    assert ways.here.error("proxy", ways.there.endpoint + "x")["code"] == "config_error"


def test_the_same_proxy_twice_is_one_and_a_taken_port_is_an_error(ways: Ways) -> None:
    assert ways.here.ask("proxy", ways.proxy) == {"listen": ways.proxy, "dns": None}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert ways.here.error("proxy", str(taken.getsockname()[1]))["code"] == "address_in_use"
    for other in (["--public"], ["--dns", "127.0.0.1:0"]):
        error = ways.here.error("proxy", ways.proxy, *other)
        assert error["code"] == "address_in_use"
        assert f"unproxy {ways.proxy}" in error["hint"], "it is this node's own"
    listed = ways.here.run("proxy", "--json").stdout.splitlines()
    assert len(listed) == 1
    assert [proxy["listen"] for proxy in ways.here.ask("status")["proxies"]] == [ways.proxy]


def test_a_proxy_is_there_again_after_a_restart_also_where_its_port_was_taken(tmp_path: Path) -> None:
    node = CliNode(tmp_path)
    with stopping(node):
        where = node.ask("proxy", "0")["listen"]
        node.kill()
    port = int(where.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        node = CliNode(tmp_path)
        assert "error" in node.ask("proxy")
        assert any("proxy" in line for line in node.ask("status")["degraded"])
    with stopping(node):
        eventually(lambda: "error" not in node.ask("proxy"))
        with socket.create_connection(("127.0.0.1", port), HANG_S) as client:
            client.sendall(b"\x05\x01\x00")
            assert client.recv(2) == b"\x05\x00"
        node.ask("unproxy", where)
        assert node.run("proxy", "--json").stdout == ""
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), HANG_S)
