"""Every decoder of the wire tells a boolean from a number: in Python ``True == 1``; neither stands for the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from meshnode.base.wire import WireError, decode, encode
from meshnode.gossip import entry as entries
from meshnode.identity import record as records
from meshnode.identity.envelope import SIGNATURE_LENGTH, sign_envelope
from meshnode.identity.keys import Identity
from tests.vectors.forms import FORMS
from tests.vectors.values import rich

VECTORS = Path(__file__).parents[1] / "vectors"
LONGEST_HEAD = 4  # bytes before the CBOR: a message's number, a frame's length
DOMAINS = {"record": (records.DOMAIN, records.MAX_RECORD), "entry": (entries.DOMAIN, entries.GOSSIP_MAX_ENTRY)}


def cases() -> Iterator[Any]:
    for path in sorted(VECTORS.glob("*.json")):
        form = FORMS[path.stem]
        if form.decode is not None:
            for number, case in enumerate(json.loads(path.read_text())["cases"]):
                yield pytest.param(path.stem, bytes.fromhex(case["hex"]), case["given"], id=f"{path.stem}-{number}")


def confused(value: Any) -> Iterator[Any]:
    """Yield the value with one 0, 1, false or true in it replaced by its look-alike, in bytes that are CBOR too."""
    if type(value) is bool:
        yield int(value)
    elif type(value) is int and value in (0, 1):
        yield bool(value)
    elif type(value) is list:
        for at, item in enumerate(value):
            for other in confused(item):
                yield [*value[:at], other, *value[at + 1 :]]
    elif type(value) is dict:
        for key, item in value.items():
            for other in confused(item):
                yield {**value, key: other}
    elif type(value) is bytes:
        try:
            inner = decode(value, 65_536)
        except WireError:
            return
        for other in confused(inner):
            yield encode(other)


def variants(name: str, data: bytes, given: dict[str, Any]) -> Iterator[bytes]:
    kind = name.partition("-")[0]
    if kind in DOMAINS:
        domain, most = DOMAINS[kind]
        for fields in confused(cbor2.loads(data[SIGNATURE_LENGTH:])):
            yield sign_envelope(Identity(rich(given)["seed"]), domain, fields, most)
        return
    for head in range(LONGEST_HEAD + 1):
        try:
            fields = decode(data[head:], 65_536)
        except WireError:
            continue
        if isinstance(fields, list):
            only_kind = kind == "control" and name not in ("control-hello", "control-welcome")
            for other in confused(fields):
                if not only_kind or other[0] is not fields[0]:  # the other fields are checked by their handlers
                    yield data[:head] + encode(other)
            return


def taken(name: str, data: bytes, given: dict[str, Any]) -> object:
    form = FORMS[name]
    assert form.decode is not None
    try:
        found = form.decode(data, rich(given))
    except Exception:  # of the test's own reading of an answer that says why not
        return None
    return None if isinstance(found, dict) and found.get("value", found) is None else found


@pytest.mark.parametrize(("name", "data", "given"), list(cases()))
def test_a_boolean_is_no_number_and_a_number_no_boolean(name: str, data: bytes, given: dict[str, Any]) -> None:
    for other in variants(name, data, given):
        assert taken(name, other, given) is None, f"{data.hex()} as {other.hex()}"


def test_the_look_alikes_are_found() -> None:
    assert list(confused([1, b"\x81\x01", {"a": False}, 2])) == [
        [True, b"\x81\x01", {"a": False}, 2],
        [1, b"\x81\xf5", {"a": False}, 2],
        [1, b"\x81\x01", {"a": 0}, 2],
    ]
    made = [(case.values, sum(1 for _ in variants(*case.values))) for case in cases()]
    assert sum(count for _, count in made) > 30
    refused = [values[0] for values, count in made if count and taken(*values) is None]
    assert refused == ["entry"], "but for an entry that takes back what was said, they are taken as they are"
