"""Golden vectors: every wire form, checked in both directions against bytes that are written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.discovery.dht import messages as dht
from meshnode.gossip import messages as gossip
from meshnode.gossip.entry import Kind
from meshnode.identity.record import EndpointKind
from meshnode.quic.hello import FIELDS, Frame
from meshnode.quic.preface import StreamStatus
from meshnode.stack import probe
from meshnode.topics import messages as topics
from tests.vectors.forms import FORMS
from tests.vectors.values import plain, rich

FOLDER = Path(__file__).parent
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
CASES = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name, vector in FILES.items()
    for number, case in enumerate(vector["cases"])
]


def _numbers(prefix: str) -> dict[int, str]:
    """The numbers of a protocol that have a vector, each with its file."""
    return {vector["number"]: name for name, vector in FILES.items() if name.startswith(prefix) and "number" in vector}


def _values(name: str, field: str) -> set[Any]:
    return {case["fields"][field] for case in FILES[name]["cases"]}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_fields_make_these_bytes(name: str, case: dict[str, Any]) -> None:
    assert FORMS[name].encode(rich(case["fields"]), rich(case["given"])).hex() == case["hex"]


@pytest.mark.parametrize(("name", "case"), [case for case in CASES if FORMS[case.values[0]].decode])  # type: ignore[index]
def test_these_bytes_make_the_fields(name: str, case: dict[str, Any]) -> None:
    decode = FORMS[name].decode
    assert decode is not None
    assert plain(decode(bytes.fromhex(case["hex"]), rich(case["given"]))) == case["fields"]


def test_every_form_has_a_file_and_every_file_a_form() -> None:
    assert set(FILES) == set(FORMS)
    assert all(vector["cases"] for vector in FILES.values())
    assert {name: vector.get("number") for name, vector in FILES.items()} == {
        name: None if form.number is None else int(form.number) for name, form in FORMS.items()
    }


@pytest.mark.parametrize(
    ("prefix", "table", "at"),
    [
        ("gossip-", gossip.MESSAGES, 1),
        ("topics-", topics.MESSAGES, 1),
        ("dht-", dht.MESSAGES, 0),
        ("control-", FIELDS, 3),
    ],
)
def test_every_number_of_a_protocol_has_a_vector_that_says_it(prefix: str, table: dict[int, Any], at: int) -> None:
    """The number is read where it is in the bytes: behind a CBOR array's head, and a control frame's length."""
    files = _numbers(prefix)
    assert set(files) == set(table)
    for number, name in files.items():
        for case in FILES[name]["cases"]:
            assert bytes.fromhex(case["hex"])[at] == number, name


def test_every_kind_of_entry_and_of_control_frame_has_its_forms() -> None:
    assert set(_numbers("entry-")) == set(map(int, Kind))
    assert set(FIELDS) == set(Frame)


def test_every_value_of_an_enumeration_is_in_a_vector() -> None:
    assert _values("stream-status", "status") == {status.name for status in StreamStatus}
    assert {e["kind"] for case in FILES["record"]["cases"] for e in case["fields"]["endpoints"]} == set(EndpointKind)
    assert {c["fields"]["status"] for c in FILES["dht-17"]["cases"]} == set(dht.Status)
    for name, flags in (("ping", probe.PING_FLAGS), ("pong", probe.PONG_FLAGS)):
        assert {flag for case in FILES[name]["cases"] for flag in case["fields"]["flags"]} == set(flags.values())


def test_the_script_writes_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("golden")
    command = [sys.executable, "-m", "tests.vectors.make", "--to", str(tmp_path)]
    root = FOLDER.parent.parent
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stdout.count("new: ") == len(FORMS) - 1
    assert "DIFFERENT: record.json" in found.stdout
    assert [path.read_text() for path in tmp_path.iterdir()] == ["golden"]
