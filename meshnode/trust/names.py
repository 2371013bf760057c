"""Names in grants: roles, and services by name or by beginning."""

from __future__ import annotations

from collections.abc import Iterable

from meshnode.base.limits import MAX_ROLES, MAX_SERVICE_PATTERN, MAX_SERVICE_PATTERNS
from meshnode.errors import ConfigError
from meshnode.identity.node_id import quoted
from meshnode.trust.caller import ROLE_FORM, is_role

Names = tuple[str, ...] | None  # sorted; None for all
SERVICE_FORM = "1 to 64 visible characters; web* means all that begin with web"


def is_service_pattern(text: str) -> bool:
    """Return whether a text may be the name of a service in a grant, or the beginning of several with a ``*``."""
    return 0 < len(text) <= MAX_SERVICE_PATTERN and text.isprintable()


def covers(patterns: Names, service: str) -> bool:
    """Return whether a service, or all services of a pattern, are among those of ``patterns``."""
    return patterns is None or any(
        service == pattern or (pattern.endswith("*") and service.startswith(pattern[:-1])) for pattern in patterns
    )


def within(narrow: Names, wide: Names) -> bool:
    """Return whether all that ``narrow`` covers is covered by ``wide``: services by pattern."""
    return wide is None or (narrow is not None and all(covers(wide, name) for name in narrow))


def roles_within(narrow: Names, wide: Names) -> bool:
    """Return whether all roles of ``narrow`` are among those of ``wide``; a role is no pattern."""
    return wide is None or (narrow is not None and set(narrow) <= set(wide))


def checked_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Return roles that a person typed, sorted. Raises ConfigError."""
    for role in roles:
        if not is_role(role):
            raise ConfigError(f"{quoted(role)} is no role", hint=ROLE_FORM)
    found = tuple(sorted(set(roles)))
    if len(found) > MAX_ROLES:
        raise ConfigError(f"a grant has at most {MAX_ROLES} roles", hint="give fewer, or one role that means them all")
    return found


def checked_services(services: Iterable[str]) -> Names:
    """Return patterns that a person typed, sorted; none means all services. Raises ConfigError."""
    found = tuple(sorted(set(services)))
    for service in found:
        if not is_service_pattern(service):
            raise ConfigError(f"{service!r} is no service", hint=SERVICE_FORM)
    if len(found) > MAX_SERVICE_PATTERNS:
        raise ConfigError(f"a grant names at most {MAX_SERVICE_PATTERNS} services", hint="web* means all that begin so")
    return found or None
