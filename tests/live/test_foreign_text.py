"""Every command beside a peer whose every text is hostile: none reaches a terminal or a log raw."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest

from meshnode import Node
from meshnode.cli.front import Front, group
from meshnode.cli.index import INDEX
from meshnode.foreign_text import visible
from meshnode.identity.node_id import NodeId
from meshnode.quic.connection import Connection
from meshnode.quic.hello import CloseCode, Hello
from meshnode.sdk.node import runtime_of
from tests.conftest import MakeNode
from tests.forked import Forked

EVIL = "\x1b]0;x\x07\nforged\x9b\u202e"
RAW = ("\x1b", "\x07", "\x9b", "\u202e")
COMMAND = [sys.executable, "-m", "meshnode"]
IN_FRONT = ("up", "seed", "demo")  # `up` is the node of this test, and its log is looked at; the demo has no peer
ARGUMENTS = {"listen": "127.0.0.1:0", "target": "9", "topic": "news", "text": "x", "shell": "bash", "address": None}
WAIT_S = 20.0


def arguments(command: click.Command, peer: NodeId, known: dict[str, str | None]) -> list[str]:
    """Return what a command needs; an argument that is new here gets the peer's id."""
    found = []
    for item in command.params:
        if isinstance(item, click.Argument):
            value = known.get(str(item.name), str(peer))
            found += [value] if value is not None else []
        elif item.name == "count":
            found += ["-c", "1"]
    return found


def start(line: list[str], real: bool) -> subprocess.Popen[bytes]:
    """Start a command, as a person does when it is ``real``, else as a copy of a process that has loaded all."""
    pipe = subprocess.PIPE
    env = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    if real:
        return subprocess.Popen([*COMMAND, *line], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env)
    return Forked(line, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env)


def run_all(home: Path, scratch: Path, peer: NodeId, real: bool) -> dict[str, tuple[str, str]]:
    """Run every command at once, as text and as JSON; return what each printed.

    With ``real`` the first run of each command is one that a person would start.
    """
    context = click.Context(group)
    front = group
    assert isinstance(front, Front)
    running = {}
    for name in sorted(INDEX):
        command = front.get_command(context, name)
        assert command is not None
        if name in IN_FRONT:
            continue
        for form in ("", "--json"):
            if form and not any(item.name == "as_json" for item in command.params):
                continue
            lines: list[list[str]] = []
            for variant, known in enumerate((ARGUMENTS, {**ARGUMENTS, "to": f"{peer}/web", "name": "web", "id": None})):
                line = arguments(command, peer, known)
                if line in lines:
                    continue  # it has none of the arguments in which the variants differ
                lines.append(line)
                place = scratch / f"{name}{form}{variant}" if name in ("keygen", "id") else home
                whole = ["--home", str(place), name, *line, *([form] if form else [])]
                running[f"{name} {form} {variant}"] = start(whole, real and not form and not variant)
    found = {}
    for name, process in running.items():
        try:
            out, err = process.communicate(timeout=WAIT_S if not name.startswith(("watch", "sub")) else 1)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WAIT_S)
        found[name] = out.decode(), err.decode()
    return found


def check(name: str, out: str, err: str) -> None:
    """The output has lines of the command's own, and JSON that holds together."""
    for text in (out, err):
        assert "Traceback" not in text, name
        for line in text.splitlines():
            assert visible(line) == line, f"{name}: {line!r}"
            assert not line.startswith("forged"), f"{name}: {line!r}"
    if "--json" in name:
        for line in out.splitlines():
            json.loads(line)


def use_forwards(status: str) -> None:
    """Connect to what is forwarded to the peer, which refuses: the reason is in the log."""
    for forward in json.loads(status)["forwards"]:
        host, port = forward["listen"].rsplit(":", 1)
        with (
            suppress(ConnectionResetError),  # also before the connect has returned
            socket.create_connection((host, int(port)), timeout=WAIT_S) as connection,
            suppress(OSError),
        ):
            connection.recv(1)


async def hostile(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce what has hostile texts wherever a text may be."""

    async def handler(reader: object, writer: object, peer: NodeId) -> None: ...

    monkeypatch.setattr("meshnode.sdk.service.is_service_name", lambda name: True)
    monkeypatch.setattr("meshnode.directory.services.is_service_name", lambda name: True)
    for name, meta in (("web", {EVIL: EVIL, "nl": f"a\n{EVIL}"}), (EVIL, {})):
        node.serve(name, handler, allow=("any",), announce=True, meta=meta)
    names = runtime_of(node).names
    assert names is not None
    monkeypatch.setattr("meshnode.directory.names.is_label", lambda text: True, raising=False)
    names.claim(EVIL, 1.0, runtime_of(node).clock.monotonic())
    runtime_of(node).drain_directory()


def refuse(self: Any, connection: Connection, hello: Hello) -> None:
    connection.close(CloseCode.PROTOCOL, f"bye {EVIL}")


async def test_no_command_and_no_log_shows_a_peers_text_as_it_is(
    tmp_path: Path, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, log = tmp_path / "victim", tmp_path / "log"
    with log.open("wb") as file:
        victim = subprocess.Popen(
            [*COMMAND, "--home", str(home), "seed", "-v", "--json", "--no-mdns", "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        assert victim.stdout is not None
        ready = json.loads(await asyncio.to_thread(victim.stdout.readline))
        node = await make_node(seeds=(f"{ready['id']}@{ready['endpoints'][0]}",))
        await node.connect(ready["id"])
        await hostile(node, monkeypatch)
        topic = await node.join("news")
        await asyncio.sleep(1.0)

        async def publish() -> None:
            while True:
                await topic.publish(EVIL.encode())
                await asyncio.sleep(0.2)

        publishing = asyncio.ensure_future(publish())
        first = await asyncio.to_thread(run_all, home, tmp_path, node.id, True)
        publishing.cancel()
        assert "forged" in first["services  0"][0] + first["services  1"][0], "the texts came that far"
        assert "forged" in first["sub  0"][0]
        monkeypatch.setattr("meshnode.stack.admission.Admission.on_hello", refuse)
        monkeypatch.setattr("meshnode.stack.dialing.Dialing.connect", lambda self, peer, now, answer: None)
        runtime = runtime_of(node)
        runtime.stack.sessions[NodeId.parse(ready["id"])].connection.close(CloseCode.PROTOCOL, f"bye {EVIL}")
        runtime.driver.pump()
        await asyncio.sleep(0.5)
        second = await asyncio.to_thread(run_all, home, tmp_path, node.id, False)
        assert "bye" in second["ping  0"][1], "the reason came that far"
        await asyncio.to_thread(use_forwards, second["status --json 0"][0])
        for name, (out, err) in [*first.items(), *second.items()]:
            check(name, out, err)
    finally:
        victim.terminate()
        await asyncio.to_thread(victim.wait, 30)
    lines = log.read_text()
    check("the log", "", lines.replace("Traceback", ""))
    assert not any(raw in lines for raw in RAW)
    assert "bye" in lines, "the reason came that far"
