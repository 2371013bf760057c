"""Homes of nodes that tests start in processes of their own."""

from __future__ import annotations

from pathlib import Path

from meshnode import Identity
from meshnode.identity import keyfile


def make_home(home: Path) -> None:
    """Make a home, unless it is there, whose key has no price: that would cost its process 0.3 s of CPU."""
    if not home.exists() and home.parent.is_dir():
        home.mkdir(mode=0o700)
        keyfile.save(home / "key", Identity.generate())
