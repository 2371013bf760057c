"""The programs in ``examples/``: each prints what its docstring says.

Their keys have no price, which would be most of the CPU that they use; ``tests/live/test_processes.py`` pays it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import forked
from tests.given_time import HANG_S
from tests.live.cli_node import clean_environment

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "nodes")


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_prints_what_it_says(name: str) -> None:
    path = EXAMPLES / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    command, printed = docstring.split("\nprints\n")
    assert f"    python examples/{name}.py\n" in command
    done = forked.run([str(path)], HANG_S, env=clean_environment())
    expected = [line.removeprefix("    ") for line in printed.strip("\n").splitlines()]
    assert (done.stdout.splitlines(), done.returncode) == (expected, 0), done.stderr
