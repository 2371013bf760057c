"""Adapters without their library, and with another version of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import meshnode
from meshnode.ext import requirement

ADAPTERS = sorted(
    path.stem
    for path in Path(requirement.__file__).parent.glob("*.py")
    if "require(" in path.read_text(encoding="utf-8") and path.stem != "requirement"
)
LONGEST = 150
ROOT = Path(__file__).parents[2]
CALL = re.compile(r'^require\("([a-z0-9]+)", "([a-z0-9-]+)", \(([0-9, ]+)\), \(([0-9, ]+)\)\)', re.MULTILINE)


def _needed(adapter: str) -> tuple[str, str, str, str]:
    """Return the extra and the library that an adapter checks first, and the bounds of its version."""
    source = (Path(requirement.__file__).parent / f"{adapter}.py").read_text(encoding="utf-8")
    found = CALL.search(source)
    assert found is not None, adapter
    least, below = (".".join(re.findall(r"\d+", text)) for text in found.groups()[2:])
    return found[1], found[2], least, below


NEEDED = {adapter: _needed(adapter) for adapter in ADAPTERS}


# Each import has a process of its own, which is forked: a new interpreter takes ten times as long.
IMPORTS = """
import asyncio, importlib, importlib.metadata, inspect, json, os, sys
from meshnode import LibraryMissing

def version_of(found):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found
    return version

for adapter, found in json.loads(sys.argv[1]):
    if os.fork() == 0:
        importlib.metadata.version = version_of(found)
        try:
            importlib.import_module(f"meshnode.ext.{adapter}")
            said = None
        except LibraryMissing as error:
            said = [str(error), error.hint, isinstance(error, ImportError)]
        print(json.dumps([adapter, found, said]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
FOUND = (None, "0.0.1", "9999.1")  # of the library, which is missing or has another version

Said = dict[tuple[str, str | None], list[Any]]


@pytest.fixture(scope="module")
def said() -> Said:
    """What the import of each adapter says with each version: message, hint, whether it is an ImportError."""
    cases = json.dumps([(adapter, found) for adapter in ADAPTERS for found in FOUND])
    done = subprocess.run([sys.executable, "-c", IMPORTS, cases], capture_output=True, text=True, check=True)
    return {(adapter, found): what for adapter, found, what in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_without_its_library_says_what_to_install(adapter: str, said: Said) -> None:
    _, hint, is_import_error = said[adapter, None]
    assert (hint, is_import_error) == (f"pip install 'meshnode[{adapter}]'", True)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("found", FOUND[1:])
def test_an_adapter_whose_library_has_another_version_says_which_it_takes(adapter: str, found: str, said: Said) -> None:
    extra, library, least, below = NEEDED[adapter]
    text = f"meshnode.ext needs {library}>={least},<{below}, and {found} is installed"
    assert said[adapter, found][:2] == [text, f"pip install 'meshnode[{extra}]'"]


def test_an_extra_installs_what_its_adapter_takes() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, library, least, below in NEEDED.values():
        found = [Requirement(text) for text in extras[extra]]
        (own,) = [one for one in found if one.name == library]
        bounds = {part.operator: Version(part.version) for part in own.specifier}
        assert bounds == {">=": Version(least), "<": Version(below)}, extra


@pytest.mark.parametrize("found", ["1.9", "1.9.9", "3", "3.0.1", "30.0", "0", "junk", "3.0rc1"])
def test_another_version_is_refused_and_named(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(requirement, "version", lambda name: found)
    with pytest.raises(meshnode.LibraryMissing, match=f"needs thing>=2.0,<3, and {found} is installed") as error:
        requirement.require("x", "thing", (2, 0), (3,))
    assert error.value.hint == "pip install 'meshnode[x]'"


@pytest.mark.parametrize("found", ["2.0", "2.0.0", "2.99.99", "2.1rc1", "2.5.post1"])
def test_a_version_within_the_bounds_is_taken(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(requirement, "version", lambda name: found)
    requirement.require("x", "thing", (2, 0), (3,))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_installed_here_is_within_the_bounds_of_the_adapter(adapter: str) -> None:
    assert metadata.version("meshnode")
    subprocess.run([sys.executable, "-c", f"import meshnode.ext.{adapter}"], check=True)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_is_small(adapter: str) -> None:
    lines = (Path(requirement.__file__).parent / f"{adapter}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < LONGEST
