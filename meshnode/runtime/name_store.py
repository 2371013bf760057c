"""Names on disk: this node's own claim, and the meanings (pins) of the names and services used here.

A name or a service that was used once keeps its meaning (``Names`` and ``Providers`` call that a pin) over restarts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from meshnode.base.limits import GOSSIP_MAX_FUTURE_S
from meshnode.directory.announcement import is_service_name
from meshnode.identity.node_id import NodeId, is_label, label_of
from meshnode.runtime.state_files import StateFiles, read_state

if TYPE_CHECKING:
    from meshnode.directory.names import Names
    from meshnode.directory.providers import Providers

log = logging.getLogger("meshnode.names")

PINS_FILE, PROVIDERS_FILE, NAME_FILE = "known_names.json", "known_services.json", "name.json"
SAVE_DELAY_S = 0.2
LAST_MS = 2**53


class NameStore:
    """Restores ``names`` and ``providers`` from a home, and saves their pins when they change."""

    def __init__(self, names: Names, providers: Providers, state: StateFiles) -> None:
        self._names = names
        self._providers = providers
        self._state = state
        self._saving: asyncio.TimerHandle | None = None
        names.restore(read_state(state.home / PINS_FILE, _parse_pins) or {})
        providers.restore(read_state(state.home / PROVIDERS_FILE, _parse_providers) or {})

    def claim(self, label: str, wall: float, now: float) -> None:
        """Claim a name for this node, as of the time of the first claim.

        Args:
            label: The name without its suffix.
            wall: Unix time in seconds; counts when ``name.json`` has no earlier claim of the same name.
            now: Monotonic seconds.
        """
        first = int(wall * 1000)
        saved = read_state(self._state.home / NAME_FILE, _parse_claim)
        if saved is not None and saved[0] == label:
            if saved[1] > first + GOSSIP_MAX_FUTURE_S * 1000:
                log.warning(
                    "the name %s was first claimed %.0f s ahead of the clock, which was ahead once, or is behind now: "
                    "the claim counts from now on",
                    label,
                    (saved[1] - first) / 1000,
                )
            first = min(first, saved[1])
        self._state.save(NAME_FILE, json.dumps({"name": label, "first": first}).encode())
        self._names.claim(label, first, now)

    def forget(self, text: str) -> bool:
        """Drop the pins of a name and of a service of that name; False when there were none."""
        label = label_of(text)
        was_name = label is not None and self._names.forget(label)
        return self._providers.forget(text) or was_name

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
        for file, pins in ((PINS_FILE, self._names.pins), (PROVIDERS_FILE, self._providers.pins)):
            texts = {name: str(peer) for name, peer in pins.items()}
            self._state.save(file, json.dumps(texts, indent=1).encode())


def _parse_pins(data: bytes) -> Mapping[str, NodeId]:
    return {name: NodeId.parse(text) for name, text in json.loads(data).items() if is_label(name)}


def _parse_providers(data: bytes) -> Mapping[str, NodeId]:
    return {name: NodeId.parse(text) for name, text in json.loads(data).items() if is_service_name(name)}


def _parse_claim(data: bytes) -> tuple[str, int]:
    """Return a name and the time of its first claim in Unix milliseconds."""
    saved = json.loads(data)
    name, first = saved["name"], saved["first"]
    if not isinstance(name, str) or type(first) is not int or not 0 < first <= LAST_MS:
        raise ValueError("no claim")
    return name, first
