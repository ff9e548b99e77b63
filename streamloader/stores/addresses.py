"""From what a user names - a path, an address, a pattern, a directory, a list of them - to a list of files."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from streamloader.errors import ConfigError, StreamNotFound, UnreadableStream
from streamloader.stores.expand import Found, find_all
from streamloader.stores.local import local_path
from streamloader.stores.patterns import Pattern, predicate, with_braces
from streamloader.stores.registry import scheme_of

__all__ = ["Address", "Addresses", "Found", "Pattern", "as_addresses", "expand", "unique_keys"]

Address: TypeAlias = "str | os.PathLike[str]"
Addresses: TypeAlias = "Address | Iterable[Address]"


def expand(addresses: Addresses, pattern: Pattern = None, options: Mapping[str, Any] | None = None) -> list[Found]:
    """Return the files and objects that `addresses` stand for, local ones as the user wrote them (relative or not).

    Args:
        addresses: a path, an address of a store (``ssh://``, ``s3://``, ``https://``, ...), braces as in bash
            (``part-{000..127}.txt``), a glob pattern (``*``, ``?``, ``[...]``, and ``**`` for any depth), a directory,
            or an iterable of these. What exists literally is never taken for a pattern.
        pattern: which files of a *directory* count: a glob pattern for the file's name, regardless of case, or
            a function of the path; None takes all. Files named by a path or by a glob pattern are always taken.
        options: of :func:`streamloader.stores.open_store`, for addresses of stores.

    The files of a directory (at any depth; links are followed) and the matches of a pattern are sorted by code
    point, so that they come in the same order on every machine; ``10.txt`` comes before ``9.txt``. Hidden files are
    left out of both. A list keeps its order, and what it names twice comes twice.

    Raises:
        ConfigError: an address is empty, of another type, or of a scheme that no store serves.
        StreamNotFound: a path does not exist, or a directory or pattern holds no file.
        UnreadableStream: a directory cannot be listed, or the path is a pipe, socket or device.
        StoreError: a store cannot be reached, or lets us not in.
    """
    files: list[Found] = []
    for is_local, group in itertools.groupby(as_addresses(addresses), _is_local):
        if is_local:
            files += [Found(path) for address in group for path in _expand_one(address, pattern)]
        else:
            files += find_all(list(group), pattern, options)
    return files


def _is_local(address: str) -> bool:
    return scheme_of(address) in ("", "file")


def as_addresses(addresses: Addresses) -> list[str]:
    """Return `addresses` as a list of strings, without looking at the file system.

    Raises:
        ConfigError: there is none, or one of them is neither a string nor a path.
    """
    given = [addresses] if isinstance(addresses, (str, bytes, os.PathLike)) else addresses
    if not isinstance(given, Iterable):
        raise ConfigError(f"expected a path, a pattern, a directory or a list of them, got {type(given).__name__}")
    listed = [_as_text(address) for address in given]
    if not listed:
        raise ConfigError("the list of addresses is empty: name at least one file, directory or pattern")
    return listed


def unique_keys(names: Iterable[str]) -> list[str]:
    """Return `names` with ``#2``, ``#3``, ... added to those that came before, so that each stream has its own key."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    keys = []
    for name in names:
        key, number = name, numbers.get(name, 2)
        while key in taken:
            key, number = f"{name}#{number}", number + 1
        numbers[name] = number
        taken.add(key)
        keys.append(key)
    return keys


def _as_text(address: object) -> str:
    text = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise ConfigError(f"an address must be a string or a path, got {type(address).__name__}: {address!r:.80}")
    if not text or "\0" in text:
        raise ConfigError(f"not a path: {text!r}")
    return text


def _expand_one(address: str, pattern: Pattern) -> list[str]:
    path = _as_path(address)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        expanded = with_braces(path)
        if expanded != [path] and not os.path.islink(path):
            return [file for one in expanded for file in _expand_one(one, pattern)]
        return _glob(path, address)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise StreamNotFound(f"not a path, it is too long for one: {address!r:.80}", address=address) from error
        raise UnreadableStream(f"cannot look at {address}: {error.strerror}", address=address) from error
    if stat.S_ISDIR(mode):
        return _directory(path, address, pattern)
    if not stat.S_ISREG(mode):
        raise UnreadableStream(f"{address} is a pipe, socket or device: a stream needs a file", address=address)
    return [path]


def _as_path(address: str) -> str:
    path = local_path(address)
    return os.path.expanduser(path) if path.startswith("~") and not os.path.lexists(path) else path


def _glob(path: str, address: str) -> list[str]:
    if os.path.islink(path):
        raise StreamNotFound(f"{address} is a link to {os.readlink(path)}, which does not exist", address=address)
    if not glob.has_magic(path):
        raise StreamNotFound(f"{address} does not exist (looked from {os.getcwd()})", address=address)
    # glob says some things twice (of **/**), and that x/** matches x/ where there is no x.
    matches = sorted(set(filter(os.path.lexists, glob.glob(path, recursive=True))))
    files = [match for match in matches if not os.path.isdir(match)]
    if not matches:
        raise StreamNotFound(f"nothing matches the pattern {address} (looked from {os.getcwd()})", address=address)
    if not files:
        raise StreamNotFound(
            f"the pattern {address} matches {len(matches)} directories and no file; add **/ to look inside them",
            address=address,
        )
    for file in files:
        _require_file(file)
    return files


def _directory(path: str, address: str, pattern: Pattern) -> list[str]:
    accept = predicate(pattern)
    seen = 0
    files = []
    for file in _walk(path, ()):
        seen += 1
        if accept(file):
            _require_file(file)
            files.append(file)
    if not files:
        wanted = f"file that matches {pattern!r}" if isinstance(pattern, str) else "file of this kind"
        raise StreamNotFound(f"the directory {address} holds no {wanted} ({seen} others)", address=address)
    return sorted(files)


def _walk(path: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = os.stat(path)
        with os.scandir(path) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise UnreadableStream(f"cannot list the directory {path}: {error.strerror}", address=path) from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link back to a directory that this one is in
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, (*above, identity))
        else:
            yield entry.path


def _require_file(path: str) -> None:
    """Refuse what a listing named and cannot be played: dropping it silently would lose data."""
    if os.path.isfile(path):
        return
    if os.path.islink(path) and not os.path.exists(path):
        raise StreamNotFound(f"{path} is a link to {os.readlink(path)}, which does not exist", address=path)
    raise UnreadableStream(f"{path} is not a regular file, or may not be looked at", address=path)
