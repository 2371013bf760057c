"""Checks of what a program gives to the SDK. Each error names the argument, and says what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meshnode.base.limits import MAX_SERVICE_NAME
from meshnode.base.settings import shown
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.node_id import ID_FORM, NodeId, quoted
from meshnode.quic.preface import FLOW
from meshnode.trust.parties import NONE, Parties, parse_parties

LONGEST_S = 1e9  # 30 years, for inf and whole numbers that no clock can be added to


def wrong(name: str, form: str, value: object) -> ConfigError:
    """Return the error for an argument that is not of its form."""
    told = shown(value) if isinstance(value, int | float | bool | None) else type(value).__name__
    return ConfigError(f"{name} is {form}, not {told}", hint=f"give {name} as {form}")


def peer_of(value: NodeId | str) -> NodeId | str:
    """Return a peer as it stands.

    Raises InvalidId for what is neither an id nor text.
    """
    if isinstance(value, NodeId | str):
        return value
    raise InvalidId(f"peer is a NodeId, its text or a node's name, not {type(value).__name__}", hint=ID_FORM)


def service_of(value: str) -> str:
    """Return the name of a service to open, 1 to 255 bytes.

    Raises ConfigError.
    """
    if not isinstance(value, str):
        raise wrong("service", "a text", value)
    if not 0 < len(_utf8("service", value)) <= MAX_SERVICE_NAME:
        raise ConfigError(
            f"service is a name of 1 to {MAX_SERVICE_NAME} bytes, not {quoted(value)}",
            hint="`meshnode services` lists names",
        )
    return value


def flow_of(value: str) -> str:
    """Return the name of a service of datagrams, 1 to 249 bytes: less than other names for what precedes it.

    Raises ConfigError.
    """
    most = MAX_SERVICE_NAME - len(FLOW)
    if len(service_of(value).encode(errors="replace")) > most:
        raise ConfigError(
            f"a service of datagrams has a name of at most {most} bytes, not {quoted(value)}",
            hint="take a shorter name",
        )
    return value


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return a whole number within its bounds.

    Raises ConfigError.
    """
    form = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise wrong(name, form, value)
    return value


def seconds(name: str, value: float) -> float:
    """Return a positive number of seconds, at most ``LONGEST_S``.

    Raises ConfigError.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise wrong(name, "a number of seconds above 0", value)
    return min(value, LONGEST_S)


def flag(name: str, value: bool | None, *, optional: bool = False) -> bool | None:
    """Return a switch; None passes where it is optional.

    Raises ConfigError.
    """
    if isinstance(value, bool) or (optional and value is None):
        return value
    raise wrong(name, "True, False or None" if optional else "True or False", value)


def _utf8(name: str, value: str) -> bytes:
    """Return a text as it is sent. Raises ConfigError: it has half a surrogate, as bytes that were not decoded."""
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} is no text that UTF-8 has: {quoted(value)}", hint=f"give {name} other text"
        ) from error


def text(name: str, value: str, least: int, most: int) -> str:
    """Return text within its length.

    Raises ConfigError.
    """
    if not isinstance(value, str):
        raise wrong(name, "a text", value)
    _utf8(name, value)
    if not least <= len(value) <= most:
        raise ConfigError(
            f"{name} has {least} to {most} characters, not {len(value)}", hint=f"give {name} another text"
        )
    return value


def texts(name: str, value: Mapping[str, str] | None) -> dict[str, str]:
    """Return a mapping of text to text; None is an empty one.

    Raises ConfigError.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise wrong(name, "a mapping of texts to texts", value)
    return dict(value)


def allowed(value: str | NodeId | Iterable[str | NodeId] | None) -> Parties:
    """Return the nodes that ``allow`` means.

    ``"any"``, ``"role:R"``, one id and several mean what they say; None and an empty list allow no node. Raises
    InvalidId and ConfigError.
    """
    if value is None:
        return NONE
    several = (value,) if isinstance(value, str | NodeId) else value
    if isinstance(several, bytes | Mapping) or not isinstance(several, Iterable):
        raise wrong("allow", '"any", a role, an id or several', value)
    items = list(several)
    for item in items:
        if not isinstance(item, str | NodeId):
            raise InvalidId(f"allow has ids, not {type(item).__name__}", hint=ID_FORM)
    try:
        return parse_parties(items, names=False)
    except InvalidId as error:
        raise InvalidId(f"allow: {error.message}", hint=error.hint) from error


def trusted_of(value: str | NodeId | Iterable[str | NodeId] | None) -> tuple[NodeId | str, ...]:
    """Return the nodes that are trusted for a service; "any" stays a text, None are none.

    Raises InvalidId and ConfigError.
    """
    if value is None:
        return ()
    several = (value,) if isinstance(value, str | NodeId) else value
    if isinstance(several, bytes | Mapping) or not isinstance(several, Iterable):
        raise wrong("trusted", '"any", an id or name, or several', value)
    found = tuple(peer_of(item) for item in several)
    if not found:
        raise ConfigError("trusted has no node", hint='name the nodes that may serve, or "any" for every member')
    return found


def handler_of(value: Callable[..., Any], *takes: str) -> Callable[..., Any]:
    """Return a handler that takes what these words name.

    Raises ConfigError.
    """
    form = f"an async function of {', '.join(f'a {one}' for one in takes[:-1])} and a {takes[-1]}"
    if not callable(value):
        raise wrong("handler", form, value)
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):  # it does not say what it takes
        return value
    try:
        found.bind(*takes)
    except TypeError as error:
        raise ConfigError(
            f"handler is {form}, and this one does not take these {len(takes)}: {error}",
            hint=f"async def handler({', '.join(takes)})",
        ) from error
    return value
