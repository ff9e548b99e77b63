"""Names of files and subdirectories: which are valid, and in which order they come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError

__all__ = [
    "MAX_NAME_BYTES",
    "check_filename",
    "describe_bad_filename",
    "make_free_name",
    "sort_names",
    "sort_naturally",
]

MAX_NAME_BYTES: Final = 255  # NAME_MAX of Linux and macOS
_DIGITS: Final = re.compile(r"(\d+)")


def check_filename(filename: Any) -> None:
    """Check a name under which a file is to be saved.

    Raises:
        ConfigError: If it cannot be the name of one visible file.
    """
    if not isinstance(filename, str):
        raise ConfigError(f"the name of a file must be a string, got {type(filename).__name__}")
    if (problem := describe_bad_filename(filename)) is not None:
        raise ConfigError(f"no file can be saved as {make_printable(filename, 300)!r}: the name {problem}")


def describe_bad_filename(filename: str) -> str | None:
    """Return why a text is no name of a visible file or subdirectory. None if it is one."""
    if not filename:
        return "is empty"
    if "/" in filename or "\0" in filename:
        return "contains a slash or NUL. All files of a directory lie on one level"
    if filename.startswith("."):
        return "begins with a dot. Such files are hidden, and ignored"
    try:
        size = len(os.fsencode(filename))
    except UnicodeEncodeError:
        return "contains a surrogate that stands for no byte"
    return f"has {size} bytes, more than {MAX_NAME_BYTES}" if size > MAX_NAME_BYTES else None


def sort_names(names: Iterable[str]) -> list[str]:
    """Return names in ascending order of their bytes."""
    result = sorted(names)
    return result if all(map(str.isascii, result)) else sorted(result, key=os.fsencode)


def sort_naturally(names: Iterable[str]) -> list[str]:
    """Return names in the order in which people count: "subdir_2" before "subdir_10"."""
    return sorted(names, key=_make_natural_key)


def _make_natural_key(name: str) -> tuple[list[tuple[str, int]], str]:
    parts = _DIGITS.split(name)
    texts, numbers = parts[::2], [int(part) for part in parts[1::2]]
    return list(zip(texts, [*numbers, -1], strict=True)), name


def make_free_name(filename: str, is_taken: Callable[[str], bool]) -> str:
    """Return a name like "name (2).png" that is not taken. The stem is cut where it is too long."""
    stem, ending = os.path.splitext(filename)
    number = 2
    while True:
        suffix = f" ({number}){ending}"
        free = stem + suffix
        while stem and len(os.fsencode(free)) > MAX_NAME_BYTES:
            stem = stem[:-1]
            free = stem + suffix
        if describe_bad_filename(free) is not None:  # the ending alone is too long
            stem, ending = filename[:100], ""
        elif not is_taken(free):
            return free
        else:
            number += 1
