"""The one door for text that did not originate here, on its way to a terminal, a log or an error message.

Other nodes, routers and name servers choose names, reasons and metadata. A terminal obeys control characters (ESC, BEL,
the C1 range), a log reader takes a newline for the next line, and a person is misled by characters that turn the
direction of text or are not seen. ``visible`` writes all of these as escapes. JSON needs none of it: it escapes by
itself, and programs get the text as it is.
"""

from __future__ import annotations

import re

MAX_VISIBLE = 2_000  # characters of a message or a line of a log; a close reason has at most 1,200
CUT = "…"
UNSEEN = re.compile(  # letters, marks and symbols that Python calls printable, and a terminal shows as nothing
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
    "|[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4,}"  # marks on one letter
)


def visible(text: str, most: int | None = None) -> str:
    """Return ``text`` in one line with everything escaped that a terminal obeys or a person does not see.

    Args:
        text: Text of any origin; text that is visible already is returned unchanged.
        most: The most characters returned; None for text that has its bound already.
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + CUT
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() or c == "\t" else _escape(c) for c in text)
    shown = UNSEEN.sub(lambda found: _escape(found[0]), shown)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + CUT


def _escape(text: str) -> str:
    return text.encode("unicode_escape").decode()
