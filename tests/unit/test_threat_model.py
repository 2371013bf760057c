"""The threat model and the attacks are of one mind: each row is on the page, and each test that it names exists."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from attacks.__main__ import families, main
from attacks.page import BEGIN, END, figures, table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "threat-model.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
FILE = re.compile(r"`(tests/[\w/]+\.py)`")
PATTERN = re.compile(r"`([a-z_]+\.[a-z_*]+)`")
NAMED = (
    "impersonation of the listener",
    "impersonation of the dialler",
    "unknown key share",
    "replay, live",
    "replay, after a restart",
    "replay, to another receiver",
    "reflection",
    "amplification",
    "downgrade to the open mesh",
    "forged or widened grant",
    "expired grant on a live connection",
    "role confusion",
    "revoked delegate",
    "rollback of policy",
    "clock moved back",
    "key compromise impersonation",
    "traffic redirected by one on the path",
    "a relay that reads or forges",
    "DHT liar",
    "gossip liar",
    "flood of knocks",
    "a ticket used once too often",
    "a grant handed to another key",
)
ROWS = [f"{family}.{name}" for family, module in families().items() for name in module.ROWS]


def patterns() -> set[str]:
    """Return what the page says of rows: ``family.row``, with ``*`` for any text."""
    return {found for found in PATTERN.findall(PAGE) if found.partition(".")[0] in families()}


@pytest.mark.parametrize("row", ROWS)
def test_every_attack_is_on_the_page(row: str) -> None:
    assert any(fnmatchcase(row, pattern) for pattern in patterns())


@pytest.mark.parametrize("pattern", sorted(patterns()))
def test_every_row_on_the_page_is_an_attack(pattern: str) -> None:
    assert any(fnmatchcase(row, pattern) for row in ROWS)


@pytest.mark.parametrize(("file", "name"), sorted(set(TEST.findall(PAGE + SECURITY))))
def test_every_test_that_is_named_exists(file: str, name: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE)


@pytest.mark.parametrize("file", sorted(set(FILE.findall(PAGE + SECURITY))))
def test_every_file_of_tests_that_is_named_exists(file: str) -> None:
    assert (ROOT / file).exists()


@pytest.mark.parametrize("attack", NAMED)
def test_the_table_by_attack_has_every_one_that_is_named_with_a_test_that_tries_it(attack: str) -> None:
    table = PAGE.partition("## By attack")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and attack in line.split("|")[1]]
    assert rows
    assert all(TEST.search(row) or PATTERN.search(row) for row in rows)


def test_every_family_of_attacks_is_listed_with_its_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["attack", "--list"])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(ROWS)


def test_every_attack_of_the_audit_is_run_and_those_of_one_kind_say_where_they_are_withstood() -> None:
    rows = [row for module in families().values() for row in module.ROWS.values()]
    assert {row.number for row in rows} == set(range(20))
    for place in {place for row in rows for place in row.where.split(", ")}:
        assert (ROOT / "meshnode" / place).is_file(), place


def test_a_limit_that_is_not_held_is_told() -> None:
    for module in families().values():
        for row in module.ROWS.values():
            assert row.holds(row.limit)
            if row.before is not None:
                assert not row.holds(row.before) or row.before == row.limit, (
                    f"{row.attack}: it was within the limit before"
                )


def test_the_table_of_the_security_page_says_what_the_rows_say() -> None:
    rows = {f"{family}.{name}": row for family, module in families().items() for name, row in module.ROWS.items()}
    written = SECURITY.partition(BEGIN)[2].partition(END)[0].splitlines()
    assert len(written) > len(rows) / 2
    assert [line for line in written if line not in table(rows, figures()).splitlines()] == [], "./dev attack --page"


def test_every_paragraph_of_the_security_page_names_what_holds_it() -> None:
    paragraphs = [text for text in SECURITY.split("\n\n") if text.startswith("**")]
    assert [text[:60] for text in paragraphs if not FILE.search(text)] == [paragraphs[-1][:60]]
    assert paragraphs[-1].startswith("**Not defended:**")
