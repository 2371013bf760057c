"""Decisions: whether a policy lets a node do something, by which rule and grant, and why not. Pure.

A rule that denies wins over all that allow, so the order of rules changes no answer. What a policy governs needs a rule
that allows it. A grant that names services narrows every policy: it allows nothing by itself.
"""

from __future__ import annotations

from meshnode.base.value import value
from meshnode.trust.caller import Caller
from meshnode.trust.names import covers
from meshnode.trust.policy import Act, Policy, Rule

WORDS = {
    Act.CONNECT: "connect",
    Act.SERVICE: "reach service {}",
    Act.PUBLISH: "publish to topic {}",
    Act.SUBSCRIBE: "subscribe to topic {}",
    Act.NAME: "claim the name {}",
    Act.RELAY: "be relayed",
}


NOUNS = {
    Act.CONNECT: "connection",
    Act.SERVICE: "service {}",
    Act.PUBLISH: "message to topic {}",
    Act.SUBSCRIBE: "subscription to topic {}",
    Act.NAME: "name {}",
    Act.RELAY: "relay",
}


@value
class Decision:
    """Answer to one question.

    Attributes:
        allowed: Whether it may.
        rule: The rule that decided; None when none did.
        grant: The grant without which the answer would be another one, or that is too narrow; None: there is none.
        why: The reason, in words.
        told: What the refused node may hear: the name of the rule that denies it, or of one that allows it to other
            nodes; or "".
    """

    allowed: bool
    rule: str | None
    grant: str | None
    why: str
    told: str = ""

    def to_json(self) -> dict[str, object]:
        """Return ``allowed``, ``rule``, ``grant`` and ``why``."""
        return {"allowed": self.allowed, "rule": self.rule, "grant": self.grant, "why": self.why}


def in_words(act: Act, what: str) -> str:
    """Return what an act is, as ``reach service web``."""
    return WORDS[act].format(what)


def noun_of(act: Act, what: str) -> str:
    """Return what an act is about, as ``service web``."""
    return NOUNS[act].format(what)


def decide(policy: Policy, caller: Caller, target: Caller, what: str, act: Act = Act.SERVICE) -> Decision:
    """Decide one question by one policy.

    Args:
        policy: The rules.
        caller: The node that asks.
        target: The node that is asked.
        what: The service, topic or name; "" for a connection and a relay.
        act: What it asks.
    """
    denies, allows = policy.by_act[act]
    for rule in denies:
        if _applies(rule, caller, target, what, act):
            grant = caller.grant if rule.callers.by_role_only(caller) else None
            why = f"rule {rule.name} denies it"
            return Decision(False, rule.name, grant, why, rule.name if policy.tells else "")
    if act is Act.CONNECT:
        return Decision(True, None, None, "no rule denies it, and a connection needs none")
    if act not in policy.governed:
        return Decision(True, None, None, f"no rule of the policy is about {act.value}")
    for rule in allows:
        if _applies(rule, caller, target, what, act):
            grant = caller.grant if rule.callers.by_role_only(caller) else None
            return Decision(True, rule.name, grant, f"rule {rule.name} allows it")
    about = [rule for rule in allows if rule.covers(act, what) and rule.targets.has(target)]
    told = about[0].name if policy.tells and about else ""
    return Decision(False, None, None, _why_not(about, caller, what, act), told)


def narrowed(caller: Caller, what: str, act: Act) -> Decision | None:
    """Return the refusal of a service that the caller's grant does not cover; None when it may go on."""
    if act is not Act.SERVICE or covers(caller.services, what):
        return None
    covered = ", ".join(caller.services or ()) or "no service"
    return Decision(False, None, caller.grant, f"its grant covers {covered}, not {what}")


def _applies(rule: Rule, caller: Caller, target: Caller, what: str, act: Act) -> bool:
    return rule.callers.has(caller) and rule.targets.has(target) and rule.covers(act, what)


def _why_not(about: list[Rule], caller: Caller, what: str, act: Act) -> str:
    """Return what is missing, as close to being allowed as the rules ``about`` this come."""
    roles = sorted({role for rule in about for role in rule.callers.roles})
    if roles:
        has = f"it has {', '.join(sorted(caller.roles))}" if caller.roles else "it has no role"
        needs = f"needs role {' or '.join(roles[:5])}" if len(roles) <= 5 else "needs another role"
        return f"no rule allows it to {in_words(act, what)}: it {needs}, {has}"
    if about:
        return f"no rule allows it to {in_words(act, what)}: rules allow that to other nodes"
    return f"no rule allows any node to {in_words(act, what)} here"
