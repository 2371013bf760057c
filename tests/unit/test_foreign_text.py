"""Text of other nodes on its way to a person: one door, which all output, errors and logs pass."""

from __future__ import annotations

import ast
import io
import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshnode.cli
from meshnode.base.limits import LOG_KIND_BURST, LOG_KIND_RATE, LOG_PEER_BURST
from meshnode.base.log_lines import TRACE, LogFormatter, LogRate, rated_logger
from meshnode.cli.main import main
from meshnode.daemon.client import RemoteError
from meshnode.errors import ConnectionLost, MeshError, NoPathError
from meshnode.foreign_text import MAX_VISIBLE, visible

EVIL = "\x1b]0;x\x07\nforged\x9b\u202e"
HARMLESS = "node_1 döner 東京 שלום 🚀 e\u0301"


@given(st.text())
def test_nothing_that_passes_the_door_is_obeyed_or_unseen(text: str) -> None:
    shown = visible(text)
    for character in shown:
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or character == "\t"
    assert visible(shown) == shown, "what is visible already is not escaped again"


@pytest.mark.parametrize(
    "text",
    ["\x1b", "\x07", "\x9b", "\n", "\r", "\0", "\u202e", "\u200b", "\u2066", "\ufeff", "\u3164", "a" + "\u0301" * 9],
)
def test_what_a_terminal_obeys_or_a_person_does_not_see_is_escaped(text: str) -> None:
    assert visible(text).isascii()
    assert visible(f"{text}b") != visible("b")


def test_words_of_all_languages_stay_as_they_are() -> None:
    assert visible(HARMLESS) == HARMLESS


@given(st.text(), st.integers(1, 50))
def test_a_bound_is_kept_after_the_escapes(text: str, most: int) -> None:
    assert len(visible(text * 10, most)) <= most


@pytest.mark.parametrize("error", [MeshError, ConnectionLost, NoPathError])
def test_the_text_of_every_error_is_one_visible_line(error: type[MeshError]) -> None:
    for raised in (error(f"closed: {EVIL}", hint=EVIL), RemoteError("code", EVIL * 1_000, EVIL)):
        for text in (str(raised), raised.message, raised.hint, *raised.to_json()["error"].values()):
            assert visible(text) == text
            assert len(text) <= MAX_VISIBLE


def test_commands_print_through_the_door_only() -> None:
    folder = Path(meshnode.cli.__file__).parent
    inside = {"output.py"}
    raw = {"pipe.py"}  # what a service sends is the user's stream, as with nc
    for path in folder.rglob("*.py"):
        if path.name in inside | raw:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"), (
                    path
                )


def test_a_mistake_of_the_user_is_shown_visibly_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["meshnode", EVIL])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert "No such command" in shown.err
    assert visible(shown.err.replace("\n", "")) == shown.err.replace("\n", "")


# ---- logs


def logged(record_all: object) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter())
    log = logging.Logger("meshnode.test")
    log.addHandler(handler)
    record_all(log)  # type: ignore[operator]
    return stream.getvalue().splitlines()


def test_a_line_of_the_log_is_one_line_whatever_another_node_says() -> None:
    lines = logged(lambda log: log.warning("the peer said %s", EVIL))
    assert len(lines) == 1
    assert visible(lines[0]) == lines[0]


def test_the_lines_of_a_traceback_are_marked_as_such() -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.exception("caught")

    first, *trace = logged(fail)
    assert "caught" in first
    assert all(line.startswith(TRACE) and visible(line) == line for line in trace)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(line: int, text: str = "x") -> logging.LogRecord:
    return logging.LogRecord("meshnode.test", logging.WARNING, "file.py", line, "the peer said %s", (text,), None)


def test_a_line_that_other_nodes_cause_has_a_rate_and_the_next_one_says_what_was_left_out() -> None:
    clock = Clock()
    rate = LogRate(clock)
    passed = [rate.filter(record(1, f"text {n}")) for n in range(10_000)]
    assert sum(passed) == LOG_KIND_BURST, "another text is not another kind"
    assert rate.filter(record(2)), "another kind has its own rate"
    clock.now = 1 / LOG_KIND_RATE
    first, second = record(1), record(1)
    assert rate.filter(first)
    assert first.getMessage().endswith(f"({10_000 - int(LOG_KIND_BURST)} more like this were not logged)")
    assert not rate.filter(second)
    clock.now *= 3
    assert rate.filter(second)
    assert "(1 more" in second.getMessage()


def test_a_days_worth_of_one_line_is_bounded() -> None:
    clock = Clock()
    rate = LogRate(clock)
    passed = 0
    for tenth in range(864_000 // 10):
        clock.now = tenth / 10
        passed += rate.filter(record(1))
    assert passed <= LOG_KIND_BURST + clock.now * LOG_KIND_RATE + 1


def test_a_logger_of_such_lines_has_the_rate_by_itself_and_once() -> None:
    log = rated_logger("meshnode.test.rated")
    assert rated_logger("meshnode.test.rated") is log
    assert len(log.filters) == 1
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    handler.addFilter(LogRate(lambda: 0.0))
    log.addHandler(handler)
    try:
        for _ in range(1_000):
            log.warning("again")
    finally:
        log.removeHandler(handler)
    assert len(seen) == LOG_KIND_BURST, "the handler's rate does not count them once more"


def test_a_flood_of_lines_at_one_node_leaves_the_others_of_the_process_theirs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "meshnode.test.nodes")
    left_out: list[None] = []
    one, other = LogRate(lambda: 0.0, lambda: left_out.append(None)), LogRate(lambda: 0.0)
    log = rated_logger("meshnode.test.nodes")
    for rate in (one, other):
        for _ in range(1_000 if rate is one else 5):
            rate.of_node(log).warning("again")
            log.warning("refused", extra={"rate": rate, "peer": "p"})
    assert caplog.messages.count("again") == LOG_KIND_BURST + 5
    assert caplog.messages.count("refused") == LOG_PEER_BURST + 5
    assert len(left_out) == 2_000 - LOG_KIND_BURST - LOG_PEER_BURST
