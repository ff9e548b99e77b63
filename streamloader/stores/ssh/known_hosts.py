"""Read known_hosts files, and the setting for host keys that they do not contain, as OpenSSH reads them."""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import asyncssh
from asyncssh.config import SSHClientConfig, SSHConfig

from streamloader.common.printable import make_printable

__all__ = ["KnownHosts", "find_host_key_policy"]

_MARKERS: Final = (b"@cert-authority", b"@revoked")
_MAX_SHOWN_LINES: Final = 5
_log: Final = logging.getLogger("streamloader")


class KnownHosts:
    """Look up host keys in known_hosts files.

    A line that OpenSSH ignores is ignored here, too: one that is incomplete, or has an unknown marker. A warning names
    it. Bytes that are not ASCII are kept in host names and ignored in comments.

    Args:
        files: Paths of the files.

    Attributes:
        has_keys: Whether the last lookup found a key for the host.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.has_keys = False

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """Return host keys, CA keys and revoked keys. Called by asyncssh before anything is sent."""
        if not self.files:
            return (), (), ()
        text = "\n".join(line for path in self.files for line in _read_lines(path))
        keys = asyncssh.match_known_hosts(asyncssh.import_known_hosts(text), host, addr, port)
        self.has_keys = any(keys[:2])
        return keys


def _read_lines(path: str) -> Iterable[str]:
    """Yield the valid lines of a known_hosts file, without their comments."""
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    ignored = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        marker = words[:1] if words[0].startswith(b"@") else []
        fields = words[len(marker) :]
        key = b" ".join(fields[1:3])  # the type and the key; the rest is a comment
        if not (set(marker) <= set(_MARKERS) and len(fields) > 1 and key.isascii()):
            ignored.append(number)
            continue
        entry = b" ".join([*marker, fields[0], key]).decode("utf-8", "surrogateescape")
        try:
            asyncssh.import_known_hosts(entry)
        except ValueError:  # a hashed name that is malformed
            ignored.append(number)
            continue
        yield entry
    if ignored:
        shown = ", ".join(map(str, ignored[:_MAX_SHOWN_LINES])) + ", ..." * (len(ignored) > _MAX_SHOWN_LINES)
        _log.warning("%s: ignored line %s, which is not valid in a known_hosts file", make_printable(path), shown)


class _HostKeySettings(SSHClientConfig):
    """Reads a setting that asyncssh does not have."""

    _handlers = {  # noqa: RUF012 - as in the base class
        **SSHClientConfig._handlers,  # noqa: SLF001 - there is no public way to add one
        "stricthostkeychecking": ("StrictHostKeyChecking", SSHConfig._set_string),  # noqa: SLF001
    }


def find_host_key_policy(paths: Iterable[str], target: Mapping[str, Any]) -> str:
    """Return the StrictHostKeyChecking that SSH configuration files contain for a host in lower case, or "".

    Args:
        paths: Paths of the files.
        target: The host, port and username, as asyncssh takes them.
    """
    settings = _HostKeySettings.load(
        None, list(paths), False, False, False, getpass.getuser(), target["username"], target["host"], target["port"]
    )
    return str(settings.get("StrictHostKeyChecking", "")).lower()
