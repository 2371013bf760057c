"""Safe parser for XML from a router: no document type, so no entities; bounded in bytes and depth.

Expat reads it; a ``DOCTYPE`` ends the reading whatever the encoding, as defusedxml does, and without one no
entity can be declared: neither expansion ("billion laughs") nor external references are left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from xml.parsers import expat

from meshnode.base.limits import MAX_UPNP_REPLY, MAX_XML_DEPTH
from meshnode.base.value import state


@state
class Element:
    """An element: its name without a prefix, its own text, its children."""

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        """Yield this element and all beneath it, in document order."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(reversed(element.children))

    def find(self, name: str) -> str | None:
        """Return the stripped text of the first element of that name at any depth, or None."""
        return next((element.text.strip() for element in self.walk() if element.name == name), None)


def parse(document: bytes) -> Element:
    """Return the root element.

    Raises ValueError for what is not well-formed XML of at most ``MAX_UPNP_REPLY`` bytes and ``MAX_XML_DEPTH`` levels,
    or has a document type or an encoding unknown to Python.
    """
    if len(document) > MAX_UPNP_REPLY:
        raise ValueError("too long")
    parser = expat.ParserCreate()
    root = Element("")
    open_elements = [root]

    def refuse(*_: object) -> None:
        raise ValueError("a document type declaration")

    def start(name: str, _: object) -> None:
        if len(open_elements) > MAX_XML_DEPTH:
            raise ValueError("nested too deeply")
        element = Element(name.rpartition(":")[2])
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        open_elements[-1].text += data

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.buffer_text = True
    try:
        parser.Parse(document.strip(b"\x00\r\n\t "), True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding that Python does not know
        raise ValueError(f"no XML: {error}") from error
    return root.children[0]
