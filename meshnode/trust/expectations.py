"""Expected answers of a policy, read from TOML: what ``meshnode policy test`` checks. docs/reference/policy.md."""

from __future__ import annotations

from collections.abc import Mapping

from meshnode.base.limits import MAX_POLICY
from meshnode.base.value import value
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.node_id import KEY_LENGTH, NodeId, quoted
from meshnode.trust.caller import Caller
from meshnode.trust.decision import Decision, decide, in_words
from meshnode.trust.parties import ANY, FORMS, parse_parties
from meshnode.trust.policy import OBJECTS, Act, Policy

KEYS = ("from", "to", *OBJECTS, "relay", "connect", "allowed", "rule")
UNKNOWN = NodeId(bytes(KEY_LENGTH))  # no node has this id: its private key cannot be found
EXAMPLE = '[[expect]], then from = ["role:dev"], services = ["web"], allowed = true'


@value
class Expectation:
    """One question with the answer that is wanted. ``rule`` is the name of the rule that is to decide, or None."""

    caller: Caller
    target: Caller
    act: Act
    what: str
    allowed: bool
    rule: str | None
    said: str

    def check(self, policy: Policy) -> tuple[Decision, bool]:
        """Return the answer of a policy, and whether it is the wanted one."""
        found = decide(policy, self.caller, self.target, self.what, self.act)
        return found, found.allowed == self.allowed and self.rule in (None, found.rule)


def as_caller(texts: list[str]) -> Caller:
    """Return a node of which this is known: an id, ``role:R``, ``name:N``; ``any`` says nothing.

    Raises ConfigError, InvalidId.
    """
    try:
        parties = parse_parties([text for text in texts if text != ANY])
    except InvalidId as error:
        raise InvalidId(f"{quoted(','.join(texts))} is no id", hint="a node is an id, role:R, name:N or any") from error
    if len(parties.ids) > 1 or len(parties.names) > 1:
        raise ConfigError("one node has one id and one name", hint="ask for each of them")
    return Caller(
        next(iter(parties.ids), UNKNOWN),
        next(iter(parties.names), None),
        parties.roles,
    )


def parse_expectations(data: bytes, file: str) -> list[Expectation]:
    """Return the expected answers that a file holds. Raises ConfigError."""
    if len(data) > MAX_POLICY:
        raise ConfigError(f"{file} has more than {MAX_POLICY} bytes", hint="use several files")
    import tomllib  # few nodes have such a file

    try:
        items = tomllib.loads(data.decode("utf-8-sig")).get("expect")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}", hint=EXAMPLE) from error
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{file} expects nothing", hint=EXAMPLE)
    return [found for number, item in enumerate(items, 1) for found in _read(f"{file}, expect#{number}", item)]


def _read(where: str, item: Mapping[str, object]) -> list[Expectation]:
    for key in item:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key {quoted(key)}", hint=f"it has {', '.join(KEYS)}")
    allowed, rule = item.get("allowed"), item.get("rule")
    if not isinstance(allowed, bool) or not isinstance(rule, str | None):
        raise ConfigError(f"{where}: allowed is true or false, rule a text", hint=EXAMPLE)
    caller, target = (_node(where, key, item.get(key, ANY)) for key in ("from", "to"))
    asked = [(act, what) for key, act in OBJECTS.items() if key in item for what in _texts(where, key, item[key])]
    asked += [(act, "") for key, act in (("relay", Act.RELAY), ("connect", Act.CONNECT)) if item.get(key) is True]
    if not asked:
        raise ConfigError(f"{where}: it asks nothing", hint=EXAMPLE)
    asker = ", ".join(_texts(where, "from", item.get("from", ANY)))
    return [
        Expectation(caller, target, act, what, allowed, rule, f"{asker}: {in_words(act, what)}") for act, what in asked
    ]


def _node(where: str, key: str, found: object) -> Caller:
    try:
        return as_caller(_texts(where, key, found))
    except (ConfigError, InvalidId) as error:
        raise ConfigError(f"{where}: {key}: {error.message}", hint=f"{key} has {FORMS}") from error


def _texts(where: str, key: str, found: object) -> list[str]:
    items = [found] if isinstance(found, str) else found
    if not isinstance(items, list) or not items or not all(isinstance(text, str) for text in items):
        raise ConfigError(f"{where}: {key} is a list of texts", hint=f"{key} = [...]")
    return items
