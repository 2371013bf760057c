"""What a person asks of a running mesh: does my forward work, is my node well, and what is wrong."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnode.cli.commands import node as node_commands
from tests.given_time import HANG_S, GivenTime, eventually, output_of, status_of
from tests.live.cli_node import CliNode, clean_environment, run, stopping
from tests.unit.test_config_cli import told


@dataclass
class Mesh:
    """A seed that exposes things, and a node that uses them."""

    there: CliNode
    here: CliNode
    listener: socket.socket  # the target of the service `web`

    @property
    def port(self) -> str:
        return str(self.listener.getsockname()[1])


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    home = tmp_path_factory.mktemp("everyday")
    there = CliNode(home / "there", "--name", "there", command="seed")
    here = CliNode(home / "here", "--name", "here", seed=there)
    with stopping(here, there), socket.create_server(("127.0.0.1", 0)) as listener:
        made = Mesh(there, here, listener)
        there.ask("expose", "web", made.port, "--allow", "any")
        there.ask("expose", "mine", made.port, "--allow", there.id)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nothing = str(closed.getsockname()[1])
        there.ask("expose", "dead", nothing, "--allow", "any")
        eventually(lambda: here.run("services", "web").returncode == 0)
        yield made


def use(listen: str) -> bytes:
    """What a client of a forward gets: nothing after a reset."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), HANG_S) as client:
            client.settimeout(HANG_S)
            return client.recv(1)
    except ConnectionResetError:
        return b""


# ---- forwards


@pytest.mark.skipif(not socket.has_ipv6, reason="this host has no IPv6")
def test_a_port_that_only_listens_at_the_other_loopback_is_reached(mesh: Mesh) -> None:
    def answer(target: socket.socket) -> None:
        with suppress(OSError):  # closed at the end
            while True:
                sock, _ = target.accept()
                with sock:
                    sock.sendall(b"6")

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as target:
        threading.Thread(target=answer, args=(target,), daemon=True).start()
        mesh.there.ask("expose", "six", str(target.getsockname()[1]), "--allow", "any")
        listen = mesh.here.ask("forward", "0", f"{mesh.there.id}/six")["listen"]
        assert use(listen) == b"6"
    mesh.here.ask("unforward", listen)
    mesh.there.ask("unexpose", "six")


@pytest.mark.parametrize(
    ("to", "code", "words"),
    [
        ("{there}/nothing", "service_not_found", "has no service 'nothing'"),
        ("{there}/mine", "policy_denied", "does not let this node use 'mine'"),
        ("unknown/web", "not_found", "unknown"),
        ("nothing", "not_found", "no other node offers 'nothing' yet"),
        ("{gone}/web", "", "{gone:.8}"),
    ],
)
def test_a_forward_that_cannot_work_says_so_at_once_and_is_kept(mesh: Mesh, to: str, code: str, words: str) -> None:
    gone = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    to, words = (text.format(there=mesh.there.id, gone=gone) for text in (to, words))
    began = GivenTime()
    found = mesh.here.ask("forward", "0", to)
    assert began.seconds < 5
    assert code in ("", found["problem"]["code"])
    assert words in found["problem"]["message"]
    assert found["problem"]["hint"]
    said = mesh.here.run("forward", found["listen"], to)
    assert said.returncode == 0
    assert said.stderr.startswith("warning: ")
    assert to in [forward["to"] for forward in mesh.here.ask("status")["forwards"]]
    mesh.here.ask("unforward", found["listen"])


def test_a_forward_that_works_says_nothing_and_its_target_sees_no_connection(mesh: Mesh) -> None:
    for to in (f"{mesh.there.id}/web", "there/web", "web"):
        said = mesh.here.run("forward", "0", to)
        assert (said.returncode, said.stderr) == (0, "")
        mesh.here.ask("unforward", said.stdout.split()[0])
    mesh.listener.settimeout(0.2)
    with pytest.raises(TimeoutError):
        mesh.listener.accept()


def test_a_forward_to_a_service_of_this_node_is_told_as_that(mesh: Mesh) -> None:
    for to in (f"{mesh.here.id}/web", "here/web", f"{mesh.here.id[:10]}/web"):
        found = mesh.here.ask("forward", "0", to)
        assert "this node itself" in found["problem"]["message"]
        mesh.here.ask("unforward", found["listen"])


def test_the_last_error_of_a_forward_is_in_status_until_a_connection_works(mesh: Mesh) -> None:
    listen = mesh.here.ask("forward", "0", f"{mesh.there.id}/late")["listen"]
    assert use(listen) == b""

    def forward() -> dict[str, object]:
        found: dict[str, object] = next(f for f in mesh.here.ask("status")["forwards"] if f["listen"] == listen)
        return found

    error = forward()["last_error"]
    assert isinstance(error, dict)
    assert error["code"] == "service_not_found"
    assert error["ago_s"] < 10
    assert "last error, " in mesh.here.run("status").stdout
    mesh.there.ask("expose", "late", mesh.port, "--allow", "any")
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port))):
        eventually(lambda: forward()["last_error"] is None)
        assert forward()["connections"] == 1
    mesh.listener.settimeout(HANG_S)
    mesh.listener.accept()[0].close()
    mesh.here.ask("unforward", listen)


def test_the_doctor_names_forwards_and_services_that_do_not_work(mesh: Mesh) -> None:
    listen = mesh.here.ask("forward", "0", f"{mesh.there.id}/nothing")["listen"]
    found = json.loads(mesh.here.run("doctor", "--json").stdout)["findings"]
    (forward,) = [finding for finding in found if finding["text"].startswith(listen)]
    assert forward["topic"] == "forwards"
    assert forward["level"] == "problem"
    assert "has no service 'nothing'" in forward["text"]
    mesh.here.ask("unforward", listen)
    found = json.loads(mesh.there.run("doctor", "--json").stdout)["findings"]
    services = {
        finding["text"].partition(":")[0]: finding["level"] for finding in found if finding["topic"] == "services"
    }
    assert services["web works"] == "ok"
    assert services["dead"] == "problem"
    (dead,) = [finding for finding in found if finding["text"].startswith("dead")]
    assert "connection refused" in dead["text"]


def test_the_doctor_names_a_seed_whose_name_does_not_resolve_before_all_else(tmp_path: Path) -> None:
    node = CliNode(tmp_path, "--seed", f"{'a' * 52}@no-such-host.invalid:4242")
    with stopping(node):
        found = json.loads(node.run("doctor", "--json").stdout)["findings"]
        problems = [finding for finding in found if finding["level"] == "problem"]
        assert problems[0]["topic"] == "seeds"
        assert "no-such-host.invalid:4242: the name does not resolve" in problems[0]["text"]
        assert not [finding for finding in problems if finding["topic"] in ("udp", "dht")]


# ---- a service that is withdrawn


def served(mesh: Mesh, name: str) -> tuple[str, socket.socket, socket.socket]:
    """A forward to a new service of that name, and the two ends of a connection through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mesh.there.ask("expose", name, str(listener.getsockname()[1]), "--allow", "any")
        listen = mesh.here.ask("forward", "0", f"{mesh.there.id}/{name}")["listen"]
        host, _, port = listen.rpartition(":")
        client = socket.create_connection((host, int(port)), HANG_S)
        listener.settimeout(HANG_S)
        target = listener.accept()[0]
    target.settimeout(HANG_S)
    client.sendall(b"x")
    assert target.recv(1) == b"x"
    return listen, client, target


def test_a_service_that_is_withdrawn_ends_its_connections_and_says_how_many(mesh: Mesh) -> None:
    listen, client, target = served(mesh, "withdrawn")
    with client, target:
        assert mesh.there.ask("unexpose", "withdrawn") == {"name": "withdrawn", "cut": 1}
        for end in (client, target):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    mesh.here.ask("unforward", listen)


def test_a_service_that_is_drained_lets_its_connections_end_and_accepts_no_more(mesh: Mesh) -> None:
    listen, client, target = served(mesh, "drained")
    line = [sys.executable, "-m", "meshnode", "--home", str(mesh.there.home), "unexpose", "drained", "--drain", "20"]
    with client, target, subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=clean_environment()) as draining:
        eventually(lambda: "drained" not in [e["name"] for e in mesh.there.ask("status")["exposes"]])
        assert use(listen) == b"", "a new one is refused"
        client.sendall(b"y")
        assert target.recv(1) == b"y"
        assert draining.poll() is None
        client.close()
        target.close()
        assert output_of(draining, 15)[0] == "drained is withdrawn\n"
    mesh.here.ask("unforward", listen)


# ---- is it well?


def test_names_stand_beside_ids(mesh: Mesh) -> None:
    eventually(lambda: [peer["name"] for peer in [mesh.here.ask("peers")]] == ["there"])
    assert f"{mesh.there.id}  there" in mesh.here.run("peers").stdout
    assert mesh.here.run("status").stdout.splitlines()[0] == f"{mesh.here.id}  here"


def test_a_check_tells_by_its_exit_code_whether_the_node_is_well(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mesh.here.run("status", "--check").stdout == "ok\n"
    assert mesh.here.ask("status", "--check") == {"healthy": True, "problems": []}
    assert run(tmp_path, "status", "--check").returncode == 1, "none runs"
    monkeypatch.setattr(node_commands, "CHECK_TIMEOUT_S", 0.5)
    mesh.here.process.send_signal(signal.SIGSTOP)
    try:
        status, _, err = told(mesh.here.home, "status", "--check")
    finally:
        mesh.here.process.send_signal(signal.SIGCONT)
    assert status == 1
    assert "does not answer" in err


def test_a_node_that_waits_for_an_address_is_not_well(tmp_path: Path) -> None:
    node = CliNode(tmp_path)
    with stopping(node):
        listen = node.ask("forward", "0", "web")["listen"]
    host, _, port = listen.rpartition(":")
    with socket.create_server((host, int(port))):
        node = CliNode(tmp_path)
        with stopping(node):
            done = node.run("status", "--check")
            assert done.returncode == 3
            assert listen in done.stdout
            assert json.loads(node.run("status", "--check", "--json").stdout)["healthy"] is False


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is full")
def test_a_node_whose_output_goes_to_a_full_disk_runs(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "meshnode", "--home", str(tmp_path), "up", "--no-mdns", "--listen", "127.0.0.1:0"]
    with open("/dev/full", "w") as full:
        node = subprocess.Popen(line, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment())
    try:
        eventually(lambda: node.poll() is not None or run(tmp_path, "status").returncode == 0)
        node.terminate()
        _, said = output_of(node, HANG_S)
        assert node.returncode == 0, said
        assert "standard output takes nothing: the disk is full" in said
    finally:
        node.kill()
        node.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_ending_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    node = CliNode(tmp_path)
    assert node.stop(number) == 0
    assert "Traceback" not in node.log
    assert not (tmp_path / "control.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_means_the_log_to_other_daemons_has_it_log_its_state_and_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    node = CliNode(tmp_path)
    with stopping(node):
        node.process.send_signal(number)
        eventually(lambda: "0 peers: nothing is wrong" in node.log or node.process.poll() is not None)
        assert node.ask("status")["id"] == node.id


def test_a_hangup_without_a_terminal_has_the_policy_read_again_and_says_so(tmp_path: Path) -> None:
    node = CliNode(tmp_path)
    with stopping(node):
        node.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the policy of this node was read again: it has none" in node.log)
        (tmp_path / "policy.toml").write_text('version = 3\n[[allow]]\nfrom = "any"\nservices = "web"\n')
        node.process.send_signal(signal.SIGHUP)
        eventually(lambda: "version 3 with 1 rules, is in force" in node.log)
        (tmp_path / "policy.toml").write_text("version = ")
        node.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the rules of before stay in force" in node.log)
        assert node.ask("status")["id"] == node.id


def test_the_end_of_its_terminal_ends_it_in_order_and_a_hangup_before_does_not(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "meshnode", "--home", str(tmp_path), "up", "--no-mdns", "--listen", "127.0.0.1:0"]
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        line, stdin=inner, stdout=inner, stderr=inner, env=clean_environment(), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inner)
    said = b""
    while b"stop with Ctrl-C" not in said:
        said += os.read(outer, 4096)
    process.send_signal(signal.SIGHUP)
    while b"read again" not in said:
        said += os.read(outer, 4096)
    assert process.poll() is None
    os.close(outer)
    assert status_of(process, 10) == 0
    assert not (tmp_path / "control.sock").exists()


# ---- what changes


def test_watch_tells_when(mesh: Mesh) -> None:
    line = [sys.executable, "-m", "meshnode", "--home", str(mesh.here.home), "watch"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert status_of(process, 10) == 130
    assert first[2] == first[5] == ":"
    assert first[8:].startswith("  member   ")


# ---- what ends early

WAITING = ("watch", "sub topic", "ping there -c 100", "pub topic", f"doctor {'b' * 51}a")


def start(home: Path, command: str) -> subprocess.Popen[str]:
    """Begin a command that goes on."""
    line = [sys.executable, "-m", "meshnode", "--home", str(home), *command.split()]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=clean_environment())


def used(process: subprocess.Popen[str]) -> tuple[str, ...]:
    """Return a process's state, and the CPU time that it has had (proc(5))."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[11], fields[12]


def until_they_wait(processes: Iterable[subprocess.Popen[str]]) -> None:
    """Wait until commands have begun, which takes seconds on a busy machine: they sleep, and go on sleeping."""
    for process in processes:
        if sys.platform != "linux":
            time.sleep(2.0)
            continue

        def waits(process: subprocess.Popen[str] = process) -> bool:
            before = used(process)
            time.sleep(0.2)
            return before == used(process) and before[0] == "S"

        eventually(waits, 30.0)


def test_ctrl_c_ends_every_command_that_waits_without_a_traceback(mesh: Mesh) -> None:
    waiting = {command: start(mesh.here.home, command) for command in WAITING}
    until_they_wait(waiting.values())
    for process in waiting.values():
        process.send_signal(signal.SIGINT)
    for command, process in waiting.items():
        _, err = output_of(process, 10)
        assert process.returncode == 130, command
        assert "Traceback" not in err, command
        assert "error" not in err, command


def test_commands_that_wait_say_that_the_node_was_killed(tmp_path: Path) -> None:
    node = CliNode(tmp_path)
    waiting = {command: start(tmp_path, command) for command in ("watch", "watch --json", "sub topic --json")}
    until_they_wait(waiting.values())
    node.kill()
    for command, process in waiting.items():
        out, err = output_of(process, 10)
        assert process.returncode == 1, command
        assert "Traceback" not in err, command
        assert "the node" in (json.loads(out.splitlines()[-1])["error"]["message"] if "--json" in command else err)
