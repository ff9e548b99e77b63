"""Checks of arguments that users pass: whole numbers of any integer type become an int, ``~`` and ``$NAME`` a path."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamloader.errors import ConfigError

__all__ = [
    "VARIABLE",
    "check_callable",
    "check_choice",
    "check_flag",
    "check_integer",
    "check_options",
    "check_seconds",
    "expand_path",
    "find_unset_variable",
]

# A "$" elsewhere is part of a name, such as that of $RECYCLE.BIN.
VARIABLE: Final = re.compile(r"(?:^|(?<=/))\$([A-Za-z_][A-Za-z0-9_]*)(?=/|\Z)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_MAX_SECONDS: Final = 1e9  # thirty years, which clocks of the system can still count


def check_integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return a whole number as an int, so that it can be stored in JSON and is computed with exactly.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed: an int, or an integer of NumPy, torch or another package.
        minimum: Least allowed value. Defaults to no limit.
        maximum: Highest allowed value. Defaults to no limit.

    Raises:
        ConfigError: If it is no whole number, less than `minimum`, or more than `maximum`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        expected = "a whole number" if minimum is None else f"a whole number of {minimum} or more"
        raise ConfigError(f"{name} must be {expected}, got {value!r:.80}") from None
    if minimum is not None and number < minimum:
        raise ConfigError(f"{name} must be {minimum} or more, got {number}")
    if maximum is not None and number > maximum:
        raise ConfigError(f"{name} must be {maximum:,} or less, got {number!r:.80}")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Return True or False for a bool of any type, 0 or 1. None stands for False, as in ``DataLoader``.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed.

    Raises:
        ConfigError: If it is anything else.
    """
    scalar = value.item() if getattr(value, "ndim", None) == 0 else value  # of NumPy or torch
    try:
        flag = 0 if scalar is None else operator.index(scalar)
    except TypeError:
        flag = -1
    if flag not in (0, 1):
        raise ConfigError(f"{name} must be True or False, got {value!r:.80}")
    return bool(flag)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return the one of the `choices` that a string of any type is.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed.
        choices: All allowed values.

    Raises:
        ConfigError: If it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be one of {tuple(choices)}, got {value!r:.80}")
    return choices[choices.index(value)]


def check_options(name: str, value: Any) -> dict[str, Any] | None:
    """Return a copy of a mapping of options as a dict, or None.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed.

    Raises:
        ConfigError: If it is no mapping from strings.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} must be a dict of options by name, or None, got {type(value).__name__}")
    return dict(value)


def check_callable(name: str, value: Any) -> Any:
    """Return a function, or None.

    Args:
        name: Name of the argument, for the message.
        value: Value that the user passed.

    Raises:
        ConfigError: If it cannot be called.
    """
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be a function, got {value!r:.80}")
    return value


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
    return seconds if 0 < seconds < _MAX_SECONDS else None


def find_unset_variable(path: str) -> str | None:
    """Return a sentence about an environment variable in a path that is not set, or None."""
    for match in VARIABLE.finditer(path):
        name = match[1] or match[2]
        if name not in os.environ:
            return f"the environment variable {name} is not set"
    return None


def expand_path(path: str | os.PathLike[str], *, create: bool = False) -> str:
    """Return a local path in which ``~``, ``$NAME`` and ``${NAME}`` are expanded, unless it exists literally.

    Args:
        path: Path that a user passed.
        create: Whether a file or folder may be made there, so that an unset variable is an error. Defaults to False.

    Raises:
        ConfigError: If a variable is not set and `create` is true.
    """
    text = os.fspath(path)
    if not (text.startswith("~") or "$" in text) or os.path.lexists(text):
        return text
    if create and (problem := find_unset_variable(text)) is not None:
        raise ConfigError(f"{text}: {problem}")
    return VARIABLE.sub(_read_variable, os.path.expanduser(text))


def _read_variable(match: re.Match[str]) -> str:
    return os.environ.get(match[1] or match[2], match[0])
