"""What a vector's file holds, as JSON and as Python.

``fields`` are on the wire; ``given`` is not, but must be known: keys, the clock, entropy, and what a receiver knows. In
JSON, bytes are text that begins with ``0x``; node ids are their 32 bytes; key pairs are their seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from meshnode.base.address import Addr
from meshnode.identity.node_id import NodeId

Fields = dict[str, Any]
Encode = Callable[[Fields, Fields], bytes]
Decode = Callable[[bytes, Fields], Fields]


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, NodeId):
        return "0x" + value.raw.hex()
    if isinstance(value, Addr):
        return str(value)
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return [plain(item) for item in value]


def rich(value: Any) -> Any:
    """Return what JSON has with its bytes and tuples."""
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    if isinstance(value, dict):
        return {key: rich(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(rich(item) for item in value)
    return value
