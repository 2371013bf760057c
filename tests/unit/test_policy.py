"""Policies: what their text means, what is wrong with one, and which rule decides."""

from __future__ import annotations

import random

import pytest

from meshnode.base.limits import MAX_DECISIONS, MAX_POLICY, MAX_RULES
from meshnode.errors import ConfigError
from meshnode.identity.node_id import NodeId
from meshnode.trust.caller import Caller
from meshnode.trust.decision import Decision, decide
from meshnode.trust.guard import Guard, Lists
from meshnode.trust.parties import parse_parties
from meshnode.trust.policy import Act, Policy, make_policy, parse_policy, warnings

A, B, OWN = (NodeId(bytes([n]) * 32) for n in (1, 2, 3))
DEV = Caller(A, roles=frozenset({"dev"}), grant="g1")
OPS = Caller(B, name="tower", roles=frozenset({"ops"}), grant="g2")
HERE = Caller(OWN, name="server", roles=frozenset({"db"}))

TEXT = f"""
version = 7
reasons = "told"

[[allow]]
name = "developers read"
from = "role:dev"
to = ["role:db", "id:{B}"]
services = ["postgres", "web-*"]

[[allow]]
from = ["name:tower", "{A}"]
publish = "alarm/*"
names = ["tower*"]

[[deny]]
name = "not the vault"
from = "any"
services = "web-vault"
"""


def _policy(text: str) -> Policy:
    return parse_policy(text.encode(), "policy.toml")


def _why(policy: Policy, caller: Caller, what: str, act: Act = Act.SERVICE) -> Decision:
    return decide(policy, caller, HERE, what, act)


def test_a_rule_is_for_its_callers_its_targets_and_its_services() -> None:
    policy = _policy(TEXT)
    assert policy.version == 7
    assert _why(policy, DEV, "web-1") == Decision(True, "developers read", "g1", "rule developers read allows it")
    assert not _why(policy, OPS, "web-1").allowed
    assert not _why(policy, DEV, "ssh").allowed
    assert not decide(policy, DEV, Caller(OWN), "web-1").allowed, "this node has no role db"
    assert decide(policy, DEV, Caller(B), "postgres").allowed, "that one is named by its id"


def test_deny_wins_and_is_told_by_its_name() -> None:
    refused = _why(_policy(TEXT), DEV, "web-vault")
    assert (refused.allowed, refused.rule, refused.told) == (False, "not the vault", "not the vault")
    assert _why(_policy(TEXT.replace('"told"', '"hidden"')), DEV, "web-vault").told == ""


def test_a_rule_without_a_name_is_called_by_its_kind_and_number() -> None:
    assert [rule.name for rule in _policy(TEXT).rules] == ["not the vault", "developers read", "allow#2"]


def test_topics_names_and_relays_need_a_rule_once_one_rule_is_about_them() -> None:
    policy = _policy(TEXT)
    assert _why(policy, OPS, "alarm/fire", Act.PUBLISH).rule == "allow#2"
    assert not _why(policy, DEV, "alarm", Act.PUBLISH).allowed
    assert not _why(policy, Caller(OWN), "tower", Act.NAME).allowed
    assert _why(policy, Caller(OWN), "alarm/fire", Act.SUBSCRIBE).allowed, "no rule is about subscriptions"
    assert _why(policy, Caller(OWN), "", Act.RELAY).allowed
    relays = _policy('[[allow]]\nfrom = "role:dev"\nrelay = true')
    assert [_why(relays, caller, "", Act.RELAY).allowed for caller in (DEV, OPS)] == [True, False]


def test_a_connection_needs_no_rule_and_a_rule_that_denies_all_refuses_it() -> None:
    policy = _policy('[[deny]]\nfrom = "role:ops"\n[[allow]]\nfrom = "any"\nservices = "web"')
    assert _why(policy, DEV, "", Act.CONNECT).allowed
    assert not _why(policy, OPS, "", Act.CONNECT).allowed
    assert not _why(policy, OPS, "web").allowed


def test_without_any_rule_no_service_is_reached_and_the_answer_says_what_is_missing() -> None:
    assert not _why(_policy("version = 1"), DEV, "web").allowed
    said = _why(_policy('[[allow]]\nfrom = "role:ops"\nservices = "web"'), DEV, "web").why
    assert said == "no rule allows it to reach service web: it needs role ops, it has dev"


def test_a_grant_that_names_services_narrows_what_rules_allow() -> None:
    guard = Guard(OWN)
    guard.set_local(_policy('[[allow]]\nfrom = "any"'))
    narrow = Caller(A, services=("web", "db-*"), grant="g9")
    assert [guard.explain(narrow, HERE, name).allowed for name in ("web", "db-1", "ssh")] == [True, True, False]
    assert guard.explain(narrow, HERE, "ssh").grant == "g9"


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("[[allow]\n", "policy.toml: ", "a rule is a line [[allow]]"),
        ("versoin = 1", "policy.toml: unknown key 'versoin'", "a policy has version"),
        ('version = "1"', "policy.toml: version", "version = 1"),
        ('mode = "try"', "policy.toml: mode = 'try'", 'mode = "enforce" or "observe"'),
        ('reasons = "maybe"', "policy.toml: reasons", '"hidden" or "told"'),
        ("allow = 3", "policy.toml: allow is no list", "[[allow]]"),
        ('version = 1\n\n[[allow]]\nservices = "web"', "policy.toml, line 3, rule allow#1: ", "from = [...]"),
        ('[[allow]]\nfrom="any"\n[[allow]]\nfrom = 5', "policy.toml, line 3, rule allow#2: from", "role:NAME"),
        ('[[deny]]\nfrom = "role:"', "line 1, rule deny#1: from: 'role:'", "a-z, 0-9"),
        ('[[deny]]\nfrom = "laptop"', "rule deny#1: from: 'laptop' is a name", '"name:NODE"'),
        ('[[deny]]\nfrom = "name:-"', "'name:-' names no node", "name:laptop"),
        ('[[allow]]\nfrom = "any"\nservices = []', "services is a list of texts", '"web"'),
        ('[[allow]]\nfrom = "any"\nservice = "web"', "unknown key 'service'", "services"),
        ('[[allow]]\nfrom = "any"\nname = "a#1"', "a rule's name has no #", "allow#1"),
        ('[[allow]]\nfrom = "any"\nname = "a\\n"', "name is no text", "visible characters"),
        ('[[allow]]\nfrom = "any"\nrelay = false', "it is about nothing", "relay = true"),
        (
            '[[allow]]\nfrom = "any"\nname = "x"\n[[deny]]\nfrom = "any"\nname = "x"',
            "two rules are named 'x'",
            "rename",
        ),
        ("[[allow]]\nfrom = 'any'\n" * (MAX_RULES + 1), f"has {MAX_RULES + 1} rules", "at most"),
        ("#" * (MAX_POLICY + 1), f"more than {MAX_POLICY} bytes", "roles"),
    ],
)
def test_an_error_names_the_file_the_rule_and_what_to_write(text: str, where: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _policy(text)
    assert where in caught.value.message
    assert hint in caught.value.hint


def test_bytes_that_are_no_text_are_no_policy() -> None:
    with pytest.raises(ConfigError, match="no text"):
        parse_policy(b"\xff\xfe")


def test_the_order_of_rules_changes_no_answer() -> None:
    policy, rng = _policy(TEXT), random.Random(1)
    for _ in range(20):
        rules = list(policy.rules)
        rng.shuffle(rules)
        other = make_policy(tuple(rules))
        for caller in (DEV, OPS, HERE):
            for what in ("web-1", "web-vault", "postgres", "ssh"):
                assert _why(other, caller, what).allowed == _why(policy, caller, what).allowed


def test_a_rule_for_a_name_that_any_node_may_claim_is_warned_of() -> None:
    open_name = '[[allow]]\nfrom = "name:tower"\nservices = "web"\n'
    assert len(warnings(_policy(open_name))) == 1
    assert warnings(_policy(f'{open_name}[[allow]]\nfrom = "{A}"\nnames = "tow*"')) == []


# ---- the guard


def test_every_layer_must_agree() -> None:
    guard = Guard(OWN, Lists(node=parse_parties([A])))
    guard.callers = {A: DEV, B: OPS, OWN: HERE}.__getitem__
    guard.set_service("web-1", parse_parties(["any"]))
    assert guard.ask(Act.SERVICE, A, "web-1").rule == "allow list of web-1"
    assert guard.ask(Act.SERVICE, B, "web-1").rule == "allow list of this node"
    guard.set_mesh(_policy(TEXT))
    assert guard.ask(Act.SERVICE, A, "web-1").rule == "developers read"
    guard.set_local(_policy("version = 1"))
    assert not guard.ask(Act.SERVICE, A, "web-1").allowed, "a local policy narrows"
    guard.set_local(_policy('[[allow]]\nfrom = "any"'))
    assert not guard.ask(Act.SERVICE, B, "web-1").allowed, "and widens nothing"
    guard.set_service("web-1", parse_parties(["role:ops"]))
    assert not guard.ask(Act.SERVICE, A, "web-1").allowed


def test_a_policy_that_observes_refuses_nothing_and_tells_each_refusal_once() -> None:
    guard, told = Guard(OWN), []
    guard.on_observed = lambda peer, act, what, decision: told.append((peer, act, what, decision.rule))
    guard.set_local(_policy('mode = "observe"\n[[deny]]\nname = "none"\nfrom = "any"'))
    assert [guard.ask(Act.SERVICE, A, "web").allowed for _ in range(3)] == [True] * 3
    assert told == [(A, Act.SERVICE, "web", "none")]


def test_answers_are_bounded_and_one_peers_can_be_forgotten() -> None:
    guard = Guard(OWN)
    guard.set_local(_policy('[[allow]]\nfrom = "role:dev"'))
    for number in range(MAX_DECISIONS + 10):
        guard.ask(Act.SERVICE, A, f"s{number}")
    assert guard._count == sum(map(len, guard._answers.values())) <= MAX_DECISIONS
    guard.ask(Act.SERVICE, B, "web")
    guard.callers = lambda peer: Caller(peer, roles=frozenset({"dev"}))
    guard.heard_of(B)
    assert guard.ask(Act.SERVICE, B, "web").allowed
    assert guard._count == sum(map(len, guard._answers.values()))


def test_answers_are_kept_until_something_changes() -> None:
    guard, asked = Guard(OWN), []
    roles = {A: DEV}

    def callers(peer: NodeId) -> Caller:
        asked.append(peer)
        return roles.get(peer, Caller(peer))

    guard.callers = callers
    heard: list[int] = []
    guard.on_change.append(lambda: heard.append(1))
    guard.set_local(_policy('[[allow]]\nfrom = "role:dev"'))
    assert guard.ask(Act.SERVICE, A, "web").allowed
    count = len(asked)
    assert guard.ask(Act.SERVICE, A, "web").allowed
    assert len(asked) == count, "from the cache"
    roles[A] = Caller(A)
    guard.changed()
    assert not guard.ask(Act.SERVICE, A, "web").allowed
    assert len(heard) == 2


def test_a_policy_may_begin_with_a_byte_order_mark() -> None:
    plain = _policy('[[allow]]\nfrom = "any"\n')
    assert parse_policy(b'\xef\xbb\xbf[[allow]]\r\nfrom = "any"\r\n').rules == plain.rules
