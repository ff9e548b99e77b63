"""Read known_hosts files, and what SSH configuration files say about them, as OpenSSH reads them."""

from __future__ import annotations

import binascii
import getpass
import hmac
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import asyncssh
from asyncssh.config import SSHClientConfig, SSHConfig

from streamloader.common.printable import make_printable

__all__ = ["HostKeyPolicy", "KnownHosts", "find_host_key_policy"]

_CERT_AUTHORITY, _REVOKED = b"@cert-authority", b"@revoked"
_MARKERS: Final = (b"", _CERT_AUTHORITY, _REVOKED)
_HASHED: Final = b"|1|"  # HMAC-SHA1, the only kind of hashed names
_MAX_SHOWN_LINES: Final = 5
_DEFAULT_PORT: Final = 22
_log: Final = logging.getLogger("streamloader")


class _Line(NamedTuple):
    """A valid line of a known_hosts file.

    Attributes:
        marker: ``@cert-authority``, ``@revoked``, or empty.
        names: Patterns of names, joined with commas, or one hashed name.
        key: Type and key.
    """

    marker: bytes
    names: bytes
    key: bytes


class KnownHosts:
    """Look up host keys in known_hosts files.

    A line that OpenSSH ignores is ignored here, too: one that is incomplete, or has an unknown marker. A warning names
    it. Bytes that are not ASCII are kept in host names and ignored in comments. Only the keys of lines that match are
    parsed: a file may have a hundred thousand lines.

    Args:
        files: Paths of the files.

    Attributes:
        trusted: Host keys that the last lookup found.
        authorities: Keys of certificate authorities that it found.
        revoked: Revoked keys that it found.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.trusted: list[asyncssh.SSHKey] = []
        self.authorities: list[asyncssh.SSHKey] = []
        self.revoked: list[asyncssh.SSHKey] = []

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """Return host keys, CA keys and revoked keys. Called by asyncssh before anything is sent.

        A name without a port counts if no key is known for the name with the port. A revocation counts in any case.
        """
        plain = [name.lower().encode("utf-8", "surrogateescape") for name in (host, addr) if name]
        with_port = plain if port in (None, _DEFAULT_PORT) else [b"[%b]:%d" % (name, port or 0) for name in plain]
        exact: list[_Line] = []
        others: list[_Line] = []
        for line in (line for path in self.files for line in _read_lines(path)):
            if _matches_names(line.names, with_port):
                exact.append(line)
            elif plain is not with_port and _matches_names(line.names, plain):
                others.append(line)
        keys = list(_import_keys(exact))
        more = list(_import_keys(others))
        if not any(marker != _REVOKED for marker, _ in keys):
            keys += more
        else:
            keys += [(marker, key) for marker, key in more if marker == _REVOKED]
        self.trusted, self.authorities, self.revoked = (
            [key for marker, key in keys if marker == wanted] for wanted in (b"", _CERT_AUTHORITY, _REVOKED)
        )
        return self.trusted, self.authorities, self.revoked


def _read_lines(path: str) -> Iterator[_Line]:
    """Yield the valid lines of a known_hosts file, without their comments."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        _log.warning("%s: ignored, because it cannot be read: %s", make_printable(path), error.strerror)
        return
    ignored = []
    for number, line in enumerate(lines, 1):
        words = line.split(None, 4)
        if not words or words[0].startswith(b"#"):
            continue
        marker = words.pop(0) if words[0].startswith(b"@") else b""
        if marker in _MARKERS and len(words) > 1 and _is_key(words) and _is_readable_name(words[0]):
            yield _Line(marker, words[0], b" ".join(words[1:3]))  # the rest is a comment
        else:
            ignored.append(number)
    if ignored:
        shown = ", ".join(map(str, ignored[:_MAX_SHOWN_LINES])) + ", ..." * (len(ignored) > _MAX_SHOWN_LINES)
        _log.warning("%s: ignored line %s, which is not valid in a known_hosts file", make_printable(path), shown)


def _is_key(words: Sequence[bytes]) -> bool:
    return words[1].isascii() and (len(words) < 3 or words[2].isascii())  # noqa: PLR2004 - name, type, key


def _is_readable_name(names: bytes) -> bool:
    """Return whether names are plain, or hashed in the one way that there is."""
    return not names.startswith(b"|") or _split_hashed_name(names) is not None


def _split_hashed_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Return salt and digest of a hashed name, or None if it is malformed."""
    salt, _, digest = name.removeprefix(_HASHED).partition(b"|")
    try:
        return (binascii.a2b_base64(salt), binascii.a2b_base64(digest)) if name.startswith(_HASHED) else None
    except binascii.Error:
        return None


def _matches_names(names: bytes, wanted: Sequence[bytes]) -> bool:
    """Return whether the names of a line match one of the wanted names."""
    if names.startswith(b"|"):
        hashed = _split_hashed_name(names)
        return hashed is not None and any(hmac.digest(hashed[0], name, "sha1") == hashed[1] for name in wanted)
    patterns = names.lower().split(b",")
    if not any(sign in names for sign in b"*?!"):
        return any(name in patterns for name in wanted)
    return any(_matches_patterns(patterns, name) for name in wanted)


def _matches_patterns(patterns: Sequence[bytes], name: bytes) -> bool:
    matching = [pattern for pattern in patterns if _compile_pattern(pattern.removeprefix(b"!")).fullmatch(name)]
    return bool(matching) and not any(pattern.startswith(b"!") for pattern in matching)


@lru_cache(maxsize=1024)
def _compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """Return a pattern in which only "*" and "?" are special."""
    return re.compile(re.escape(pattern).replace(rb"\*", b".*").replace(rb"\?", b"."), re.DOTALL)


def _import_keys(lines: Iterable[_Line]) -> Iterator[tuple[bytes, asyncssh.SSHKey]]:
    """Yield marker and key of each line whose key can be parsed, as OpenSSH does."""
    for line in lines:
        try:
            yield line.marker, asyncssh.import_public_key(line.key)
        except (asyncssh.KeyImportError, ValueError):
            continue


class HostKeyPolicy(NamedTuple):
    """What SSH configuration files say about unknown host keys.

    Attributes:
        strictness: Value of StrictHostKeyChecking in lower case, or "".
        has_command: Whether there is a KnownHostsCommand.
    """

    strictness: str
    has_command: bool


class _HostKeySettings(SSHClientConfig):
    """Reads settings that asyncssh does not have."""

    _no_split = {*SSHClientConfig._no_split, "knownhostscommand"}  # noqa: RUF012, SLF001 - as in the base class
    _handlers = {  # noqa: RUF012 - as in the base class
        **SSHClientConfig._handlers,  # noqa: SLF001 - there is no public way to add one
        "stricthostkeychecking": ("StrictHostKeyChecking", SSHConfig._set_string),  # noqa: SLF001
        "knownhostscommand": ("KnownHostsCommand", SSHConfig._set_string),  # noqa: SLF001
    }


def find_host_key_policy(paths: Iterable[str], target: Mapping[str, Any]) -> HostKeyPolicy:
    """Return what SSH configuration files say about unknown keys of a host.

    Args:
        paths: Paths of the files.
        target: The host, port and username, as asyncssh takes them.
    """
    settings = _HostKeySettings.load(
        None, list(paths), False, False, False, getpass.getuser(), target["username"], target["host"], target["port"]
    )
    command = str(settings.get("KnownHostsCommand", "none"))
    return HostKeyPolicy(str(settings.get("StrictHostKeyChecking", "")).lower(), command.lower() != "none")
