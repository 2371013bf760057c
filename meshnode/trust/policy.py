"""Policies: rules about which node may reach what, read from TOML. docs/reference/policy.md has the format.

A policy is immutable. ``decision.py`` applies it. Whatever is wrong with a text is a ``ConfigError`` that names the
file, the rule and its line, and says what to write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from meshnode.base.limits import MAX_POLICY, MAX_RULE_ITEMS, MAX_RULE_NAME, MAX_RULES
from meshnode.base.value import frozen, value
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.node_id import quoted
from meshnode.trust.parties import EVERY, FORMS, Parties, Patterns, parse_parties, parse_patterns


class Act(Enum):
    """What a node asks of another one."""

    __hash__ = object.__hash__  # of each question that is answered from memory: that of Enum hashes the name

    CONNECT = "connect"
    SERVICE = "service"
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    NAME = "name"
    RELAY = "relay"


# keys of a rule -> what they are about
OBJECTS = {"services": Act.SERVICE, "publish": Act.PUBLISH, "subscribe": Act.SUBSCRIBE, "names": Act.NAME}
ALWAYS = frozenset({Act.SERVICE})  # what every policy governs: no rule, no access
RULE_KEYS = ("name", "from", "to", *OBJECTS, "relay")
KEYS = ("version", "mode", "reasons", "allow", "deny")
HEADER = re.compile(r"^\s*\[\[\s*(allow|deny)\s*\]\]", re.MULTILINE)
MAX_VERSION = 2**53
EXAMPLE = 'a rule is a line [[allow]], then lines such as from = ["role:dev"] and services = ["web"]'


@value
class Rule:
    """One rule. ``objects`` has what it is about; a rule without any is about everything."""

    name: str
    allow: bool
    callers: Parties
    targets: Parties
    objects: Mapping[Act, Patterns | None]

    def covers(self, act: Act, what: str) -> bool:
        """Return whether it is about an act on an object: a service, a topic, a name; "" for a relay."""
        if not self.objects:
            return True
        if act not in self.objects:
            return False
        patterns = self.objects[act]
        return patterns is None or patterns.match(what)


@frozen
class Policy:
    """All rules of one policy. ``governed`` are the acts that need a rule that allows them.

    ``tells``: a refused node hears the rule's name. ``observes``: what is refused is only told, and done all the same.
    """

    version: int
    tells: bool
    observes: bool
    rules: tuple[Rule, ...]
    governed: frozenset[Act]
    by_act: Mapping[Act, tuple[tuple[Rule, ...], tuple[Rule, ...]]]  # deny, allow

    def to_json(self) -> dict[str, object]:
        """Return ``version``, ``mode``, ``reasons``, ``rules`` (how many) and what is ``governed``."""
        return {
            "version": self.version,
            "mode": "observe" if self.observes else "enforce",
            "reasons": "told" if self.tells else "hidden",
            "rules": len(self.rules),
            "governed": sorted(act.value for act in self.governed),
        }


def warnings(policy: Policy) -> list[str]:
    """Return what is allowed by the rules and likely not meant, a sentence each."""
    named = sorted({name for rule in policy.rules if rule.allow for name in rule.callers.names})
    kept = [rule for rule in policy.rules if Act.NAME in rule.objects]
    return [
        f"rules give something to name:{name}, and none says which node may claim that name"
        for name in named
        if not any(rule.covers(Act.NAME, name) for rule in kept)
    ]


def make_policy(rules: tuple[Rule, ...], *, version: int = 0, tells: bool = False, observes: bool = False) -> Policy:
    """Return the policy of these rules."""
    governed = ALWAYS | {act for rule in rules for act in rule.objects}
    by_act = {}
    for act in Act:
        about = [rule for rule in rules if not rule.objects or act in rule.objects]
        by_act[act] = tuple(r for r in about if not r.allow), tuple(r for r in about if r.allow)
    return Policy(version, tells, observes, rules, governed, by_act)


def parse_policy(data: bytes, file: str = "policy") -> Policy:
    """Return the policy that a file holds.

    Args:
        data: Its contents, at most ``MAX_POLICY`` bytes of UTF-8.
        file: Its name for messages.

    Raises:
        ConfigError: Something is wrong.
    """
    if len(data) > MAX_POLICY:
        raise ConfigError(f"{file} has more than {MAX_POLICY} bytes", hint="use patterns and roles instead of lists")
    import tomllib  # few nodes have such a file

    try:
        text = data.decode("utf-8-sig")
        values = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text", hint="write it in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}", hint=EXAMPLE) from error
    return policy_of(values, file, text)


def policy_of(values: Mapping[str, object], file: str = "policy", text: str = "") -> Policy:
    """Return the policy of a parsed document; ``text`` is where the lines of its rules are looked up. As above."""
    return _Reader(file, text).policy(values)


class _Reader:
    """Reads one document, and knows where in it an error is."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines: dict[str, list[int]] = {"allow": [], "deny": []}
        for found in HEADER.finditer(text):
            self._lines[found[1]].append(text.count("\n", 0, found.start(1)) + 1)

    def policy(self, values: Mapping[str, object]) -> Policy:
        for key in values:
            if key not in KEYS:
                hint = f"a policy has {', '.join(KEYS)}; rules begin with [[allow]] or [[deny]]"
                raise ConfigError(f"{self._file}: unknown key {quoted(key)}", hint=hint)
        version = values.get("version", 0)
        if type(version) is not int or not 0 <= version <= MAX_VERSION:
            raise ConfigError(f"{self._file}: version is a whole number", hint="version = 1, and one more each time")
        mode = self._choice(values, "mode", "enforce", "observe")
        reasons = self._choice(values, "reasons", "hidden", "told")
        rules = [*self._rules(values, "deny"), *self._rules(values, "allow")]
        if len(rules) > MAX_RULES:
            raise ConfigError(f"{self._file} has {len(rules)} rules", hint=f"at most {MAX_RULES}: join some")
        names: set[str] = set()
        for rule in rules:
            if rule.name in names:
                raise ConfigError(f"{self._file}: two rules are named {quoted(rule.name)}", hint="rename one of them")
            names.add(rule.name)
        return make_policy(tuple(rules), version=version, tells=reasons == "told", observes=mode == "observe")

    def _choice(self, values: Mapping[str, object], key: str, first: str, second: str) -> str:
        chosen = values.get(key, first)
        if chosen not in (first, second):
            raise ConfigError(f"{self._file}: {key} = {quoted(chosen)}", hint=f'{key} = "{first}" or "{second}"')
        return str(chosen)

    def _rules(self, values: Mapping[str, object], kind: str) -> list[Rule]:
        items = values.get(kind, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ConfigError(f"{self._file}: {kind} is no list of rules", hint=f"begin each rule with [[{kind}]]")
        return [self._rule(kind, number, item) for number, item in enumerate(items, 1)]

    def _rule(self, kind: str, number: int, item: Mapping[str, object]) -> Rule:
        lines = self._lines[kind]
        line = f", line {lines[number - 1]}" if number <= len(lines) else ""
        name = item.get("name", f"{kind}#{number}")
        where = f"{self._file}{line}, rule {kind}#{number}"
        if not isinstance(name, str) or not 0 < len(name) <= MAX_RULE_NAME or not name.isprintable():
            raise ConfigError(f"{where}: name is no text", hint=f"1 to {MAX_RULE_NAME} visible characters")
        if "#" in name and "name" in item:
            raise ConfigError(f"{where}: a rule's name has no #", hint=f"{kind}#{number} is what it has without one")
        for key in item:
            if key not in RULE_KEYS:
                raise ConfigError(f"{where}: unknown key {quoted(key)}", hint=f"a rule has {', '.join(RULE_KEYS)}")
        if "from" not in item:
            raise ConfigError(f"{where}: it does not say from which nodes", hint=f"from = [...] with {FORMS}")
        callers = self._parties(where, "from", item)
        targets = self._parties(where, "to", item) if "to" in item else EVERY
        objects: dict[Act, Patterns | None] = {
            act: parse_patterns(self._texts(where, key, item, 'as in ["web", "db-*"]'))
            for key, act in OBJECTS.items()
            if key in item
        }
        relay = item.get("relay", False)
        if not isinstance(relay, bool):
            raise ConfigError(f"{where}: relay is true or false", hint="leave it out unless the rule is about relays")
        if relay:
            objects[Act.RELAY] = None
        elif "relay" in item and not objects:
            raise ConfigError(f"{where}: it is about nothing", hint="relay = true, or services = [...]")
        return Rule(name, kind == "allow", callers, targets, objects)

    def _parties(self, where: str, key: str, item: Mapping[str, object]) -> Parties:
        texts = self._texts(where, key, item, f"with {FORMS}")
        try:
            return parse_parties(texts)
        except (ConfigError, InvalidId) as error:
            hint = error.hint if isinstance(error, ConfigError) else f"{key} takes {FORMS}"
            raise ConfigError(f"{where}: {key}: {error.message}", hint=hint) from error

    def _texts(self, where: str, key: str, item: Mapping[str, object], form: str) -> list[str]:
        found = item[key]
        items = [found] if isinstance(found, str) else found
        if not isinstance(items, list) or not items or not all(isinstance(text, str) and text for text in items):
            raise ConfigError(f"{where}: {key} is a list of texts", hint=f"{key} = [...] {form}")
        if len(items) > MAX_RULE_ITEMS:
            raise ConfigError(f"{where}: {key} has {len(items)} items", hint=f"at most {MAX_RULE_ITEMS}: use roles")
        return items
