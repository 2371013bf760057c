"""Names on disk: this node's own claim, and the meanings (pins) of the names used here.

A name is claimed with the time of its first claim, which decides between two claimants; and a name that was used once
keeps its meaning (``Names`` calls that a pin) over restarts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from meshnode.base.files import write_atomic
from meshnode.directory.names import Names
from meshnode.identity.node_id import NodeId, is_label, label_of

log = logging.getLogger("meshnode.names")

PINS_FILE, NAME_FILE = "known_names.json", "name.json"
SAVE_DELAY_S = 0.2


class NameStore:
    """Restores ``names`` from a home, and saves its pins when they change."""

    def __init__(self, names: Names, home: Path) -> None:
        self._names = names
        self._home = home
        self._saving: asyncio.TimerHandle | None = None
        names.restore(_load_pins(home / PINS_FILE))

    def claim(self, label: str, wall: float, now: float) -> None:
        """Claim a name for this node, as of the time of the first claim.

        Args:
            label: The name without its suffix.
            wall: Unix time in seconds; counts when ``name.json`` has no earlier claim of the same name.
            now: Monotonic seconds.

        Raises:
            OSError: ``name.json`` cannot be written; nothing is claimed then.
        """
        path, first = self._home / NAME_FILE, int(wall * 1000)
        try:
            saved = json.loads(path.read_text())
            if saved["name"] == label and isinstance(saved["first"], int) and 0 < saved["first"] < first:
                first = saved["first"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is of no use: the claim begins now
        write_atomic(path, json.dumps({"name": label, "first": first}).encode())
        self._names.claim(label, first, now)

    def forget(self, text: str) -> bool:
        """Drop the pin of a name; False when there was none."""
        label = label_of(text)
        return label is not None and self._names.forget(label)

    def on_pins(self) -> None:
        """Save the pins soon: one was added or dropped.

        Changes within ``SAVE_DELAY_S`` are written together.
        """
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_DELAY_S, self._save)

    def close(self) -> None:
        """Write what was not written yet."""
        if self._saving is not None:
            self._save()

    def _save(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
        self._saving = None
        pins = {name: str(peer) for name, peer in self._names.pins.items()}
        try:
            write_atomic(self._home / PINS_FILE, json.dumps(pins, indent=1).encode())
        except OSError as error:
            log.warning("cannot save the meanings of names: %s", error)


def _load_pins(path: Path) -> Mapping[str, NodeId]:
    try:
        saved = json.loads(path.read_text())
        return {name: NodeId.parse(text) for name, text in saved.items() if is_label(name)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s is not readable; the meanings of names are learnt again: %s", path, error)
        return {}
