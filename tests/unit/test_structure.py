"""The sizes that keep the project readable: files, classes, functions, and the folder that one opens first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "meshnode"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES, MOST_TOP_LEVEL = 500, 25, 14, 26
MOST_BRANCHES = 10  # of a function; up to 20 of 1,000 functions may have more
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def attributes(node: ast.ClassDef) -> set[str]:
    """The names that the class's methods assign on ``self``."""
    return {
        found.attr
        for found in ast.walk(node)
        if isinstance(found, ast.Attribute) and isinstance(found.ctx, ast.Store)
        if isinstance(found.value, ast.Name) and found.value.id == "self"
    }


def complexity(function: Function) -> int:
    """McCabe's number: one, and one for each branch; functions inside count on their own."""
    total, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        total += isinstance(node, BRANCHES)
        if isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.Match):
            total += len(node.cases)
        waiting += ast.iter_child_nodes(node)
    return total


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_class_does_everything() -> None:
    large = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = {item.name for item in node.body if isinstance(item, Function)}  # overloads are one method
                methods, held = len(names), len(attributes(node))
                if methods > MOST_METHODS or held > MOST_ATTRIBUTES:
                    large.append(f"{name}: {node.name} has {methods} methods and {held} attributes")
    assert large == []


def test_few_functions_branch_a_lot() -> None:
    numbers = {
        f"{name}: {node.name}": complexity(node)
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    above = {name: number for name, number in numbers.items() if number > MOST_BRANCHES}
    assert len(above) <= 0.02 * len(numbers), above
    assert max(numbers.values()) < 20, above


def test_the_first_look_shows_few_rooms() -> None:
    rooms = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert len(rooms) <= MOST_TOP_LEVEL, sorted(path.name for path in rooms)


def public(body: list[ast.stmt]) -> Iterator[Function]:
    """The functions and methods of these statements that other modules may call."""
    for node in body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body)


def test_many_functions_say_more_than_one_line() -> None:
    texts = [ast.get_docstring(node) or "" for _, tree in trees() for node in public(tree.body)]
    assert sum("\n" in text for text in texts) >= 0.4 * len(texts)


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside functions and for type checkers count too."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in names:
                found |= {full if (full := f"{node.module}.{a.name}") in names else node.module for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in names}
        found.discard(name)
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)  # raises CycleError
