"""``./dev words [PATH ...]``: words that the project does not use, listed as FILE:LINE: WORD.

With ``--check``, each area is held to its budget; that is part of ``./dev check``.

Checked are comments, strings (docstrings, help texts) and identifiers of Python files, and all text of other files.
A line that contains ``words: ok`` is not checked: for quotations, JSON keys that are public, and the like.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Nodes, peers and keys are things, so they are "it".
PERSONS = ["who", "whom", "whoever", "nobody", "somebody", "anybody", "everybody", "he", "him", "his", "himself"]
PHRASES = ["anew", "lately", "so long", "what of", "as it is", "in vain"]
NOUNS = ["ours", "theirs"]  # in prose; as identifiers they are the two ends of one thing
MOODS = ["PATIENCE_S", "CALM_S", "LATER_S", "FEW", "FAR"]  # a constant is named by what it measures

# Hits in 1,000 lines that an area may have. Only ever lowered; the aim is 0.5 in each.
BUDGET = {"meshnode": 0.5, "docs": 0.5, "tests": 0.5}

ALLOWED = "words: ok"
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".service", ".sh", ""}
SKIPPED = {"LICENSE", ".gitignore", ".dockerignore", "tools/words.py"}


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Match one of the words or phrases; letters end a word, underscores and digits do not belong to it."""
    alternatives = "|".join(word.replace(" ", r"\s+") for word in words)
    return re.compile(rf"(?<![A-Za-z])(?:{alternatives})(?![A-Za-z])", re.IGNORECASE)


PROSE = _pattern([*PERSONS, *PHRASES, *NOUNS])
NAMES = _pattern(PERSONS + PHRASES)
CONSTANTS = re.compile(rf"\b(?:{'|'.join(MOODS)})\b")
PROSE_TOKENS = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}

Hit = tuple[int, str]  # line, word


def _matches(text: str, first_line: int, pattern: re.Pattern[str]) -> Iterator[Hit]:
    for match in pattern.finditer(text):
        yield first_line + text.count("\n", 0, match.start()), " ".join(match.group().split())


def _python(text: str) -> Iterator[Hit]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in PROSE_TOKENS:
            yield from _matches(token.string, token.start[0], PROSE)
        elif token.type == tokenize.NAME:
            yield from _matches(token.string, token.start[0], NAMES)
            yield from _matches(token.string, token.start[0], CONSTANTS)


def hits(text: str, python: bool) -> list[Hit]:
    """Return the words in a file's text that the project does not use, in order of their lines."""
    lines = text.split("\n")
    found = _python(text) if python else _matches(text, 1, PROSE)
    return [(line, word) for line, word in found if ALLOWED not in lines[line - 1]]


def area(path: str) -> str:
    """Return the budget that a file, named from the project's root, belongs to."""
    top = path.split("/")[0]
    if top == "meshnode":
        return "meshnode"
    return "docs" if path.endswith(".md") or top in ("docs", "bootstrap", "docker") else "tests"


def _files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(
        {name for name in listed if Path(name).suffix in SUFFIXES and name not in SKIPPED and (ROOT / name).is_file()}
    )


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="./dev words", description="List words that the project does not use.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders, from the project's root; else all")
    parser.add_argument("--check", action="store_true", help="fail when an area is over its budget")
    options = parser.parse_args(arguments)
    wanted = tuple(path.rstrip("/") for path in options.paths)
    lines = dict.fromkeys(BUDGET, 0)
    found: dict[str, list[str]] = {name: [] for name in BUDGET}
    for name in _files():
        if wanted and not any(name == path or name.startswith(path + "/") for path in wanted):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        lines[area(name)] += text.count("\n")
        found[area(name)] += [f"{name}:{line}: {word}" for line, word in hits(text, name.endswith(".py"))]
    failed = False
    for name, budget in BUDGET.items():
        rate = 1000 * len(found[name]) / max(lines[name], 1)
        over = rate > budget
        failed |= over
        if over or not options.check:
            print("\n".join(found[name]), end="\n" if found[name] else "")
        print(f"words: {name}: {len(found[name])} in {lines[name]} lines, {rate:.2f} in 1,000; allowed {budget}")
    return int(options.check and failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
