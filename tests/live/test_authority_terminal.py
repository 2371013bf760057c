"""The passphrase of an authority's key, asked for on a real terminal: without an echo, and only where there is one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from meshnode.identity.keyfile import is_locked
from meshnode.trust.home_mesh import AUTHORITY_FILE, load_authority
from tests.given_time import HANG_S, GivenTime

WORDS = "correct horse"
WAIT_S = 20.0
MESHNODE = (sys.executable, "-m", "meshnode")
ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("MESHNODE_")}


def talk(home: Path, args: Sequence[str], answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Run a command on a terminal of its own and type each answer when its question is there and the echo is off."""
    control, terminal = pty.openpty()
    command = subprocess.Popen(
        [*MESHNODE, "--home", str(home), *args],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    shown, todo, clock = "", list(answers), GivenTime()
    try:
        while clock.left_of(WAIT_S) > 0:
            if select.select([control], [], [], 0.05)[0]:
                shown += os.read(control, 65_536).decode()
            elif command.poll() is not None:
                break
            if todo and todo[0][0] in shown and not _echoes(terminal):
                question, answer = todo.pop(0)
                os.write(control, answer.encode())
                shown = shown.replace(question, "")
        code = command.wait(1.0)
    finally:
        command.kill()
        command.wait()
        os.close(control)
        os.close(terminal)
    assert not todo, f"it did not ask {todo[0][0]}: {shown}"
    return code, shown


def _echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


def test_a_terminal_is_asked_for_the_passphrase_and_shows_nothing_of_it(tmp_path: Path) -> None:
    home = tmp_path / "a"
    twice = [("(Enter for none): ", f"{WORDS}\n"), ("Again: ", f"{WORDS}\n")]
    code, shown = talk(home, ["mesh", "create", "field"], twice)
    assert code == 0
    assert WORDS not in shown
    assert "not encrypted" not in shown
    assert is_locked(home / AUTHORITY_FILE)
    assert load_authority(home, WORDS) is not None
    question = "Passphrase of the authority's key: "
    (tmp_path / "policy.toml").write_text("version = 1\n")
    for args in (
        ["invite"],
        ["grant", "issue", "a" * 52, "--out", str(tmp_path / "grant")],
        ["grant", "renew", str(home / "grant"), "--out", str(tmp_path / "renewed")],
        ["policy", "sign", str(tmp_path / "policy.toml"), "--out", str(tmp_path / "signed")],
        ["revoke", "a" * 52, "--out", str(tmp_path / "statement")],
        ["mesh", "rotate"],
    ):
        code, shown = talk(home, args, [(question, f"{WORDS}\n")])
        assert code == 0, shown
        assert WORDS not in shown
    code, shown = talk(home, ["invite"], [(question, "wrong\n")])
    assert code != 0
    assert "that passphrase does not open" in shown
    code, shown = talk(home, ["invite"], [(question, "\x03")])
    assert code in (1, 128 + signal.SIGINT, -signal.SIGINT)
    assert "Traceback" not in shown


def test_two_answers_that_differ_are_asked_for_again_and_none_is_a_key_in_the_clear(tmp_path: Path) -> None:
    differ = [("(Enter for none): ", "one\n"), ("Again: ", "other\n")]
    code, _ = talk(
        tmp_path / "a", ["mesh", "create", "field"], [*differ, ("(Enter for none): ", "\n"), ("Again: ", "\n")]
    )
    assert code == 0
    assert not is_locked(tmp_path / "a" / AUTHORITY_FILE)
    code, shown = talk(tmp_path / "a", ["invite"], [])
    assert code == 0, "a key in the clear needs no passphrase"
    assert "mesh-" in shown


def test_what_has_no_terminal_is_not_asked_and_is_told_the_variable(tmp_path: Path) -> None:
    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [*MESHNODE, "--home", str(tmp_path / "a"), *args]
        return subprocess.run(
            command, input="", text=True, capture_output=True, env={**ENVIRONMENT, **more}, timeout=HANG_S
        )

    made = run("mesh", "create", "field", MESHNODE_AUTHORITY_PASSPHRASE=WORDS)
    assert made.returncode == 0, made.stderr
    refused = run("invite")
    assert refused.returncode != 0
    assert "set MESHNODE_AUTHORITY_PASSPHRASE" in refused.stderr
    assert "Passphrase" not in refused.stderr
