"""``meshnode run``: a program in the mesh, with its signals and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.given_time import HANG_S, eventually, output_of, status_of
from tests.live.cli_node import CliNode, clean_environment, stopping

SERVER = """
import http.server, socket, sys, time
time.sleep(0.3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
TELLS = """
import os, signal, sys, time
def told(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(7)
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, told)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@dataclass
class Pair:
    """Two nodes."""

    there: CliNode
    here: CliNode

    def line(self, *args: str) -> list[str]:
        """Return the command line of ``meshnode run`` at the second node."""
        return [sys.executable, "-m", "meshnode", "--home", str(self.here.home), "run", *args]

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        """Begin to run a program."""
        return subprocess.Popen(
            self.line(*args),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environment),
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("run")
    (home / "www").mkdir()
    (home / "www" / "index.html").write_text("hello")
    there = CliNode(home / "there", "--name", "there", command="seed")
    here = CliNode(home / "here", "--name", "here", seed=there)
    with stopping(here, there):
        yield Pair(there, here)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def fetch(node: CliNode, url: str) -> str:
    """Return what curl gets, run at a node."""
    return node.run("run", "--", "curl", "-s", url).stdout


def exposed(node: CliNode) -> dict[str, tuple[str, bool]]:
    """Return the target of each service that a node lists, and whether it is kept over a restart."""
    items = [json.loads(line) for line in node.run("exposes", "--json").stdout.splitlines()]
    return {item["name"]: (item["target"], item["kept"]) for item in items}


@pytest.mark.parametrize("given", ["web", "web={port}"])
def test_a_port_is_a_service_while_its_program_runs_and_another_program_reaches_it(pair: Pair, given: str) -> None:
    port = free_port()
    expose = given.format(port=port)
    shell = f"cd {pair.here.home.parent}/www && {sys.executable} -c '{SERVER}' {port}; exit 3"  # a child of the program
    process = pair.start("--expose", expose, "--allow", "there", "--", "sh", "-c", shell)
    try:
        eventually(lambda: fetch(pair.there, "http://web.here.mesh/") == "hello", 20)
        assert pair.there.error("connect", "here/other")["code"] == "service_not_found"
        assert "web" not in [item["name"] for item in pair.here.ask("status")["exposes"]], "it is not kept"
        assert exposed(pair.here)["web"] == (f"tcp://127.0.0.1:{port}", False)
        assert "as long as its program runs" in pair.here.run("exposes").stdout
        assert "as long as its program runs" in pair.here.error("unexpose", "web")["message"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, err = output_of(process, 10)
    assert f"web -> tcp://127.0.0.1:{port}" in err
    eventually(lambda: pair.there.error("connect", "here/web")["code"] == "service_not_found")
    assert "web" not in exposed(pair.here)


def test_a_name_that_is_served_already_is_told(pair: Pair) -> None:
    pair.here.ask("expose", "taken", "8")
    assert exposed(pair.here)["taken"] == ("tcp://127.0.0.1:8", True)
    process = pair.start("--expose", "taken=9", "--", "sleep", "2")
    _, err = output_of(process, 20)
    assert "taken is not exposed" in err
    assert process.returncode == 0, "the program runs all the same"


def test_the_environment_leads_to_a_proxy_of_its_own_that_ends_with_it(pair: Pair) -> None:
    process = pair.start("--", "sh", "-c", "env; read line", NO_PROXY="kept.example")
    assert process.stdout is not None
    told = {}
    while len(told) < 9:
        name, _, value = process.stdout.readline().strip().partition("=")
        if "proxy" in name.lower() or name == "MESHNODE_HOME":
            told[name] = value
    where = told["http_proxy"].removeprefix("http://")
    assert told["all_proxy"] == f"socks5h://{where}"
    assert told["https_proxy"] == told["http_proxy"]
    assert told["no_proxy"] == "kept.example,localhost,127.0.0.1,::1"
    assert {told[name.upper()] == told[name] for name in told if name.islower()} == {True}
    assert told["MESHNODE_HOME"] == str(pair.here.home)
    host, _, port = where.rpartition(":")
    socket.create_connection((host, int(port)), HANG_S).close()
    assert where not in pair.here.run("proxy", "--json").stdout
    os.killpg(process.pid, signal.SIGKILL)
    output_of(process, 10)

    def is_closed() -> bool:
        try:
            socket.create_connection((host, int(port)), HANG_S).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(is_closed)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$"], -9),
        (["sh", "-c", "kill -TERM $$"], -15),
        (["no-such-program-here"], 127),
        (["/"], 126),
        ([""], 127),
    ],
)
def test_its_end_is_that_of_the_program(pair: Pair, command: list[str], code: int) -> None:
    done = subprocess.run(pair.line("--", *command), capture_output=True, env=clean_environment(), timeout=HANG_S)
    assert done.returncode == code
    assert (b"cannot run" in done.stderr) == (code in (126, 127))
    assert b"Traceback" not in done.stderr


def test_signals_reach_the_program_once_each(pair: Pair) -> None:
    process = pair.start("--", sys.executable, "-c", TELLS)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
    assert process.stdout.read() == ""
    assert status_of(process, 10) == 7


def test_ctrl_c_at_a_terminal_reaches_the_program_once(pair: Pair) -> None:
    master, slave = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        pair.line("--", sys.executable, "-c", TELLS),
        stdin=slave,
        stdout=subprocess.PIPE,
        env=clean_environment(),
        preexec_fn=take_terminal,
        text=True,
    )
    os.close(slave)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.write(master, b"\x03")
    assert process.stdout.readline() == "SIGINT\n"
    time.sleep(0.5)  # a second one would have come
    process.terminate()
    assert process.stdout.read() == "SIGTERM\n"
    assert status_of(process, 10) == 7
    os.close(master)


def test_a_program_does_not_inherit_what_python_ignores(pair: Pair) -> None:
    done = subprocess.run(
        pair.line("--", "sh", "-c", "grep -E 'SigIgn|SigBlk' /proc/self/status"),
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=HANG_S,
    )
    masks = [int(line.split()[1], 16) & 0x7FFF_FFFF for line in done.stdout.splitlines()]  # the C library has 32 and 33
    assert masks == [0, 0]


def test_without_a_node_nothing_is_run(tmp_path: Path) -> None:
    from tests.live.cli_node import run

    done = run(tmp_path, "run", "--", "echo", "it ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert "meshnode" in done.stderr


def test_a_node_that_is_started_again_serves_a_program_that_has_gone_on(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    port, taken = free_port(), free_port()
    there = CliNode(tmp_path / "there", "--name", "there", command="seed")
    with stopping(there):
        site = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
        web = subprocess.Popen(site, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        there.ask("expose", "web", str(port), "--allow", "any")
        here = CliNode(tmp_path / "here", "--name", "here", seed=there)
        pair = Pair(there, here)
        ask = "while read line; do curl -s -m 20 http://web.there.mesh/ || echo none; echo; done"
        user = pair.start("--", "sh", "-c", ask)
        server = pair.start("--expose", f"own={taken}", "--allow", "any", "--", "cat")
        try:
            assert _answer(user) == "hello"
            eventually(lambda: "own" in exposed(here))
            here.kill()
            assert _answer(user) == "none"
            here = CliNode(tmp_path / "here", "--name", "here", seed=there)
            eventually(lambda: _answer(user) == "hello", 20)
            eventually(lambda: "own" in exposed(here), 20)
        finally:
            (_, told), (_, also_told) = (output_of(process, 10, "") for process in (user, server))
            here.stop()
            web.kill()
            web.wait()
        assert "error: the proxy of this program is gone: the node has stopped" in told
        assert "the node runs again, and so does the proxy of this program" in told
        assert "the node runs again, and so does the service own" in also_told
        assert (user.returncode, server.returncode) == (0, 0)


def _answer(process: subprocess.Popen[str]) -> str:
    """Have the program ask, and return what it got."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("again\n")
    process.stdin.flush()
    line = process.stdout.readline()
    while line == "\n":
        line = process.stdout.readline()
    return line.strip()
