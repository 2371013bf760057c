"""The front of the command line: what is typed in the wrong place, and Ctrl-C at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.unit.test_config_cli import meshnode, told
from tests.unit.test_error_texts import error_of
from tools.cli_reference import in_full


def test_help_is_a_command_too(tmp_path: Path) -> None:
    assert told(tmp_path, "help")[1] == told(tmp_path, "--help")[1]
    assert told(tmp_path, "help", "ping")[1] == told(tmp_path, "ping", "--help")[1]
    assert told(tmp_path, "help", "nothing")[0] == 2


def test_every_command_but_those_without_a_home_takes_one_behind_its_name() -> None:
    commands = [(name, command) for name, command in in_full() if not isinstance(command, click.Group)]
    without = {name for name, command in commands if not any(param.name == "home" for param in command.params)}
    assert without == {"completion", "demo"}, "as docs/reference/cli.md says"


def test_a_policy_is_not_asked_about_no_service(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nfrom = ["any"]\nservices = ["web"]\n')
    asked = ("policy", "explain", "any", "any", "--file", str(policy))
    for act in ("service", "publish", "subscribe", "name"):
        assert "Missing argument 'SERVICE'" in error_of(tmp_path, *asked, "--act", act)[1]
    assert told(tmp_path, *asked, "--act", "connect")[0] == 0


def test_an_option_before_the_command_is_told_where_it_stands(tmp_path: Path) -> None:
    assert error_of(tmp_path, "--json", "status")[2].endswith("meshnode status --json")
    assert "hint: options but --home stand behind the command" in meshnode(tmp_path, "--allow", "up").stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
@pytest.mark.parametrize(("command", "code"), [("id", 1), ("status", 1), ("id --help", 1), ("up --wrong", 2)])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_output_that_takes_no_more_is_told_in_a_line(tmp_path: Path, command: str, code: int, as_json: bool) -> None:
    line = [sys.executable, "-m", "meshnode", "--home", str(tmp_path), *command.split(), *["--json"] * as_json]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == code
    assert "error: " in done.stderr.lower()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1", "utf-8"])
def test_a_letter_that_the_encoding_of_the_output_lacks_is_no_error(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "\u0436.key"
    line = [sys.executable, "-m", "meshnode", "keygen", "--mesh", str(path)]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(line, capture_output=True, timeout=30, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith((str(path).encode(), str(tmp_path / r"\u0436.key").encode()))


@pytest.mark.parametrize("module", ["click", "meshnode.errors", "meshnode.cli.commands.identity"])
def test_ctrl_c_while_it_starts_is_quiet(tmp_path: Path, module: str) -> None:
    """Ctrl-C comes when a module is being loaded: a person that thinks better of it sees no traceback."""
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *more):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "from meshnode.cli.main import main\n"
        f"sys.modules.pop({module!r}, None)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()\n"
    )
    line = [sys.executable, "-c", program, "--home", str(tmp_path), "id"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, "")


def test_nothing_is_loaded_before_ctrl_c_is_quiet() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import meshnode.cli.main\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('meshnode')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["__future__"]


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_ctrl_c_before_a_command_and_behind_it_ends_it_without_a_word(tmp_path: Path, when: str) -> None:
    """Where it is a callback of the interpreter's that is interrupted, which would show the exception and go on."""
    interrupt = "os.kill(os.getpid(), signal.SIGINT)"
    program = (
        "import atexit, os, signal, sys, time\n"
        "class Interrupt:\n"
        "    def __del__(self):\n"
        f"        {interrupt}\n"
        "        time.sleep(1)\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'click':\n"
        "            Interrupt()\n"
        "from meshnode.cli.main import main\n"
        f"{'sys.meta_path.insert(0, Interrupt())' if when == 'begins' else f'atexit.register(lambda: {interrupt})'}\n"
        "main()\n"
    )
    line = [sys.executable, "-c", program, "--home", str(tmp_path), "id"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    assert "KeyboardInterrupt" not in done.stderr
    assert done.returncode == (130 if when == "begins" else -signal.SIGINT)


def test_a_command_that_waits_ends_at_once_and_with_130(tmp_path: Path) -> None:
    reading = subprocess.Popen(
        [sys.executable, "-m", "meshnode", "--home", str(tmp_path), "pub", "topic"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    time.sleep(1.0)
    reading.send_signal(signal.SIGINT)
    _, err = reading.communicate(timeout=10)
    assert (reading.returncode, err.strip()) == (130, b"")
