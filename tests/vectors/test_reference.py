"""The tables of docs/reference/wire-format.md, against the tables that the code runs."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path

import pytest

from meshnode.discovery.dht import messages as dht
from meshnode.gossip import messages as gossip
from meshnode.gossip.entry import Kind
from meshnode.identity import sealing
from meshnode.identity.record import EndpointKind
from meshnode.quic.hello import FIELDS, CloseCode, Frame
from meshnode.quic.preface import StreamStatus
from meshnode.quic.seam import ALPN
from meshnode.relay import frames
from meshnode.stack import probe
from meshnode.topics import messages as topics

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "wire-format.md").read_text()
Rows = list[list[str]]


def _table(*head: str) -> Rows:
    """Return the rows of the one table whose first columns have these heads."""
    found: list[Rows] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        if rows[0][: len(head)] == list(head):
            found.append(rows[2:])
    assert len(found) == 1, f"{len(found)} tables begin with {head}"
    return found[0]


def _number(cell: str) -> int:
    return int(cell.strip("`"), 0)


def _fields(cell: str) -> tuple[str, ...]:
    return tuple(cell.strip("`").split(", ")) if cell else ()


def _wire_name(cls: type) -> str:
    """``FORWARD_JOIN`` of ``ForwardJoin``; the acronym IHAVE is one word."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).upper()


def _rows(rows: Rows) -> dict[int, tuple[str, tuple[str, ...]]]:
    assert len({_number(row[0]) for row in rows}) == len(rows)
    return {_number(row[0]): (row[1], _fields(row[2])) for row in rows}


def test_gossip_messages() -> None:
    assert _rows(_table("type", "message", "fields")) == {
        number: (_wire_name(form.kind), form.fields) for number, form in gossip.MESSAGES.items()
    }


def test_topic_messages() -> None:
    assert _rows(_table("number", "message", "fields")) == {
        number: (_wire_name(row.kind), row.fields) for number, row in topics.MESSAGES.items()
    }


def test_dht_messages_and_their_fields() -> None:
    assert _rows(_table("kind", "message", "fields")) == {
        kind: (_wire_name(cls), fields) for kind, (cls, fields) in dht.MESSAGES.items()
    }
    assert {row[0] for row in _table("field", "is")} == {name for _, names in dht.MESSAGES.values() for name in names}


def test_control_frames() -> None:
    assert _rows(_table("kind", "frame", "fields")) == {
        int(kind): (kind.name, fields) for kind, fields in FIELDS.items()
    }
    assert set(FIELDS) == set(Frame)


@pytest.mark.parametrize(
    ("head", "table"),
    [
        (("endpoint kind", "name"), EndpointKind),
        (("kind", "name", "entry's name"), Kind),
        (("status", "name", "means"), dht.Status),
        (("close code", "name"), CloseCode),
    ],
)
def test_enumerations(head: tuple[str, ...], table: type[IntEnum]) -> None:
    assert [(int(row[0]), row[1]) for row in _table(*head)] == [(int(item), item.name) for item in table]


def test_stream_statuses() -> None:
    assert "| status | name |\n|---|---|\n" + "".join(f"| {int(s)} | {s.name} |\n" for s in StreamStatus) in PAGE


def test_first_bytes() -> None:
    named = {row[1]: row[0].strip("`") for row in _table("first byte", "name")}
    assert (int(named["SEALED"], 0), int(named["RELAYED"], 0)) == (sealing.SEALED, frames.RELAYED)
    bodies = {row[1]: [int(n, 0) for n in re.findall(r"0x\w+", row[0])] for row in _table("first byte of the body")}
    assert bodies == {"PING": [probe.PING], "PONG": [probe.PONG], "DHT": [min(dht.MESSAGES), max(dht.MESSAGES)]}


def test_flags() -> None:
    found = {(row[0], int(row[1])): row[2] for row in _table("flag of", "bit")}
    assert found == {("PING", flag): name for flag, name in probe.PING_FLAGS.items()} | {
        ("PONG", flag): name for flag, name in probe.PONG_FLAGS.items()
    }


def test_domain_strings_and_personalisations() -> None:
    """Every one in the source that is about the mesh is in the table, and nothing else is."""
    used = re.compile(r'b"(mesh-[a-z-]+|meshnode [a-z ]+v\d+)(?:\\x00)?"')
    sources = [path.read_text() for path in sorted((ROOT / "meshnode").rglob("*.py"))]
    found = {name for source in sources for name in used.findall(source)}
    assert {row[0].strip("`") for row in _table("string", "used for")} == found


def test_the_version_of_connections() -> None:
    assert f"the ALPN, `{ALPN}`" in PAGE
