"""Parse the URL of an HTTP server, and collect the credentials for it."""

from __future__ import annotations

import base64
import ipaddress
import logging
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from yarl import URL

from streamloader.errors import ConfigError
from streamloader.redaction import redact_address
from streamloader.stores.addresses import check_host_name, check_user_name, split_url

__all__ = [
    "Credentials", "find_netrc_file", "has_authorization", "make_credentials", "parse_server_url", "read_netrc_login",
]  # fmt: skip

_RESERVED_HEADERS: Final = (
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "range",
    "transfer-encoding",
)
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Headers and login that only the server itself may receive. The repr shows neither.

    Attributes:
        headers: Headers of every request.
        login: Value of the Authorization header. None if there is no login, or if it is among `headers`.
    """

    headers: Mapping[str, str] = field(repr=False)
    login: str | None = field(repr=False)


def make_credentials(
    headers: Mapping[str, str], user: tuple[str, str] | None, auth: tuple[str, str] | None, token: str | None
) -> Credentials:
    """Build the credentials from the options of a store.

    Args:
        headers: Headers of every request.
        user: User and password from the address, or None.
        auth: User and password from the options, or None.
        token: Bearer token, or None.

    Raises:
        ConfigError: If an option is malformed, or if several of them contain a login.
    """
    return Credentials(_check_headers(headers), _make_login(user, auth, token, headers))


def parse_server_url(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return scheme, host and port in normal form, and the user with the password, if any.

    Raises:
        ConfigError: If the URL does not name an HTTP server, or if its host or user name has characters that such names
            must not have.
    """
    try:
        parts = split_url(url)
        origin = str(URL(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}").origin())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid, origin, parts = False, "", urlsplit("")
    if not valid or parts.path.strip("/") or parts.query:
        raise ConfigError(
            f"{redact_address(url)} is not the address of an HTTP server: expected http(s)://host or "
            "http(s)://host:port, with user and password percent-encoded"
        )
    check_host_name(parts.hostname or "")
    if parts.username is None:
        return origin, None
    user = unquote(parts.username), unquote(parts.password or "")
    if user[0]:
        check_user_name(user[0])
    return origin, user


def _check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or any(c in name + value for c in "\r\n\0"):
            raise ConfigError(f"headers= takes strings of one line; the header {name!r} is not one")
        if name.lower() in _RESERVED_HEADERS or name.lower().startswith("if-"):
            raise ConfigError(f"headers=: {name} is set by the store itself")
    return dict(headers)


def has_authorization(headers: Mapping[str, str]) -> bool:
    """Return whether the headers contain a login."""
    return any(name.lower() == "authorization" for name in headers)


def _make_login(
    user: tuple[str, str] | None, auth: tuple[str, str] | None, token: str | None, headers: Mapping[str, str]
) -> str | None:
    """Return the value of the Authorization header for the options."""
    sources = [option is not None for option in (user, auth, token)] + [has_authorization(headers)]
    if sum(sources) > 1:
        raise ConfigError("credentials come from one of: the address, auth=, token=, an Authorization in headers=")
    if token is not None:
        return _check_headers({"Authorization": f"Bearer {token}"})["Authorization"]
    pair: Any = auth if auth is not None else user
    if pair is None:
        return None
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):  # noqa: PLR2004
        raise ConfigError("auth= takes a pair of strings: user and password")
    return _encode_basic_login(*pair)


def _encode_basic_login(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def find_netrc_file() -> str:
    """Return the path of the user's netrc file, which need not exist."""
    return os.environ.get("NETRC") or os.path.expanduser("~/.netrc")


def read_netrc_login(url: str) -> str | None:
    """Return the login that the user's netrc file has for a server, or None.

    An entry for a host is used for https only, unless the host is this machine, and for the default port of the scheme
    only. An entry ``machine host:port`` is used for exactly that port. Other services on the same host, and readers of
    the network, therefore receive no password.

    Args:
        url: Scheme, host and port.
    """
    server = URL(url)
    host = server.host or ""
    if server.scheme != "https" and not _is_this_machine(host):
        return None
    file = find_netrc_file()
    try:
        hosts = netrc.netrc(file).hosts
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError) as error:
        _log.warning("%s cannot be used: %s", file, type(error).__name__)  # the error's text may contain secrets
        return None
    exact = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
    entry = hosts.get(exact) or (hosts.get(host) if server.is_default_port() else None)
    return None if entry is None else _encode_basic_login(entry[0], entry[2] or "")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
