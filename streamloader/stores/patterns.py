"""What names mean: braces as in bash, and glob patterns as in Python's ``glob``. Nothing is looked up here."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

import bracex

from streamloader.errors import ConfigError, LimitExceeded
from streamloader.redaction import redact

__all__ = ["Pattern", "all_match", "has_magic", "is_hidden", "one_matches", "predicate", "with_braces"]

Pattern: TypeAlias = "str | Callable[[str], bool] | None"

_BRACES: Final = 10_000_000  # addresses that one address with braces may stand for
_GLOB: Final = re.compile(r"[*?[]")


def predicate(pattern: Pattern) -> Callable[[str], bool]:
    """Return what says whether a file of a directory counts.

    Args:
        pattern: a glob pattern for its name, regardless of case; a function of its path (in a store: the path within
            it); None for all.
    """
    if pattern is None:
        return lambda _: True
    if isinstance(pattern, str):
        wanted = pattern.lower()
        return lambda path: fnmatch.fnmatchcase(path.rpartition("/")[2].lower(), wanted)
    return pattern


def with_braces(address: str) -> list[str]:
    """Return what an address with braces stands for, in the order that bash has; without any, itself.

    Raises:
        LimitExceeded: more than ten million addresses.
        ConfigError: braces within braces within braces, hundreds of times.
    """
    if "{" not in address:
        return [address]
    try:
        expanded = bracex.expand(address, keep_escapes=True, limit=_BRACES)
    except bracex.ExpansionLimitException as error:
        raise LimitExceeded(
            f"{redact(address)} stands for more than {_BRACES:,} addresses: name a pattern or a directory instead",
            address=address,
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"the braces of {redact(address):.80}... lie too deep in each other", address=address
        ) from error
    return expanded


def has_magic(path: str) -> bool:
    """Whether a path has glob characters in it."""
    return _GLOB.search(path) is not None


def is_hidden(path: str) -> bool:
    """Whether a name in a relative path begins with a dot."""
    return path.startswith(".") or "/." in path


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def one_matches(name: str, pattern: str) -> bool:
    """Whether one name matches one part of a pattern; hidden ones only match where the pattern says the dot."""
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return _compiled(pattern).match(name) is not None


def all_match(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a path matches a pattern with "**": any number of directories, or at its end any file under them."""
    ends = {0}  # how many of the names the parts so far can stand for
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        after: set[int] = set()
        for at in ends:
            if part == "**":
                for stop in range(at, len(names) + 1):
                    if stop > at and names[stop - 1].startswith("."):
                        break
                    if not last or stop > at:
                        after.add(stop)
            elif at < len(names) and one_matches(names[at], part):
                after.add(at + 1)
        ends = after
    return len(names) in ends
