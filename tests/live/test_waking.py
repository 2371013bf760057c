"""Peers that sleep, woken by one HTTPS request; and all that a stranger's URL must not lead to."""

from __future__ import annotations

import asyncio
import base64
import datetime
import importlib
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from meshnode import Config, MeshReader, MeshWriter, Node, NodeId
from meshnode.base.limits import MAX_WAKE_ANSWER
from meshnode.base.metrics import Metrics
from meshnode.runtime import waking
from meshnode.runtime.waking import Sleepers, Waker
from tests.given_time import wait_for, within

EXAMPLES = Path(__file__).parents[2] / "examples" / "functions"
DEADLINE_S = 15.0
SILENT_S = 1.5  # in which a request would have been made
Answer = Callable[[dict[str, Any]], Awaitable[bytes]]


async def _echo(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def _certificate(folder: Path, name: str) -> ssl.SSLContext:
    """Return a server's context; its authority's certificate is ``folder``/ca.pem."""
    days = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    made = []
    for subject, public, extension in (
        ("ca", ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0)),
        (name, key.public_key(), x509.SubjectAlternativeName([x509.DNSName(name)])),
    ):
        builder = x509.CertificateBuilder().issuer_name(ca_name).public_key(public).add_extension(extension, True)
        builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(days[0]).not_valid_after(days[1])
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)  # Python 3.13 ...
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        builder = builder.add_extension(signer, False)  # ... asks for these (RFC 5280)
        builder = builder.add_extension(_usage(is_authority=subject == "ca"), True)
        made.append(builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "ca.pem").write_bytes(made[0])
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(private + made[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def _usage(is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not is_authority, False, False, False, False, is_authority, False, False, False)


class Platform:
    """An HTTPS server that counts; ``answer`` gets the JSON of a request and returns the bytes of the response."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.answer: Answer = _ok
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length"))
        said = json.loads(await reader.readexactly(int(length)))
        self.requests.append((head, said))
        writer.write(await self.answer(said))
        await writer.drain()
        writer.close()


async def _ok(said: dict[str, Any]) -> bytes:
    return _response(b"{}")


def _response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def _platform(tmp_path: Path, name: str = "localhost") -> AsyncIterator[Platform]:
    platform = Platform()
    context = _certificate(tmp_path, name)

    class Counting(asyncio.StreamReaderProtocol):
        def __init__(self) -> None:
            super().__init__(asyncio.StreamReader(), platform.serve)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            platform.connections += 1
            super().connection_made(transport)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Counting, "127.0.0.1", 0, ssl=context)
    platform.port = server.sockets[0].getsockname()[1]
    async with server:
        yield platform


@pytest.fixture
async def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    """A platform whose certificate this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with _platform(tmp_path) as found:
        yield found


def _config(home: Path, **settings: Any) -> Config:
    return Config(home=home, listen="127.0.0.1:0", mdns=False, port_mapping=False, dht=False, gossip=False, **settings)


async def _asleep(tmp_path: Path, platform: Platform) -> tuple[NodeId, str]:
    """Let a node run and end; return its id, and its record in base64."""
    url = f"https://localhost:{platform.port}/wake?region=1"
    async with Node(_config(tmp_path / "sleeper", wake=url)) as node:
        assert node.record.wake == url
        return node.id, base64.b64encode(node.record.encoded).decode()


def _caller(tmp_path: Path, record: str, *allow: str) -> Node:
    return Node(_config(tmp_path / "caller", records=(record,), wake_allow=allow))


def _all(platform: Platform) -> tuple[str, str]:
    return f"localhost:{platform.port}", "127.0.0.0/8"


async def _call(node: Node, peer: NodeId) -> bytes:
    reader, writer = await node.open(peer, "echo")
    writer.write(b"hello")
    writer.write_eof()
    return await reader.read()


async def _counted(node: Node, peer: NodeId, name: str) -> None:
    """Call a peer that nothing wakes, until a counter says what became of the request."""
    call = asyncio.ensure_future(_call(node, peer))
    async with within(DEADLINE_S):
        while not node.status()["counters"].get(name):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    assert not call.done()
    call.cancel()


# ---- waking


async def test_a_peer_that_sleeps_is_woken_by_one_request_and_serves_the_call(
    tmp_path: Path, platform: Platform
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    woken = Node(_config(tmp_path / "sleeper"))

    async def wake(said: dict[str, Any]) -> bytes:
        await woken.start()  # at another port than the one in the record
        woken.serve("echo", _echo, allow=["any"])
        return _response(json.dumps({"record": base64.b64encode(woken.record.encoded).decode()}).encode())

    platform.answer = wake
    try:
        async with _caller(tmp_path, record, *_all(platform)) as node:
            assert await wait_for(_call(node, peer), DEADLINE_S) == b"hello"
            assert await wait_for(_call(node, peer), DEADLINE_S) == b"hello"
            [(head, said)] = platform.requests
            assert head.startswith("POST /wake?region=1 HTTP/1.1\r\n")
            assert said == {
                "wake": str(peer),
                "by": str(node.id),
                "record": base64.b64encode(node.record.encoded).decode(),
            }
            assert node.status()["counters"]["wakes"] == 1
    finally:
        await woken.close()


async def test_a_cold_start_may_take_longer_than_a_dial(
    tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.stack.dialing.HANDSHAKE_TIMEOUT_S", 0.6)
    peer, record = await _asleep(tmp_path, platform)
    woken = Node(_config(tmp_path / "sleeper"))

    async def wake(said: dict[str, Any]) -> bytes:
        await asyncio.sleep(1.5)
        await woken.start()
        woken.serve("echo", _echo, allow=["any"])
        return _response(json.dumps({"record": base64.b64encode(woken.record.encoded).decode()}).encode())

    platform.answer = wake
    try:
        async with _caller(tmp_path, record, *_all(platform)) as node:
            assert await wait_for(_call(node, peer), DEADLINE_S) == b"hello"
    finally:
        await woken.close()


async def test_a_woken_function_that_cannot_be_reached_calls_back(tmp_path: Path, platform: Platform) -> None:
    peer, record = await _asleep(tmp_path, platform)
    ended = asyncio.Event()

    async def wake(said: dict[str, Any]) -> bytes:
        async with Node(_config(tmp_path / "sleeper", records=(said["record"],))) as node:
            node.serve("echo", _echo, allow=[said["by"]])
            await node.connect(said["by"])
            await ended.wait()
        return _response(b"")

    platform.answer = wake
    async with _caller(tmp_path, record, *_all(platform)) as node:
        assert await wait_for(_call(node, peer), DEADLINE_S) == b"hello"
        ended.set()


SLEEPER = """
import asyncio, base64, sys
from meshnode import Config, Node

async def echo(reader, writer, peer):
    writer.write(await reader.read())

async def main():
    config = Config(home=sys.argv[1], listen="127.0.0.1:0", mdns=False, port_mapping=False, wake=sys.argv[2])
    async with Node(config) as node:
        node.serve("echo", echo, allow=["any"])
        print(node.id, base64.b64encode(node.record.encoded).decode(), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_process_that_was_frozen_with_its_connections_is_woken_too(tmp_path: Path, platform: Platform) -> None:
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / "sleeper"), f"https://localhost:{platform.port}/"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        peer, record = (await asyncio.to_thread(process.stdout.readline)).split()

        async def wake(said: dict[str, Any]) -> bytes:
            process.send_signal(signal.SIGCONT)
            return _response(b"")

        platform.answer = wake
        try:
            async with _caller(tmp_path, record, *_all(platform)) as node:
                assert await wait_for(_call(node, NodeId.parse(peer)), DEADLINE_S) == b"hello"
                await asyncio.sleep(0.2)
                process.send_signal(signal.SIGSTOP)
                assert await wait_for(_call(node, NodeId.parse(peer)), DEADLINE_S) == b"hello"
                assert [said["wake"] for _, said in platform.requests] == [peer]
        finally:
            process.kill()


async def test_the_example_function_wakes_serves_its_caller_and_sleeps_again(
    tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    monkeypatch.setenv("MESHNODE_KEY_FILE", str(tmp_path / "sleeper" / "key"))
    monkeypatch.setenv("MESHNODE_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("WAKE_URL", f"https://localhost:{platform.port}/")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    handler = importlib.import_module("sleeper").handler
    invoked: list[asyncio.Future[dict[str, Any]]] = []

    async def wake(said: dict[str, Any]) -> bytes:
        invoked.append(asyncio.ensure_future(asyncio.to_thread(handler, {"body": json.dumps(said)}, None)))
        return _response(b"", str((await invoked[0])["statusCode"]))

    platform.answer = wake
    async with _caller(tmp_path, record, *_all(platform)) as node:
        for name in (b"one", b"two"):
            reader, writer = await wait_for(node.open(peer, "greeting"), DEADLINE_S)
            writer.write(name)
            writer.write_eof()
            assert await reader.read() == b"hello, " + name
        assert (await wait_for(invoked[0], DEADLINE_S))["statusCode"] == 200
        assert len(platform.requests) == 1


async def test_a_peer_that_answers_is_not_woken(tmp_path: Path, platform: Platform) -> None:
    url = f"https://localhost:{platform.port}/"
    async with Node(_config(tmp_path / "sleeper", wake=url)) as peer:
        peer.serve("echo", _echo, allow=["any"])
        record = base64.b64encode(peer.record.encoded).decode()
        async with _caller(tmp_path, record, *_all(platform)) as node:
            assert await wait_for(_call(node, peer.id), DEADLINE_S) == b"hello"
            await asyncio.sleep(SILENT_S)
    assert platform.connections == 0


async def test_time_in_which_the_caller_did_not_run_is_no_silence_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.runtime.waking.WAKE_AFTER_S", 0.01)
    late = 0.0
    unused: Any = None
    sleepers = Sleepers(unused, unused, unused, unused, lambda: time.monotonic() - late)
    waker = Waker(unused, sleepers, unused, Metrics())
    hearing = asyncio.create_task(waker._listen(asyncio.ensure_future(asyncio.sleep(3600))))
    began = time.monotonic()
    await asyncio.sleep(0)
    late = 0.3
    await hearing
    assert time.monotonic() - began > 0.3


async def test_a_peer_is_asked_once_however_often_programs_call_it(
    tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    monkeypatch.setattr(waking, "WAKE_S", 0.5)
    async with _caller(tmp_path, record, *_all(platform)) as node:
        calls = [asyncio.ensure_future(_call(node, peer)) for _ in range(5)]
        await asyncio.sleep(SILENT_S)
        calls.append(asyncio.ensure_future(_call(node, peer)))
        await asyncio.sleep(SILENT_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert len(platform.requests) == 1
        assert node.status()["counters"]["wakes_slowed"] >= 5


# ---- where a stranger's URL must not lead


async def test_by_default_nothing_is_called(tmp_path: Path, platform: Platform) -> None:
    peer, record = await _asleep(tmp_path, platform)
    async with _caller(tmp_path, record) as node:
        with pytest.raises(TimeoutError):
            await wait_for(_call(node, peer), SILENT_S)
    assert platform.connections == 0


async def test_a_refusal_is_told_once_however_often_programs_call(
    tmp_path: Path, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    async with _caller(tmp_path, record, "example.org") as node:
        calls = [asyncio.ensure_future(_call(node, peer)) for _ in range(20)]
        await asyncio.sleep(SILENT_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert node.status()["counters"]["wakes_refused"] == 20
    assert [line.name for line in caplog.records].count("meshnode.wake") == 1


@pytest.mark.parametrize("host", ["localhost", "localhost:1", ".localhost", "example.org", "any"])
async def test_a_host_or_port_that_is_not_named_is_not_called(tmp_path: Path, platform: Platform, host: str) -> None:
    peer, record = await _asleep(tmp_path, platform)
    async with _caller(tmp_path, record, host, "127.0.0.0/8", "::1/128") as node:
        await _counted(node, peer, "wakes_refused")
    assert platform.connections == 0


async def test_a_name_that_leads_to_this_host_is_not_called_unless_its_network_is_named(
    tmp_path: Path, platform: Platform
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    async with _caller(tmp_path, record, f"localhost:{platform.port}", "10.0.0.0/8") as node:
        await _counted(node, peer, "wakes_failed")
    assert platform.connections == 0


async def test_a_host_is_looked_up_once_so_its_second_answer_leads_nowhere(
    tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, record = await _asleep(tmp_path, platform)
    asked: list[str] = []

    async def rebind(host: str) -> list[str]:
        asked.append(host)
        return ["127.9.9.9"]  # nothing listens there; what the system would say now is 127.0.0.1

    monkeypatch.setattr(waking, "look_up", rebind)
    async with _caller(tmp_path, record, f"localhost:{platform.port}", "127.9.0.0/16") as node:
        await _counted(node, peer, "wakes_failed")
    assert (asked, platform.connections) == (["localhost"], 0)


async def test_a_host_without_its_certificate_hears_no_word(
    tmp_path: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    async with _platform(tmp_path / "other", "example.org") as other:
        for authority in (tmp_path / "ca.pem", tmp_path / "other" / "ca.pem"):  # unknown; of another name
            monkeypatch.setenv("SSL_CERT_FILE", str(authority))
            (tmp_path / authority.parent.name).mkdir(exist_ok=True)
            peer, record = await _asleep(tmp_path, other)
            async with _caller(tmp_path, record, *_all(other)) as node:
                await _counted(node, peer, "wakes_failed")
        assert (other.connections, other.requests) == (0, [])  # a connection counts when its TLS stands


@pytest.mark.parametrize(
    "response",
    [
        _response(b"", "302 Found", "location: https://localhost/"),
        _response(b"", "500 Internal Server Error"),
        _response(bytes(MAX_WAKE_ANSWER + 1)),
        b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2 * MAX_WAKE_ANSWER + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=["redirect", "error", "long", "long-head", "no-http", "nothing"],
)
async def test_an_answer_that_is_none_is_counted_and_costs_nothing_else(
    tmp_path: Path, platform: Platform, response: bytes
) -> None:
    async def answer(said: dict[str, Any]) -> bytes:
        return response

    platform.answer = answer
    peer, record = await _asleep(tmp_path, platform)
    async with _caller(tmp_path, record, *_all(platform)) as node:
        await _counted(node, peer, "wakes_failed")
    assert len(platform.requests) == 1


async def test_a_record_in_an_answer_counts_only_when_its_signature_does(tmp_path: Path, platform: Platform) -> None:
    peer, record = await _asleep(tmp_path, platform)
    forged = bytearray(base64.b64decode(record))
    forged[-1] ^= 1

    async def answer(said: dict[str, Any]) -> bytes:
        return _response(json.dumps({"record": base64.b64encode(forged).decode()}).encode())

    platform.answer = answer
    async with _caller(tmp_path, record, *_all(platform)) as node:
        await _counted(node, peer, "record_forged")


def test_what_is_read_of_an_answer_is_a_record_or_nothing() -> None:
    good = base64.b64encode(b"x" * 1000).decode()
    assert waking.record_in(json.dumps({"record": good}).encode()) == b"x" * 1000
    long = base64.b64encode(b"x" * 1001).decode()
    for text in (
        "",
        "[]",
        "null",
        "{}",
        '{"record": 1}',
        '{"record": ""}',
        '{"record": "?"}',
        "[" * 9999,
        f'{{"record": "{long}"}}',
    ):
        assert waking.record_in(text.encode()) is None


async def test_the_sdk_connects_by_a_wake_too(tmp_path: Path, platform: Platform) -> None:
    peer, record = await _asleep(tmp_path, platform)
    woken = Node(_config(tmp_path / "sleeper"))

    async def wake(said: dict[str, Any]) -> bytes:
        await woken.start()
        return _response(json.dumps({"record": base64.b64encode(woken.record.encoded).decode()}).encode())

    platform.answer = wake
    try:
        async with _caller(tmp_path, record, *_all(platform)) as node:
            assert (await wait_for(node.connect(peer), DEADLINE_S)).peer == peer
    finally:
        await woken.close()
