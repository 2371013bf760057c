"""Settings: flags beat the environment, the environment beats ``meshnode.toml``, which beats the defaults."""

from __future__ import annotations

import base64
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, field, fields
from pathlib import Path

from meshnode.base.address import Addr, canonical_host, is_dialable, parse_addr, parse_host, parse_port
from meshnode.base.clock import SystemClock
from meshnode.base.files import read_given, without_tilde
from meshnode.base.limits import MAX_RECORD, MAX_SETTINGS
from meshnode.base.refusals import refusal
from meshnode.base.settings import checked, from_text
from meshnode.base.value import frozen
from meshnode.base.wake_url import check_wake
from meshnode.errors import ConfigError, InvalidId
from meshnode.identity.mesh_file import IS_FILE, KEY_PREFIX, read_mesh_key
from meshnode.identity.node_id import NAME_FORM, NodeId, label_of, quoted
from meshnode.trust.parties import parse_parties

log = logging.getLogger("meshnode.config")

FILE_NAME = "meshnode.toml"
PREFIX = "MESHNODE_"
OTHER_VARIABLES = [  # variables that are no settings
    "MESHNODE_HOME",
    "MESHNODE_AUTHORITY_KEY",
    "MESHNODE_AUTHORITY_PASSPHRASE",
    "MESHNODE_KEY_FILE",
    "MESHNODE_TICKET",
    "MESHNODE_TICKET_FILE",
]
FUNCTION = {"MDNS": "0", "GOSSIP": "0", "PORT_MAPPING": "0", "AUDIT": "0", "RELAY": "off"}  # Config.for_function


@frozen
class Seed:
    """A node that others may begin with; ``host`` is an address or a name."""

    id: NodeId
    host: str
    port: int


def parse_seed(text: str) -> Seed:
    """Parse ``ID@HOST:PORT``: 52 characters, a name or an IP address (IPv6 in brackets), a port from 1 to 65535.

    Names are not looked up here. Raises ConfigError, with a hint that says how a seed is written.
    """
    id_text, at, where = text.strip().partition("@")
    host, colon, port = where.rpartition(":")
    hint = "a seed is written ID@HOST:PORT; `meshnode id` there prints the id"
    name, number = parse_host(host), parse_port(port)
    if not at or not colon or not name or not number:
        raise ConfigError(f"{quoted(text)} is not a seed", hint=hint)
    if not _may_be_one_host(name, number):
        where = "write the address, or the name, by which other hosts reach the seed"
        raise ConfigError(f"{name} in a seed is no address of one host", hint=where)
    try:
        return Seed(NodeId.parse(id_text), name, number)
    except InvalidId as error:
        raise ConfigError(f"{quoted(text)}: {error.message}", hint=hint) from error


def _may_be_one_host(host: str, port: int) -> bool:
    """Return whether a host is a name, or an address that a datagram can be sent to: not 0.0.0.0, say."""
    try:
        return is_dialable(Addr(canonical_host(host), port))
    except ValueError:
        return True


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


@frozen
class Config:
    """The settings of one node: frozen, all by keyword, checked when it is made.

    ``Config(home=...)`` reads neither the file of the home nor the environment: it is what the arguments say. Call
    ``Config.load(home)`` for what the command line would use: it merges ``HOME/meshnode.toml``, the environment
    (``MESHNODE_LISTEN`` and so on) and arguments.

    Attributes:
        home: The directory of the node's key, state and control socket; one node a home.
        listen: Where the UDP socket is bound, ``HOST:PORT``. ``[::]`` takes IPv6 and IPv4; port 0 is any free one.
        mesh: The mesh to be in: a public name, ``@FILE`` for the secret key that a file holds (``meshnode keygen --mesh
            FILE`` makes one), or that key itself, which begins with ``mk-``.
        authority: The id of the mesh's authority, at which the grants of all its nodes begin. ``meshnode mesh create``
            and ``join`` write it into the home.
        admit: ``grant``: in a mesh with an authority only nodes with a valid grant may connect; ``mesh-secret``: all
            that have the mesh's secret, and grants only give roles.
        duplicate: What is done when two processes run with this node's key, a container that was started twice, say:
            with ``newest`` the older one stands down and serves nothing, with ``first`` the newcomer does. It goes on
            when the other one is gone. Both homes say the same.
        revocation_wait: Seconds for which a node that was off, asleep or cut off for over 5 minutes lets the streams
            of peers wait, at most: until enough others, and the DHT, have told what is revoked. 0 serves at once.
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
        engine: The QUIC implementation: ``auto``, ``qh3`` or ``aioquic``. ``auto`` is qh3, a fork of aioquic with a
            Rust core, where it is installed: it moves three times as much and echoes in half the time. Elsewhere it is
            aioquic, the reference. ``MESHNODE_ENGINE`` in the environment says what ``auto`` is. Nodes with different
            engines understand one another; the one in use is in ``node.status()["engine"]``.
        post_quantum: The key exchange of connections: ``on`` is X25519MLKEM768, a hybrid of ML-KEM-768 and X25519 that
            a quantum computer does not break, with every peer that has it, and X25519 with others; ``off`` is X25519
            alone; ``required`` is the hybrid alone. ``connection.key_exchange`` is what was negotiated.
        passphrase: Opens the key file, and encrypts a new one.
        key: The secret key itself, 64 hex digits, instead of the key file.
        advertise: More addresses to publish, each ``HOST:PORT``: a forwarded port, say.
        allow: The nodes that may connect: ids, ``role:R`` for those that a grant gives that role, or ``any`` for every
            member. It holds whichever end dialled: other nodes get no service, and this node connects to no other than
            its seeds by itself.
        idle_timeout: Seconds until a connection without an answer is given up, at least 1; ``inf`` never. When a
            peer was killed or cut off, its streams end after this time with ``PeerSilent``, and a forward resets its
            TCP clients. The smaller setting of both ends counts. A peer that comes back earlier is noticed at once.
        seed_role: Be a node that others begin with: keep many more records, relay unless ``relay`` says otherwise.
        role: ``node``, or ``leaf`` for a device at the edge: it has one or two links, with its seeds where they answer,
            sends some 10 bytes a second at rest, and stores, relays and watches nothing for others.
        tunnel: Use WebSockets where UDP is blocked and, on a relay, offer them.
        relay: Carry packets of other nodes: ``auto`` (on for seeds), ``on`` or ``off``.
        relay_allow: The nodes to relay for: ids, ``role:R``, or ``any`` for every member.
        relay_mb_per_s: The most that is relayed for one node, in megabytes a second.
        relay_total_mb_per_s: The most that is relayed for all together.
        drain: How many seconds ``meshnode up`` gives the connections of its services when it is told to end: callers
            by name go on to other instances meanwhile, and none of their requests fails. A second signal ends at once.
        wake: An ``https`` URL that others may call to start this node where it sleeps: a function, a container that is
            scaled to zero. It stands in the record, which then holds for a day.
        wake_allow: Where this node may make such calls for peers that do not answer: hosts (``fn.example.org``,
            ``fn.example.org:8443``), all names below a domain (``.example.org``), or ``any``; with no entry, nowhere.
            Only public addresses are called, and those in networks that are named too (``10.0.0.0/8``).
        audit: Keep the audit log, at most 16 MB: connections, refusals, services opened, policies.

    Raises:
        ConfigError: A setting is wrong; the hint says how to write it.
        InvalidId: Something in ``allow`` or ``relay_allow`` is no id.
    """

    _: KW_ONLY
    home: Path | str
    listen: str = "[::]:0"
    mesh: str = field(default="open", repr=False)
    authority: str = ""
    admit: str = "grant"
    duplicate: str = "newest"
    revocation_wait: float = 5.0
    name: str = ""
    seeds: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    mdns: bool = True
    port_mapping: bool = True
    upnp: bool = True
    dht: bool = True
    gossip: bool = True
    engine: str = "auto"
    post_quantum: str = "on"
    passphrase: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    advertise: tuple[str, ...] = ()
    allow: tuple[str, ...] = ("any",)
    idle_timeout: float = 600.0
    seed_role: bool = False
    role: str = "node"
    tunnel: bool = True
    relay: str = "auto"
    relay_allow: tuple[str, ...] = ("any",)
    relay_mb_per_s: float = 10.0
    relay_total_mb_per_s: float = 50.0
    drain: float = 0.0
    wake: str = ""
    wake_allow: tuple[str, ...] = ()
    audit: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.home, str | os.PathLike):
            raise ConfigError(
                f"home is a path, not {type(self.home).__name__}", hint="name a directory, as ~/.meshnode"
            )
        if not str(self.home) or "\0" in str(self.home):
            what = "has a zero byte" if str(self.home) else "is empty"
            raise ConfigError(f"home {what}", hint="name a directory, as ~/.meshnode")
        object.__setattr__(self, "home", expanded(self.home))
        word = self.post_quantum
        if isinstance(word, bool) or word in ("true", "false"):  # a switch, as it may be written too
            object.__setattr__(self, "post_quantum", "on" if word in (True, "true") else "off")
        for item in fields(self):
            if item.name != "home":
                object.__setattr__(self, item.name, checked(item.name, str(item.type), getattr(self, item.name)))
        if not self.mesh:
            raise ConfigError("mesh is empty", hint='name a mesh, or leave it out for the public one, "open"')
        if self.mesh.startswith(IS_FILE):
            object.__setattr__(self, "mesh", read_mesh_key(without_tilde(self.mesh[len(IS_FILE) :])))
        self._check_authority()
        self._check_addresses()
        self._check_relay()
        self._check_post_quantum()
        self._check_name()
        check_wake(self.wake, self.wake_allow)
        for nodes in (self.allow, self.relay_allow):
            parse_parties(nodes, names=False)
        if self.duplicate not in ("newest", "first"):
            raise ConfigError(f"duplicate = {self.duplicate!r}", hint="newest, or first")
        if not 0 <= self.revocation_wait <= 3600:
            raise ConfigError(f"revocation_wait = {self.revocation_wait!r}", hint="0 to 3600 seconds; the default is 5")
        if not 0 <= self.drain <= 3600:
            raise ConfigError(f"drain = {self.drain!r}", hint="0 to 3600 seconds; the default is 0")
        if not self.idle_timeout >= 1:
            raise ConfigError("idle_timeout is at least 1 second", hint="the default is 600; inf never ends one")

    def _check_authority(self) -> None:
        if self.admit not in ("grant", "mesh-secret"):
            raise ConfigError(f"admit = {self.admit!r}", hint="grant, or mesh-secret")
        if self.authority:
            NodeId.parse(self.authority)

    def _check_name(self) -> None:
        label = label_of(self.name)
        if self.name and label is None:
            raise ConfigError(f"{quoted(self.name)} is no name for a node", hint=NAME_FORM)
        object.__setattr__(self, "name", label or "")

    def _check_addresses(self) -> None:
        try:
            _, *advertised = map(parse_addr, (self.listen, *self.advertise))
        except ValueError as error:
            raise ConfigError(str(error), hint="as in 0.0.0.0:4242 or [::]:0") from error
        if not all(map(is_dialable, advertised)):  # every reader would refuse the record that names it
            hint = "write the address and the port by which other hosts reach this node"
            raise ConfigError("advertise names what is no address of one host", hint=hint)
        for text in self.seeds:
            parse_seed(text)
        for text in self.records:
            parse_record_text(text)

    def _check_relay(self) -> None:
        if self.relay not in ("auto", "on", "off"):
            raise ConfigError(f"relay = {self.relay!r}", hint="auto (on for seeds), on, or off")
        if self.role not in ("node", "leaf"):
            raise ConfigError(f"role = {self.role!r}", hint="node, or leaf; `meshnode seed` runs a seed")
        if self.role == "leaf" and (self.is_relay or self.seed_role):
            raise ConfigError("a leaf is neither a seed nor a relay", hint='leave out seed_role and relay = "on"')
        if self.relay_mb_per_s <= 0 or self.relay_total_mb_per_s <= 0:
            raise ConfigError("a relay's limits are above 0", hint='relay = "off" turns it off')

    def _check_post_quantum(self) -> None:
        if self.post_quantum not in ("on", "off", "required"):
            raise ConfigError(f"post_quantum = {self.post_quantum!r}", hint="on, off, or required (of every peer)")

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

        Returns:
            The settings.

        Raises:
            ConfigError: A setting is wrong or unknown, or a file cannot be read.
        """
        env = os.environ if env is None else env
        known = {f.name: f for f in fields(cls) if f.name != "home"}
        path = expanded(home) / FILE_NAME
        values = _read_file(path, known)
        places = {name: f"{path}: {name}: " for name in values}
        for warning in unknown_variables(env):
            log.warning("%s", warning)
        for name, item in known.items():
            if (text := env.get(PREFIX + name.upper())) is not None:
                values[name] = from_text(name, str(item.type), text)
                places[name] = f"{PREFIX}{name.upper()}: "
        values = _with_mesh_of(expanded(home), values, flags or {})
        if "key" not in values and (secret := key_of_environment(env)) is not None:
            values["key"] = secret
        given = _given(flags or {})
        values.update(given)
        try:
            return cls(home=home, **values)  # type: ignore[arg-type]
        except (ConfigError, InvalidId) as error:
            culprit = cls._culprit(home, values)
            place = places.get(culprit, "") if culprit not in given else ""
            raise type(error)(place + error.message, hint=error.hint) from error

    @classmethod
    def for_function(
        cls, home: Path | str | None = None, *, env: Mapping[str, str] | None = None, **settings: object
    ) -> Config:
        """Make the settings of a short-lived process that calls others: a serverless function, a job of a CI system.

        Nothing is announced and nothing is kept: one UDP socket, no mDNS, no port mapping, no gossip, no audit log, and
        the DHT only where no ``records`` are given. So peers are named by id, as names are found by gossip. A peer in
        ``seeds`` or ``records`` is dialled at once, without any lookup.

        Settings of the environment (``MESHNODE_SEEDS`` and so on) and arguments beat these. The key is that of
        ``MESHNODE_KEY`` or of the file ``MESHNODE_KEY_FILE``, a mounted secret say; without one a new key is made,
        which is forgotten at the end. With a ticket in ``MESHNODE_TICKET``, or in the file ``MESHNODE_TICKET_FILE``,
        the node is in the ticket's mesh, by a grant that it makes for itself, offline. Processes that run at the same
        time must not share a key.

        Args:
            home: A home to use, as ``load`` does; then the ticket is not. By default a folder in ``TMPDIR`` that the
                process removes at its end.
            env: The environment; ``os.environ`` by default.
            settings: Settings by name.

        Returns:
            The settings.

        Raises:
            ConfigError: A setting or the ticket is wrong.
            KeyFileError: The key is none.
            GrantError: The ticket has expired, or does not hold.

        Example:

            config = meshnode.Config.for_function(seeds=["ID@192.0.2.7:4242"])  # when the process starts
        """
        env = os.environ if env is None else env
        defaults = {PREFIX + name: value for name, value in FUNCTION.items()}
        if settings.get("records") or env.get("MESHNODE_RECORDS"):
            defaults["MESHNODE_DHT"] = "0"
        if home is None:
            from meshnode.trust.function_home import make_function_home

            folder = Path(env.get("TMPDIR") or "/tmp")
            key, ticket = (
                key_of_environment(env),
                _secret_of_environment(env, "TICKET", "one line that `invite` printed"),
            )
            home, settings["key"] = make_function_home(folder, key, ticket, SystemClock().wall(), secrets.token_bytes)
        return cls.load(home, settings, {**defaults, **env})

    @classmethod
    def _culprit(cls, home: Path | str, values: Mapping[str, object]) -> str:
        """Return the name of the setting that is wrong by itself; "" when none is."""
        for name, value in values.items():
            try:
                cls(home=home, **{name: value})  # type: ignore[arg-type]
            except (ConfigError, InvalidId):
                return name
        return ""


def _with_mesh_of(home: Path, values: dict[str, object], flags: Mapping[str, object]) -> dict[str, object]:
    """Add the mesh that was made or joined in a home, unless a setting or an argument names a mesh."""
    if "mesh" in values or flags.get("mesh") is not None:
        return values
    from meshnode.trust.home_mesh import load_mesh

    found = load_mesh(home)
    if found is None:
        return values
    seeds = values.get("seeds")
    kept = tuple(seeds) if isinstance(seeds, list | tuple) else ()
    return {**values, "mesh": found.key, "authority": str(found.authority), "seeds": (*kept, *found.seeds)}


def expanded(home: Path | str) -> Path:
    """Return a home as an absolute path, ``~`` replaced.

    Raises ConfigError: this user has no home directory.
    """
    try:
        return Path(home).expanduser().absolute()
    except RuntimeError as error:
        hint = "name one: --home DIR, or MESHNODE_HOME=DIR"
        raise ConfigError("this user has no home directory", hint=hint) from error


def _given(flags: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in flags.items() if value is not None}


def _read_file(path: Path, known: Iterable[str]) -> dict[str, object]:
    """Return what a settings file says; nothing when there is none. Raises ConfigError.

    A secret in a file that other users may read is warned of. ``mesh = "@FILE"`` is relative to the settings file.
    """
    try:
        data, mode = read_given(path, MAX_SETTINGS)
        text = data.decode("utf-8-sig")  # some editors begin a file with a mark
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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}", hint="mend the file, or move it away") from error
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}", hint=_similar(name, known))
    mesh = str(values.get("mesh", ""))
    if mesh.startswith(IS_FILE):
        values["mesh"] = IS_FILE + str(path.parent / without_tilde(mesh[len(IS_FILE) :]))
    secret = [name for name in ("key", "passphrase") if name in values] + ["mesh"] * mesh.startswith(KEY_PREFIX)
    if secret and mode & 0o077:
        log.warning("others may read %s, which holds %s: chmod 600 %s", path, " and ".join(secret), path)
    return values


def _similar(name: str, known: Iterable[str], prefix: str = "") -> str:
    from difflib import get_close_matches  # only for a mistake

    close = get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(prefix + found for found in close)}?"
    return f"known are {', '.join(prefix + found for found in known)}"


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Return a sentence on each ``MESHNODE_*`` variable that is none, with those that are spelt like it.

    They are no errors: a variable may be for another version, or for a program of its user's.
    """
    known = [item.name.upper() for item in fields(Config) if item.name != "home"]
    known += [name.removeprefix(PREFIX) for name in OTHER_VARIABLES]
    found = [name.removeprefix(PREFIX) for name in env if name.startswith(PREFIX)]
    return [
        f"{PREFIX}{name} in the environment is no setting: {_similar(name, known, PREFIX)}"
        for name in found
        if name not in known
    ]


def key_of_environment(env: Mapping[str, str]) -> str | None:
    """Return what ``MESHNODE_KEY`` or, without it, the file of ``MESHNODE_KEY_FILE`` holds; None without both.

    It is not checked here whether that is a key. Raises ConfigError when the file cannot be read.
    """
    return _secret_of_environment(env, "KEY", "a key file of meshnode")


def _secret_of_environment(env: Mapping[str, str], name: str, what: str) -> str | None:
    text, variable = env.get(PREFIX + name), f"{PREFIX}{name}_FILE"
    secret = env.get(variable)
    if text is not None or secret is None:
        return text
    try:
        return read_given(Path(secret), MAX_SETTINGS)[0].decode(errors="replace")
    except FileNotFoundError as error:
        raise ConfigError(f"{variable}: there is no {secret}", hint="is the secret mounted there?") from error
    except OSError as error:
        reason, hint = refusal(error, secret)
        raise ConfigError(f"{variable}: cannot read {secret}: {reason}", hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"{variable}: {secret} is no text", hint=f"is it {what}?") from error
