"""What an exposed service is to be: as the command says it, and as ``services.json`` keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from meshnode.base.value import frozen
from meshnode.directory.announcement import Offer, is_service_name
from meshnode.errors import ConfigError
from meshnode.identity.node_id import quoted
from meshnode.services.ends import expanded, parse_target
from meshnode.services.health import AUTO, NONE, parse_health
from meshnode.services.usage import parse_rates

MAX_TARGETS = 16  # of one service: each has a check a second
SERVICE_FORM = "a service's name has 1 to 64 visible characters, no space and no slash"


@frozen
class Setting:
    """A service to expose.

    Attributes:
        name: The name that peers open.
        targets: What its streams are connected to, each to one that works.
        allow: Ids and roles of the nodes that may open it, or "any" for every member.
        announce: Whether it is announced in the service directory; None: if any node is allowed.
        meta: Text that is announced with it.
        limit: How many connections it serves at once; None for the usual number.
        health: How targets are checked: ``auto``, ``connect``, ``http:/PATH`` or ``none``.
        proxy_protocol: Whether targets are told by the PROXY protocol which node calls.
        rate: What one caller may have a second: ``20`` connections, ``5MB``.
        group: The name under which a range of ports was exposed, "" for a single service.
    """

    name: str
    targets: tuple[str, ...]
    allow: tuple[str, ...] = ()
    announce: bool | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    health: str = AUTO
    proxy_protocol: bool = False
    rate: tuple[str, ...] = ()
    group: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as ``services.json`` has it; ``target``, the first one, is for older versions."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**found, "target": self.targets[0], "meta": dict(self.meta)}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Setting:
        """Return what an item of ``services.json`` means.

        Raises LookupError, TypeError, AttributeError.
        """
        targets = tuple(item.get("targets") or (item["target"],))
        known = {name: item[name] for name in cls.__dataclass_fields__ if item.get(name) is not None}
        return cls(**{**known, "targets": targets, "allow": tuple(item["allow"]), "rate": tuple(item.get("rate", ()))})

    def checked(self) -> Setting:
        """Return it with its targets in their one form.

        Raises ConfigError.
        """
        if not is_service_name(self.name):
            raise ConfigError(f"{quoted(self.name)} is no name for a service", hint=SERVICE_FORM)
        if not 0 < len(self.targets) <= MAX_TARGETS:
            raise ConfigError(f"a service has 1 to {MAX_TARGETS} targets, not {len(self.targets)}", hint="give fewer")
        parse_health(self.health)
        parse_rates(self.rate)
        try:
            Offer(meta=dict(self.meta)).encoded()
        except ValueError as error:
            raise ConfigError(str(error), hint="give fewer or shorter --meta KEY=TEXT") from error
        ends = [parse_target(text) for text in self.targets]
        if len({end.http for end in ends}) > 1:
            raise ConfigError("some targets are HTTP and others are not", hint="write all as http://HOST:PORT, or none")
        if len({end.udp for end in ends}) > 1:
            raise ConfigError("some targets are UDP and others are not", hint="expose them under two names")
        if ends[0].udp and (self.proxy_protocol or self.health not in (AUTO, NONE)):
            raise ConfigError("UDP has no connections to check, or to begin with a header", hint="--health none")
        return replace(self, targets=tuple(dict.fromkeys(end.target for end in ends)))

    def expanded(self) -> list[Setting]:
        """Return the services that it means: of a range of ports one a port, ``NAME-PORT``.

        Raises ConfigError.
        """
        found = expanded(self.targets)
        if len(found) == 1 and not found[0][0]:
            return [self.checked()]
        return [
            replace(self, name=f"{self.name}-{port}", targets=targets, group=self.name).checked()
            for port, targets in found
        ]
