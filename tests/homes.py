"""Homes of nodes that tests start in processes of their own."""

from __future__ import annotations

from pathlib import Path

from meshnode import Identity
from meshnode.identity import keyfile

# for ``python -c``: runs the program that the first argument names as python does, but that new keys have no price
UNPRICED = """
import runpy, sys
from pathlib import Path
from meshnode import Identity
from meshnode.identity import keyfile
del sys.argv[0]
sys.path[0] = str(Path(sys.argv[0]).parent)
keyfile.make_identity = Identity.generate
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_home(home: Path) -> None:
    """Make a home, unless it is there, whose key has no price: that would cost its process 0.3 s of CPU."""
    if not home.exists() and home.parent.is_dir():
        home.mkdir(mode=0o700)
        keyfile.save(home / "key", Identity.generate())
