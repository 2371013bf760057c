"""``./dev ends [--end lowest|newest] [PYTEST ARGS]``: tests with the lowest and the newest dependencies allowed.

Each end has an environment of its own (``.venv-lowest``, ``.venv-newest``): dependencies by the ranges of
pyproject.toml, the tools of the tests from the lock. By default the tests run that touch the libraries most.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = (
    "tests/interop",
    "tests/live/test_node.py",
    "tests/live/test_mdns.py",
    "tests/live/test_tunnel.py",
    "tests/unit/test_dht_parts.py",
    "tests/unit/test_public.py",
    "tests/unit/test_identity.py",
)
TOOLS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-xdist")
ENDS = ("lowest", "newest")


def requirements(end: str) -> list[str]:
    """Return what pip is asked for at one end: the lower bounds exactly, or the ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    ranges: list[str] = [*project["dependencies"], *extras["ui"], *extras["uvloop"]]
    return [re.sub(r">=([0-9.]+)[^;]*", r"==\1", text) for text in ranges] if end == "lowest" else ranges


def environment(end: str) -> Path:
    """Make the environment of one end from nothing; return its python. Raises CalledProcessError.

    It has no pip, which this one's does for it, and compiles only what the tests import: half of the CPU.
    """
    folder = ROOT / f".venv-{end}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    locked = re.findall(r"^([A-Za-z0-9_.-]+==[^ \\]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    names = {re.split(r"[<>=]", text)[0] for text in requirements(end)}
    tools = [line for line in locked if line.partition("==")[0] in {*TOOLS, "hatchling", "editables"} - names]
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-compile"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join([*requirements(end), *tools]))
        file.flush()
        subprocess.run([*install, "--upgrade", "-r", file.name], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return python


def main(arguments: Sequence[str]) -> int:
    """Run the tests at each end; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="./dev ends", description=__doc__)
    parser.add_argument("--end", choices=ENDS, help="one of the two; both by default")
    options, asked = parser.parse_known_args(arguments)
    ends = [options.end] if options.end else ENDS
    for end in ends:
        print(f"ends: {end}: {', '.join(requirements(end))}", flush=True)
    with ThreadPoolExecutor() as pool:  # a core each
        pythons = list(pool.map(environment, ends))
    for end, python in zip(ends, pythons, strict=True):
        print(f"ends: {end}", flush=True)
        code = subprocess.run(
            [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *(asked or TESTS)],
            cwd=ROOT,
            check=False,
        ).returncode
        if code:
            print(f"ends: the tests fail with the {end} dependencies", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
