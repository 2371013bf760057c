"""The release program refuses a tree that is not ready, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import release as release_module
from tools.release import Refused, prepared

PROJECT = '[project]\nname = "meshnode"\nversion = "0.2.0"\n[project.urls]\nSource = "https://meshnode.example/x"\n'


def _git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A committed tree that is ready for 0.2.0."""
    (tmp_path / "meshnode").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "meshnode" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def test_a_tree_that_is_ready_is_accepted_with_a_note_on_placeholder_urls(tree: Path) -> None:
    (note,) = prepared(tree, "0.2.0")
    assert "Source" in note


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0-beta", "../x"])
def test_text_that_is_no_version_is_refused(tree: Path, version: str) -> None:
    with pytest.raises(Refused, match="is no version"):
        prepared(tree, version)


def test_uncommitted_changes_are_refused(tree: Path) -> None:
    (tree / "new.txt").write_text("x")
    with pytest.raises(Refused, match=r"has changes(.|\n)*new\.txt"):
        prepared(tree, "0.2.0")


def test_a_second_release_of_one_version_is_refused(tree: Path) -> None:
    _git(tree, "tag", "v0.2.0")
    with pytest.raises(Refused, match=r"the tag v0\.2\.0 exists"):
        prepared(tree, "0.2.0")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("pyproject.toml", PROJECT.replace("0.2.0", "0.1.0"), "pyproject.toml has version 0.1.0"),
        ("meshnode/__init__.py", '__version__ = "0.1.0"\n', "set __version__ to 0.2.0"),
        ("CHANGELOG.md", "## [Unreleased]\n", r"no section '## \[0.2.0\]"),
    ],
)
def test_a_version_that_is_not_everywhere_is_refused(tree: Path, name: str, text: str, reason: str) -> None:
    (tree / name).write_text(text)
    _git(tree, "commit", "-q", "-a", "-m", "other")
    with pytest.raises(Refused, match=reason):
        prepared(tree, "0.2.0")


def test_a_dry_run_goes_all_the_way_and_does_not_tag(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def run(*command: str | Path, cwd: Path = tree) -> str:
        words = " ".join(map(str, command))
        steps.append(words)
        if "build -t" in words:
            kind = "tar.gz" if "sdist" in words else "whl"
            made = Path(str(command[-1])) / f"meshnode-0.2.0.{kind}"
            if kind == "whl":
                made.write_bytes(b"")
            else:
                with tarfile.open(made, "w:gz") as archive:
                    archive.add(tree / "pyproject.toml", "meshnode-0.2.0/pyproject.toml")
        return "meshnode, version 0.2.0" if words.endswith("--version") else ""

    (tree / ".gitignore").write_text("dist\n")
    _git(tree, "add", ".")
    _git(tree, "commit", "-q", "-m", "ignore")
    monkeypatch.setattr(release_module, "ROOT", tree)
    monkeypatch.setattr(release_module, "_run", run)
    release_module.release("0.2.0", dry_run=True)
    order = ["./dev check", "./dev test", "build -t sdist", "build -t wheel", "-m venv", "--no-deps", "--version"]
    places = [next(at for at, step in enumerate(steps) if part in step) for part in order]
    assert places == sorted(places)
    tags = subprocess.run(["git", "tag"], cwd=tree, capture_output=True, text=True, check=True).stdout
    assert tags == ""


def test_the_wheel_that_is_built_has_every_module_and_no_test(tmp_path: Path) -> None:
    wheel = release_module.build(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    root = Path(__file__).parents[2]
    modules = {str(path.relative_to(root)) for path in (root / "meshnode").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "meshnode/py.typed" in names
    assert any(name.endswith("entry_points.txt") for name in names)


def test_what_a_step_prints_is_there_as_it_comes_and_its_failure_is_a_refusal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = "import sys; print('begun', flush=True); sys.exit(len(sys.argv) - 1)"
    assert release_module._run(sys.executable, "-c", script) == "begun\n"
    with pytest.raises(Refused, match="failed with 1"):
        release_module._run(sys.executable, "-c", script, "more")
    assert capsys.readouterr().out.splitlines().count("begun") == 2
