"""Parties of a rule: the nodes that a list of ``any``, ids, ``role:R`` and ``name:N`` means, and patterns of names.

The ``allow`` lists of nodes and services are parties, as ``from`` and ``to`` of a policy's rules are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate
from functools import lru_cache

from meshnode.base.value import value
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.node_id import NodeId, label_of, quoted
from meshnode.trust.caller import ROLE_FORM, Caller, is_role

ANY, ROLE, ID, NAME = "any", "role:", "id:", "name:"
FORMS = '"any", an id, "role:NAME" or "name:NODE"'
WILD = re.compile(r"[*?\[]")


@value
class Parties:
    """A set of nodes: all members (``any``), or those with one of these ids, roles or names."""

    any: bool
    ids: frozenset[NodeId]
    roles: frozenset[str]
    names: frozenset[str]

    def has(self, caller: Caller) -> bool:
        """Return whether a node is one of them."""
        return (
            self.any
            or self._has_id(caller)
            or (bool(self.roles) and not self.roles.isdisjoint(caller.roles))
            or (caller.name is not None and caller.name in self.names)
        )

    def _has_id(self, caller: Caller) -> bool:
        return caller.id in self.ids or (caller.former is not None and caller.former in self.ids)

    def by_role_only(self, caller: Caller) -> bool:
        """Return whether a node is one of them for its roles alone: without its grant it would not be."""
        named = caller.name is not None and caller.name in self.names
        return not (self.any or self._has_id(caller) or named) and self.has(caller)

    def __bool__(self) -> bool:
        return self.any or bool(self.ids or self.roles or self.names)


NONE = Parties(False, frozenset(), frozenset(), frozenset())
EVERY = Parties(True, frozenset(), frozenset(), frozenset())


def parse_parties(items: Iterable[str | NodeId], *, names: bool = True) -> Parties:
    """Return the nodes that a list means.

    Args:
        items: ``any``, ids (with or without ``id:``), ``role:R``, ``name:N``.
        names: Whether ``name:N`` may be among them. Which node has a name may change, so lists that give access by
            themselves take none.

    Raises:
        ConfigError: Text that is none of these; the hint says how to write it.
        InvalidId: Text that is no id, or a name where there may be none.
    """
    every, ids, roles, labels = False, set(), set(), set()
    for item in items:
        if item == ANY:
            every = True
        elif isinstance(item, str) and item.startswith(ROLE):
            roles.add(_role(item))
        elif isinstance(item, str) and item.startswith(NAME) and names:
            labels.add(_label(item))
        else:
            ids.add(_id(item))
    return Parties(every, frozenset(ids), frozenset(roles), frozenset(labels))


def _role(item: str) -> str:
    role = item[len(ROLE) :]
    if not is_role(role):
        raise ConfigError(f"{quoted(item)} is no role", hint=f"{ROLE_FORM}: role:db-reader")
    return role


def _label(item: str) -> str:
    label = label_of(item[len(NAME) :])
    if label is None:
        raise ConfigError(f"{quoted(item)} names no node", hint="as in name:laptop")
    return label


def _id(item: str | NodeId) -> NodeId:
    """Return an id of a list; a node's name is refused as such: which node has it may change."""
    text = item.removeprefix(ID) if isinstance(item, str) else item
    try:
        return NodeId.parse(text)
    except InvalidId as error:
        label = label_of(text.removeprefix(NAME)) if isinstance(text, str) else None
        if not isinstance(item, str) or label is None or item.startswith(ID):
            raise
        hint = f"`meshnode id` there prints it, and `meshnode resolve {label}` on any running node"
        raise InvalidId(f"{quoted(item)} is a name; allow takes only ids and roles", hint=hint) from error


@lru_cache(maxsize=1024)
def _compiled(text: str) -> re.Pattern[str]:
    return re.compile(translate(text))


@value
class Patterns:
    """Names, and patterns of names with ``*``, ``?`` and ``[...]``."""

    exact: frozenset[str]
    globs: tuple[str, ...]

    def match(self, text: str) -> bool:
        """Return whether a name is one of them."""
        return text in self.exact or any(_compiled(glob).match(text) is not None for glob in self.globs)


def parse_patterns(items: Iterable[str]) -> Patterns:
    """Return the patterns of a list of texts."""
    texts = list(dict.fromkeys(items))
    return Patterns(
        frozenset(text for text in texts if not WILD.search(text)), tuple(t for t in texts if WILD.search(t))
    )
