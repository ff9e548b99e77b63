"""Checks of arguments that users pass: whole numbers of any integer type become an int."""

from __future__ import annotations

import operator
from typing import Any

from streamloader.errors import ConfigError

__all__ = ["check_integer", "check_seconds"]


def check_integer(name: str, value: Any, minimum: int | None = None) -> int:
    """Return a whole number as an int, so that it can be stored in JSON and is computed with exactly.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed: an int, or an integer of NumPy, torch or another package.
        minimum: Least allowed value. Defaults to no limit.

    Raises:
        ConfigError: If it is no whole number, or less than `minimum`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        expected = "a whole number" if minimum is None else f"a whole number of {minimum} or more"
        raise ConfigError(f"{name} must be {expected}, got {value!r:.80}") from None
    if minimum is not None and number < minimum:
        raise ConfigError(f"{name} must be {minimum} or more, got {number}")
    return number


def check_seconds(name: str, value: Any) -> float | None:
    """Return a number of seconds as a float, or None, which stands for no limit, for 0 and None.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed.

    Raises:
        ConfigError: If it is no number, is negative, or NaN.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not seconds >= 0 or isinstance(value, (str, bytes)):
        raise ConfigError(f"{name} must be a number of seconds, or 0 or None for no limit, got {value!r:.80}")
    return seconds or None
