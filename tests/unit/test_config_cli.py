"""Settings and the command line: what beats what, and what every mistake is told."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from meshnode.cli.main import group, main
from meshnode.config import Config, parse_seed
from meshnode.errors import ConfigError, KeyFileError, MeshError
from meshnode.identity.keyfile import load, load_or_create, parse_seed_text, save
from meshnode.identity.keys import Identity

ID = str(Identity(bytes(32)).id)


def config(home: Path, file: str = "", flags: dict[str, object] | None = None, **env: str) -> Config:
    """Load a configuration from a file's text, flags and an environment."""
    (home / "meshnode.toml").write_text(file)
    return Config.load(home, flags, {f"MESHNODE_{name.upper()}": value for name, value in env.items()})


# ---- what beats what


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = 'listen = "127.0.0.1:1"\nmesh = "file"\nidle_timeout = 11\nmdns = false\n'
    found = config(tmp_path, file, {"listen": "127.0.0.1:3"}, listen="127.0.0.1:2", mesh="env")
    assert (found.listen, found.mesh, found.idle_timeout, found.mdns, found.engine) == (
        "127.0.0.1:3",
        "env",
        11,
        False,
        "auto",
    )


def test_a_flag_that_was_not_given_beats_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, 'mesh = "file"', {"mesh": None}).mesh == "file"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("on", True), ("no", False), ("0", False)])
def test_switches_in_the_environment_are_words(tmp_path: Path, text: str, value: bool) -> None:
    assert config(tmp_path, mdns=text).mdns is value


def test_port_mapping_and_upnp_are_on_unless_told_otherwise(tmp_path: Path) -> None:
    assert (config(tmp_path).port_mapping, config(tmp_path).upnp) == (True, True)
    assert config(tmp_path, "port_mapping = false").port_mapping is False
    assert config(tmp_path, upnp="off").upnp is False
    assert config(tmp_path, "port_mapping = true", {"port_mapping": False}, port_mapping="1").port_mapping is False


def test_lists_in_the_environment_are_split_at_commas_and_spaces(tmp_path: Path) -> None:
    assert config(tmp_path, advertise="192.0.2.1:1, 192.0.2.2:2  192.0.2.3:3").advertise == (
        "192.0.2.1:1",
        "192.0.2.2:2",
        "192.0.2.3:3",
    )


def test_a_key_file_of_the_environment_is_read_and_a_key_beats_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32 + "\n")
    found = Config.load(tmp_path, None, {"MESHNODE_KEY_FILE": str(secret)})
    assert found.key is not None
    assert parse_seed_text(found.key).seed == bytes.fromhex("ab" * 32)
    both = Config.load(tmp_path, None, {"MESHNODE_KEY_FILE": str(secret), "MESHNODE_KEY": "cd" * 32})
    assert both.key == "cd" * 32


# ---- mistakes in settings

WRONG_FILES = {
    "unknown key": "lisen = '[::]:0'",
    "not TOML": "listen = ",
    "wrong type: number for text": "listen = 7",
    "wrong type: text for number": "idle_timeout = 'long'",
    "wrong type: text for list": "seeds = 'x@y:1'",
    "wrong type: numbers in a list": "seeds = [1]",
    "wrong type: number for list": "allow = 3",
    "wrong type: text for switch": "mdns = 'no'",
    "wrong type: number for mesh": "mesh = 5",
    "wrong type: table": "[dht]\nx = 1",
    "too short": "idle_timeout = 0.1",
    "not a number": "idle_timeout = nan",
    "bad address": "listen = 'here'",
    "bad port": "listen = '127.0.0.1:65536'",
    "name for address": "advertise = ['example.org:1']",
    "bad seed": "seeds = ['abc']",
    "bad id": "allow = ['abc']",
    "no UTF-8": "mesh = '\udcff'",
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_every_mistake_in_the_file_is_a_config_error_that_says_what_to_do(tmp_path: Path, case: str) -> None:
    (tmp_path / "meshnode.toml").write_bytes(WRONG_FILES[case].encode(errors="surrogateescape"))
    with pytest.raises(MeshError) as caught:
        Config.load(tmp_path, None, {})
    assert caught.value.code in ("config_error", "invalid_id")
    assert caught.value.message
    assert caught.value.hint, "an error without a hint leaves people alone"


def test_an_unknown_setting_is_named_with_the_file_and_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, "lisen = '[::]:0'")
    assert "lisen" in caught.value.message
    assert "meshnode.toml" in caught.value.message
    assert "listen" in caught.value.hint


WRONG_ENVIRONMENT = [
    ("mdns", "perhaps"),
    ("idle_timeout", "soon"),
    ("idle_timeout", "nan"),
    ("listen", "nowhere"),
    ("seeds", "x@y"),
    ("allow", "me"),
    ("key_file", "/nonexistent/secret"),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ENVIRONMENT)
def test_every_mistake_in_the_environment_is_a_config_error(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(MeshError) as caught:
        config(tmp_path, **{name: value})
    assert caught.value.code in ("config_error", "invalid_id")
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "@", f"{ID}@", f"{ID}@host", f"{ID}@host:0", f"{ID}@host:65536", f"{ID}@:1", "x@host:1", f"{ID}@h:²"]
)
def test_what_is_no_seed_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_seed(text)


def test_a_seed_may_be_a_name_an_address_or_a_bracketed_ipv6_address() -> None:
    assert [parse_seed(f"{ID}@{where}").host for where in ("a.example:1", "192.0.2.1:1", "[2001:db8::1]:1")] == [
        "a.example",
        "192.0.2.1",
        "2001:db8::1",
    ]


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    shown = repr(Config(home=tmp_path, mesh="mk-secret-name", passphrase="hunter2", key="ab" * 32))
    assert not any(secret in shown for secret in ("mk-secret", "hunter2", "abab"))


# ---- key files


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    made = load_or_create(path)
    assert load(path).id == made.id
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path).id == made.id


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    me = Identity.generate()
    save(path, me, "open sesame")
    assert me.seed not in path.read_bytes()
    assert load(path, "open sesame").id == me.id
    for wrong in ("open barley", "", None):
        with pytest.raises(KeyFileError) as caught:
            load(path, wrong)
        assert caught.value.hint


DAMAGED = [
    b"",
    b"junk",
    b"\xff\xfe\x00",
    b"meshnode-key-1 ",
    b"meshnode-key-1 !!!!",
    b"meshnode-key-1 AAAA",
    b"meshnode-key-1-locked ",
    b"meshnode-key-1-locked AAAA",
    b"ab" * 31,
    b"zz" * 32,
]


@pytest.mark.parametrize("data", DAMAGED)
@pytest.mark.parametrize("passphrase", [None, "x"])
def test_a_damaged_key_file_is_a_key_file_error(tmp_path: Path, data: bytes, passphrase: str | None) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        load(path, passphrase)
    assert caught.value.hint


def test_a_key_file_that_others_may_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "key"
    save(path, Identity.generate())
    path.chmod(0o644)
    with pytest.raises(KeyFileError) as caught:
        load(path)
    assert "chmod 600" in caught.value.hint


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in group.load_all())


# ---- what mistakes are told


def meshnode(home: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MESHNODE_")}
    command = [sys.executable, "-m", "meshnode", "--home", str(home), *args]
    return subprocess.run(
        command, capture_output=True, text=True, env={**clean, **env}, timeout=30, check=False, stdin=subprocess.DEVNULL
    )


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
    assert status in (1, 2)
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
        command = [sys.executable, "-m", "meshnode", "--home", str(home), "up", "--json", "--no-mdns"]
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, env=clean
        )
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
    assert "Did you mean" not in told(tmp_path, "frobnicate")[2]


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
    (tmp_path / "lock").mkdir()
    complains(tmp_path, "mesh_error", "up", "--listen", "127.0.0.1:0", "--no-mdns")


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
