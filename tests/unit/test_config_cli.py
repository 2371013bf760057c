"""The command line: its help, and what every mistake is told."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meshnode.cli.front import group
from meshnode.cli.main import main
from meshnode.identity.keys import Identity
from tests import forked
from tests.forked import Forked
from tests.given_time import HANG_S

ID = str(Identity(bytes(32)).id)


# ---- help


@pytest.mark.parametrize("name", sorted(group.load_all()))
def test_every_command_has_help_with_an_example_and_explained_options(name: str) -> None:
    done = CliRunner().invoke(group, [name, "--help"])
    assert done.exit_code == 0
    assert f"meshnode {name}" in done.output.split("Usage:")[1].split("\n", 1)[1], "an example that can be copied"
    command = group.get_command(click.Context(group), name)
    assert command is not None
    unexplained = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not unexplained


def test_help_lists_every_command_without_loading_any() -> None:
    code = "import sys; sys.argv = ['meshnode', '--help']\nfrom meshnode.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "assert not [m for m in ('aioquic', 'nacl', 'zeroconf', 'asyncio') if m in sys.modules]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in group.load_all())


# ---- what mistakes are told


def meshnode(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
    return forked.run(["--home", str(home), *args], HANG_S, "", env={**clean, **env})


def told(home: Path, *args: str, **env: str) -> tuple[object, str, str]:
    """The same without a process: exit code, standard output and standard error. A traceback is an exception here."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith("MESHNODE_")]:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["meshnode", "--home", str(home), *args])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code, out.getvalue(), err.getvalue()


def complains(home: Path, code: str, *args: str, **env: str) -> None:
    """The command fails with this code, as JSON and as text."""
    status, out, err = told(home, *args, "--json", **env)
    assert status in (1, 2, 78)
    assert "Traceback" not in out + err
    found = json.loads(out)
    assert set(found) == {"error"}
    assert set(found["error"]) == {"code", "message", "hint"}
    assert found["error"]["code"] == code
    assert found["error"]["message"]
    assert found["error"]["hint"]
    plain_status, plain_out, plain_err = told(home, *args, **env)
    assert plain_status == status
    assert found["error"]["message"] in plain_err
    assert "Traceback" not in plain_err
    assert not plain_out, "errors go to stderr"


@pytest.mark.parametrize(
    "args", [["status"], ["peers"], ["resolve", ID], ["ping", ID], ["rebind"], ["unexpose", "x"], ["unforward", "1"]]
)
def test_no_node_running(tmp_path: Path, args: list[str]) -> None:
    complains(tmp_path, "not_running", *args)


def test_a_mistake_in_a_real_process_is_an_exit_code_and_no_traceback(tmp_path: Path) -> None:
    done = meshnode(tmp_path / "file" / "home", "status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "not_running"
    assert not done.stderr


def test_a_socket_that_a_killed_node_left_is_no_running_node(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control.sock"))
    left.close()
    complains(tmp_path, "not_running", "status")


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    complains(tmp_path / "file", "not_running", "status")
    complains(tmp_path / "file", "config_error", "up")
    complains(tmp_path / "file", "key_file_error", "keygen")


def test_bad_address(tmp_path: Path) -> None:
    complains(tmp_path, "config_error", "up", "--listen", "nowhere")
    complains(tmp_path, "config_error", "up", "--listen", "127.0.0.1:99999")
    complains(tmp_path, "config_error", "up", "--listen", "192.0.2.77:0")


def test_bad_id_of_a_seed_or_a_friend(tmp_path: Path) -> None:
    complains(tmp_path, "config_error", "up", "--seed", "x@y:1")
    complains(tmp_path, "invalid_id", "up", "--allow", "x")


@pytest.mark.parametrize("setting", ["ALLOW", "RELAY_ALLOW", "AUTHORITY", "SEEDS", "ENGINE", "KEY"])
def test_a_setting_that_must_be_mended_first_ends_a_start_with_78(tmp_path: Path, setting: str) -> None:
    assert told(tmp_path, "up", "--listen", "127.0.0.1:0", "--no-mdns", **{f"MESHNODE_{setting}": "x"})[0] == 78


def test_bad_mesh_key(tmp_path: Path) -> None:
    complains(tmp_path, "config_error", "up", "--mesh", "mk-x", "--listen", "127.0.0.1:0", "--no-mdns")


def test_bad_file(tmp_path: Path) -> None:
    (tmp_path / "meshnode.toml").write_text("lisen = 1")
    complains(tmp_path, "config_error", "up")


def test_unreadable_key_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("junk")
    key.chmod(0o600)
    complains(tmp_path, "key_file_error", "id")
    complains(tmp_path, "key_file_error", "up", "--listen", "127.0.0.1:0", "--no-mdns")
    key.unlink()
    key.mkdir()
    complains(tmp_path, "key_file_error", "id")


@pytest.mark.parametrize(("name", "code"), [("key", "key_file_error"), ("meshnode.toml", "config_error")])
def test_a_device_in_place_of_a_file_is_told_and_not_read_for_ever(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    complains(tmp_path, code, "up", "--listen", "127.0.0.1:0", "--no-mdns")


@pytest.mark.parametrize(
    ("name", "code"), [("key", "key_file_error"), ("policy.toml", "config_error"), ("mesh.json", "config_error")]
)
def test_a_pipe_without_a_writer_in_place_of_a_file_is_told(tmp_path: Path, name: str, code: str) -> None:
    os.mkfifo(tmp_path / name, 0o600)
    complains(tmp_path, code, "up", "--no-mdns")


def test_a_key_may_come_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("22" * 32,), daemon=True)
    writer.start()
    asked = meshnode(tmp_path / "home", "id", "--json", MESHNODE_KEY_FILE=str(tmp_path / "pipe"))
    assert asked.returncode == 0, asked.stderr
    writer.join(10)


def test_a_start_with_too_few_descriptors_says_what_to_type(tmp_path: Path) -> None:
    command = ["prlimit", "--nofile=16:16", sys.executable, "-m", "meshnode", "up", "--home", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78
    error = json.loads(done.stdout or done.stderr)["error"]
    assert (error["message"], error["hint"]) == ("only 16 file descriptors are allowed", "ulimit -n 4096")


def test_wrong_passphrase(tmp_path: Path) -> None:
    assert meshnode(tmp_path, "keygen", MESHNODE_PASSPHRASE="right").returncode == 0
    complains(tmp_path, "key_file_error", "id", MESHNODE_PASSPHRASE="wrong")
    complains(tmp_path, "key_file_error", "up", "--listen", "127.0.0.1:0", "--no-mdns")


def test_a_key_in_the_environment_that_is_none(tmp_path: Path) -> None:
    complains(tmp_path, "key_file_error", "id", MESHNODE_KEY="zz")
    complains(tmp_path, "config_error", "up", "--listen", "127.0.0.1:0", "--no-mdns", MESHNODE_KEY="zz")


def test_wrong_usage(tmp_path: Path) -> None:
    for args in (["frobnicate"], ["ping"], ["ping", ID, "-c", "0"], ["up", "--frob"], ["expose", "x"]):
        complains(tmp_path, "mesh_error", *args)


class Running:
    """A node in a process of its own, for the length of a test."""

    def __init__(self, home: Path) -> None:
        self.home = home
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
        command = ["--home", str(home), "up", "--json", "--no-mdns", "--listen", "127.0.0.1:0"]
        self.process = Forked(command, stdout=subprocess.PIPE, text=True, env=clean)
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """End it as Ctrl-C would."""
        self.process.terminate()
        assert self.process.wait(10) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def running(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A running node."""
    node = Running(tmp_path)
    yield node
    node.stop()


def test_a_key_is_not_replaced_under_a_running_node(running: Running) -> None:
    before = meshnode(running.home, "id").stdout
    complains(running.home, "already_running", "keygen", "--force")
    assert meshnode(running.home, "id").stdout == before


def test_what_a_running_node_refuses_is_said_in_the_same_form(running: Running) -> None:
    home, own = running.home, running.ready["id"]
    complains(home, "already_running", "up", "--listen", "127.0.0.1:0", "--no-mdns")
    complains(home, "invalid_id", "ping", "no/body")
    complains(home, "invalid_id", "resolve", "no_body")
    complains(home, "not_found", "ping", "unknown")
    complains(home, "no_path", "ping", own)
    complains(home, "config_error", "rebind", "nowhere")
    complains(home, "config_error", "rebind", "192.0.2.77:0")
    complains(home, "config_error", "expose", "web", "ftp://127.0.0.1:1")
    complains(home, "config_error", "expose", "web", "tcp://127.0.0.1:notaport")
    complains(home, "config_error", "forward", "notaport", f"{own}/web")
    complains(home, "config_error", "forward", "0", "/web")
    complains(home, "invalid_id", "forward", "0", "no_body/web")
    complains(home, "not_found", "unexpose", "nothing")
    complains(home, "not_found", "unforward", "1")
    assert meshnode(home, "status").returncode == 0, "and it goes on"


def test_junk_on_the_control_socket_is_answered_and_harmless(running: Running) -> None:
    for junk in (b"\n", b"{}\n", b"[]\n", b'"x"\n', b'{"method": "ping", "arguments": 1}\n', b"\xff\n", b"x" * 70_000):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(running.home / "control.sock"))
            client.sendall(junk)
            client.shutdown(socket.SHUT_WR)
            answer = client.makefile("rb").read()
            if answer:
                assert "error" in json.loads(answer)
    assert meshnode(running.home, "status").returncode == 0


def test_an_unknown_command_is_answered_with_those_spelt_like_it(tmp_path: Path) -> None:
    _, _, complaint = told(tmp_path, "stats")
    assert "Did you mean" in complaint
    assert "status" in complaint
    assert "Did you mean" not in told(tmp_path, "xyzzy")[2]


def test_a_mounted_secret_is_the_id_also_when_it_is_a_copied_key_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32 + "\n")
    seed = json.loads(told(tmp_path, "id", "--json", MESHNODE_KEY="ab" * 32)[1])
    assert json.loads(told(tmp_path, "id", "--json", MESHNODE_KEY_FILE=str(secret))[1]) == seed
    made = json.loads(told(tmp_path, "keygen", "--json")[1])
    copied = json.loads(told(tmp_path / "other", "id", "--json", MESHNODE_KEY_FILE=str(tmp_path / "key"))[1])
    assert copied == made
    complains(tmp_path, "key_file_error", "id", MESHNODE_KEY_FILE=str(tmp_path / "nothing"))
    secret.write_text("meshnode-key-1-locked AAAA")
    complains(tmp_path, "key_file_error", "id", MESHNODE_KEY_FILE=str(secret))


def test_a_file_system_that_refuses_is_an_error_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "control.sock").mkdir()
    complains(tmp_path, "not_running", "status")
    (tmp_path / "control.sock").rmdir()
    (tmp_path / "key").mkdir()
    complains(tmp_path, "key_file_error", "up", "--listen", "127.0.0.1:0", "--no-mdns")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_interrupted_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    node = Running(tmp_path)
    node.process.send_signal(number)
    assert node.process.wait(10) == 0
    assert not (tmp_path / "control.sock").exists()
    assert node.process.stdout is not None
    node.process.stdout.close()


def test_an_interrupted_command_says_nothing_and_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshnode.daemon.client.call", interrupted)
    status, out, err = told(tmp_path, "ping", ID)
    assert (status, out, err.strip()) == (130, "", "")
