"""Search the folders of this machine for files: below a folder, or by a glob pattern.

Unlike Python's ``glob`` and ``os.walk``, a search has an end: it calls no function once for each level, follows no link
into a folder that contains it, and stops at the limits where links multiply. Its rules are those of
:mod:`streamloader.stores.search`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from streamloader.errors import StreamloaderError, UnreadableStream
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.patterns import matches_name, matches_path
from streamloader.stores.search import PatternSearch, SearchStep, UnreadableReport, match_parts

__all__ = [
    "SEARCH_ENTRY_BYTES", "describe_broken_link", "match_local_pattern", "raise_unreadable", "report_unreadable",
    "walk_files", "walk_folders",
]  # fmt: skip

# Reasons for which a path leads to no folder, and a link nowhere.
_LEADS_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
SEARCH_ENTRY_BYTES: Final = 64  # approximate memory of a path besides its characters

OnUnreadable: TypeAlias = Callable[[str, OSError], None]
_Entries: TypeAlias = "list[os.DirEntry[str]]"


def raise_unreadable(path: str, error: OSError) -> None:
    """Raise an error for a folder that cannot be listed.

    Raises:
        UnreadableStream: If it is called.
    """
    raise UnreadableStream(f"cannot list the directory {path}: {error.strerror}", address=path) from error


def report_unreadable(report: UnreadableReport) -> OnUnreadable:
    """Return a function that records a folder that may not be read, and raises an error if it is for another reason."""

    def add(path: str, error: OSError) -> None:
        if not isinstance(error, PermissionError):  # a failing disk or server: the files are there
            raise_unreadable(path, error)
        while not _is_accessible(path) and (parent := os.path.dirname(path)) != path:
            path = parent
        report.add_directory(path, UnreadableStream(f"{path}: {error.strerror}", address=path))

    return add


def _is_accessible(path: str) -> bool:
    """Return whether the folder that contains this path may be entered."""
    try:
        os.lstat(path)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def describe_broken_link(path: str) -> str:
    """Return a sentence about a link whose target cannot be reached."""
    target = os.readlink(path)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return (
                f"{path} is a link to {target}, which leads in a circle, or through more links than the system follows"
            )
        if isinstance(error, PermissionError):
            return f"{path} is a link to {target}, which may not be accessed"
    return f"{path} is a link to {target}, which does not exist"


def _identify_folder(folder: str) -> tuple[int, int]:
    """Return what is equal for the same folder under another name.

    Raises:
        OSError: If it is no folder, or if nothing in it may be accessed: its names alone are of no use.
    """
    status = os.stat(os.path.join(folder, os.curdir))
    return status.st_dev, status.st_ino


def walk_folders(
    folder: str,
    budget: ListingBudget,
    on_unreadable: OnUnreadable,
    *,
    show_hidden: bool = False,
    recursive: bool = True,
    create_page_budget: Callable[[str], ListingBudget] | None = None,
) -> Iterator[tuple[str, _Entries, _Entries]]:
    """Yield the path of a folder and of each one below it, with a separator at its end, its files and its folders.

    Links are followed, but not into a folder that lies above them. Files are everything that is no folder. Folders that
    no longer exist are left out.

    Args:
        folder: Path of the folder. "" is the working directory.
        budget: Budget of the search.
        on_unreadable: Function that receives the path of a folder that cannot be read, or of a link to a place without
            access, and the error. If it returns, the search goes on.
        show_hidden: Whether files and folders whose names begin with a dot are included. Defaults to False.
        recursive: Whether the folders below are searched. Defaults to True.
        create_page_budget: Function that returns the budget for the entries of one folder. Defaults to none.

    Raises:
        LimitExceeded: If there are too many entries or levels, or if links lead to the same folders again and again.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while pending:
        current, ancestors = pending.pop()
        try:
            identity = _identify_folder(current)
            if identity in ancestors:  # a link to a folder that contains it
                continue
            budget.check_depth(len(ancestors) + 1, current)
            budget.enter_directory(identity)
            page_budget = None if create_page_budget is None else create_page_budget(current)
            files, folders = _scan_folder(current, budget, on_unreadable, show_hidden, page_budget)
        except StreamloaderError:  # a limit, or from on_unreadable
            raise
        except OSError as error:
            if error.errno not in _LEADS_NOWHERE:  # otherwise it was replaced since
                on_unreadable(current, error)
            continue
        prefix = os.path.join(current, "")
        yield prefix, files, folders
        if recursive:
            above = (*ancestors, identity)
            for entry in folders:
                path = prefix + entry.name
                budget.hold_directory(path, len(ancestors))
                pending.append((path, above))


def walk_files(
    folder: str, budget: ListingBudget, *, show_hidden: bool = False, on_unreadable: OnUnreadable = raise_unreadable
) -> Iterator[str]:
    """Yield the paths of all files below a folder, in no particular order. The arguments are those of `walk_folders`.

    Raises:
        UnreadableStream: If a folder cannot be read, unless `on_unreadable` does something else.
        LimitExceeded: If there are too many entries or levels, or if links lead to the same folders again and again.
    """
    for prefix, files, _ in walk_folders(folder, budget, on_unreadable, show_hidden=show_hidden):
        for entry in files:
            yield prefix + entry.name


def match_local_pattern(pattern: str, budget: ListingBudget, report: UnreadableReport) -> tuple[list[str], int]:
    """Match a glob pattern.

    Args:
        pattern: Path with ``*``, ``?``, ``[...]``, and ``**`` for any number of folders.
        budget: Budget of the search.
        report: Report that receives the folders that may not be read.

    Returns:
        The paths of the matching files, sorted by code point, and the number of matching folders. Files are everything
        that is no folder.

    Raises:
        UnreadableStream: If a folder cannot be read for another reason than a lack of permission.
        LimitExceeded: If there are too many entries or levels, or if links lead to the same folders again and again.
    """
    parts = [part for part in pattern.split("/") if part]
    search: PatternSearch[str] = match_parts(parts, "/" if pattern.startswith("/") else "", os.path.join)
    on_unreadable = report_unreadable(report)
    step, matches = next(search), None
    while matches is None:
        answers = [_answer_step(step, folder, budget, on_unreadable) for folder in step.folders]
        try:
            step = search.send(answers)
        except StopIteration as end:
            matches = end.value
    files = [] if pattern.endswith("/") else sorted(set(matches.objects))
    return files, matches.folder_count


def _answer_step(
    step: SearchStep, path: str, budget: ListingBudget, on_unreadable: OnUnreadable
) -> tuple[list[str], list[str]]:
    """Return the files and folders that match one step of a pattern in one folder."""
    if step.kind == "tree":
        prefix_length = len(os.path.join(path, ""))
        show_hidden = any(part.startswith(".") for part in step.parts)
        files = walk_files(path, budget, show_hidden=show_hidden, on_unreadable=on_unreadable)
        return [file for file in files if matches_path(file[prefix_length:].split("/"), step.parts)], []
    try:
        if step.kind == "level":
            return _match_level(path, step.parts[0], step.number, budget, on_unreadable)
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode) or os.path.isdir(path)
    except StreamloaderError:  # a limit, or from on_unreadable
        raise
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return [], []
        on_unreadable(path if step.kind == "level" else os.path.dirname(path), error)
        return [], []
    return ([], [path]) if is_folder else ([path], [])


def _match_level(
    folder: str, part: str, level: int, budget: ListingBudget, on_unreadable: OnUnreadable
) -> tuple[list[str], list[str]]:
    """Return the matching entries of a folder. Links may lead to it again and again on one level of the pattern."""
    budget.enter_directory((level, *_identify_folder(folder)))
    found = _scan_folder(folder, budget, on_unreadable, part.startswith("."), None)
    prefix = os.path.join(folder, "")
    files, folders = ([prefix + entry.name for entry in each if matches_name(entry.name, part)] for each in found)
    return files, folders


def _scan_folder(
    folder: str,
    budget: ListingBudget,
    on_unreadable: OnUnreadable,
    show_hidden: bool,
    page_budget: ListingBudget | None,
) -> tuple[_Entries, _Entries]:
    """Return the entries of a folder: files, and folders or links to folders."""
    files: _Entries = []
    folders: _Entries = []
    with os.scandir(folder or os.curdir) as scan:
        for entry in scan:
            name = entry.name
            budget.count_entry(entry.path)
            if page_budget is not None:
                page_budget.count_entry(entry.path)
            if not show_hidden and name.startswith("."):
                continue
            try:
                (folders if entry.is_dir() else files).append(entry)
            except OSError as error:
                if error.errno in _LEADS_NOWHERE:  # a link to itself, or through a file
                    files.append(entry)
                else:
                    on_unreadable(entry.path if folder else name, error)
    return files, folders
