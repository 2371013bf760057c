"""From a snapshot to plain words: tables of snapshots, and what a person must be told."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.base.limits import MAX_RECORD
from meshnode.diagnosis.finding import Finding, Level, seconds, short
from meshnode.diagnosis.network import diagnose
from meshnode.diagnosis.peer import diagnose_peer, why_relayed
from meshnode.diagnosis.services import diagnose_services
from meshnode.directory.bundle import OVERHEAD

ID, RELAY, SEED = "a" * 52, "r" * 52, "s" * 52
Json = dict[str, Any]
GOOD_NAT = {
    "mapping": "endpoint-independent",
    "mapping_ipv6": "unknown",
    "filtering": "unknown",
    "filtering_ipv6": "unknown",
    "reflexive": ["198.51.100.1:4242"],
}


def snapshot(status: Json | None = None, **other: Any) -> Json:
    """A healthy node behind a cone NAT, with changes."""
    healthy: Json = {
        "id": ID,
        "endpoints": ["10.0.0.2:4242", "198.51.100.1:4242"],
        "peers": 2,
        "contacts": 7,
        "uptime_s": 100.0,
        "engine": "qh3",
        "engine_refused": None,
        "nat": GOOD_NAT,
        "relays": {"held": [{"relay": RELAY, "granted": True, "home": True}]},
        "clock": {"offset_s": 0.01, "peers": 3, "stale_offset_s": None},
        "mdns": {"on": True, "announced": True, "error": "", "neighbours": 2},
        "counters": {},
    }
    return {
        "running": True,
        "home": "/home/x/.meshnode",
        "status": {**healthy, **(status or {})},
        "peers": [{"id": RELAY, "path": "direct", "endpoint": "192.0.2.1:1", "tunnel": False, "rtt_ms": 12.3}],
        "addresses": [["127.0.0.1", 8], ["10.0.0.2", 24], ["fe80::1%eth0", 64]],
        "udp": {"outside_s": 1.0, "lan_s": None},
        "settings": {"listen": "[::]:0", "mdns": True, "dht": True, "tunnel": True},
        "seeds": [seed(answers=True, rtt_ms=3.2, path="direct", tunnel=False)],
        "peer": None,
        **other,
    }


def seed(**what: Any) -> Json:
    """A configured seed."""
    plain = {"id": SEED, "host": "seed.example", "port": 4242, "addresses": ["192.0.2.9"], "error": "", "why": ""}
    return {**plain, "answers": False, **what}


def nat(**what: Any) -> Json:
    """A status with another NAT."""
    return {"nat": {**GOOD_NAT, **what}}


SILENT = {"outside_s": None, "lan_s": None}
NO_PEER = {"clock": {"offset_s": None, "peers": 0, "stale_offset_s": None}}
TUNNELLED = [{"id": RELAY, "path": "direct", "endpoint": f"wss!{RELAY}@192.0.2.1:1", "tunnel": True, "rtt_ms": 9.0}]

# snapshot, topic, level, words that the text must have
CASES: dict[str, tuple[Json, str, str, tuple[str, ...]]] = {
    "a healthy node": (snapshot(), "node", "ok", ("aaaaaaaa", "2 live peers", "10.0.0.2:4242")),
    "only loopback": (snapshot({"endpoints": ["127.0.0.1:1"]}), "node", "note", ("loopback",)),
    "no network": (snapshot(addresses=[["127.0.0.1", 8], ["fe80::1%e", 64]]), "addresses", "problem", ("no address",)),
    "UDP works": (snapshot(), "udp", "ok", ("UDP works", "1.0 s ago")),
    "UDP blocked": (
        snapshot(udp=SILENT, peers=TUNNELLED),
        "udp",
        "problem",
        ("UDP is blocked", "1 peer had"),
    ),
    "UDP just blocked": (snapshot(udp={"outside_s": 30.0}, peers=TUNNELLED), "udp", "problem", ("UDP is blocked",)),
    "UDP blocked beyond the LAN": (
        snapshot(udp={"lan_s": 1.0}, peers=TUNNELLED),
        "udp",
        "problem",
        ("UDP is blocked beyond this network",),
    ),
    "a peer's WebSocket to us": (
        snapshot(udp={"outside_s": 30.0}, peers=[{**TUNNELLED[0], "endpoint": "wss!7"}]),
        "udp",
        "ok",
        ("UDP works",),
    ),
    "nothing answers": (snapshot(udp=SILENT, peers=[], seeds=[seed()]), "udp", "problem", ("no node answers by UDP",)),
    "not even TCP": (
        snapshot({"counters": {"tunnel_failures": 3}}, udp=SILENT, peers=[], seeds=[seed()]),
        "udp",
        "problem",
        ("no node answers by UDP or by WebSocket over TCP",),
    ),
    "only the LAN": (
        snapshot(udp={"lan_s": 0.2}, seeds=[]),
        "udp",
        "ok",
        ("this network", "200 ms"),
    ),
    "heard long ago": (
        snapshot(udp={"outside_s": 900, "lan_s": None}, peers=[], seeds=[]),
        "udp",
        "note",
        ("no node",),
    ),
    "no node to ask": (snapshot(udp=SILENT, peers=[], seeds=[]), "udp", "note", ("no node to ask",)),
    "cone NAT": (snapshot(), "nat", "ok", ("IPv4", "198.51.100.1:4242", "endpoint-independent")),
    "symmetric NAT": (snapshot(nat(mapping="endpoint-dependent")), "nat", "note", ("symmetric", "relays")),
    "no NAT": (snapshot(nat(mapping="none", reflexive=[])), "nat", "ok", ("no NAT",)),
    "unknown NAT": (snapshot(nat(mapping="unknown", reflexive=[])), "nat", "note", ("not known yet", "two peers")),
    "full cone": (snapshot(nat(filtering="endpoint-independent")), "filtering", "ok", ("any host",)),
    "at most address": (snapshot(nat(filtering="at-most-address-dependent")), "filtering", "ok", ("other ports",)),
    "unknown filter": (snapshot(), "filtering", "note", ("not known",)),
    "a newer node's word": (snapshot(nat(mapping="quantum")), "nat", "ok", ("quantum",)),
    "no IPv6": (snapshot(), "ipv6", "note", ("no global IPv6", "IPv4 is used")),
    "IPv6 of its own network alone": (
        snapshot(addresses=[["fd00::2", 64]]),
        "ipv6",
        "note",
        ("no global IPv6", "without IPv4 it reaches its own network only"),
    ),
    "silent IPv6": (snapshot(addresses=[["2001:db8::2", 64]]), "ipv6", "note", ("2001:db8::2", "no node")),
    "IPv6 seen": (
        snapshot(nat(mapping_ipv6="none"), addresses=[["2001:db8::2", 64]]),
        "ipv6",
        "ok",
        ("IPv6 works", "2001:db8::2"),
    ),
    "a mapping": (
        snapshot(nat(mappings=[{"protocol": "pcp", "external": "198.51.100.1:99", "private": False}])),
        "mappings",
        "ok",
        ("198.51.100.1:99", "pcp"),
    ),
    "a mapping behind a NAT": (
        snapshot(nat(mappings=[{"protocol": "upnp", "external": "100.64.0.1:99", "private": True}])),
        "mappings",
        "note",
        ("another NAT",),
    ),
    "no mapping": (
        snapshot(nat(mappings=[], port_mapping=[{"router": "10.0.0.1", "state": "none offered", "pcp": "no answer"}])),
        "mappings",
        "note",
        ("10.0.0.1 forwards no port", "pcp: no answer"),
    ),
    "a mapping is asked for": (
        snapshot(nat(mappings=[], port_mapping=[{"router": "10.0.0.1", "state": "asking"}])),
        "mappings",
        "note",
        ("10.0.0.1 is being asked",),
    ),
    "a relay": (snapshot(), "relays", "ok", ("rrrrrrrr", "12.3 ms", "record")),
    "a relay by WebSocket": (snapshot(peers=TUNNELLED), "relays", "ok", ("by WebSocket",)),
    "no relay": (snapshot({"relays": {"held": []}}), "relays", "note", ("no relay",)),
    "only asked for": (
        snapshot({"relays": {"held": [{"relay": RELAY, "granted": False}]}}),
        "relays",
        "note",
        ("no relay",),
    ),
    "is a relay": (snapshot({"relays": {"held": [], "clients": 3}}), "relays", "ok", ("3 clients",)),
    "neighbours": (snapshot(), "mdns", "ok", ("multicast works", "2 nodes")),
    "alone": (snapshot({"mdns": {"on": True, "error": "", "neighbours": 0}}), "mdns", "note", ("no node was heard",)),
    "mDNS begins": (snapshot({"mdns": {"on": True, "announced": False}}), "mdns", "note", ("still starting",)),
    "no multicast": (
        snapshot({"mdns": {"on": True, "error": "No such device", "neighbours": 0}}),
        "mdns",
        "problem",
        ("No such device",),
    ),
    "mDNS off": (snapshot({"mdns": {"on": False}}), "mdns", "note", ("off",)),
    "good clock": (snapshot(), "clock", "ok", ("3 peers",)),
    "slow clock": (
        snapshot({"clock": {"offset_s": 12.0, "peers": 3, "stale_offset_s": None}}),
        "clock",
        "problem",
        ("12 s behind 3 peers",),
    ),
    "fast clock": (
        snapshot({"clock": {"offset_s": -3.0, "peers": 1, "stale_offset_s": None}}),
        "clock",
        "note",
        ("3.0 s ahead of 1 peer", "or the peer's"),
    ),
    "hopeless clock": (
        snapshot({"clock": {"offset_s": None, "peers": 0, "stale_offset_s": -7_300.0}, "counters": {"seal_stale": 9}}),
        "clock",
        "problem",
        ("2 h behind this one",),
    ),
    "stale ones beside good ones": (
        snapshot({"clock": {"offset_s": 0.0, "peers": 1, "stale_offset_s": 50.0}, "counters": {"knock_stale": 2}}),
        "clock",
        "ok",
        ("dropped as stale: 2 datagrams",),
    ),
    "restart leftovers": (snapshot({**NO_PEER, "counters": {"seal_stale": 9}}), "clock", "note", ("no peer",)),
    "a clock to suspect": (
        snapshot(NO_PEER, seeds=[seed()], wall=1_800_000_000.0),
        "clock",
        "problem",
        ("no node answers", "if this clock were 30 s wrong", "2027-01-15 08:00:00 UTC"),
    ),
    "one seed of two is enough to suspect it": (
        snapshot(NO_PEER, seeds=[seed(answers=True), seed()]),
        "clock",
        "problem",
        ("no node answers",),
    ),
    "a board without a battery": (snapshot(wall=86_400.0), "clock", "problem", ("1970-01-02", "before this version")),
    "an absurd clock": (snapshot(wall=-1e30), "clock", "problem", ("before this version",)),
    "what is degraded": (
        snapshot({"degraded": ["seq cannot be saved: the disk is full"]}),
        "degraded",
        "problem",
        ("the disk is full",),
    ),
    "contacts": (snapshot(), "dht", "ok", ("7 contacts",)),
    "no contact": (snapshot({"contacts": 0}), "dht", "problem", ("no contact",)),
    "alone with no seed": (snapshot({"contacts": 0}, seeds=[]), "dht", "note", ("only nodes on this LAN",)),
    "DHT off": (snapshot(settings={"dht": False}), "dht", "note", ("off",)),
    "a seed": (snapshot(), "seeds", "ok", ("seed ssssssss at seed.example:4242", "3.2 ms")),
    "a seed's name": (snapshot(seeds=[seed(error="Name unknown")]), "seeds", "problem", ("does not resolve", "Name")),
    "a dead seed": (snapshot(seeds=[seed(why="did not answer")]), "seeds", "problem", ("does not answer",)),
    "no node": ({"running": False, "home": "/h", "addresses": [["10.0.0.2", 24]]}, "node", "problem", ("/h",)),
    "no node, an address": ({"running": False, "addresses": [["10.0.0.2", 24]]}, "addresses", "ok", ("10.0.0.2",)),
    "no node, a seed": ({"running": False, "addresses": [], "seeds": [seed()]}, "seeds", "ok", ("192.0.2.9",)),
}


def _check(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.text
        assert not finding.text.endswith("."), "one sentence, or a part of one"
        assert "None" not in finding.text
        assert "{" not in finding.text
        if finding.level is Level.PROBLEM:
            assert finding.hint, "a problem says what to do next"


@pytest.mark.parametrize("case", CASES)
def test_a_snapshot_is_told_in_plain_words(case: str) -> None:
    found, topic, level, words = CASES[case]
    findings = diagnose(found)
    _check(findings)
    about = [finding for finding in findings if finding.topic == topic and finding.level.value == level]
    assert any(all(word in finding.text for word in words) for finding in about), findings


def test_a_healthy_node_has_no_problem_and_every_topic() -> None:
    findings = diagnose(snapshot())
    assert not [finding for finding in findings if finding.level is Level.PROBLEM]
    topics = list(dict.fromkeys(finding.topic for finding in findings))
    assert topics == ["node", "udp", "nat", "filtering", "ipv6", "relays", "mdns", "clock", "dht", "seeds"]


def test_an_older_node_that_says_little_is_no_crash() -> None:
    for bare in ({}, {"running": True}, {"running": True, "status": {}, "peers": [{}]}):
        _check(diagnose(bare))
    _check(diagnose_peer({"id": ID}, {}))
    _check(diagnose_peer({"connected": True, "id": ID, "endpoint": "192.0.2.1:1"}, {}))


def test_where_no_router_was_asked_nothing_is_said_of_mappings() -> None:
    assert "mappings" not in {finding.topic for finding in diagnose(snapshot(nat(mappings=[])))}


def test_a_service_that_is_too_long_for_the_dht_of_a_large_mesh_is_told_with_what_to_do() -> None:
    (found,) = diagnose_services(snapshot({"offers": {"held": 0, "published": 1, "found": 0, "too_long": ["db"]}}))
    assert (found.topic, found.level) == ("services", Level.PROBLEM)
    assert found.text.startswith("db: ")
    assert "less metadata" in found.hint
    assert str(MAX_RECORD - OVERHEAD) in found.hint
    assert diagnose_services(snapshot({"offers": {"held": 0, "published": 2, "found": 0, "too_long": []}})) == []
    assert diagnose_services(snapshot({"offers": None})) == []


def test_a_loopback_node_says_nothing_of_networks_that_it_is_not_on() -> None:
    topics = {finding.topic for finding in diagnose(snapshot({"endpoints": ["127.0.0.1:1", "[::1]:1"]}))}
    assert not topics & {"nat", "filtering", "ipv6"}


# ---- one peer


def candidate(**what: Any) -> Json:
    """An address of the peer that never answered."""
    plain = {"path": "direct", "endpoint": "192.0.2.5:1", "tunnel": False, "in_use": False, "source": "record"}
    return {**plain, "state": "probing", "rtt_ms": None, "heard_s": None, "probes": 9, "answers": 0, **what}


def peer(**what: Any) -> Json:
    """A peer that is reached directly."""
    plain: Json = {
        "id": ID,
        "connected": True,
        "path": "direct",
        "endpoint": "192.0.2.5:1",
        "tunnel": False,
        "state": "connected",
        "rtt_ms": 20.0,
        "echo_ms": 19.0,
        "record": {"endpoints": ["192.0.2.5:1"], "relays": [RELAY], "capabilities": [], "source": "dht"},
        "candidates": [candidate(in_use=True, state="validated", answers=3, rtt_ms=20.0)],
        "history": [{"ago_s": 3.0, "why": "dial", "endpoint": "192.0.2.5:1"}],
    }
    return {**plain, **what}


VIA = {"path": "relay", "endpoint": f"relay!{RELAY}"}
REFUSED = {"code": "policy_denied", "message": "not allowed here", "hint": ""}
NO_PATH = {"code": "no_path", "message": "aaaaaaaa did not answer at 192.0.2.5:1", "hint": "is it running?"}
PEERS: dict[str, tuple[Json, str, str, tuple[str, ...]]] = {
    "direct": (peer(), "path", "ok", ("directly at 192.0.2.5:1", "20.0 ms")),
    "on the LAN": (peer(path="lan"), "path", "ok", ("on this network",)),
    "relayed": (peer(**VIA, candidates=[candidate()]), "path", "note", ("through relay rrrrrrrr", "probed and none")),
    "by WebSocket": (peer(tunnel=True, endpoint="wss!x@192.0.2.1:443"), "path", "note", ("WebSocket", "UDP")),
    "came by WebSocket": (peer(tunnel=True, endpoint="wss!7"), "path", "note", ("came by WebSocket", "its network")),
    "suspended": (peer(state="suspended"), "path", "problem", ("no address of aaaaaaaa answers",)),
    "seeking": (peer(state="seeking"), "path", "problem", ("fallen silent",)),
    "gone a moment ago": (peer(echo_ms=None), "path", "problem", ("fallen silent",)),
    "what it publishes": (peer(), "peer", "ok", ("192.0.2.5:1", "relays rrrrrrrr", "from dht")),
    "no record": (peer(record=None), "peer", "note", ("no fresh record",)),
    "tried": (peer(candidates=[candidate()]), "tried", "note", ("192.0.2.5:1 (from record): no answer to 9 probes",)),
    "not tried": (
        peer(candidates=[candidate(probes=0)]),
        "known",
        "note",
        ("192.0.2.5:1 (from record): not tried yet",),
    ),
    "left unprobed": (
        peer(candidates=[candidate(probes=0, failures=1)]),
        "tried",
        "note",
        ("it was in use, left 1 time",),
    ),
    "left": (
        peer(candidates=[candidate(answers=2, rtt_ms=5.0, heard_s=4.0, failures=2)]),
        "tried",
        "note",
        ("answered 2 of 9 probes in 5.0 ms", "last heard 4.0 s ago", "left 2 times"),
    ),
    "changes": (peer(), "history", "note", ("3.0 s ago: 192.0.2.5:1, dialled",)),
    "unknown to all": (
        peer(connected=False, record=None, error={"code": "not_found", "message": "?", "hint": "does it run?"}),
        "peer",
        "problem",
        ("no source knows where aaaaaaaa is",),
    ),
    "refused": (peer(connected=False, error=REFUSED), "peer", "problem", ("refuses this node",)),
    "no answer": (
        peer(
            connected=False,
            error=NO_PATH,
            attempts=[{"endpoint": f"relay!{RELAY}", "outcome": "no answer to 7 probes"}],
        ),
        "tried",
        "note",
        ("relay rrrrrrrr: no answer to 7",),
    ),
    "itself": (peer(self=True, connected=False), "peer", "note", ("own",)),
}


@pytest.mark.parametrize("case", PEERS)
def test_a_peer_is_told_in_plain_words(case: str) -> None:
    found, topic, level, words = PEERS[case]
    findings = diagnose_peer(found, GOOD_NAT)
    _check(findings)
    about = [finding for finding in findings if finding.topic == topic and finding.level.value == level]
    assert any(all(word in finding.text for word in words) for finding in about), findings


SYMMETRIC = {"endpoints": [], "capabilities": ["symmetric"]}
WHY = {
    "both ends": (peer(**VIA, record=SYMMETRIC, candidates=[candidate()]), "endpoint-dependent", "both NATs"),
    "this end": (peer(**VIA, candidates=[candidate()]), "endpoint-dependent", "this node's NAT"),
    "the other end": (
        peer(**VIA, record=SYMMETRIC, candidates=[candidate()]),
        "endpoint-independent",
        "the peer's NAT",
    ),
    "nothing to try": (peer(**VIA, candidates=[]), "none", "no address of its own"),
    "not tried": (peer(**VIA, candidates=[candidate(probes=0)]), "none", "not been tried"),
    "private": (peer(**VIA, candidates=[candidate(endpoint="10.9.9.9:1")]), "none", "private ones"),
    "distrust": (
        peer(**VIA, candidates=[candidate(state="validated", distrusted_s=16.0)]),
        "none",
        "not trusted for 16 s",
    ),
    "just now": (peer(**VIA, candidates=[candidate(state="validated")]), "none", "under way"),
}


@pytest.mark.parametrize("case", WHY)
def test_the_likeliest_reason_for_a_relay_is_given(case: str) -> None:
    found, mapping, words = WHY[case]
    assert words in why_relayed(found, {"mapping": mapping})


def test_long_lists_are_cut_for_people() -> None:
    many = [candidate(endpoint=f"192.0.2.{n}:1") for n in range(20)]
    told = [f for f in diagnose_peer(peer(candidates=many), GOOD_NAT) if f.topic == "tried"]
    assert len(told) == 7
    assert "14 more addresses" in told[-1].text


def test_words_for_numbers_and_names() -> None:
    assert [seconds(value) for value in (0.004, 5, 61, 600, 9_000, 400_000)] == [
        "4 ms",
        "5.0 s",
        "61 s",
        "10 min",
        "2 h",
        "5 days",
    ]
    assert short(ID) == "aaaaaaaa"
    assert short(f"relay!{RELAY}") == "relay rrrrrrrr"
    assert short(f"wss!{RELAY}@seed.example:443") == "WebSocket to seed.example:443"
    assert short("wss!7") == "its WebSocket"
    assert short("192.0.2.1%side3:99") == "192.0.2.1:99"
    assert short("[2001:db8::1]:99") == "[2001:db8::1]:99"


TRUST = {"authority": ID, "error": "", "roles": ["web"], "expires": 1_800_000_000.0, "overused": []}


@pytest.mark.parametrize(
    ("part", "level", "words"),
    [
        (0.1, Level.OK, "10%"),
        (0.5, Level.NOTE, "connect a node that renews grants"),
        (0.8, Level.NOTE, "soon"),
        (0.95, Level.PROBLEM, "join again"),
    ],
)
def test_a_grant_that_was_not_renewed_is_told_at_half_four_fifths_and_nearly_all_of_its_time(
    part: float, level: Level, words: str
) -> None:
    (found,) = [f for f in diagnose(snapshot({"trust": {**TRUST, "part_over": part}})) if f.topic == "grant"]
    assert found.level is level
    assert words in f"{found.text} {found.hint}"


def test_a_node_whose_grants_do_not_hold_and_a_ticket_that_leaked_are_problems() -> None:
    for trust in ({"authority": ID, "error": "its grant has expired"}, {**TRUST, "overused": ["0123456789abcdef"]}):
        found = [f for f in diagnose(snapshot({"trust": trust})) if f.topic == "grant"]
        assert found[-1].level is Level.PROBLEM
