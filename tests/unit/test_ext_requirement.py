"""Adapters without their library, and with another version of it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import meshnode
from meshnode.ext import requirement

ADAPTERS = sorted(
    path.stem
    for path in Path(requirement.__file__).parent.glob("*.py")
    if "require(" in path.read_text(encoding="utf-8") and path.stem != "requirement"
)
LONGEST = 150


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_without_its_library_says_what_to_install(adapter: str) -> None:
    code = f"""
import importlib.metadata, sys
def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = missing
import meshnode
try:
    import meshnode.ext.{adapter}
except meshnode.LibraryMissing as error:
    assert isinstance(error, ImportError)
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"pip install 'meshnode[{adapter}]'\n"


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
