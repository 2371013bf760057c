"""``meshnode connect``: standard input and output as a stream, for programs such as ssh."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.given_time import output_of, status_of
from tests.live.cli_node import CliNode, clean_environment, stopping

BIG = 3_000_000


@dataclass
class Pair:
    """Two nodes; the first one exposes what the tests need."""

    there: CliNode
    here: CliNode

    def start(self, service: str, **more: object) -> subprocess.Popen[bytes]:
        """Begin ``meshnode connect`` to a service of the first node."""
        line = [
            sys.executable,
            "-m",
            "meshnode",
            "--home",
            str(self.here.home),
            "connect",
            f"{self.there.id}/{service}",
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(line, env=clean_environment(), **(pipes | more))  # type: ignore[call-overload,no-any-return]

    def target(self, name: str, serve: Callable[[socket.socket], None]) -> None:
        """Expose a TCP program that handles one connection after the other."""
        server = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            while True:
                client, _ = server.accept()
                with client, suppress(ConnectionResetError):
                    serve(client)

        threading.Thread(target=run, daemon=True).start()
        self.there.ask("expose", name, str(server.getsockname()[1]), "--allow", "any")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("connect")
    there = CliNode(home / "there", "--name", "there", command="seed")
    here = CliNode(home / "here", seed=there)
    with stopping(here, there):
        yield Pair(there, here)


def drained(client: socket.socket) -> bytes:
    parts = []
    while data := client.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def test_both_directions_end_separately_and_lose_nothing(pair: Pair) -> None:
    """The service answers only when it has seen the end of what the caller sent, and the other way round."""
    pair.target("sum", lambda client: client.sendall(b"%d" % len(drained(client))))
    sent = os.urandom(BIG)
    out, err = pair.start("sum").communicate(sent, timeout=30)
    assert (out, err) == (b"%d" % BIG, b"")

    heard: list[bytes] = []

    def talk_first(client: socket.socket) -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        heard.append(drained(client))

    pair.target("talk", talk_first)
    process = pair.start("talk")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.read() == sent, "the end of the service's direction is the end of stdout"
    process.stdin.write(b"thank you")
    process.stdin.close()
    assert status_of(process, 10) == 0
    assert heard == [b"thank you"]


def test_a_closed_stdin_is_an_empty_one(pair: Pair) -> None:
    pair.target("count", lambda client: client.sendall(b"%d" % len(drained(client))))
    process = pair.start("count", preexec_fn=lambda: os.close(0), stdin=None)
    assert output_of(process, 30) == (b"0", b"")
    assert process.returncode == 0


@pytest.mark.parametrize(("command", "code"), [("pub t", 0), ("pub t x", 0), ("status", 0), ("nonsense", 2)])
def test_a_command_that_is_started_without_standard_streams_does_its_work(pair: Pair, command: str, code: int) -> None:
    """As ``<&- >&- 2>&-`` has it: what it prints goes nowhere, and its exit code tells what happened."""
    line = [sys.executable, "-m", "meshnode", "--home", str(pair.here.home), *command.split()]
    process = subprocess.Popen(line, env=clean_environment(), preexec_fn=lambda: os.closerange(0, 3))
    assert status_of(process, 30) == code


def test_it_answers_while_stdin_goes_on(pair: Pair) -> None:
    pair.target("echo", lambda client: [client.sendall(data) for data in iter(lambda: client.recv(100), b"")] and None)
    with pair.start("echo", bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one", b"two"):
            process.stdin.write(word)
            assert process.stdout.read(3) == word
        process.stdin.close()
        assert status_of(process, 10) == 0


def test_a_reset_is_no_end(pair: Pair) -> None:
    def cut(client: socket.socket) -> None:
        client.sendall(b"half")
        time.sleep(0.3)  # or the reset would overtake it
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    pair.target("cut", cut)
    process = pair.start("cut")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read() == b"half"
    assert status_of(process, 10) == 1
    assert process.stderr.read().startswith(b"error: ")


def test_a_caller_that_is_killed_resets_the_service(pair: Pair) -> None:
    ends: list[object] = []
    ended = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(b"x")
        try:
            ends.append(drained(client))
        except ConnectionResetError as error:
            ends.append(type(error))
        ended.set()

    pair.target("wait", serve)
    process = pair.start("wait")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"part of it")
    process.stdin.flush()
    assert process.stdout.read(1) == b"x"
    process.kill()
    process.communicate()
    assert ended.wait(10)
    assert ends == [ConnectionResetError]


def test_a_service_that_takes_no_more_ends_the_command_although_stdin_is_open(pair: Pair) -> None:
    pair.target("greet", lambda client: client.sendall(b"hello\n"))
    with pair.start("greet") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == b"hello\n"
        process.stdin.write(b"more")  # by this the target's host learns that nothing reads there
        process.stdin.flush()
        assert status_of(process, 20) in (0, 1), "1 when the target's host says that it dropped what was sent"


def test_ctrl_c_ends_it_with_130_and_no_traceback(pair: Pair) -> None:
    arrived = threading.Event()

    def quiet(client: socket.socket) -> None:
        arrived.set()
        drained(client)

    pair.target("quiet", quiet)
    process = pair.start("quiet")
    assert arrived.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = output_of(process, 10)
    assert (process.returncode, err.strip()) == (130, b"")


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("there/nothing", "service_not_found"),
        ("nobody/web", "not_found"),
        ("a/b/c", "config_error"),
        ("", "config_error"),
    ],
)
def test_what_cannot_be_connected_to_is_an_error_before_any_byte(pair: Pair, to: str, code: str) -> None:
    assert pair.here.error("connect", to)["code"] == code
    done = pair.here.run("connect", to, said="x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "hint: " in done.stderr


def test_without_a_node_it_says_how_to_start_one(tmp_path: Path) -> None:
    from tests.live.cli_node import run

    done = run(tmp_path, "connect", "a/b", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "not_running"
