"""The check that an adapter's library is there, in a version that the adapter is made for."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from meshnode.errors import LibraryMissing

Release = tuple[int, ...]


def require(extra: str, library: str, least: Release, below: Release) -> None:
    """Raise LibraryMissing unless a library is installed in a version from ``least`` to before ``below``.

    Args:
        extra: The extra of this package that installs it.
        library: The name of its distribution.
        least: The first release that is supported.
        below: The first release that is not.
    """
    wanted = f"{library}>={_text(least)},<{_text(below)}"
    hint = f"pip install 'meshnode[{extra}]'"
    try:
        found = version(library)
    except PackageNotFoundError:
        raise LibraryMissing(f"meshnode.ext needs {wanted}, which is not installed", hint=hint) from None
    if not least <= _release(found) < below:
        raise LibraryMissing(f"meshnode.ext needs {wanted}, and {found} is installed", hint=hint)


def _text(release: Release) -> str:
    return ".".join(map(str, release))


def _release(text: str) -> Release:
    """Return the numbers that a version begins with: ``2.1.0rc1`` is before no release of 2.1."""
    return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", text.removeprefix("v"))[0])))  # type: ignore[index]
