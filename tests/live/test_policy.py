"""Policies of nodes in processes of their own: set, explained, tested, and in force within a second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshnode
from meshnode.errors import ConfigError, PolicyDenied
from meshnode.identity.keys import Identity
from meshnode.trust.home_mesh import save_authority
from tests.given_time import GivenTime, within
from tests.live.cli_node import CliNode, run, stopping

ALLOW_WEB = '[[allow]]\nname = "web for all"\nfrom = "any"\nservices = "web"\n'
CLOSED = 'version = 2\nreasons = "told"\n[[deny]]\nname = "closed today"\nfrom = "any"\nservices = "*"\n'


@pytest.fixture
def node(tmp_path: Path) -> Iterator[CliNode]:
    made = CliNode(tmp_path / "node")
    with stopping(made):
        yield made


async def _echo(reader: meshnode.MeshReader, writer: meshnode.MeshWriter, peer: meshnode.NodeId) -> None:
    while data := await reader.read(65_536):
        writer.write(data)


async def test_a_change_of_the_file_cuts_a_live_stream_within_a_second(tmp_path: Path) -> None:
    quiet = {"listen": "127.0.0.1:0", "mdns": False, "dht": False, "port_mapping": False}
    home = tmp_path / "a"
    async with meshnode.Node(meshnode.Config(home=home, **quiet)) as server:
        server.serve("web", _echo, allow="any")
        seed = f"{server.id}@{server.record.endpoints[0]}"
        async with meshnode.Node(meshnode.Config(home=tmp_path / "b", seeds=(seed,), **quiet)) as client:
            reader, writer = await client.open(server.id, "web")
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            (home / "policy.toml").write_text(CLOSED)
            begun = GivenTime()
            with pytest.raises(PolicyDenied):
                await reader.read()
            assert begun.seconds < 5.0, "0.4 s and a round trip; a busy machine takes longer"
            with pytest.raises(PolicyDenied, match="closed today") as caught:
                await client.open(server.id, "web")
            assert caught.value.rule == "closed today"
            (home / "policy.toml").write_text("[[allow]")  # a mistake changes nothing
            async with within(15):
                while not server.status()["degraded"]:  # noqa: ASYNC110 - a file announces nothing
                    await asyncio.sleep(0.05)
            assert "policy.toml" in server.status()["degraded"][0]
            with pytest.raises(PolicyDenied):
                await client.open(server.id, "web")


async def test_a_node_that_may_hear_a_topic_no_longer_ends_its_own_readers_with_the_reason(tmp_path: Path) -> None:
    quiet = {"listen": "127.0.0.1:0", "mdns": False, "dht": False, "port_mapping": False}
    home = tmp_path / "a"
    async with meshnode.Node(meshnode.Config(home=home, **quiet)) as node:
        secret, plain, left = await node.join("secret"), await node.join("plain"), await node.join("secret")
        await left.leave()
        (home / "policy.toml").write_text(
            f'[[deny]]\nname = "retired"\nfrom = "{node.id}"\nsubscribe = "secret"\n'
            '[[allow]]\nfrom = "any"\nsubscribe = "*"\n'
        )
        async with within(15):
            with pytest.raises(PolicyDenied, match="secret") as caught:
                await anext(secret)
        assert caught.value.rule == "retired"
        with pytest.raises(PolicyDenied):
            await secret.publish(b"still")
        with pytest.raises(PolicyDenied):
            await node.join("secret")
        with pytest.raises(StopAsyncIteration):
            await anext(left)  # it had left by itself
        await plain.publish(b"goes on")
        (home / "policy.toml").unlink()
        async with within(15):
            while True:
                try:
                    await (await node.join("secret")).publish(b"again")
                    break
                except PolicyDenied:
                    await asyncio.sleep(0.05)


async def test_a_node_does_not_start_without_the_rules_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[[allow]]\nservices = 'web'\n")
    with pytest.raises(ConfigError, match=r"policy\.toml, line 1, rule allow#1"):
        await meshnode.Node(meshnode.Config(home=tmp_path, listen="127.0.0.1:0", mdns=False)).start()


def test_the_running_node_explains_as_it_decides(tmp_path: Path, node: CliNode) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(ALLOW_WEB)
    node.ask("expose", "web", "tcp://127.0.0.1:1", "--allow", "role:dev")
    found = node.ask("policy", "explain", "any", "self", "web")
    assert found == {
        "allowed": False,
        "rule": "allow list of web",
        "grant": None,
        "why": "it is not in the allow list of web (role dev)",
    }
    assert node.ask("policy", "explain", "role:dev", node.id, "web")["allowed"] is True
    assert node.ask("policy", "set", str(file))["local"]["rules"] == 1
    assert node.ask("policy", "explain", "role:dev", "self", "web")["rule"] == "web for all"
    refused = node.ask("policy", "explain", "role:dev", "any", "ssh")
    assert (refused["allowed"], refused["rule"]) == (False, None)
    assert node.ask("policy", "show")["local"]["governed"] == ["service"]
    assert node.ask("policy", "unset")["local"] is None
    assert not (node.home / "policy.toml").exists()


def test_a_signed_policy_outlives_a_kill_and_no_older_one_comes_back(tmp_path: Path) -> None:
    home, rules = tmp_path / "signing", tmp_path / "rules.toml"
    authority = Identity.generate()
    home.mkdir(mode=0o700)
    (home / "meshnode.toml").write_text(f'mesh = "a mesh"\nauthority = "{authority.id}"\nadmit = "mesh-secret"\n')
    save_authority(home, authority, None)
    rules.write_text(f"version = 3\n{ALLOW_WEB}")
    made = run(home, "policy", "sign", str(rules), "--out", str(tmp_path / "three.signed"))
    assert made.returncode == 0, made.stderr
    rules.write_text(f"version = 2\n{ALLOW_WEB}")
    run(home, "policy", "sign", str(rules), "--out", str(tmp_path / "two.signed"))
    node = CliNode(home)
    with stopping(node):
        assert node.ask("policy", "apply", str(tmp_path / "three.signed"))["mesh"]["version"] == 3
        node.process.kill()
        node.process.wait()
    again = CliNode(home)
    with stopping(again):
        assert again.ask("policy", "show")["mesh"]["version"] == 3
        refused = again.run("policy", "apply", str(tmp_path / "two.signed"), "--json")
        assert "version 2 is not newer than 3" in json.loads(refused.stdout)["error"]["message"]
        rules.write_text("version = 4\n")
        assert again.run("policy", "sign", str(rules)).returncode == 0
        assert again.ask("policy", "explain", "any", "self", "web")["allowed"] is False


def test_a_policy_is_checked_and_tested_without_a_node(tmp_path: Path) -> None:
    policy, tests = tmp_path / "policy.toml", tmp_path / "tests.toml"
    policy.write_text(ALLOW_WEB)
    checked = run(tmp_path, "policy", "check", str(policy), "--json")
    assert json.loads(checked.stdout)["rules"] == 1
    tests.write_text('[[expect]]\nfrom = "role:dev"\nservices = ["web"]\nallowed = true\nrule = "web for all"\n')
    assert run(tmp_path, "policy", "test", str(tests)).returncode == 0
    tests.write_text(tests.read_text() + '[[expect]]\nfrom = "any"\nservices = "ssh"\nallowed = true\n')
    failed = run(tmp_path, "policy", "test", str(tests), "--json")
    assert failed.returncode == 1
    assert [json.loads(line)["ok"] for line in failed.stdout.splitlines()] == [True, False]
    asked = ("policy", "explain", "role:dev", "any", "ssh", "--file", str(policy))
    assert "no rule allows any node" in run(tmp_path, *asked).stdout
    policy.write_text("[[allow]]\nfrom = 7\n")
    wrong = run(tmp_path, "policy", "check", str(policy), "--json")
    assert wrong.returncode == 1
    assert "line 1, rule allow#1" in json.loads(wrong.stdout)["error"]["message"]
