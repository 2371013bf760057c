"""Serverless functions and CI jobs: a key that is forgotten, a ticket in a variable, freezes between calls."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode import Config, MeshReader, MeshWriter, Node, NodeId, PolicyDenied
from meshnode.errors import ConfigError, KeyFileError, PeerSilent
from meshnode.identity.keyfile import load_or_create
from meshnode.identity.keys import Identity
from meshnode.sdk.node import runtime_of
from meshnode.trust.authority import Issuer
from meshnode.trust.home_mesh import load_authority, load_mesh
from meshnode.trust.operator import create_mesh, invite
from meshnode.trust.ticket import format_ticket
from tests.given_time import LOOK_S, wait_for, within
from tests.live.cli_node import clean_environment

EXAMPLES = Path(__file__).parents[2] / "examples" / "functions"
DEADLINE_S = 20.0


async def _echo(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def _digest(reader: MeshReader, writer: MeshWriter, peer: NodeId) -> None:
    found = hashlib.sha256()
    while data := await reader.read(65536):
        found.update(data)
    writer.write(b"ok " + found.hexdigest().encode())


def _function(env: dict[str, str], **settings: Any) -> Node:
    return Node(Config.for_function(env=env, listen="127.0.0.1:0", **settings))


@asynccontextmanager
async def _server(home: Path, **settings: Any) -> AsyncIterator[tuple[Node, str]]:
    """A node that serves ``orders``, and how it is named as a seed."""
    async with Node(Config(home=home, listen="127.0.0.1:0", mdns=False, port_mapping=False, **settings)) as node:
        allow = ["role:job"] if settings.get("authority") else ["any"]
        node.serve("orders", _echo, allow=allow)
        node.serve("deploy", _digest, allow=allow)
        yield node, f"{node.id}@{node.record.endpoints[0]}"


async def _call(node: Node, peer: NodeId, data: bytes = b"hello") -> bytes:
    reader, writer = await node.open(peer, "orders")
    writer.write(data)
    writer.write_eof()
    return await reader.read()


def _ticket(home: Path, role: str = "job") -> tuple[dict[str, str], str]:
    """Make a mesh in a home; return its settings, and a ticket for any number of nodes with a role."""
    create_mesh(home, "field", load_or_create(home / "key"), None, time.time(), os.urandom)
    mesh, authority = load_mesh(home), load_authority(home, None)
    assert mesh is not None
    assert authority is not None
    said = {"services": None, "seeds": (), "ticket_s": 3600.0, "lifetime_s": 3600.0, "uses": 0}
    ticket = invite(mesh, Issuer(authority), roles=(role,), wall=time.time(), entropy=os.urandom, **said)  # type: ignore[arg-type]
    return {"mesh": mesh.key, "authority": str(mesh.authority)}, format_ticket(ticket)


# ---- settings


def _settings(tmp_path: Path, env: dict[str, str] | None = None, **settings: Any) -> Config:
    return Config.for_function(env={"TMPDIR": str(tmp_path), **(env or {})}, **settings)


def test_a_function_announces_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    found = _settings(tmp_path)
    said = (found.mdns, found.gossip, found.port_mapping, found.audit, found.relay, found.listen)
    assert said == (False, False, False, False, "off", "[::]:0")
    assert found.home_path.parent == tmp_path
    assert found.home_path.stat().st_mode & 0o777 == 0o700


def test_the_environment_and_arguments_beat_what_a_function_begins_with(tmp_path: Path) -> None:
    found = _settings(tmp_path, {"MESHNODE_GOSSIP": "1", "MESHNODE_AUDIT": "1"}, audit=False)
    assert (found.gossip, found.audit) == (True, False)


def test_the_dht_is_left_out_where_a_record_says_where_the_peer_is(tmp_path: Path) -> None:
    record = "AAAA"
    assert _settings(tmp_path).dht is True
    assert _settings(tmp_path, records=[record]).dht is False
    assert _settings(tmp_path, {"MESHNODE_RECORDS": record}).dht is False
    assert _settings(tmp_path, {"MESHNODE_DHT": "1"}, records=[record]).dht is True


def test_the_key_is_that_of_a_secret_or_a_new_one(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(bytes(range(32)).hex())
    assert _settings(tmp_path, {"MESHNODE_KEY_FILE": str(secret)}).key == bytes(range(32)).hex()
    assert _settings(tmp_path, {"MESHNODE_KEY": bytes(32).hex()}).key == bytes(32).hex()
    assert _settings(tmp_path).key != _settings(tmp_path).key


def test_a_secret_that_is_no_key_or_no_ticket_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        _settings(tmp_path, {"MESHNODE_KEY": "secret"})
    with pytest.raises(ConfigError, match="no ticket"):
        _settings(tmp_path, {"MESHNODE_TICKET": "secret"})
    with pytest.raises(ConfigError, match="MESHNODE_TICKET_FILE: there is no"):
        _settings(tmp_path, {"MESHNODE_TICKET_FILE": str(tmp_path / "missing")})


def test_a_given_home_is_used_as_it_is(tmp_path: Path) -> None:
    key = load_or_create(tmp_path / "home" / "key")
    found = _settings(tmp_path, home=tmp_path / "home")
    assert (found.home_path, found.key) == (tmp_path / "home", None)
    assert load_or_create(found.home_path / "key").id == key.id


@pytest.mark.parametrize(
    ("end", "kept"), [("", False), ("if os.fork() == 0: sys.exit()\nos.wait()\nprint(os.listdir('.'))", True)]
)
def test_the_folder_of_a_function_goes_with_its_process_and_not_with_a_child(
    tmp_path: Path, end: str, kept: bool
) -> None:
    code = f"import os, sys\nfrom meshnode import Config\nConfig.for_function()\n{end}"
    env = clean_environment(TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert ("meshnode-function-" in done.stdout) is kept
    assert list(tmp_path.iterdir()) == []


# ---- calls


async def test_a_function_calls_a_peer_that_its_settings_name_without_any_lookup(tmp_path: Path) -> None:
    async with _server(tmp_path / "server") as (server, seed):
        env = {"TMPDIR": str(tmp_path), "MESHNODE_SEEDS": seed, "MESHNODE_DHT": "0"}
        async with _function(env) as node:
            assert await _call(node, server.id) == b"hello"
            assert list(node.status()["sources"]) == ["seeds"]
            assert server.peers()[0]["dialled"] is False


async def test_a_ticket_in_a_variable_makes_a_function_a_member_with_its_roles(tmp_path: Path) -> None:
    mesh, ticket = _ticket(tmp_path / "server")
    async with _server(tmp_path / "server", **mesh) as (server, seed):
        env = {"TMPDIR": str(tmp_path), "MESHNODE_SEEDS": seed, "MESHNODE_TICKET": ticket}
        async with _function(env) as one, _function(env) as two:
            assert await asyncio.gather(_call(one, server.id), _call(two, server.id)) == [b"hello", b"hello"]
            assert (one.roles, one.id == two.id) == ({"job"}, False)


async def test_a_ticket_for_another_role_opens_nothing(tmp_path: Path) -> None:
    mesh, ticket = _ticket(tmp_path / "server", "guest")
    async with _server(tmp_path / "server", **mesh) as (server, seed):
        env = {"TMPDIR": str(tmp_path), "MESHNODE_SEEDS": seed, "MESHNODE_TICKET": ticket}
        async with _function(env) as node:
            with pytest.raises(PolicyDenied):
                await _call(node, server.id)


# ---- freezes between invocations


async def test_a_thawed_function_whose_connection_was_forgotten_is_served_in_its_first_call(tmp_path: Path) -> None:
    """As where a platform stops a virtual machine: its clock stood still, and the peer's goodbye was lost."""
    env = {"TMPDIR": str(tmp_path)}
    async with _server(tmp_path / "server") as (server, seed), _function(env, seeds=[seed]) as node:
        assert await _call(node, server.id) == b"hello"
        _forget(server, node.id)
        assert server.peers() == []
        assert len(node.peers()) == 1
        assert await wait_for(_call(node, server.id, b"again"), DEADLINE_S) == b"again"


@pytest.mark.parametrize("first", [True, False], ids=["smaller-id", "greater-id"])
async def test_a_call_goes_on_when_the_peer_connects_again_in_its_middle(tmp_path: Path, first: bool) -> None:
    keys = sorted((Identity.generate() for _ in range(2)), key=lambda identity: identity.id, reverse=not first)
    env = {"TMPDIR": str(tmp_path), "MESHNODE_KEY": keys[0].seed.hex()}
    async with (
        _server(tmp_path / "server", key=keys[1].seed.hex(), gossip=False) as (server, seed),
        _function(env, seeds=[seed]) as node,
    ):
        assert await _call(node, server.id) == b"hello"
        _forget(server, node.id)
        back, answer = await asyncio.gather(server.connect(node.id), _call(node, server.id, b"again"))
        assert (back.peer, answer) == (node.id, b"again")


def _forget(node: Node, peer: NodeId) -> None:
    """End the connection to a peer; what it is told of it is lost."""
    stack = runtime_of(node).stack
    connection = stack.context.peers.connection(peer)
    assert connection is not None
    sender, link = stack.context.sender, stack.context.link
    sender._link = _Nowhere()  # type: ignore[assignment]
    connection.abandon(PeerSilent("the peer was silent"))
    stack.flush(stack.context.clock.monotonic())
    sender._link = link


class _Nowhere:
    """A network that loses everything."""

    def send(self, *args: object) -> bool:
        return True


RUN_HANDLER = """
import json, sys, time
from caller import handler
for line in sys.stdin:
    began = time.perf_counter()
    answer = handler(json.loads(line), None)
    print(json.dumps([answer["body"], time.perf_counter() - began]), flush=True)
"""


@contextmanager
def _example(*args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A program of the examples' folder in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=EXAMPLES,
        env=clean_environment(MESHNODE_LISTEN="127.0.0.1:0", **env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # it may be stopped


async def test_the_example_handler_answers_again_after_freezes_that_outlast_its_connection(tmp_path: Path) -> None:
    async with _server(tmp_path / "server", idle_timeout=1.0) as (server, seed):
        env = {"TMPDIR": str(tmp_path), "MESHNODE_SEEDS": seed, "ORDERS": str(server.id)}
        with _example("-c", RUN_HANDLER, **env) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(4):
                process.stdin.write(json.dumps({"body": f"order {number}"}) + "\n")
                process.stdin.flush()
                body, took = json.loads(await asyncio.to_thread(process.stdout.readline))
                assert body == f"order {number}"
                assert took < DEADLINE_S
                process.send_signal(signal.SIGSTOP)
                async with within(DEADLINE_S):
                    while server.peers():  # noqa: ASYNC110 - the peer gives the connection up after 1.0 s
                        await asyncio.sleep(LOOK_S)
                process.send_signal(signal.SIGCONT)


async def test_the_example_job_hands_over_a_build_and_leaves_nothing(tmp_path: Path) -> None:
    mesh, ticket = _ticket(tmp_path / "server")
    build, left = os.urandom(3_000_000), tmp_path / "left"
    left.mkdir()
    async with _server(tmp_path / "server", **mesh) as (server, seed):
        env = {"MESHNODE_SEEDS": seed, "MESHNODE_TICKET": ticket, "DEPLOY": str(server.id), "TMPDIR": str(left)}
        job = await asyncio.create_subprocess_exec(
            *(sys.executable, "ci_job.py"),
            cwd=EXAMPLES,
            env=clean_environment(MESHNODE_LISTEN="127.0.0.1:0", **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        answer, _ = await wait_for(job.communicate(build), DEADLINE_S)
    assert (job.returncode, answer) == (0, b"ok " + hashlib.sha256(build).hexdigest().encode())
    assert list(left.iterdir()) == []
