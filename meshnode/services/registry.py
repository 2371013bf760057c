"""Exposed and forwarded services, kept in ``services.json`` so that they survive kill -9."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from meshnode.directory.announcement import is_service_name
from meshnode.errors import AddressInUse, ConfigError, MeshError, NotFound
from meshnode.identity.node_id import NodeId, id_or_label, is_id, quoted
from meshnode.runtime.state_files import MAX_STATE, read_state
from meshnode.sdk.node import Node, runtime_of
from meshnode.services.ends import UDP, expanded, parse_listen
from meshnode.services.expose import Expose
from meshnode.services.forward import Forward
from meshnode.services.setting import SERVICE_FORM, Setting
from meshnode.services.udp import UdpForward

log = logging.getLogger("meshnode.services")

SERVICES_FILE = "services.json"
SPREAD_S = 1.0  # for news of a withdrawal to reach every member: gossip takes a tenth of that
WRONG_ITEM = (MeshError, LookupError, TypeError, AttributeError, ValueError)  # what a damaged item may raise


def parse_service(to: str) -> tuple[NodeId | str | None, str]:
    """Parse ``NODE/SERVICE``, or ``SERVICE`` alone for any instance of it.

    Raises ConfigError, InvalidId.
    """
    if "://" in to:
        rest = to.partition("://")[2].strip("/")
        raise ConfigError(f"{quoted(to)} is a URL; a service has no scheme", hint=f"write {rest or 'NODE/SERVICE'}")
    node, slash, service = to.partition("/")
    if not service and not slash:
        node, service = "", node
        if is_id(service):
            raise ConfigError(f"{quoted(to)} is a node, and names no service of it", hint=f"write {to}/SERVICE")
    if not service or (slash and not node):
        raise ConfigError(f"{quoted(to)} is neither NODE/SERVICE nor SERVICE", hint="as in ID/web, laptop/web or web")
    if not is_service_name(service):
        raise ConfigError(f"{quoted(service)} is no name for a service", hint=SERVICE_FORM)
    return (id_or_label(node) if slash else None), service


def parse_trusted(to: str, trusted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the nodes that are trusted for ``to``, as they stand.

    Raises ConfigError, InvalidId.
    """
    if trusted and "/" in to:
        raise ConfigError(f"{quoted(to)} names its node already", hint="leave out --from, or the node")
    for text in trusted:
        id_or_label(text)
    return trusted


class ServiceBook:
    """All exposes and forwards of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = runtime_of(node).state
        self._unread: dict[str, list[Any]] = {"exposes": [], "forwards": []}  # of the file: not understood
        self.exposes: dict[str, Expose] = {}
        self.passing: dict[str, Expose] = {}  # as long as the program runs that asked for it, and not kept
        self.forwards: dict[str, Forward] = {}

    async def restore(self) -> None:
        """Start again what ``services.json`` lists.

        A file that is no list of services is set aside. An item that cannot be had now is logged and kept in the file;
        a forward whose address is taken or not there yet begins as soon as it can. Raises nothing.
        """
        saved = read_state(self._state.home / SERVICES_FILE, _parse)
        exposes, forwards = saved if saved is not None else ([], [])
        for item in exposes:
            try:
                self._expose(Setting.from_json(item).checked())
            except WRONG_ITEM as error:
                self._tell_kept(item, error)
                self._unread["exposes"].append(item)
        for item in forwards:  # all at once: what is saved while a name is looked up has them
            try:
                trusted = parse_trusted(item["to"], tuple(item.get("from", ())))
                self._begin_forward(item["listen"], item["to"], bool(item.get("sticky")), trusted)
            except WRONG_ITEM as error:
                self._tell_kept(item, error)
                self._unread["forwards"].append(item)
        await asyncio.gather(*(forward.restore() for forward in self.forwards.values()))

    def _begin_forward(self, listen: str, to: str, sticky: bool, trusted: tuple[str, ...]) -> None:
        """Raises ConfigError, InvalidId."""
        forward = self._made(str(parse_listen(listen)), to, sticky, trusted)
        if forward.listen in self.forwards:
            raise ConfigError(f"{forward.listen} is there twice", hint="remove one of them")
        self.forwards[forward.listen] = forward

    def _made(self, listen: str, to: str, sticky: bool, trusted: tuple[str, ...]) -> Forward:
        kind = UdpForward if listen.startswith(UDP) else Forward
        return kind(self._node, listen, *parse_service(to), sticky, trusted)

    def _tell_kept(self, item: Any, error: Exception) -> None:
        log.warning("not restored, but kept in %s: %s (%s)", SERVICES_FILE, str(item)[:200], error)

    async def _save(self) -> None:
        """Write what is exposed and forwarded. Raises OSError, ConfigError: it is too much to be read again."""
        exposes: list[Any] = [e.setting.to_json() for e in self.exposes.values()]
        forwards: list[Any] = [
            {"listen": f.listen, "to": f.to, "sticky": f.sticky, "from": list(f.trusted)}
            for f in self.forwards.values()
        ]
        data = {"exposes": exposes + self._unread["exposes"], "forwards": forwards + self._unread["forwards"]}
        written = json.dumps(data, indent=1).encode()
        if len(written) > MAX_STATE:
            raise ConfigError(
                f"{SERVICES_FILE} has at most {MAX_STATE >> 20} MiB: it would not be read at the next start",
                hint="allow a role instead of many ids, or expose and forward less",
            )
        await self._state.write(SERVICES_FILE, written)

    def _expose(self, setting: Setting, earlier: Expose | None = None) -> None:
        self.exposes[setting.name] = Expose(self._node, setting, earlier)

    async def expose(
        self,
        name: str,
        target: str | Sequence[str],
        allow: tuple[str, ...],
        announce: bool | None = None,
        meta: Mapping[str, str] | None = None,
        limit: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Serve a target, or any of several, under ``name``: see ``put``. ``more`` are other fields of ``Setting``."""
        targets = (target,) if isinstance(target, str) else tuple(target)
        return await self.put(Setting(name, targets, allow, announce, dict(meta or {}), limit, **more))

    async def put(self, setting: Setting) -> dict[str, Any]:
        """Serve what a setting says; exposing a name again replaces the earlier one.

        A range of ports, ``tcp://HOST:8000-8010``, is a service a port: ``NAME-8000`` and so on.

        Returns:
            The name, target and allowed ids as plain JSON; of a range also ``names``.

        Raises:
            ConfigError, InvalidId, OSError: Nothing is changed, earlier services of these names are served on.
        """
        wanted = setting.expanded()
        old = {each.name: self.exposes.pop(each.name) for each in wanted if each.name in self.exposes}
        for earlier in old.values():
            earlier.close()
        try:
            for each in wanted:
                self._expose(each, old.get(each.name))
            await self._save()
        except (MeshError, OSError):
            for each in wanted:
                if each.name in self.exposes:
                    self.exposes.pop(each.name).close()
            for earlier in old.values():
                self._expose(earlier.setting, earlier)
            raise
        names = [each.name for each in wanted]
        shown = wanted[0].targets if names == [setting.name] else setting.targets
        told = {"name": setting.name, "target": ", ".join(shown), "allow": list(setting.allow)}
        return told if names == [setting.name] else {**told, "names": names}

    async def unexpose(self, name: str, drain: float = 0.0) -> dict[str, Any]:
        """Withdraw a service, or those of a range of ports, and reset the connections.

        Args:
            name: The service's name, or that of the range.
            drain: Seconds that its connections have to end by themselves; no new one is accepted meanwhile.

        Returns:
            The name, and how many connections were ``cut``, as plain JSON.

        Raises:
            NotFound: Nothing is exposed under that name.
            OSError: It is withdrawn, but that could not be saved: it is back at the next start.
        """
        found = [e for e in self.exposes.values() if e.name == name] or [
            e for e in self.exposes.values() if e.setting.group == name
        ]
        if not found and name in self.passing:
            raise NotFound(f"{name!r} is exposed as long as its program runs", hint="end that, as by Ctrl-C")
        if not found:
            raise NotFound(f"nothing is exposed as {name!r}", hint="`meshnode exposes` lists what is")
        for each in found:
            del self.exposes[each.name]
            each.close()
        try:
            await self._save()
        finally:
            cut = sum(await asyncio.gather(*(each.end(drain) for each in found)))
        return {"name": name, "cut": cut}

    async def _forward(self, listen: str, to: str, sticky: bool, trusted: tuple[str, ...]) -> Forward:
        forward = self._made(listen, to, sticky, trusted)
        end = parse_listen(listen)
        held = self.forwards.get(str(end))
        is_same = held is not None and (held.to, held.sticky, held.trusted) == (forward.to, sticky, trusted)
        if held is not None and is_same and not held.error:
            return held
        try:
            forward.listen = await forward.start()
        except AddressInUse:
            same = f":{end.path or end.port}"
            others = (f for f in self.forwards.values() if f.listen.startswith(UDP) == end.udp and not f.error)
            rival = next((f for f in others if f.listen.endswith(same)), None)
            if rival is None:
                raise
            raise AddressInUse(
                f"{rival.listen} is forwarded to {rival.to} already", hint=f"meshnode unforward {rival.listen}"
            ) from None
        waiting = self.forwards.pop(forward.listen, None)
        if waiting is not None:  # for this address, to another service
            await waiting.close()
        self.forwards[forward.listen] = forward
        return forward

    async def forward(
        self, listen: str, to: str, sticky: bool = False, trusted: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Listen here for a service: ``NODE/SERVICE``, or ``SERVICE`` alone on one of the ``trusted`` nodes.

        Without those it is the node that the service means here (``Node.open_any``). The same forward twice is one.
        A range of ports, ``HOST:8000-8010``, is a forward a port, to ``SERVICE-8000`` and so on.
        Raises AddressInUse, ConfigError, InvalidId; NameDisputed and NameChanged as far as is known now.
        """
        wanted = [(text, f"{to}-{port}" if port else to) for port, (text,) in expanded([listen])]
        trusted = parse_trusted(to, trusted)
        for _, where in wanted:
            self._check_provider(where, trusted)
        before = dict(self.forwards)
        try:
            found = [await self._forward(text, where, sticky, trusted) for text, where in wanted]
            await self._save()
        except (MeshError, OSError):
            for key, made in list(self.forwards.items()):
                if before.get(key) is not made:
                    await self.forwards.pop(key).close()
            raise
        told = {"listen": found[0].listen if len(found) == 1 else listen, "to": to}
        return told if len(found) == 1 else {**told, "listens": [each.listen for each in found]}

    def _check_provider(self, to: str, trusted: tuple[str, ...]) -> None:
        """Raise NameDisputed or NameChanged where a service's name alone means no node; ConfigError, InvalidId."""
        peer, service = parse_service(to)
        stack = runtime_of(self._node).stack
        if peer is None and not trusted and stack.registry is not None:
            stack.registry.provider(service, stack.context.clock.monotonic())

    async def unforward(self, listen: str) -> dict[str, Any]:
        """Stop a forward, named by its listen address (``HOST:PORT``, ``unix:PATH``), or by its port or path alone.

        Its connections are dropped. Returns the listen address as plain JSON. Raises NotFound.
        """
        found = [self._find_forward(text) for _, (text,) in expanded([listen])]
        for where in found:
            await self.forwards.pop(where).close()
        await self._save()
        return {"listen": found[0] if len(found) == 1 else listen}

    def _find_forward(self, text: str) -> str:
        with suppress(ConfigError):
            if (where := str(parse_listen(text))) in self.forwards:
                return where
        found = next((where for where in self.forwards if where.endswith(f":{text}")), None)
        if found is None:
            port = text.rpartition(":")[2]
            there = [where for where in self.forwards if where.endswith(f":{port}")]
            hint = f"meshnode unforward {there[0]}" if there else "`meshnode forwards` lists what is"
            raise NotFound(f"nothing is forwarded from {quoted(text)}", hint=hint)
        return found

    async def drain(self, seconds: float) -> None:
        """Let every user of what is exposed go on elsewhere: a service is withdrawn, then refused, then ended.

        News of the withdrawal has a second to spread, and the connections have all ``seconds`` to end by themselves.
        Where no node is connected it all ends at once.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        for expose in self.exposes.values():
            expose.withdraw()
        if self.exposes and self._node.peers():
            await asyncio.sleep(min(SPREAD_S, seconds))
        await asyncio.gather(*(expose.end(end - loop.time()) for expose in self.exposes.values()))

    async def close(self) -> None:
        """Stop everything; the file stays.

        The next start on the same home restores what was exposed and forwarded.
        """
        for forward in self.forwards.values():
            await forward.close()
        for expose in self.exposes.values():
            expose.close()


def _parse(data: bytes) -> tuple[list[Any], list[Any]]:
    """Return the items of a saved file: exposes and forwards. Raises ValueError, AttributeError."""
    saved = json.loads(data)
    exposes, forwards = saved.get("exposes", []), saved.get("forwards", [])
    if not isinstance(exposes, list) or not isinstance(forwards, list):
        raise ValueError("no lists of services")
    return exposes, forwards
