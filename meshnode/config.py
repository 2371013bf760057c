"""Settings: flags beat the environment, the environment beats ``meshnode.toml``, which beats the defaults."""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

from meshnode.base.address import Addr, parse_addr
from meshnode.base.limits import MAX_RECORD
from meshnode.base.refusals import refusal
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.node_id import NAME_FORM, NodeId, label_of, quoted

log = logging.getLogger("meshnode.config")

FILE_NAME = "meshnode.toml"
PREFIX = "MESHNODE_"
OTHER_VARIABLES = ["MESHNODE_HOME", "MESHNODE_KEY_FILE"]  # variables that are no settings
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Seed:
    """A node that others may begin with; ``host`` is an address or a name."""

    id: NodeId
    host: str
    port: int


def parse_seed(text: str) -> Seed:
    """Parse ``ID@HOST:PORT``: 52 characters, a name or an IP address (IPv6 in brackets), a port from 1 to 65535.

    Names are not looked up here. Raises ConfigError, with a hint that says how a seed is written.
    """
    id_text, at, where = text.partition("@")
    host, colon, port = where.rpartition(":")
    hint = "a seed is written ID@HOST:PORT; `meshnode id` there prints the id"
    if not at or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is not a seed", hint=hint)
    try:
        return Seed(NodeId.parse(id_text), host.strip("[]"), int(port))
    except InvalidId as error:
        raise ConfigError(f"{text!r}: {error.message}", hint=hint) from error


def parse_allow(allow: Iterable[str | NodeId]) -> frozenset[NodeId] | None:
    """Return the ids that are allowed, None when ``any`` is among them: every member.

    Raises InvalidId for text that is no id, and ConfigError for ``role:...``, which this version does not have.
    """
    ids = set()
    for item in allow:
        if item == "any":
            return None
        if isinstance(item, str) and item.startswith("role:"):
            raise ConfigError(
                f"{item}: roles need a mesh authority, which this version does not have", hint="name ids instead"
            )
        ids.add(NodeId.parse(item))
    return frozenset(ids)


def parse_record_text(text: str) -> bytes:
    """Return the bytes of a record in base64 (RFC 4648 section 4), at most ``MAX_RECORD`` of them.

    Its signature and its age are checked when it is used, as those of every record. Raises ConfigError for other text.
    """
    try:
        encoded = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ConfigError(
            "a record in `records` is damaged", hint="base64 of `node.record.encoded`, all of it"
        ) from error
    if not 0 < len(encoded) <= MAX_RECORD:
        raise ConfigError("a record in `records` has the wrong length", hint=f"at most {MAX_RECORD} bytes in base64")
    return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one node: frozen, all by keyword, checked when it is made.

    ``Config.load`` merges ``HOME/meshnode.toml``, the environment (``MESHNODE_LISTEN`` and so on) and arguments.

    Attributes:
        home: The directory of the node's key, state and control socket; one node a home.
        listen: Where the UDP socket is bound, ``HOST:PORT``. ``[::]`` takes IPv6 and IPv4; port 0 is any free one.
        mesh: The mesh to be in: a public name, or a secret key that begins with ``mk-``.
        name: What other nodes may call this one, 1 to 40 of a-z, 0-9 and inner hyphens.
        seeds: Nodes to begin with, each ``ID@HOST:PORT``.
        records: Signed records of nodes to begin with, each the base64 of ``node.record.encoded``; no seed is needed.
            They expire two hours after they were signed.
        mdns: Find nodes on the LAN, and be found there.
        port_mapping: Ask the router for a port (PCP, NAT-PMP, UPnP) in the background, and give it back at the end.
            What is granted is in ``node.record`` and ``node.status()["nat"]["mappings"]``. Off on a loopback address.
        upnp: Use UPnP for it too.
        dht: Store and look up records in the mesh's DHT.
        gossip: Take part in membership, services, names and topics.
        engine: The QUIC implementation: ``auto`` (which is aioquic), ``aioquic`` or ``qh3`` (``pip install
            'meshnode[fast]'``), a fork with a Rust core: it moves two to three times as much and echoes in half the
            time. It sends datagrams of 1,200 bytes whatever the path carries, and small messages sent faster than ten a
            round trip wait for its pacer until its window has grown; aioquic does neither. Nodes with different engines
            understand one another.
        passphrase: Opens the key file, and encrypts a new one.
        key: The secret key itself, 64 hex digits, instead of the key file.
        advertise: More addresses to publish, each ``HOST:PORT``: a forwarded port, say.
        allow: The ids of the nodes that may connect at all, or ``any`` for every member.
        idle_timeout: Seconds until a connection without an answer is given up, at least 1; ``inf`` never.
        seed_role: Be a node that others begin with: keep many more records, relay unless ``relay`` says otherwise.
        tunnel: Use WebSockets where UDP is blocked and, on a relay, offer them.
        relay: Carry packets of other nodes: ``auto`` (on for seeds), ``on`` or ``off``.
        relay_allow: The ids of the nodes to relay for, or ``any`` for every member.
        relay_mb_per_s: The most that is relayed for one node, in megabytes a second.
        relay_total_mb_per_s: The most that is relayed for all together.

    Raises:
        ConfigError: A setting is wrong; the hint says how to write it.
        InvalidId: Something in ``allow`` or ``relay_allow`` is no id.
    """

    home: Path | str
    listen: str = "[::]:0"
    mesh: str = field(default="open", repr=False)
    name: str = ""
    seeds: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    mdns: bool = True
    port_mapping: bool = True
    upnp: bool = True
    dht: bool = True
    gossip: bool = True
    engine: str = "auto"
    passphrase: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    advertise: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("any",)
    idle_timeout: float = 600.0
    seed_role: bool = False
    tunnel: bool = True
    relay: str = "auto"
    relay_allow: tuple[str, ...] = ("any",)
    relay_mb_per_s: float = 10.0
    relay_total_mb_per_s: float = 50.0

    def __post_init__(self) -> None:
        if not str(self.home):
            raise ConfigError("home is empty", hint="name a directory, as ~/.meshnode")
        object.__setattr__(self, "home", Path(self.home).expanduser().absolute())
        for item in fields(self):
            if item.name != "home":
                object.__setattr__(self, item.name, _checked(item.name, str(item.type), getattr(self, item.name)))
        if not self.mesh:
            raise ConfigError("mesh is empty", hint='name a mesh, or leave it out for the public one, "open"')
        self._check_addresses()
        self._check_relay()
        self._check_name()
        for node in self.allow + self.relay_allow:
            if node != "any":
                NodeId.parse(node)
        if not self.idle_timeout >= 1:
            raise ConfigError("idle_timeout is at least 1 second", hint="the default is 600; inf never ends one")

    def _check_name(self) -> None:
        label = label_of(self.name)
        if self.name and label is None:
            raise ConfigError(f"{quoted(self.name)} is no name for a node", hint=NAME_FORM)
        object.__setattr__(self, "name", label or "")

    def _check_addresses(self) -> None:
        try:
            parse_addr(self.listen)
            for text in self.advertise:
                parse_addr(text)
        except ValueError as error:
            raise ConfigError(str(error), hint="as in 0.0.0.0:4242 or [::]:0") from error
        for text in self.seeds:
            parse_seed(text)
        for text in self.records:
            parse_record_text(text)

    def _check_relay(self) -> None:
        if self.relay not in ("auto", "on", "off"):
            raise ConfigError(f"relay = {self.relay!r}", hint="auto (on for seeds), on, or off")
        if self.relay_mb_per_s <= 0 or self.relay_total_mb_per_s <= 0:
            raise ConfigError("a relay's limits are above 0", hint='relay = "off" turns it off')

    @property
    def home_path(self) -> Path:
        """``home`` as an absolute path."""
        return Path(self.home)

    @property
    def is_relay(self) -> bool:
        """True when this node relays for others."""
        return self.relay == "on" or (self.relay == "auto" and self.seed_role)

    @property
    def listen_addr(self) -> Addr:
        """``listen``, parsed."""
        return parse_addr(self.listen)

    @classmethod
    def load(
        cls,
        home: Path | str,
        flags: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Config:
        """Make the settings of a home: arguments beat the environment, which beats ``HOME/meshnode.toml``.

        Args:
            home: The directory.
            flags: Settings by name; those that are None are left out.
            env: The environment; ``os.environ`` by default.

        Raises:
            ConfigError: A setting is wrong or unknown, or a file cannot be read.
        """
        env = os.environ if env is None else env
        known = {f.name: f for f in fields(cls) if f.name != "home"}
        values = _read_file(Path(home).expanduser() / FILE_NAME, known)
        _warn_of_unknown(env, known)
        for name, item in known.items():
            if (text := env.get(PREFIX + name.upper())) is not None:
                values[name] = _from_text(name, str(item.type), text)
        if "key" not in values and (secret := key_of_environment(env)) is not None:
            values["key"] = secret
        values.update(_given(flags or {}))
        return cls(home=home, **values)  # type: ignore[arg-type]


def _given(flags: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value is not None}


def _read_file(path: Path, known: Iterable[str]) -> dict[str, object]:
    """Return what a settings file says; nothing when there is none. Raises ConfigError."""
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        reason, hint = refusal(error, path)
        raise ConfigError(f"cannot read {path}: {reason}", hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"{path} is no text", hint="write it in UTF-8, or move it away") from error
    import tomllib  # 0.6 MB: only where there is such a file

    try:
        values = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", hint="mend the file, or move it away") from error
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}", hint=_similar(name, known))
    return values


def _similar(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"


def _warn_of_unknown(env: Mapping[str, str], known: Iterable[str]) -> None:
    names = [PREFIX + name.upper() for name in known] + OTHER_VARIABLES
    for name in env:
        if name.startswith(PREFIX) and name not in names:
            log.warning("%s in the environment is no setting: %s", name, _similar(name, names))


def key_of_environment(env: Mapping[str, str]) -> str | None:
    """Return what ``MESHNODE_KEY`` or, without it, the file of ``MESHNODE_KEY_FILE`` holds; None without both.

    It is not checked here whether that is a key. Raises ConfigError when the file cannot be read.
    """
    text, secret = env.get("MESHNODE_KEY"), env.get("MESHNODE_KEY_FILE")
    if text is not None or secret is None:
        return text
    try:
        return Path(secret).read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"MESHNODE_KEY_FILE: there is no {secret}", hint="is the secret mounted there?") from error
    except OSError as error:
        reason, hint = refusal(error, secret)
        raise ConfigError(f"MESHNODE_KEY_FILE: cannot read {secret}: {reason}", hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"MESHNODE_KEY_FILE: {secret} is no text", hint="is it a key file of meshnode?") from error


def _checked(name: str, kind: str, value: object) -> object:
    """Return the value in its own type; a file can hold any. Raises ConfigError."""
    if kind.startswith("tuple"):
        return _checked_list(name, value)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is a switch, not {value!r}", hint=f"write {name} = true, or false")
    if kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is a number of seconds, not {value!r}", hint=f"write {name} = 600")
    if isinstance(value, str) or (value is None and kind.endswith("None")):
        return value
    raise ConfigError(f"{name} is a text, not a {type(value).__name__}", hint=f'write {name} = "..."')


def _checked_list(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ConfigError(f"{name} is a list of texts", hint=f'write {name} = ["..."]')


def _from_text(name: str, kind: str, text: str) -> object:
    if kind.startswith("tuple"):
        return tuple(part for part in text.replace(",", " ").split() if part)
    if kind == "bool":
        if text.lower() not in TRUE + FALSE:
            raise ConfigError(f"MESHNODE_{name.upper()}={text!r} is neither on nor off", hint="write 1 or 0")
        return text.lower() in TRUE
    if kind == "float":
        try:
            return float(text)
        except ValueError as error:
            raise ConfigError(f"MESHNODE_{name.upper()}={text!r} is not a number", hint="seconds, as in 600") from error
    return text
