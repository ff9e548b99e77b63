"""Where a server is, and how one logs in there."""

from __future__ import annotations

import base64
import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from yarl import URL

from streamloader.errors import ConfigError

__all__ = ["Access", "access", "has_login", "login_from_netrc", "server_of"]

_OURS: Final = ("accept-encoding", "connection", "content-length", "host", "range", "transfer-encoding")
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class Access:
    """What is only for the server. Its repr tells nothing.

    Attributes:
        headers: for every request.
        login: the value of Authorization, None if there is none or it is among the headers.
    """

    headers: Mapping[str, str] = field(repr=False)
    login: str | None = field(repr=False)


def access(
    headers: Mapping[str, str], user: tuple[str, str] | None, auth: tuple[str, str] | None, token: str | None
) -> Access:
    """Return what the options of a store stand for.

    Raises:
        ConfigError: they are no headers or credentials, or contradict each other.
    """
    return Access(_checked(headers), _login(user, auth, token, headers))


def server_of(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return the normal form of scheme, host and port, and the user with password.

    Raises:
        ConfigError: that is no server.
    """
    try:
        parts = urlsplit(url)
        origin = str(URL(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}").origin())
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound, origin, parts = False, "", urlsplit("")
    if not sound or parts.path.strip("/") or parts.query:
        raise ConfigError(f"{url!r} is no address of an HTTP server: http(s)://host or http(s)://host:port")
    user = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return origin, user


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or any(c in name + value for c in "\r\n\0"):
            raise ConfigError(f"headers= takes texts of one line; that of {name!r} is none")
        if name.lower() in _OURS or name.lower().startswith("if-"):
            raise ConfigError(f"headers=: {name} is set by the store itself")
    return dict(headers)


def has_login(headers: Mapping[str, str]) -> bool:
    """Whether there are credentials among headers."""
    return any(name.lower() == "authorization" for name in headers)


def _login(
    user: tuple[str, str] | None, auth: tuple[str, str] | None, token: str | None, headers: Mapping[str, str]
) -> str | None:
    """Return the value of Authorization that the options stand for."""
    given = [what is not None for what in (user, auth, token)] + [has_login(headers)]
    if sum(given) > 1:
        raise ConfigError("credentials come from one of: the address, auth=, token=, an Authorization in headers=")
    if token is not None:
        return _checked({"Authorization": f"Bearer {token}"})["Authorization"]
    both: Any = auth if auth is not None else user
    if both is None:
        return None
    if not isinstance(both, (tuple, list)) or len(both) != 2 or not all(isinstance(part, str) for part in both):  # noqa: PLR2004
        raise ConfigError("auth= takes a pair of texts, user and password")
    return _basic(*both)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def login_from_netrc(url: str) -> str | None:
    """Return the login that the user's netrc file has for a server."""
    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        hosts = netrc.netrc(file).hosts
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        _log.warning("%s cannot be used: %s", file, type(error).__name__)  # its text may show what is in there
        return None
    found = hosts.get(urlsplit(url).hostname or "")
    return None if found is None else _basic(found[0], found[2] or "")
