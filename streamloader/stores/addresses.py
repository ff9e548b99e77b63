"""Expand what a user passes (a path, an address, a pattern, a directory, a list of these) into a list of files."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from streamloader.errors import ConfigError, StreamNotFound, UnreadableStream
from streamloader.redaction import identify_address, redact_address
from streamloader.stores.expand import SourceFile, expand_store_addresses
from streamloader.stores.local import local_path
from streamloader.stores.patterns import Pattern, expand_braces, make_path_filter
from streamloader.stores.registry import scheme_of

__all__ = [
    "Address", "Addresses", "FileKeys", "Pattern", "SourceFile", "as_addresses", "expand_addresses", "make_unique_keys",
]  # fmt: skip

Address: TypeAlias = "str | os.PathLike[str]"
Addresses: TypeAlias = "Address | Iterable[Address]"


def expand_addresses(
    addresses: Addresses, pattern: Pattern = None, options: Mapping[str, Any] | None = None
) -> list[SourceFile]:
    """Return the files and objects that `addresses` stand for. Local paths stay as given (relative or absolute).

    Args:
        addresses: A path, an address in a store (``ssh://``, ``s3://``, ``https://``, ...), braces as in bash
            (``part-{000..127}.txt``), a glob pattern (``*``, ``?``, ``[...]``, and ``**`` for any depth), a directory,
            or an iterable of these. A name that exists literally is never read as a pattern.
        pattern: Filter for the files of a *directory*: a glob pattern for the file's name, case-insensitive, or a
            function of the path. Defaults to all files. Files named by a path or by a glob pattern are not filtered.
        options: Options of the stores, see :func:`streamloader.stores.open_store`.

    The files of a directory (at any depth; links are followed) and the matches of a pattern are sorted by code
    point, so their order is the same on every machine; ``10.txt`` comes before ``9.txt``. Hidden files are left out
    of both. A list keeps its order, and an address that it contains twice is expanded twice.

    Raises:
        ConfigError: If an address is empty, is neither a string nor a path, or has a scheme that no store serves.
        StreamNotFound: If a path does not exist, or if a directory or pattern contains no file.
        UnreadableStream: If a directory cannot be listed, or if a path is a pipe, socket or device.
        StoreError: If a store cannot be reached or denies access.
    """
    files: list[SourceFile] = []
    for is_local, group in itertools.groupby(as_addresses(addresses), _is_local):
        if is_local:
            files += [SourceFile(path) for address in group for path in _expand_local_address(address, pattern)]
        else:
            files += expand_store_addresses(list(group), pattern, options)
    return files


def _is_local(address: str) -> bool:
    return scheme_of(address) in ("", "file")


def as_addresses(addresses: Addresses) -> list[str]:
    """Return `addresses` as a list of strings, without accessing the file system.

    Raises:
        ConfigError: If there is no address, or if one of them is neither a string nor a path.
    """
    items = [addresses] if isinstance(addresses, (str, bytes, os.PathLike)) else addresses
    if not isinstance(items, Iterable):
        raise ConfigError(f"expected a path, a pattern, a directory or a list of these, got {type(items).__name__}")
    listed = [_as_text(address) for address in items]
    if not listed:
        raise ConfigError("the list of addresses is empty: name at least one file, directory or pattern")
    return listed


@dataclass(frozen=True, slots=True)
class FileKeys:
    """Keys of the streams of files and objects.

    Attributes:
        names: Path of each local file, and address of each object without secrets.
        keys: Unique key of each stream: its name, with ``#2``, ``#3``, ... appended where names are equal.
        identities: Texts that distinguish the streams where the keys do not show in what they differ, see
            :class:`streamloader.stream_table.StreamTable`. None if the keys show it.
        secret_addresses: Addresses by key, where an address contains more than the name.
    """

    names: list[str]
    keys: list[str]
    identities: list[str] | None = field(repr=False)
    secret_addresses: dict[str, str] = field(repr=False)

    @classmethod
    def of_files(cls, files: Sequence[SourceFile]) -> Self:
        """Return the keys of `files`, in their order."""
        names = [file.address if file.info is None else redact_address(file.address) for file in files]
        keys = make_unique_keys(names)
        secret_addresses = {
            key: file.address for key, name, file in zip(keys, names, files, strict=True) if name != file.address
        }
        identities = None
        if secret_addresses:
            texts = [
                name if name == file.address else identify_address(file.address)
                for name, file in zip(names, files, strict=True)
            ]
            identities = None if texts == names else make_unique_keys(texts)
        return cls(names, keys, identities, secret_addresses)


def make_unique_keys(names: Iterable[str]) -> list[str]:
    """Return `names`, with ``#2``, ``#3``, ... appended to repeated ones, so that each stream has its own key."""
    used: set[str] = set()
    next_numbers: dict[str, int] = {}
    keys = []
    for name in names:
        key, number = name, next_numbers.get(name, 2)
        while key in used:
            key, number = f"{name}#{number}", number + 1
        next_numbers[name] = number
        used.add(key)
        keys.append(key)
    return keys


def _as_text(address: object) -> str:
    text = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise ConfigError(f"an address must be a string or a path, got {type(address).__name__}: {address!r:.80}")
    if not text or "\0" in text:
        raise ConfigError(f"not a path: {text!r}")
    return text


def _expand_local_address(address: str, pattern: Pattern) -> list[str]:
    path = _as_path(address)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        expanded = expand_braces(path)
        if expanded != [path] and not os.path.islink(path):
            return [file for item in expanded for file in _expand_local_address(item, pattern)]
        return _expand_glob(path, address)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise StreamNotFound(f"the path is too long: {address!r:.80}", address=address) from error
        raise UnreadableStream(f"cannot access {address}: {error.strerror}", address=address) from error
    if stat.S_ISDIR(mode):
        return _list_directory(path, address, pattern)
    if not stat.S_ISREG(mode):
        raise UnreadableStream(f"{address} is a pipe, socket or device: a stream needs a file", address=address)
    return [path]


def _as_path(address: str) -> str:
    path = local_path(address)
    return os.path.expanduser(path) if path.startswith("~") and not os.path.lexists(path) else path


def _expand_glob(path: str, address: str) -> list[str]:
    if os.path.islink(path):
        raise StreamNotFound(f"{address} is a link to {os.readlink(path)}, which does not exist", address=address)
    if not glob.has_magic(path):
        raise StreamNotFound(f"{address} does not exist (working directory: {os.getcwd()})", address=address)
    # glob repeats some matches (of **/**), and lets x/** match x/ even if x does not exist.
    matches = sorted(set(filter(os.path.lexists, glob.glob(path, recursive=True))))
    files = [match for match in matches if not os.path.isdir(match)]
    if not matches:
        raise StreamNotFound(
            f"no file matches the pattern {address} (working directory: {os.getcwd()})", address=address
        )
    if not files:
        raise StreamNotFound(
            f"the pattern {address} matches {len(matches)} directories and no file; append **/ to search inside them",
            address=address,
        )
    for file in files:
        _require_file(file)
    return files


def _list_directory(path: str, address: str, pattern: Pattern) -> list[str]:
    accept = make_path_filter(pattern)
    file_count = 0
    files = []
    for file in _walk_directory(path, ()):
        file_count += 1
        if accept(file):
            _require_file(file)
            files.append(file)
    if not files:
        wanted = f"file that matches {pattern!r}" if isinstance(pattern, str) else "file of this kind"
        raise StreamNotFound(
            f"the directory {address} contains no {wanted} ({file_count} other files)", address=address
        )
    return sorted(files)


def _walk_directory(path: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = os.stat(path)
        with os.scandir(path) as listing:
            entries = [entry for entry in listing if not entry.name.startswith(".")]
    except OSError as error:
        raise UnreadableStream(f"cannot list the directory {path}: {error.strerror}", address=path) from error
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:  # a link to a directory that contains it
        return
    for entry in entries:
        if entry.is_dir():
            yield from _walk_directory(entry.path, (*ancestors, identity))
        else:
            yield entry.path


def _require_file(path: str) -> None:
    """Raise an error for a listed path that cannot be read: omitting it silently would lose data."""
    if os.path.isfile(path):
        return
    if os.path.islink(path) and not os.path.exists(path):
        raise StreamNotFound(f"{path} is a link to {os.readlink(path)}, which does not exist", address=path)
    raise UnreadableStream(f"{path} is not a regular file, or cannot be accessed", address=path)
