"""``./dev`` sets itself up on machines that lack this or that: a copy of it among programs that only pretend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

Machine = Callable[..., subprocess.CompletedProcess[str]]

# a python3 that lacks ensurepip until the file `venv` says otherwise; its environments' python does what pip would
PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit 0 ;;
*ensurepip*) [ -e "$HOME/venv" ] ;;
"-c import virtualenv") exit 1 ;;
"-") exec REAL - ;;
"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip"*)
    [ ! -e "$HOME/no-index" ] || { echo "no index" >&2; exit 1; }
    echo pip >>"$HOME/said"
    while [ -e "$HOME/slow-index" ]; do sleep 0.01; done
    ;;
esac
""".replace("REAL", sys.executable)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A function that runs ``./dev setup`` where only the programs given exist, as a user with that id."""
    shutil.copy(ROOT / "dev", tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup.sh", tmp_path / "tools")
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("one")

    def run(uid: int = 1000, **programs: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("sh", "dirname", "cat", "cksum", "rm", "mkdir", "cp", "sleep"):
            found = shutil.which(name)
            assert found is not None
            (folder / name).symlink_to(found)
        for name, text in {"python3": PYTHON, "id": f"#!/bin/sh\necho {uid}\n", **programs}.items():
            (folder / name.replace("_", "-")).write_text(text)
            (folder / name.replace("_", "-")).chmod(0o755)
        return subprocess.run(
            ["./dev", "setup"],
            cwd=tmp_path,
            env={"PATH": str(folder), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt_get", "sudo apt-get install -y python3-venv"),
        ("dnf", "sudo dnf install -y python3-virtualenv"),
        ("apk", "sudo apk add py3-virtualenv"),
        ("zypper", "sudo zypper --non-interactive install python3-virtualenv"),
        ("pacman", "sudo pacman -S --noconfirm python-virtualenv"),
    ],
)
def test_a_user_is_told_what_to_type(machine: Machine, tmp_path: Path, manager: str, line: str) -> None:
    for _ in range(2):  # the second try meets what the first left behind: nothing
        done = machine(**{manager: "#!/bin/sh\nexit 1\n"})
        assert done.returncode == 1
        assert line in done.stderr.splitlines()[-1]
        assert not (tmp_path / ".venv").exists()


def test_a_machine_without_a_package_manager_is_told_what_is_missing(machine: Machine) -> None:
    done = machine()
    assert done.returncode == 1
    assert "install uv or virtualenv" in done.stderr


def test_root_installs_the_package_and_goes_on(machine: Machine, tmp_path: Path) -> None:
    apt = '#!/bin/sh\n[ "$1" = update ] || { [ "$*" = "install -y python3-venv" ] && echo yes >"$HOME/venv"; }\n'
    done = machine(0, apt_get=apt)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/stamp").exists()
    assert machine(0).stderr == ""  # done once


def test_a_package_manager_that_fails_is_quoted(machine: Machine, tmp_path: Path) -> None:
    done = machine(0, apt_get='#!/bin/sh\necho "E: disk full"\nexit 100\n')
    assert done.returncode == 1
    assert "E: disk full" in done.stderr
    assert "did not help" in done.stderr.splitlines()[-1]
    assert not (tmp_path / ".venv").exists()


def test_uv_is_used_where_ensurepip_is_missing(machine: Machine, tmp_path: Path) -> None:
    uv = '#!/bin/sh\n[ "$1" = venv ] && mkdir -p .venv/bin && cp "$(dirname "$0")/python3" .venv/bin/python\n'
    done = machine(uv=uv)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".venv/stamp").exists()


def test_a_set_up_that_failed_is_not_taken_for_one_that_worked(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "venv").touch()
    (tmp_path / "no-index").touch()
    done = machine()
    assert done.returncode != 0
    assert not (tmp_path / ".venv").exists()
    (tmp_path / "no-index").unlink()
    assert machine().returncode == 0


def test_an_environment_of_another_place_is_made_again(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "venv").touch()
    assert machine().returncode == 0
    (tmp_path / ".venv/left-over").touch()
    (tmp_path / "pyproject.toml").write_text("two")
    assert machine().returncode == 0
    assert (tmp_path / ".venv/left-over").exists()  # another lock: the difference is installed
    stamp = tmp_path / ".venv/stamp"
    stamp.write_text(stamp.read_text().replace(str(tmp_path), f"{tmp_path}-before"))
    assert machine().returncode == 0
    assert not (tmp_path / ".venv/left-over").exists()
    (tmp_path / ".venv/bin/python").unlink()  # the interpreter that it was made with is gone
    assert machine().returncode == 0
    assert os.access(tmp_path / ".venv/bin/python", os.X_OK)


def test_two_at_once_prepare_one_environment_and_both_succeed(machine: Machine, tmp_path: Path) -> None:
    for name in ("venv", "no-index"):
        (tmp_path / name).touch()
    assert machine().returncode != 0  # it has made the programs
    (tmp_path / "no-index").unlink()
    (tmp_path / "slow-index").touch()
    (tmp_path / "said").unlink(missing_ok=True)

    def begin(name: str) -> subprocess.Popen[bytes]:
        env = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
        with (tmp_path / name).open("wb") as errors:
            return subprocess.Popen(["./dev", "setup"], cwd=tmp_path, env=env, stderr=errors)

    def wait_for(name: str, text: str) -> None:
        until = time.monotonic() + 60
        while not ((tmp_path / name).exists() and text in (tmp_path / name).read_text()):
            assert time.monotonic() < until
            time.sleep(0.01)

    first = begin("first")
    wait_for("said", "pip")
    second = begin("second")
    wait_for("second", "waits for another")
    (tmp_path / "slow-index").unlink()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert (tmp_path / "said").read_text().split() == ["pip", "pip"]  # one set-up calls it twice
