"""What the handlers of requests work with."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.sdk.node import Node
from meshnode.services.registry import ServiceBook


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running node of a home and what it exposes and forwards."""

    node: Node
    book: ServiceBook
