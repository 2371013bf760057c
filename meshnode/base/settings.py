"""Values of settings: of the type that a setting has, or written as the text of an environment variable."""

from __future__ import annotations

import math

from meshnode.errors import ConfigError

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def checked(name: str, kind: str, value: object) -> object:
    """Return the value in its own type; a file can hold any. Raises ConfigError."""
    if kind.startswith("tuple"):
        return _checked_list(name, value)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is a switch, not {value!r}", hint=f"write {name} = true, or false")
    if kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and is_number(value):
            return value
        raise ConfigError(f"{name} is a number of seconds, not {value!r}", hint=f"write {name} = 600")
    if isinstance(value, str) or (value is None and kind.endswith("None")):
        return value
    raise ConfigError(f"{name} is a text, not a {type(value).__name__}", hint=f'write {name} = "..."')


def is_number(value: float) -> bool:
    """Return whether a number can be reckoned with: no NaN, and no integer that is too large for a float."""
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def _checked_list(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
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
