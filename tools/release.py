"""``./dev release VERSION [--dry-run]``: checks, tests, builds and tries a release, and tags it.

Nothing is uploaded or pushed. The version, its changelog section and a clean tree are the releaser's to prepare: the
program refuses with what is missing, before it starts anything that takes long. A dry run does all but the tag.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACEHOLDER = ".example/"  # RFC 2606: a host that cannot exist


class Refused(Exception):
    """A reason not to release."""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def prepared(root: Path, version: str) -> list[str]:
    """Return notes for the releaser. Raises Refused when the tree is not ready for this version."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        raise Refused(f"{version} is no version: write 0.2.0 or 0.2.0rc1")
    changed = _git(root, "status", "--porcelain").rstrip()
    if changed:
        raise Refused(f"the tree has changes; commit or remove them:\n{changed}")
    if _git(root, "tag", "--list", f"v{version}").strip():
        raise Refused(f"the tag v{version} exists: releases are not changed, take the next version")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        raise Refused(f"pyproject.toml has version {project['version']}: set it to {version}")
    package = re.search(r'^__version__ = "(.*)"', (root / "meshnode/__init__.py").read_text(encoding="utf-8"), re.M)
    if package is None or package[1] != version:
        raise Refused(f"meshnode/__init__.py: set __version__ to {version}")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.M):
        raise Refused(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD': rename [Unreleased]")
    return [
        f"pyproject.toml: the URL of {name} has a placeholder host; set it before an upload: {url}"
        for name, url in project.get("urls", {}).items()
        if PLACEHOLDER in url
    ]


def _run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run one step and return its output, each line on the terminal as it comes. Raises Refused when it fails."""
    words = [str(word) for word in command]
    print(f"release: {' '.join(words)}", flush=True)
    lines = []
    with subprocess.Popen(words, cwd=cwd, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        for line in step.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if step.returncode:
        raise Refused(f"{' '.join(words)} failed with {step.returncode}")
    return "".join(lines)


def build(target: Path) -> Path:
    """Build the sdist, and the wheel from what the sdist holds, so that the sdist is complete; return the wheel."""
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", target)
    (sdist,) = target.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = Path(folder).iterdir()
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target, cwd=unpacked)
    (wheel,) = target.glob("*.whl")
    return wheel


def try_wheel(wheel: Path, version: str) -> None:
    """Install the wheel in an environment of its own and ask it for its version. Raises Refused."""
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "venv", folder)
        pip = Path(folder, "bin", "pip")
        install: tuple[str | Path, ...] = (pip, "install", "--quiet", "--disable-pip-version-check")
        _run(*install, "--require-hashes", "-r", ROOT / "requirements-node.lock")
        _run(*install, "--no-deps", wheel)
        answer = _run(Path(folder, "bin", "meshnode"), "--version", cwd=Path(folder))
        if not answer.strip().endswith(version):
            raise Refused(f"the installed wheel answers {answer.strip()!r} to --version")
        _run(Path(folder, "bin", "python"), "-c", "import meshnode; meshnode.Node", cwd=Path(folder))


def release(version: str, dry_run: bool) -> None:
    """Release, or do all but the tag. Raises Refused."""
    notes = prepared(ROOT, version)
    _run("./dev", "check")
    _run("./dev", "test")
    target = ROOT / "dist" / version
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    try_wheel(build(target), version)
    prepared(ROOT, version)  # nothing above may have left its marks
    if not dry_run:
        _git(ROOT, "tag", "--annotate", f"v{version}", "--message", f"meshnode {version}")
    for note in notes:
        print(f"release: {note}")
    print(
        f"release: {target.relative_to(ROOT)} is built and tried; " + ("not tagged" if dry_run else f"tag v{version}")
    )
    print("release: what is left is to push the tag and to upload the two files")


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="./dev release", description="Check, test, build, try and tag a release.")
    parser.add_argument(
        "version", metavar="VERSION", help="as in pyproject.toml, meshnode/__init__.py and CHANGELOG.md"
    )
    parser.add_argument("--dry-run", action="store_true", help="all but the tag")
    options = parser.parse_args(arguments)
    try:
        release(options.version, options.dry_run)
    except Refused as reason:
        print(f"release: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
