"""Search the folders of this machine for files: below a folder, or by a glob pattern.

Unlike Python's ``glob`` and ``os.walk``, a search has an end: it calls no function once for each level, follows no link
into a folder that contains it, and stops at the limits where links multiply.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from streamloader.errors import LimitExceeded, UnreadableStream
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.patterns import has_magic, matches_name, matches_path

__all__ = ["SEARCH_ENTRY_BYTES", "match_local_pattern", "walk_files"]

SEARCH_ENTRY_BYTES: Final = 64  # approximate memory of a path besides its characters

_Identity: TypeAlias = "tuple[int, int]"


def walk_files(
    folder: str, budget: ListingBudget, *, show_hidden: bool = False, skip_unreadable: bool = False
) -> Iterator[str]:
    """Yield the paths of all files below a folder, in no particular order. Links are followed, but not in circles.

    Args:
        folder: Path of the folder.
        budget: Budget of the search.
        show_hidden: Whether files and folders whose names begin with a dot are included. Defaults to False.
        skip_unreadable: Whether folders that cannot be read count as empty. Defaults to False.

    Raises:
        UnreadableStream: If a folder cannot be read.
        LimitExceeded: If there are too many entries or levels, or if links lead to the same folders again and again.
    """
    pending: list[tuple[str, tuple[_Identity, ...]]] = [(folder, ())]
    while pending:
        current, ancestors = pending.pop()
        try:
            status = os.stat(current or os.curdir)
            entries = _scan_folder(current, budget)
        except LimitExceeded:
            raise
        except OSError as error:
            if skip_unreadable:
                continue
            raise UnreadableStream(f"cannot list the directory {current}: {error.strerror}", address=current) from error
        identity = (status.st_dev, status.st_ino)
        if identity in ancestors:  # a link to a folder that contains it
            continue
        budget.check_depth(len(ancestors) + 1, current)
        budget.enter_directory(identity)
        for name, is_folder in entries:
            if name.startswith(".") and not show_hidden:
                continue
            path = os.path.join(current, name)
            if is_folder:
                budget.hold_directory(path, len(ancestors))
                pending.append((path, (*ancestors, identity)))
            else:
                yield path


def match_local_pattern(pattern: str, budget: ListingBudget) -> tuple[list[str], int]:
    """Match a glob pattern. Folders that cannot be read have no matches.

    Args:
        pattern: Path with ``*``, ``?``, ``[...]``, and ``**`` for any number of folders.
        budget: Budget of the search.

    Returns:
        The paths of the matching files, sorted by code point, and the number of matching folders.

    Raises:
        LimitExceeded: If there are too many entries or levels, or if links lead to the same folders again and again.
    """
    parts = [part for part in pattern.split("/") if part]
    found = ["/" if pattern.startswith("/") else ""]
    for number, part in enumerate(parts):
        if part == "**":
            found = [path for folder in found for path in _match_below(folder, parts[number:], budget)]
            break
        if has_magic(part):
            found = [
                os.path.join(folder, name) for folder in found for name in _match_names(folder, part, number, budget)
            ]
        else:
            found = [path for folder in found if os.path.lexists(path := os.path.join(folder, part))]
    folders = {path for path in found if os.path.isdir(path)}
    files = [] if pattern.endswith("/") else sorted(set(found) - folders)
    return files, len(folders)


def _match_below(folder: str, parts: Sequence[str], budget: ListingBudget) -> Iterator[str]:
    """Yield the files below a folder whose relative paths match a pattern that begins with "**"."""
    prefix_length = len(os.path.join(folder, ""))
    show_hidden = any(part.startswith(".") for part in parts)
    for path in walk_files(folder, budget, show_hidden=show_hidden, skip_unreadable=True):
        if matches_path(path[prefix_length:].split("/"), parts):
            yield path


def _match_names(folder: str, part: str, level: int, budget: ListingBudget) -> list[str]:
    """Return the matching names in a folder. Links may lead to it again and again on one level of the pattern."""
    try:
        status = os.stat(folder or os.curdir)
        budget.enter_directory((level, status.st_dev, status.st_ino))
        entries = _scan_folder(folder, budget)
    except LimitExceeded:
        raise
    except OSError:
        return []
    return [name for name, _ in entries if matches_name(name, part)]


def _scan_folder(folder: str, budget: ListingBudget) -> list[tuple[str, bool]]:
    """Return the names in a folder, each with whether it is a folder or a link to one."""
    entries = []
    with os.scandir(folder or os.curdir) as scan:
        for entry in scan:
            budget.count_entry(entry.path)
            entries.append((entry.name, _is_folder(entry)))
    return entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to a place without access
        return False
