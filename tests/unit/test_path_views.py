"""What ``ping`` and ``peers`` print for people."""

from __future__ import annotations

from typing import Any

from meshnode.cli.path_view import PingView, table

ID, RELAY = "a" * 52, "r" * 52


def echo(seq: int, rtt: float | None, endpoint: str | None, path: str, **what: Any) -> dict[str, Any]:
    """One answer of the node to ``ping``."""
    return {"seq": seq, "rtt_ms": rtt, "path": path, "endpoint": endpoint, "tunnel": False, "change": {}, **what}


def test_ping_says_when_the_path_changes_and_why_and_ends_with_a_summary() -> None:
    view = PingView()
    echoes = [
        echo(0, 40.5, f"relay!{RELAY}", "relay"),
        echo(1, 40.1, f"relay!{RELAY}", "relay"),
        echo(2, 8.0, "192.0.2.1:5", "direct", change={"why": "better kind"}),
        echo(3, None, "192.0.2.1:5", "direct"),
        echo(4, None, None, "none"),
        echo(5, 30.0, f"wss!{RELAY}@192.0.2.9:443", "direct", tunnel=True),
        echo(6, 2_130.4, f"wss!{RELAY}@192.0.2.9:443", "direct", tunnel=True),
    ]
    lines = [line for one in echoes for line in view.lines(one)]
    assert lines == [
        "   0   40.50 ms  relay  rrrrrrrr",
        "   1   40.10 ms  relay  rrrrrrrr",
        "      path: relay rrrrrrrr -> direct 192.0.2.1:5 (a better kind of path was found)",
        "   2    8.00 ms  direct  192.0.2.1:5",
        "   3       lost",
        "   4       lost",
        "      path: direct 192.0.2.1:5 -> websocket 192.0.2.9:443",
        "   5   30.00 ms  websocket  192.0.2.9:443",
        "   6  2130.40 ms  websocket  192.0.2.9:443  late",
    ]
    assert view.summary() == "7 sent, 5 answered; round trip 8.00 / 40.10 / 2130.40 ms (best, median, worst)"


def test_a_ping_without_an_answer_has_a_summary_too() -> None:
    view = PingView()
    assert list(view.lines(echo(0, None, None, "none"))) == ["   0       lost"]
    assert view.summary() == "1 sent, 0 answered"


def test_peers_are_aligned_and_say_how_they_are_reached() -> None:
    plain = {"state": "connected", "history": [], "tunnel": False}
    peers: list[dict[str, Any]] = [
        {**plain, "id": ID, "path": "lan", "endpoint": "10.0.0.7:4242", "rtt_ms": 0.4},
        {**plain, "id": RELAY, "path": "relay", "endpoint": f"relay!{ID}", "rtt_ms": None, "state": "seeking"},
        {**plain, "id": "b" * 52, "path": "direct", "endpoint": "wss!7", "rtt_ms": 120.0, "tunnel": True},
    ]
    peers[0]["history"] = [{"ago_s": 5.0, "why": "peer moved", "endpoint": "10.0.0.7:4242"}]
    assert [line[54:] for line in table(peers, history=False)] == [
        "lan        10.0.0.7:4242  0.4 ms  the peer moved 5.0 s ago",
        "relay      aaaaaaaa            -  seeking",
        "websocket  from there     120 ms",
    ]
    lines = list(table(peers, history=True))
    assert lines[1].split() == ["5.0", "s", "ago", "10.0.0.7:4242", "the", "peer", "moved"]
    peers[1]["name"] = "laptop"
    assert [line[52:60] for line in table(peers, history=False)] == ["        ", "  laptop", "        "]


def test_a_silence_has_its_length_and_its_number() -> None:
    at: dict[str, Any] = {"ago_s": 5.0, "endpoint": "10.0.0.7:4242"}
    peer: dict[str, Any] = {"id": ID, "path": "lan", "endpoint": "10.0.0.7:4242", "rtt_ms": 0.4, "state": "connected"}
    peer["history"] = [
        {**at, "why": "silent", "silent_s": 0.35, "times": 20, "silent": False},
        {**at, "why": "silent", "silent_s": 0.35, "times": 1, "silent": False},
        {**at, "why": "peer moved", "silent_s": 0.045, "times": 1, "silent": False},
        {**at, "why": "suspended", "silent_s": None, "times": 1, "silent": True},
    ]
    assert [line.partition("4242  ")[2] for line in list(table([peer], history=True))[1:]] == [
        "the path fell silent, 20 times for up to 350 ms",
        "the path fell silent for 350 ms",
        "the peer moved, 45 ms without an answer",
        "nothing answered any more, and is silent still",
    ]


def test_no_peers_are_no_lines() -> None:
    assert list(table([], history=True)) == []
