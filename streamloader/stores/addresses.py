"""Check and expand what a user passes: a path, an address, a pattern, a directory, or a list of these.

Host and user names of addresses have an allow-list of characters (:func:`check_host_name`, :func:`check_user_name`):
letters, digits, and the few others that names of hosts and users consist of. A name with any other character is not a
name but an attack: a ProxyCommand of an SSH configuration, for example, puts it into the command line of a shell.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

from streamloader.arguments import expand_path
from streamloader.config import Limits
from streamloader.errors import ConfigError, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.redaction import identify_address, redact_address
from streamloader.stores.container_addresses import split_container_address
from streamloader.stores.expand import SourceFile, expand_store_addresses
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.local import local_path
from streamloader.stores.local_search import (
    SEARCH_ENTRY_BYTES,
    describe_broken_link,
    match_local_pattern,
    report_unreadable,
    walk_files,
)
from streamloader.stores.patterns import Pattern, expand_braces, has_magic, make_path_filter
from streamloader.stores.registry import is_local_file, spell_address
from streamloader.stores.search import Unreadable, UnreadableReport, open_report
from streamloader.stores.spelling_advice import explain_missing_path

__all__ = [
    "Address",
    "Addresses",
    "FileKeys",
    "Pattern",
    "SourceFile",
    "as_addresses",
    "check_authority",
    "check_host_name",
    "check_user_name",
    "expand_addresses",
    "is_numeric_host",
    "make_unique_keys",
    "select_regular_files",
    "split_url",
]

Address: TypeAlias = "str | os.PathLike[str]"
Addresses: TypeAlias = "Address | Iterable[Address]"

_MAX_HOST_NAME_CHARS: Final = 253  # RFC 1035, section 2.3.4, without the length bytes
_MAX_USER_NAME_CHARS: Final = 256
_HOST_PUNCTUATION: Final = "._-"
_USER_PUNCTUATION: Final = "._-@+=,:"
_DOMAIN_SEPARATOR: Final = re.compile(r"(?<=\w)\\(?=\w)")  # of Windows: DOMAIN\\user
_ADDRESS_ZONE: Final = re.compile(r"[A-Za-z0-9._-]{1,32}")  # of link-local IPv6 addresses: the network interface
_PORT: Final = re.compile(r"[0-9]{1,5}")
_MAX_PORT: Final = 65_535
# Reasons why a path cannot be used that are no failure of a disk or a server.
_FAULTS_OF_PATH: Final = (errno.EACCES, errno.EPERM, errno.ELOOP)
_LETTERS_AND_DIGITS: Final = ("L", "M", "Nd")  # general categories of Unicode


def expand_addresses(
    addresses: Addresses,
    pattern: Pattern = None,
    options: Mapping[str, Any] | None = None,
    *,
    unreadable: Unreadable | UnreadableReport = None,
) -> list[SourceFile]:
    """Return the files and objects that `addresses` stand for. Local paths stay as given (relative or absolute).

    Args:
        addresses: A path, an address in a store (``ssh://``, ``s3://``, ``https://``, ...), braces as in bash
            (``part-{000..127}.txt``), a glob pattern (``*``, ``?``, ``[...]``, and ``**`` for any depth), a directory,
            or an iterable of these. A name that exists literally is never read as a pattern. An address may go on into
            a container (``s3://bucket/set.zip!/a/b.png``, ``shards/*.tar!/**/*.mp4``).
        pattern: Filter for the files of a *directory*: a glob pattern for the file's name, case-insensitive, or a
            function of the path. Defaults to all files. Files named by a path or by a glob pattern are not filtered.
        options: Options of the stores, see :func:`streamloader.stores.open_store`.
        unreadable: Handling of what is missing or may not be read. By default, directories that a search meets are
            left out with one warning that names them, while pipes, sockets, devices and links that lead nowhere are
            errors if they match, and so are named files and directories that are missing or cannot be accessed.
            ``"raise"`` raises one error for all of them, ``"skip"`` leaves all of them out with one warning. A report
            collects them for its owner, who calls its ``check``.

    The files of a directory (at any depth; links are followed, but not in circles) and the matches of a pattern are
    sorted by code point, so their order is the same on every machine; ``10.txt`` comes before ``9.txt``. Hidden files
    are left out of both. A list keeps its order, and an address that it contains twice is expanded twice.

    Raises:
        ConfigError: If an address is empty, is neither a string nor a path, or has a scheme that no store serves.
        StreamNotFound: If a path does not exist, or if a directory or pattern contains no file. If several addresses
            are wrong, the error lists all of them, and has the class of the first.
        UnreadableStream: If a named directory cannot be listed, if a path is a pipe, socket or device, or if a
            directory may not be read and `unreadable` is "raise".
        LimitExceeded: If a listing has too many entries or too many levels, or if links lead to the same directories
            again and again; see :class:`streamloader.config.Limits`.
        StoreError: If a store cannot be reached or denies access.
    """
    files: list[SourceFile] = []
    with open_report(unreadable, files) as report:
        expanded = [
            item for address in as_addresses(addresses) for item in _expand_containers(address, options, report)
        ]
        for is_local, group in itertools.groupby(expanded, is_local_file):
            if is_local:
                search = _LocalSearch(pattern, (options or {}).get("limits") or Limits(), report)
                files += [SourceFile(path) for address in group for path in search.expand(address)]
            else:
                files += expand_store_addresses(list(group), pattern, options, report)
    return files


def _expand_containers(address: str, options: Mapping[str, Any] | None, report: UnreadableReport) -> list[str]:
    """Return the address for each container that a pattern before the "!" stands for."""
    member = split_container_address(address)
    if member is None or not has_magic(member[0]):
        return [address]
    containers = expand_addresses(member[0], None, options, unreadable=report)
    return [f"{container.address}!/{member[1]}" for container in containers]


def as_addresses(addresses: Addresses) -> list[str]:
    """Return `addresses` as a list of strings, without accessing the file system.

    Raises:
        ConfigError: If there is no address, or if one of them is neither a string nor a path.
    """
    items = [addresses] if isinstance(addresses, (str, bytes, os.PathLike)) else addresses
    if not isinstance(items, Iterable) or getattr(items, "ndim", 1) == 0:  # an array of a single value is no list
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

    def select(self, numbers: Sequence[int]) -> FileKeys:
        """Return the keys of some of the files, unchanged."""
        keys = [self.keys[number] for number in numbers]
        identities = None if self.identities is None else [self.identities[number] for number in numbers]
        secret_addresses = {key: self.secret_addresses[key] for key in keys if key in self.secret_addresses}
        return FileKeys([self.names[number] for number in numbers], keys, identities, secret_addresses)


def check_host_name(host: str) -> str:
    """Return `host` if it is the name of a host, an alias of one, or an IP address without brackets.

    A name consists of letters, digits, ".", "_" and "-", and does not begin with "-" or ".".

    Raises:
        ConfigError: If it is none. The message does not show it, because parts of a password could be in it.
    """
    if ":" in host:
        address, has_zone, zone = host.partition("%")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            raise ConfigError("an address contains a malformed IPv6 address: write it as in ssh://[::1]:22/") from None
        if has_zone and not _ADDRESS_ZONE.fullmatch(zone):
            raise ConfigError("the zone of an IPv6 address must be the name of a network interface")
        return host
    _check_characters("host name", host, _HOST_PUNCTUATION, _MAX_HOST_NAME_CHARS)
    return host


def check_user_name(user: str) -> str:
    r"""Return `user` if it is the name of a user.

    A name consists of letters, digits and ``._-@+=,:``, and does not begin with "-" or ".". It may have the form
    ``DOMAIN\user``.

    Raises:
        ConfigError: If it is none. The message does not show it, because parts of a password could be in it.
    """
    _check_characters("user name", _DOMAIN_SEPARATOR.sub("", user), _USER_PUNCTUATION, _MAX_USER_NAME_CHARS)
    return user


def is_numeric_host(host: str) -> bool:
    """Return whether a host is written as a number, so that no name server is involved."""
    return ":" in host or host.replace(".", "").isdigit()


def split_url(url: str) -> SplitResult:
    """Split a URL as :func:`urllib.parse.urlsplit` does, but refuse the characters that it removes without a word.

    Raises:
        ConfigError: If the URL contains white space or control characters, or is malformed.
    """
    if any(char.isspace() or unicodedata.category(char) == "Cc" for char in url):
        raise ConfigError("an address of a server contains white space or control characters: percent-encode them")
    try:
        return urlsplit(url)
    except ValueError:
        raise ConfigError("an address is not a valid URL") from None  # the original error would show it


def check_authority(authority: str) -> None:
    """Check the host, port and user of the part of an address between ``://`` and the next "/".

    Args:
        authority: Text of the form ``user:password@host:port``, percent-encoded. Only the host is required.

    Raises:
        ConfigError: If the host or the user is not a name, or if the port is not a number.
    """
    login, _, location = authority.rpartition("@")
    if login and (user := unquote(login.partition(":")[0])):
        check_user_name(user)
    host, closed, port = location.rpartition("]")
    if closed and host.startswith("["):
        check_host_name(host.removeprefix("["))
    else:
        host, _, port = location.partition(":")
        port = f":{port}" if port else ""
        check_host_name(host)
    number = port.removeprefix(":")
    if (port and not port.startswith(":")) or (number and not (_PORT.fullmatch(number) and int(number) <= _MAX_PORT)):
        raise ConfigError("the port of an address is not a number from 0 to 65535")


def _check_characters(kind: str, name: str, punctuation: str, max_chars: int) -> None:
    bad = next((char for char in name if not _is_letter_or_digit(char) and char not in punctuation), None)
    if bad is not None:
        raise ConfigError(
            f"the {kind} of an address contains {bad!r}: only letters, digits and {punctuation!r} are allowed there"
        )
    if not name or name[0] in "-." or len(name) > max_chars:
        raise ConfigError(
            f"the {kind} of an address must have 1 to {max_chars} characters, and must not begin with '-' or '.'"
        )


def _is_letter_or_digit(char: str) -> bool:
    return char.isalnum() if char.isascii() else unicodedata.category(char).startswith(_LETTERS_AND_DIGITS)


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
    return spell_address(text)


class _LocalSearch:
    """Finds the files that addresses of this machine stand for.

    Args:
        pattern: Filter for the files of a directory.
        limits: Limits of each listing.
        report: Report of what may not be read.
    """

    def __init__(self, pattern: Pattern, limits: Limits, report: UnreadableReport) -> None:
        self._pattern = pattern
        self._limits = limits
        self._report = report

    def expand(self, address: str) -> list[str]:
        """Return the paths of the files of one address."""
        path = _as_path(address)
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            expanded = expand_braces(path)
            if expanded != [path] and not os.path.islink(path):
                return [file for item in expanded for file in self.expand(item)]
            return self._match_pattern(path, address)
        except OSError as error:
            return self._leave_out(_explain_access(address, error))
        if stat.S_ISDIR(mode):
            return self._list_directory(path, address)
        if not stat.S_ISREG(mode):
            problem = UnreadableStream(f"{address} is a pipe, socket or device: a stream needs a file", address=address)
            return self._leave_out(problem)
        return [path]

    def _leave_out(self, error: StreamloaderError) -> list[str]:
        """Report a named path that cannot be used. Return its files: none."""
        self._report.add_named(error.address or "", error)
        return []

    def _match_pattern(self, path: str, address: str) -> list[str]:
        if os.path.islink(path):
            return self._leave_out(StreamNotFound(describe_broken_link(path), address=address))
        if not has_magic(path):
            problem = f"{address} does not exist ({_describe_place(address, path)}){explain_missing_path(path)}"
            return self._leave_out(StreamNotFound(problem, address=address))
        mark = self._report.mark
        found, folder_count = match_local_pattern(path, self._make_budget(address), self._report)
        files = select_regular_files(found, self._report)
        if files:
            return files
        if folder_count:
            problem = f"the pattern {address} matches {folder_count} directories and no file"
            problem += "; append **/ to search inside them"
        else:
            problem = f"no file matches the pattern {address} ({_describe_place(address, path)})"
            problem += explain_missing_path(path)
        self._report.add_unmatched(address, StreamNotFound(problem, address=address), mark)
        return []

    def _list_directory(self, path: str, address: str) -> list[str]:
        accept = make_path_filter(self._pattern)
        try:
            os.scandir(path).close()
            os.stat(os.path.join(path, os.curdir))  # without this permission, its files cannot be opened
        except OSError as error:
            problem = UnreadableStream(f"cannot list the directory {path}: {error.strerror}", address=path)
            if error.errno not in _FAULTS_OF_PATH:
                raise problem from error
            return self._leave_out(problem)
        mark = self._report.mark
        file_count = 0
        found = []
        for file in walk_files(path, self._make_budget(address), on_unreadable=report_unreadable(self._report)):
            file_count += 1
            if accept(file):
                found.append(file)
        files = select_regular_files(sorted(found), self._report)
        if not files:
            wanted = f"file that matches {self._pattern!r}" if isinstance(self._pattern, str) else "file of this kind"
            missing = StreamNotFound(
                f"the directory {address} contains no {wanted} ({file_count} other files)", address=address
            )
            self._report.add_unmatched(address, missing, mark)
        return files

    def _make_budget(self, address: str) -> ListingBudget:
        return ListingBudget(self._limits, address, entry_bytes=SEARCH_ENTRY_BYTES)


def select_regular_files(paths: Sequence[str], report: UnreadableReport) -> list[str]:
    """Return those paths that are regular files, and report all others: omitting them silently would lose data."""
    files = []
    for path in paths:
        if os.path.isfile(path):
            files.append(path)
        elif os.path.islink(path) and not os.path.exists(path):
            report.add_file(path, StreamNotFound(describe_broken_link(path), address=path))
        else:
            problem = f"{path} is not a regular file, or cannot be accessed"
            report.add_file(path, UnreadableStream(problem, address=path))
    return files


def _explain_access(address: str, error: OSError) -> StreamloaderError:
    """Return the error for a path that the system refuses. Raise it if the fault is not that of the path."""
    if error.errno == errno.ENAMETOOLONG:
        return StreamNotFound(f"the path is too long: {address!r:.80}", address=address)
    problem = UnreadableStream(f"cannot access {address}: {error.strerror}", address=address)
    if error.errno not in _FAULTS_OF_PATH:
        raise problem from error
    return problem


def _describe_place(address: str, path: str) -> str:
    """Return where a path is searched: its expansion, or the working directory."""
    return f"working directory: {os.getcwd()}" if path == address or not os.path.isabs(path) else f"that is {path}"


def _as_path(address: str) -> str:
    path = local_path(address)
    return path if path is not address else expand_path(path)
