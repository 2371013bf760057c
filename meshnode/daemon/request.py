"""Typed requests of the control socket: one frozen class of fields a command, and its handler is a method of it.

The command line makes one, ``encode`` writes it, ``parse`` reads and checks it in the daemon, ``answer`` answers it. A
new request is a class in ``daemon/requests/`` with ``@request("name")``; nothing else has to know it. The command line
loads these modules too, so that what is heavy (the node, asyncio) is imported where it is used.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from meshnode.base.settings import is_number
from meshnode.base.value import frozen
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from meshnode.daemon.carry import Carried
    from meshnode.daemon.carry_flow import CarriedFlow
    from meshnode.daemon.context import Daemon

Json = dict[str, Any]
TYPE_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
MAX_DEPTH = 8  # of a request's arrays and objects; ours nest 3, and a parser must not be led into deep recursion
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
BRACKET = re.compile(rb"[\[\]{}]")
VERSION_HINT = "are both ends of one version? restart the node"


class Request(ABC):
    """A question to the running node of a home.

    Attributes:
        method: Its name on the control socket.
        endless: True when the answer ends only with its client.
        carries: True when the connection of the answer carries a stream or a flow then.
    """

    __slots__ = ()
    method: ClassVar[str]
    endless: ClassVar[bool] = False
    carries: ClassVar[bool] = False

    @abstractmethod
    def answer(self, daemon: Daemon) -> AsyncIterator[Json | Carried | CarriedFlow]:
        """Yield the results, each a JSON object; a handler may end with a stream that is to be carried.

        A MeshError is told to the client with its code, an OSError as what the system refused; anything else that is
        raised is a fault of this program.
        """


R = TypeVar("R", bound=Request)
_known: dict[str, type[Request]] = {}


@dataclass_transform(frozen_default=True)
def request(method: str, *, endless: bool = False, carries: bool = False) -> Callable[[type[R]], type[R]]:
    """Make a class a frozen value that answers ``method``."""

    def register(kind: type[R]) -> type[R]:
        made = frozen(kind)
        made.method, made.endless, made.carries = method, endless, carries
        _known[method] = made
        return made

    return register


@cache
def known_requests() -> Mapping[str, type[Request]]:
    """Import every module of ``daemon/requests/`` and return the requests by name.

    The daemon calls it before the node starts, for the imports would hold up its loop; a command imports only the
    module of its own request.
    """
    from pkgutil import iter_modules

    package = import_module("meshnode.daemon.requests")
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)
    return _known


def encode(asked: Request) -> bytes:
    """Return the line of a request: ``{"method", "arguments"}`` as JSON, ended by a newline.

    Every field is written, defaults too, so that the daemon's version need not have the same ones.
    """
    arguments = {field.name: getattr(asked, field.name) for field in fields(asked)}  # type: ignore[arg-type]
    return json.dumps({"method": asked.method, "arguments": arguments}).encode() + b"\n"


def parse(line: bytes) -> Request:
    """Return the request that a line holds.

    Raises MeshError for everything that is none.
    """
    try:
        found = json.loads(line) if nesting(line) <= MAX_DEPTH else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("arguments"), dict):
        raise MeshError("bad request: a line is {method, arguments}", hint=VERSION_HINT)
    return build(str(found.get("method")), found["arguments"])


def nesting(line: bytes) -> int:
    """Return how deep the arrays and objects of a JSON text are nested, without parsing it."""
    deepest = depth = 0
    for bracket in BRACKET.findall(STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def build(method: str, arguments: Mapping[str, object]) -> Request:
    """Make the request of a method from JSON values.

    Args:
        method: The name on the control socket.
        arguments: Its fields by name. Those with a default may be missing; lists become tuples.

    Raises:
        MeshError: The method or a field is unknown, one is missing, or a value is not of its field's type.
    """
    kind = known_requests().get(method)
    if kind is None:
        raise MeshError(f"the running node knows no {method!r}", hint="is it an older version? restart it")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in arguments:
        if name not in known:
            raise MeshError(f"bad request: {method} has no {name!r}", hint=VERSION_HINT)
    for name, field in known.items():
        if name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise MeshError(f"bad request: {method} needs {name!r}", hint=VERSION_HINT)
    hints = get_type_hints(kind)
    values = {name: _checked(f"{name} of {method}", value, hints[name]) for name, value in arguments.items()}
    return kind(**values)


def _checked(name: str, value: object, kind: Any) -> Any:
    """Return a JSON value as the type of a field: a plain type, one or null, a tuple or a dict. Raises MeshError."""
    parts = get_args(kind)
    match get_origin(kind):
        case None if _is(value, kind):
            return _utf8(name, value) if isinstance(value, str) else value
        case origin if origin is UnionType:
            return None if value is None else _checked(name, value, parts[0])
        case origin if origin is tuple and isinstance(value, list | tuple):
            return tuple(_checked(f"each {name}", item, parts[0]) for item in value)
        case origin if origin is dict and isinstance(value, dict):
            return {
                _utf8(f"a key of {name}", key): _checked(f"{key!r} in {name}", item, parts[1])
                for key, item in value.items()
            }
    words = {tuple: "a list", dict: "an object"}.get(get_origin(kind)) or TYPE_WORDS[kind]
    raise MeshError(f"bad request: {name} is {words}, not {value!r:.40}", hint=VERSION_HINT)


def _utf8(name: str, text: str) -> str:
    """Return a text that can be sent. Raises MeshError: an argument had bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{name} is not UTF-8: {text!r:.80}"
        raise MeshError(message, hint="does the terminal, or the file it comes from, use another encoding?") from error
    return text


def _is(value: object, kind: type) -> bool:
    """Tell a switch from a number, as JSON does; a whole number is a number, too."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) and is_number(value) if kind is float else isinstance(value, kind)
