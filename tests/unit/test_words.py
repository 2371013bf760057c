"""The word checker: what it reads of a file, and what it leaves alone."""  # words: ok

from __future__ import annotations

import pytest

from tools import words


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('"""Tell nobody."""', "nobody"),  # words: ok
        ("x = 1  # a node whom we know", "whom"),  # words: ok
        ("def test_who_calls() -> None: ...", "who"),  # words: ok
        ("PATIENCE_S = 2.0", "PATIENCE_S"),  # words: ok
        ('help = f"{x} begins anew"', "anew"),  # words: ok
        ('"""It is Ours."""', "Ours"),  # words: ok
    ],
)
def test_a_word_is_found_in_comments_strings_and_identifiers(line: str, word: str) -> None:
    assert words.hits(f"a = 0\n{line}\n", python=True) == [(2, word)]


def test_a_phrase_is_found_across_a_line_break() -> None:
    assert words.hits("It waits\nso\nlong.\n", python=False) == [(2, "so long")]  # words: ok


def test_words_that_only_contain_a_listed_one_are_left_alone() -> None:
    assert words.hits("# WHOIS, whole, the, anewer\nours = theirs = [1]\n", python=True) == []  # words: ok


def test_a_marked_line_is_not_checked() -> None:
    assert words.hits('move["who"]  # a public JSON key; words: ok\n', python=True) == []
    assert words.hits("Say *who* <!-- words: ok -->\nSay who\n", python=False) == [(2, "who")]  # words: ok


@pytest.mark.parametrize(
    ("path", "name"),
    [("meshnode/a/b.py", "meshnode"), ("docs/index.md", "docs"), ("README.md", "docs"), ("tests/x.py", "tests")],
)
def test_each_file_counts_in_one_area(path: str, name: str) -> None:
    assert words.area(path) == name
