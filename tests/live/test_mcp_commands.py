"""``meshnode mcp serve`` and ``connect``: a server on stdin and stdout, used by an MCP client on another node."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mcp
import pytest

from tests.given_time import eventually, status_of, wait_for
from tests.live.cli_node import CliNode, clean_environment, stopping

SERVER = """
import asyncio, os
from mcp.server import MCPServer
server = MCPServer("tools")
@server.tool()
async def wait(path: str) -> str:
    while not os.path.exists(path):
        await asyncio.sleep(0.05)
    return f"{os.getpid()} {os.environ['MESH_CALLER_ID']}"
server.run("stdio")
"""
STAYS = "import os, signal, sys, time; print(os.getpid(), flush=True); signal.pause()"


@dataclass
class Mesh:
    """A node that serves, one that uses it, and a seed of both."""

    there: CliNode
    here: CliNode
    seed: CliNode


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    home = tmp_path_factory.mktemp("mcp")
    seed = CliNode(home / "seed", command="seed")
    there = CliNode(home / "there", "--name", "there", seed=seed)
    here = CliNode(home / "here", "--name", "here", seed=seed)
    with stopping(here, there, seed):
        yield Mesh(there, here, seed)


@contextmanager
def serving(mesh: Mesh, name: str, *command: str, allow: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``mcp serve`` with MESH_CALLER_ID forged in its environment; it is stopped at the end."""
    line = [sys.executable, "-m", "meshnode", "--home", str(mesh.there.home), "mcp", "serve", "--name", name]
    environment = clean_environment(MESH_CALLER_ID="forged")
    process = subprocess.Popen(
        [*line, "--allow", allow, "--json", "--", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == {"name": name}
        yield process
    finally:
        process.terminate()
        status_of(process, 20)
        process.stdout.close()


def client(mesh: Mesh, to: str) -> mcp.Client:
    arguments = ["-m", "meshnode", "--home", str(mesh.here.home), "mcp", "connect", to]
    environment = {**clean_environment(), "MESH_CALLER_ID": "forged"}
    return mcp.Client(mcp.StdioServerParameters(command=sys.executable, args=arguments, env=environment))


async def call(tools: mcp.Client, path: Path) -> list[str]:
    """Return what a tool answers once a file is there."""
    result: Any = await tools.call_tool("wait", {"path": str(path)})
    found: list[str] = result.content[0].text.split()
    return found


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_tool_call_goes_on_while_both_nodes_move_and_is_told_the_proven_caller(
    mesh: Mesh, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    with serving(mesh, "tools", sys.executable, str(tmp_path / "server.py"), allow=mesh.here.id):
        async with client(mesh, "there/tools") as tools:
            calling = asyncio.create_task(call(tools, tmp_path / "go"))
            for _ in range(3):
                await asyncio.gather(*(asyncio.to_thread(node.ask, "rebind") for node in (mesh.here, mesh.there)))
                await asyncio.sleep(0.3)
            assert not calling.done()
            (tmp_path / "go").touch()
            process, caller = await wait_for(calling, 20)
            assert caller == mesh.here.id
            async with client(mesh, f"{mesh.there.id}/tools") as others:
                other, caller = await call(others, tmp_path)
            assert (other != process, caller) == (True, mesh.here.id)
        eventually(lambda: not alive(int(process)))
    assert mesh.here.error("connect", f"{mesh.there.id}/tools")["code"] == "service_not_found"


def test_a_node_that_is_not_allowed_starts_no_process(mesh: Mesh, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    with serving(mesh, "closed", sys.executable, "-c", f"open({str(mark)!r}, 'w')", allow=mesh.there.id):
        assert mesh.here.error("mcp", "connect", f"{mesh.there.id}/closed")["code"] == "policy_denied"
        assert not mark.exists()


def stayer(mesh: Mesh, name: str) -> tuple[subprocess.Popen[str], int]:
    """Connect to a server that heeds no end of its stdin; return the connection and the server's process."""
    line = [sys.executable, "-m", "meshnode", "--home", str(mesh.here.home), "mcp", "connect", f"there/{name}"]
    connected = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert connected.stdout is not None
    return connected, int(connected.stdout.readline())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_server_that_does_not_end_with_its_session_is_terminated(mesh: Mesh) -> None:
    with serving(mesh, "stays", sys.executable, "-c", STAYS, allow=mesh.here.id):
        connected, server = stayer(mesh, "stays")
        assert alive(server)
        end(connected)
        eventually(lambda: not alive(server), 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_end_of_the_command_is_the_end_of_its_servers_and_its_service(mesh: Mesh, number: signal.Signals) -> None:
    name = f"ends{number}"
    with serving(mesh, name, sys.executable, "-c", STAYS, allow=mesh.here.id) as command:
        connected, server = stayer(mesh, name)
        command.send_signal(number)
        assert status_of(command, 20) in (128 + number, 130)
        assert not alive(server)
        assert connected.stdout is not None
        assert connected.stdout.read() == ""
        end(connected)
    eventually(lambda: mesh.here.error("connect", f"{mesh.there.id}/{name}")["code"] == "service_not_found")


def test_a_program_that_is_there_no_more_ends_its_session_and_says_so(
    mesh: Mesh, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.symlink_to("/bin/cat")
    with serving(mesh, "missing", str(program), allow=mesh.here.id):
        program.unlink()
        done = mesh.here.run("mcp", "connect", "there/missing", said="")
        assert done.stdout == ""
        time.sleep(0.1)
    assert f"cannot run {program}: no such file or directory" in capfd.readouterr().err
