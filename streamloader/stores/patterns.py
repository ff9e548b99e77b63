"""Expand braces as bash does, and match glob patterns as Python's ``glob`` does. Files and stores are not accessed."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import bracex

from streamloader.errors import ConfigError, LimitExceeded
from streamloader.redaction import redact_address

__all__ = ["Pattern", "expand_braces", "has_magic", "is_hidden", "make_path_filter", "matches_name", "matches_path"]

Pattern: TypeAlias = "str | Callable[[str], bool] | None"

_MAX_BRACE_EXPANSIONS: Final = 10_000_000
_MAX_BRACE_EXPANSION_BYTES: Final = 2 << 30  # of all addresses together
_GLOB_CHARACTER: Final = re.compile(r"[*?[]")


def make_path_filter(pattern: Pattern) -> Callable[[str], bool]:
    """Return a function that decides whether a file of a directory is selected.

    Args:
        pattern: Glob pattern for the file's name, case-insensitive; or a function of its path (in a store: the path
            within it); or None for all files.
    """
    if pattern is None:
        return lambda _: True
    if isinstance(pattern, str):
        lowered = pattern.lower()
        return lambda path: fnmatch.fnmatchcase(path.rpartition("/")[2].lower(), lowered)
    return pattern


def expand_braces(address: str) -> list[str]:
    """Return the addresses that an address with braces stands for, in the order of bash.

    An address without braces is returned unchanged.

    Raises:
        LimitExceeded: If there are more than ten million addresses, or if they would have more than 2 GiB together.
        ConfigError: If braces are nested hundreds of levels deep.
    """
    if "{" not in address:
        return [address]
    limit = min(_MAX_BRACE_EXPANSIONS, _MAX_BRACE_EXPANSION_BYTES // len(address))
    try:
        expanded = bracex.expand(address, keep_escapes=True, limit=limit)
    except bracex.ExpansionLimitException as error:
        raise LimitExceeded(
            f"{redact_address(address)} expands to more than {limit:,} addresses: use a pattern or a directory instead",
            address=address,
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"the braces of {redact_address(address):.80}... are nested too deeply", address=address
        ) from error
    return expanded


def has_magic(path: str) -> bool:
    """Return whether a path contains glob characters."""
    return _GLOB_CHARACTER.search(path) is not None


def is_hidden(path: str) -> bool:
    """Return whether a name in a relative path begins with a dot."""
    return path.startswith(".") or "/." in path


@lru_cache(maxsize=1024)
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def matches_name(name: str, pattern: str) -> bool:
    """Return whether one name matches one segment of a pattern.

    Hidden names match only an explicit leading dot, and an empty name, as in the key ``a//b``, only an empty segment.
    """
    if not name:
        return not pattern
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return _compile_pattern(pattern).match(name) is not None


def matches_path(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether a path matches a pattern with "**".

    "**" stands for any number of directories; as the last part, for any file below them.

    Args:
        names: Segments of the path.
        parts: Segments of the pattern.
    """
    ends = {0}  # numbers of names that the parts so far can match
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        next_ends: set[int] = set()
        for start in ends:
            if part == "**":
                for end in range(start, len(names) + 1):
                    if end > start and names[end - 1].startswith("."):
                        break
                    if not last or end > start:
                        next_ends.add(end)
            elif start < len(names) and matches_name(names[start], part):
                next_ends.add(start + 1)
        ends = next_ends
    return len(names) in ends
