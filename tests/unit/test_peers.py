"""The comparison with other transports: its table and chart, and that a peer that fails is a line with its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.peers import chart, environments, measure, table
from bench.peers.columns import DEAD
from bench.peers.environments import Peer, UnavailableError
from bench.peers.measure import Column, Measurement, Subject, Work, run
from bench.peers.programs import PeerFailedError, Program
from tests.netns.lab import ROOT

TLS = Column("tls", {"up": [400.0, 500.0, 600.0], "echo_p50": [100.0]}, {})
OURS = Column("qh3", {"up": [450.0], "echo_p50": [130.0], "move_both": [DEAD]}, {"each": "no <streams>"})
GONE = Column("other", {}, {}, "not installed: there is no such release")
ALL = [TLS, OURS, GONE]


def test_the_table_has_medians_goals_and_why_a_peer_is_not_there() -> None:
    lines = table.render(ALL).splitlines()
    assert lines[0] == "| | tls | qh3 | goal |"
    assert "| bulk up, one stream, MB/s | 500 | 450 | 400 |" in lines
    assert "| bulk up, times TLS | 1 | 0.9 | 0.8 |" in lines
    assert "| echo of 64 B, p50, us | 100 | 130 | 125 MISSED |" in lines
    assert "| both move: silence, ms | - | dead | 150 MISSED |" in lines
    assert "other: not measured: not installed: there is no such release" in lines
    assert "qh3, no each: no <streams>" in lines


def test_its_json_says_the_same_and_is_json() -> None:
    found = json.loads(json.dumps(table.as_json(ALL, 3), allow_nan=False))
    assert found["peers"]["tls"]["medians"]["up"] == 500
    assert found["peers"]["qh3"]["medians"]["move_both"] == "dead"
    assert found["peers"]["other"] == {"reason": GONE.reason}
    assert found["missed"] == ["echo of 64 B, p50, us", "both move: silence, ms"]


def test_the_chart_is_xml_with_a_bar_a_figure_and_peer() -> None:
    tree = ElementTree.fromstring(chart.svg(ALL))
    bars = list(tree.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == 5
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert widths[0] > widths[1] > 0  # TLS moves more
    assert ElementTree.fromstring(chart.svg([GONE])) is not None


def _program(tmp_path: Path, text: str) -> Program:
    path = tmp_path / "peer.py"
    path.write_text(text)
    return Program([sys.executable, str(path)], {}, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["raise ValueError('broken')", "print('nonsense')", 'print(\'{"missing": "no such thing"}\')'],
)
def test_a_program_that_does_not_answer_says_why(tmp_path: Path, text: str) -> None:
    reasons = {"broken": "ValueError: broken", "nonsense": "nonsense", "missing": "no such thing"}
    with _program(tmp_path, text) as program, pytest.raises(PeerFailedError) as failed:
        program.ask("echo", patience=30.0)
    assert next(reason for word, reason in reasons.items() if word in text) in str(failed.value)


def test_peers_that_fail_are_lines_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(peer: Peer) -> tuple[str, ...]:
        if peer.name == "other":
            raise UnavailableError(GONE.reason)
        return (peer.name,)

    def take(subject: Subject) -> dict[str, float]:
        if subject.peer.name == "broken":
            raise PeerFailedError("it ended: Segmentation fault")
        return {"up": 2.0}

    monkeypatch.setattr(measure, "command", command)
    peers = tuple(Peer(name, ()) for name in ("tls", "broken", "other"))
    columns = run(peers, Work(rounds=3), lambda _: None, (Measurement(take, ("up",)),))
    assert columns[0].values == {"up": [2.0] * 3}
    assert [column.reason for column in columns] == ["", "it ended: Segmentation fault", GONE.reason]


def test_what_cannot_be_installed_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="not installed"):
        environments.command(Peer("js", ("peer.js",), needs="hyperdht"))


def test_a_peer_echoes_and_carries_bytes() -> None:
    peer = environments.PEERS[0]
    subject = Subject(peer, Work(), environments.command(peer))
    with subject.pair() as (_, client, ready):
        client.ask("connect", at=ready["at"])
        assert client.ask("echo", count=5)["p50"] > 0
        assert client.ask("up", megabytes=1)["MBps"] > 0
        assert client.ask("down", megabytes=1)["MBps"] > 0
        with pytest.raises(PeerFailedError, match="no DHT"):
            client.ask("dial", at=ready["at"])


def test_every_file_that_a_peer_needs_is_there() -> None:
    for peer in environments.PEERS:
        assert (environments.HERE / peer.needs).exists()
        if peer.program[0] == "-m":
            assert (ROOT / (peer.program[1].replace(".", "/") + ".py")).is_file()
        else:
            assert (environments.HERE / peer.needs / peer.program[0]).is_file()
