"""Other users of the same host, with real processes: volumes of a group work, planted homes are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.given_time import HANG_S, output_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
USER = 12345
COMMAND = [sys.executable, "-m", "meshnode"]
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
READING = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may be in root's home
QUIET = ("--listen", "127.0.0.1:0", "--no-mdns", "--no-port-mapping")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can pass, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="mn"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")}
    return {**kept, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize("mode", [0o2777, 0o2775])
def test_a_node_runs_in_a_volume_of_its_group_and_says_that_others_may_write_there(place: Path, mode: int) -> None:
    home = place / "volume"
    home.mkdir()
    os.chown(home, 0, USER)
    home.chmod(mode)
    command, env = [*AS_USER, *READING, *COMMAND, "--home", str(home)], environment()
    node = subprocess.Popen(
        [*command, "up", "--json", *QUIET], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        assert node.stdout is not None
        ready = json.loads(node.stdout.readline())
        asked = subprocess.run([*command, "status", "--json"], capture_output=True, env=env, timeout=HANG_S, check=True)
        assert json.loads(asked.stdout)["id"] == ready["id"]
        assert all(path.stat().st_mode & 0o077 == 0 for path in home.iterdir()), "the files are the user's alone"
    finally:
        node.terminate()
    assert "is a volume that others may write in" in output_of(node, 30)[1]


def test_a_home_of_another_user_is_refused_before_anything_is_written_there(place: Path) -> None:
    home = place / "planted"
    home.mkdir()
    os.chown(home, USER, USER)
    for command in (["up", *QUIET], ["keygen"]):
        found = subprocess.run(
            [*COMMAND, "--home", home, *command], capture_output=True, text=True, env=environment(), timeout=HANG_S
        )
        assert found.returncode == (78 if command[0] == "up" else 1)
        assert f"belongs to user {USER}" in found.stderr
        assert list(home.iterdir()) == []
