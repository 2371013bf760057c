"""What a target of ``./dev fuzz`` is."""

from __future__ import annotations

from collections.abc import Callable

from meshnode.base.value import value


@value
class Target:
    """A parser and valid inputs of it."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    share: int = 100  # of all inputs, as a weight: what is slow has less


def refused(error: type[Exception] | tuple[type[Exception], ...], parse: Callable[..., object], data: object) -> None:
    """Parse; an error of these classes is a refusal, all others are raised."""
    try:
        parse(data)
    except error:
        pass
