"""Type checkers on user code: ``tests/typing/good.py`` must pass, each marked line of ``bad.py`` must give an error.

Run by ``./dev check``. Both checkers run in strict mode, with the interpreter of this environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOOD, BAD = Path("tests/typing/good.py"), Path("tests/typing/bad.py")
MARK = re.compile(r"# error$")

Found = dict[Path, set[int]]  # the lines with errors


def marked(text: str) -> set[int]:
    """The lines on which a checker must find an error."""
    return {number for number, line in enumerate(text.splitlines(), 1) if MARK.search(line)}


def mypy(*files: Path) -> Found:
    """Errors by mypy --strict."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found: Found = {file: set() for file in files}
    for path, line in re.findall(r"^(.+?):(\d+): error:", done.stdout, re.MULTILINE):
        found[Path(path)].add(int(line))
    if done.returncode not in (0, 1):
        raise SystemExit(f"mypy: {done.stdout}{done.stderr}")
    return found


def pyright(*files: Path) -> Found:
    """Errors by pyright; the files say ``# pyright: strict``."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, files)]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # no look for newer versions
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    found: Found = {file: set() for file in files}
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"pyright: {done.stdout}{done.stderr}") from None
    for item in report["generalDiagnostics"]:
        if item["severity"] == "error":
            found[Path(item["file"]).relative_to(ROOT)].add(item["range"]["start"]["line"] + 1)
    return found


def problems(found: Found, expected: set[int]) -> list[str]:
    """What a checker found that it should not, and what it did not find."""
    return (
        [f"{GOOD}:{line}: an error in correct code" for line in sorted(found[GOOD])]
        + [f"{BAD}:{line}: an error on a line without a mark" for line in sorted(found[BAD] - expected)]
        + [f"{BAD}:{line}: no error found" for line in sorted(expected - found[BAD])]
    )


def main() -> int:
    """Run both; print what is wrong."""
    expected = marked((ROOT / BAD).read_text())
    failed = False
    for checker in (mypy, pyright):
        wrong = problems(checker(GOOD, BAD), expected)
        failed = failed or bool(wrong)
        for line in wrong:
            print(f"{checker.__name__}: {line}")
        if not wrong:
            print(f"{checker.__name__}: correct code passes, {len(expected)} mistakes are found")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
