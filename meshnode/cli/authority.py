"""The key of a mesh's authority, as commands open it: by the environment, or a passphrase typed at a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


def authority_secrets(home: Path) -> tuple[str | None, str | None]:
    """Return the passphrase of a home's authority, and that key itself where the environment has it.

    The passphrase is asked for without an echo where the key needs one, the environment has none, and there is a
    terminal. Raises click.Abort when it is not given.
    """
    given = os.environ.get("MESHNODE_AUTHORITY_KEY") or None
    passphrase = os.environ.get("MESHNODE_AUTHORITY_PASSPHRASE") or None
    if given is None and passphrase is None and _has_terminal():
        from meshnode.identity.keyfile import is_locked
        from meshnode.trust.home_mesh import AUTHORITY_FILE

        if is_locked(home / AUTHORITY_FILE):
            passphrase = _ask("Passphrase of the authority's key")
    return passphrase, given


def new_passphrase() -> str | None:
    """Return the passphrase for a new authority's key; None for none. A terminal is asked twice.

    Raises click.Abort.
    """
    passphrase = os.environ.get("MESHNODE_AUTHORITY_PASSPHRASE") or None
    if passphrase is None and _has_terminal():
        passphrase = _ask("Passphrase for the authority's key (Enter for none)", again="Again") or None
    return passphrase


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(text: str, again: bool | str = False) -> str:
    asked: str = click.prompt(
        text, default="", show_default=False, hide_input=True, confirmation_prompt=again, err=True
    )
    return asked
