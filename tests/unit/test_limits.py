"""The page of bounds: each name means one of them."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from meshnode.base import limits


def test_no_bound_is_defined_twice() -> None:
    """The second definition would silently be the bound of both."""
    tree = ast.parse(Path(limits.__file__).read_text())
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_connections_that_peers_began_leave_sessions_for_dials_and_half_open_ones() -> None:
    assert limits.MAX_PEERS_ACCEPTED + limits.MAX_HALF_OPEN < limits.MAX_SESSIONS
