"""The home of a process that keeps nothing: a serverless function, a job of a CI system.

It is a folder of this process alone, with the mesh of a ticket in it, and is removed when the process ends.
"""

from __future__ import annotations

import atexit
from pathlib import Path

from meshnode.base.clock import Entropy
from meshnode.base.forks import close_in_child
from meshnode.identity.keyfile import given_key
from meshnode.identity.keys import Identity
from meshnode.identity.node_id import KEY_LENGTH


def make_function_home(
    folder: Path, key: str | None, ticket: str | None, wall: float, entropy: Entropy
) -> tuple[Path, str]:
    """Make a home in ``folder``; return it with the node's key as text, which is ``key`` or a new one.

    With a ticket the home is in its mesh, by a grant that is made for this key at once. Raises ConfigError, GrantError,
    KeyFileError.
    """
    identity = Identity(entropy(KEY_LENGTH)) if key is None else given_key(key)
    home = folder / f"meshnode-function-{entropy(8).hex()}"
    home.mkdir(mode=0o700)
    _Leftover(home)
    if ticket is not None:
        from meshnode.trust.operator import join  # a node of an open mesh needs nothing of it
        from meshnode.trust.ticket import parse_ticket

        join(home, parse_ticket(ticket), identity, wall, entropy)
    return home, identity.seed.hex()


class _Leftover:
    """Removes a folder when the process ends that made it; a child that was forked leaves it alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        close_in_child(self)
        atexit.register(self._remove)

    def close(self) -> None:
        atexit.unregister(self._remove)

    def _remove(self) -> None:
        from shutil import rmtree  # 4 ms at the start of a process, nothing at its end

        rmtree(self._folder, ignore_errors=True)
