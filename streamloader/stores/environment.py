"""Proxies and certificate authorities that the user's environment names: one rule for all stores that speak HTTP."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import urllib.request
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from streamloader.errors import ConfigError
from streamloader.redaction import redact_address

__all__ = ["CA_VARIABLES", "find_ca_path", "find_proxy", "load_authorities"]

CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables that name a file (or a folder) of certificate authorities. The first that is set counts."""
_PROXY_SCHEMES: Final = ("http", "https")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_HOST_AND_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", re.ASCII)
_IpAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for the server of a URL, or None.

    The variables are HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, in lower or upper case, and NO_PROXY for exceptions:
    names of hosts, which stand for all hosts below them, too (``example.com``, ``.example.com``, ``*.example.com``),
    IP addresses and networks (``10.0.0.0/8``), each of them with or without a port, or ``*``.

    Raises:
        ConfigError: If the proxy is not one for HTTP, or its address is malformed.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    if not proxy or _is_exempt(parts.hostname or "", port, proxies.get("no", "")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if not _is_well_formed(proxy):
        raise ConfigError(
            f"the proxy of {parts.scheme.upper()}_PROXY or ALL_PROXY is malformed: write http://host:port, with user "
            "and password percent-encoded"
        )
    if urlsplit(proxy).scheme not in _PROXY_SCHEMES:
        raise ConfigError(
            f"the proxy {redact_address(proxy)} of the environment is not one for HTTP: name another one in "
            f"{parts.scheme.upper()}_PROXY, or exempt {parts.hostname} with NO_PROXY"
        )
    return proxy


def _is_well_formed(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        _ = parts.port  # it is parsed now
    except ValueError:
        return False
    return bool(parts.hostname) and not any(character.isspace() for character in proxy)


def _is_exempt(host: str, port: int | None, exceptions: str) -> bool:
    """Return whether NO_PROXY has an entry for a server."""
    address = _parse_ip(host)
    name = _normalize_host(host)
    for text in exceptions.replace(",", " ").split():
        if text == "*":
            return True
        entry = _HOST_AND_PORT.fullmatch(text)
        if entry is not None and int(entry[2]) != port:
            continue
        excepted = (text if entry is None else entry[1]).strip("[]")
        if address is not None:
            if _is_in_network(address, excepted):
                return True
        elif f".{name}".endswith(f".{_normalize_host(excepted.removeprefix('*').lstrip('.'))}"):
            return True
    return False


def _parse_ip(host: str) -> _IpAddress | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_in_network(address: _IpAddress, network: str) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:  # the name of a host
        return False


def _normalize_host(host: str) -> str:
    """Return a name in lower case, in the letters of the name system."""
    lowered = host.rstrip(".").lower()
    try:
        return lowered if lowered.isascii() else lowered.encode("idna").decode("ascii")
    except UnicodeError:
        return lowered


def find_ca_path(ca_file: str | None, *, first: str | None = None) -> str | None:
    """Return the path of the certificate authorities to trust, or None for those of the system.

    Args:
        ca_file: Path from the options of a store. It comes before all variables.
        first: Variable that comes before the others. Defaults to none.
    """
    variables = (*((first,) if first else ()), *CA_VARIABLES)
    return ca_file or next((path for name in variables if (path := os.environ.get(name))), None)


def load_authorities(path: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the certificate authorities in a PEM file, or in a folder as OpenSSL has it.

    Raises:
        ConfigError: If there is no readable certificate.
    """
    try:
        is_folder = os.path.isdir(path)
        return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"ca_file={path!r} contains no readable certificates: {error}. It is an option, or one of the variables "
            f"{', '.join(CA_VARIABLES)}"
        ) from error
