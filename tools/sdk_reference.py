"""Write ``docs/reference/sdk.md`` from the docstrings and signatures of ``meshnode``'s public names.

``python -m tools.sdk_reference`` writes the page; with ``--check`` it only says whether the page is up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import meshnode
from meshnode.errors import MeshError

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "sdk.md"
SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns")
ALL = "all"

# The order of the page. A class that is more than a part of the SDK shows only what programs need of it.
CLASSES: dict[str, str | tuple[str, ...]] = {
    "Node": ALL,
    "AttachedNode": ALL,
    "Patch": ALL,
    "Config": ("load",),
    "Connection": ALL,
    "MeshStream": (),
    "MeshReader": ALL,
    "MeshWriter": ALL,
    "Datagrams": ALL,
    "MeshSocket": ("shutdown",),
    "ProtocolServer": ALL,
    "Service": ALL,
    "Topic": ALL,
    "TopicMessage": ALL,
    "Event": ALL,
    "EventKind": ALL,
    "Instance": ("meta",),
    "Offer": (),
    "Resolved": ALL,
    "Pinged": ALL,
    "NodeId": ("parse", "short", "overlay"),
    "Identity": ("generate",),
    "EndpointRecord": ALL,
    "Endpoint": (),
    "EndpointKind": ALL,
    "RecordReject": ALL,
    "GrantReject": ALL,
    "Addr": (),
}
MADE = ("Node", "Config", "Identity")  # classes that programs call
FUNCTIONS = ("attach", "patch")
INSTANCES = {
    "AttachedNode": "node",
    "Datagrams": "flow",
    "EndpointRecord": "record",
    "MeshReader": "reader",
    "MeshSocket": "sock",
    "MeshWriter": "writer",
    "NodeId": "node_id",
    "ProtocolServer": "server",
}
OTHER = {"DatagramHandler", "Handler", "__version__"}  # explained with node.serve and its like, and by its name

HEAD = """<!-- Written by `python -m tools.sdk_reference` from the docstrings: edit those. -->
# SDK

{intro}

Everything here is imported from `meshnode`. Nodes belong to one asyncio loop. What starts with an underscore, and what
this page does not name, may change at any time ([stability](stability.md)).
"""


def public_members(kind: type) -> list[str]:
    """The public names that an instance shows, without those of Python's own classes.

    What ours leave of Python's abstract classes as it is comes first: those grow from version to version.
    """
    inherited = {name for base in kind.__mro__ if base.__module__ in ("builtins", "enum") for name in vars(base)}
    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("meshnode.")]
    own = [name for base in ours for name in vars(base)]
    left = [name for base in reversed(kind.__mro__) for name in vars(base) if name not in own]
    names = [name for name in (*left, *own) if not name.startswith("_")]
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return [name for name in dict.fromkeys(names) if name not in inherited | fields]


def shown_members(name: str) -> list[str]:
    """The members of a class that the page describes, as the class defines them."""
    kind, wanted = getattr(meshnode, name), CLASSES[name]
    if issubclass(kind, Enum):
        return []
    return [member for member in public_members(kind) if wanted == ALL or member in wanted]


def sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """Cut a docstring into ("", prose) and (section, lines)."""
    name, lines = "", list[str]()
    for line in inspect.cleandoc(text).splitlines():
        if line.endswith(":") and line[:-1] in SECTIONS:
            yield name, lines
            name, lines = line[:-1], []
        else:
            lines.append(line)
    yield name, lines


def _prose(lines: list[str]) -> str:
    """Docstring text as Markdown: double backticks become single ones."""
    return "\n".join(lines).strip().replace("``", "`")


def _items(lines: list[str]) -> list[str]:
    """Entries of a section, each on a line of its own; what is indented deeper belongs to the entry before."""
    entries: list[str] = []
    for line in inspect.cleandoc("\n".join(lines)).splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line:
            entries.append(line)
    return [re.sub(r"^([\w., ]+?): ", r"`\1`: ", entry).replace("``", "`") for entry in entries]


def document(text: str) -> str:
    """A whole docstring as Markdown."""
    parts = []
    for name, lines in sections(text):
        if name == "Example":
            parts.append(code(inspect.cleandoc("\n".join(lines))))
        elif name == "Returns":
            parts.append("Returns: " + " ".join(_prose(lines).split()))
        elif name:
            title = {"Args": "Arguments"}.get(name, name)
            parts.append(f"{title}:\n\n" + "\n".join(f"- {entry}" for entry in _items(lines)))
        elif _prose(lines):
            parts.append(_prose(lines))
    return "\n\n".join(parts)


def code(text: str) -> str:
    """A block of Python."""
    return f"```python\n{text}\n```"


def signature(name: str, function: Callable[..., Any]) -> str:
    """A function as one writes it: annotations unquoted, no ``self``; a parameter a line when it is long."""
    found = inspect.signature(function)
    parameters = [p for each, p in found.parameters.items() if each not in ("self", "cls")]
    shown = [_unquoted(str(p)) for p in parameters]
    keywords = [n for n, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY]
    if keywords:
        shown.insert(keywords[0], "*")
    result = f" -> {found.return_annotation}" if isinstance(found.return_annotation, str) else ""
    text = f"{name}({', '.join(shown)}){result}"
    if len(text) > 100:
        text = f"{name}(\n    " + ",\n    ".join(shown) + f",\n){result}"
    return text


def _unquoted(parameter: str) -> str:
    parameter = re.sub(r"^(\w+): '([^']+)'", r"\1: \2", parameter)
    return re.sub(r"<built-in function (\w+)>", r"os.\1", parameter).replace("'", '"')


def member(owner: str, name: str) -> str:
    """One member with its heading."""
    kind = getattr(meshnode, owner)
    raw = inspect.getattr_static(kind, name)
    called = f"{owner if isinstance(raw, classmethod) else INSTANCES.get(owner, owner.lower())}.{name}"
    if isinstance(raw, property | cached_property):
        getter: Any = raw.fget if isinstance(raw, property) else raw.func
        heading, text = f"{called}: {inspect.signature(getter).return_annotation}", raw.__doc__
    else:
        function = getattr(kind, name)
        prefix = "await " if inspect.iscoroutinefunction(function) else ""
        heading, text = prefix + signature(called, function), function.__doc__
    if not text:
        raise SystemExit(f"{owner}.{name} has no docstring")
    return f"### {called}\n\n{code(heading)}\n\n{document(text)}\n"


def enum_values(kind: type[Enum]) -> str:
    """The values of an enum with the strings under them."""
    lines = inspect.getsource(kind).splitlines()
    found = []
    for number, line in enumerate(lines):
        if match := re.match(r"    ([A-Z_]+) = (.+)$", line):
            said = re.match(r'    """(.+)"""$', lines[number + 1]) if number + 1 < len(lines) else None
            text = said.group(1).replace("``", "`") if said else ""
            found.append(f"| `{match.group(1)}` | `{match.group(2)}` | {text} |")
    return "| name | value | |\n|---|---|---|\n" + "\n".join(found)


def class_text(name: str) -> str:
    """A class with what it shows."""
    kind = getattr(meshnode, name)
    made = f"{code(signature(name, kind))}\n\n" if name in MADE else ""
    parts = [f"## {name}\n\n{made}{document(kind.__doc__ or '')}\n"]
    if issubclass(kind, Enum):
        parts.append(enum_values(kind) + "\n")
    parts += [member(name, each) for each in shown_members(name)]
    return "\n".join(parts)


def error_rows() -> Iterator[str]:
    """The table of errors, each after its parent."""

    def rows(kind: type[MeshError]) -> Iterator[str]:
        text = " ".join(_prose(next(sections(kind.__doc__ or ""))[1]).split())
        families = [base.__name__ for base in kind.__bases__]
        yield f"| `{kind.__name__}` | `{kind.code}` | {', '.join(f'`{name}`' for name in families)} | {text} |"
        for child in sorted(kind.__subclasses__(), key=lambda each: each.__name__):
            if child.__name__ in meshnode.__all__:
                yield from rows(child)

    yield from rows(MeshError)


def page() -> str:
    """The whole page."""
    missing = set(meshnode.__all__) - set(CLASSES) - set(FUNCTIONS) - OTHER
    errors = {name for name in missing if issubclass(getattr(meshnode, name), MeshError)}
    if missing != errors:
        raise SystemExit(f"the page leaves out {', '.join(sorted(missing - errors))}")
    parts = [HEAD.format(intro=document(meshnode.__doc__ or ""))]
    parts += [class_text(name) for name in CLASSES]
    for name in FUNCTIONS:
        function = getattr(meshnode, name)
        parts.append(f"## {name}\n\n{code(signature(name, function))}\n\n{document(function.__doc__ or '')}\n")
    parts.append("## Errors\n\n" + document(MeshError.__doc__ or "") + "\n")
    parts.append("| error | code | is also a | |\n|---|---|---|---|\n" + "\n".join(error_rows()) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() != text:
            print(f"{PAGE.name} is not what the docstrings say: run python -m tools.sdk_reference")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
