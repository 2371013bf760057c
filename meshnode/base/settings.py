"""Values of settings: of the type that a setting has, or written as the text of an environment variable."""

from __future__ import annotations

import math

from meshnode.errors import ConfigError

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
MAX_SHOWN = 60  # characters of a wrong value


def checked(name: str, kind: str, value: object) -> object:
    """Return the value in its own type; a file can hold any. Raises ConfigError."""
    if kind.startswith("tuple"):
        return _checked_list(name, value)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is a switch, not {shown(value)}", hint=f"write {name} = true, or false")
    if kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and is_number(value):
            return value
        raise ConfigError(f"{name} is a number of seconds, not {shown(value)}", hint=f"write {name} = 600")
    if isinstance(value, str):
        return _utf8(name, value)
    if value is None and kind.endswith("None"):
        return value
    raise ConfigError(f"{name} is a text, not a {type(value).__name__}", hint=f'write {name} = "..."')


def is_number(value: float) -> bool:
    """Return whether a number can be reckoned with: no NaN, and no integer that is too large for a float."""
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """Return a value as an error shows it: one that is long is cut."""
    try:
        text = repr(value)
    except ValueError:  # CPython writes no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _utf8(name: str, text: str) -> str:
    """Return a text that can be sent. Raises ConfigError: it came of bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        hint = "does the terminal, or the file it comes from, use another encoding?"
        raise ConfigError(f"{name} is not UTF-8", hint=hint) from error
    return text


def _checked_list(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(_utf8(name, part) for part in value)
    raise ConfigError(f"{name} is a list of texts", hint=f'write {name} = ["..."]')


def from_text(name: str, kind: str, text: str) -> object:
    """Return the value of a setting that an environment variable holds. Raises ConfigError."""
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
