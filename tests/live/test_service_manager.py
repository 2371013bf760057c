"""A node under a service manager: what it is told, and the units that the project ships."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.given_time import HANG_S, output_of, status_of

BOOTSTRAP = Path(__file__).parent.parent.parent / "bootstrap"
UNITS = sorted(path.name for path in BOOTSTRAP.glob("*.service"))
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(HANG_S)
        yield listener


def _up(home: Path, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "meshnode", "up", "--home", str(home), "--listen", "127.0.0.1:0", "--no-mdns"]
    return subprocess.Popen([*command, *flags], env=os.environ | environment, stderr=subprocess.PIPE)


def test_the_manager_hears_ready_signs_of_life_and_stopping(tmp_path: Path, manager: socket.socket) -> None:
    node = _up(tmp_path / "home", NOTIFY_SOCKET=str(manager.getsockname()), WATCHDOG_USEC="400000")
    try:
        assert manager.recv(100) == b"READY=1"
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        node.send_signal(signal.SIGTERM)
        while (told := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1"
        assert status_of(node, 10) == 0
    finally:
        node.kill()
        node.communicate()


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path, manager: socket.socket) -> None:
    node = _up(tmp_path / "home", NOTIFY_SOCKET=str(tmp_path / "nowhere"), WATCHDOG_USEC="100000")
    try:
        command = [sys.executable, "-m", "meshnode", "status", "--home", str(tmp_path / "home")]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert node.poll() is None
        node.send_signal(signal.SIGTERM)
        assert status_of(node, 10) == 0
    finally:
        node.kill()
        node.communicate()


@pytest.mark.parametrize("wrong", ["setting", "key"])
def test_what_must_be_mended_first_has_an_exit_code_that_stops_restarts(tmp_path: Path, wrong: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    if wrong == "key":
        (home / "key").write_text("no key")
        (home / "key").chmod(0o600)
    node = _up(home, *(["--listen", "nonsense"] if wrong == "setting" else []))
    _, told = output_of(node, 20)
    assert node.returncode == 78
    assert b"Traceback" not in told
    for name in UNITS:
        codes = re.findall(r"^RestartPreventExitStatus=(.*)", (BOOTSTRAP / name).read_text(), re.M)
        assert codes == ["2 78"]


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_are_valid(tmp_path: Path, name: str) -> None:
    unit = tmp_path / name
    text = (BOOTSTRAP / name).read_text()
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    scope = ["--user"] if "user" in name else []
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "verify", *scope, str(unit)], env=environment, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if name in line] == []


@needs_systemd
@pytest.mark.parametrize("name", [name for name in UNITS if "user" not in name])
def test_units_of_the_host_expose_little(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(BOOTSTRAP / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
