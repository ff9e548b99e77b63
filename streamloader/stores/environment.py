"""Proxies and certificate authorities that the user's environment names: one rule for all stores that speak HTTP."""

from __future__ import annotations

import os
import ssl
import urllib.request
from typing import Final
from urllib.parse import urlsplit

from streamloader.errors import ConfigError
from streamloader.redaction import redact_address

__all__ = ["CA_VARIABLES", "find_ca_path", "find_proxy", "load_authorities"]

CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables that name a file (or a folder) of certificate authorities. The first that is set counts."""
_PROXY_SCHEMES: Final = ("http", "https")


def find_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for the server of a URL, or None.

    The variables are HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, in lower or upper case, and NO_PROXY for exceptions.

    Raises:
        ConfigError: If the proxy is not one for HTTP.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in _PROXY_SCHEMES:
        raise ConfigError(
            f"the proxy {redact_address(proxy)} of the environment is not one for HTTP: name another one in "
            f"{parts.scheme.upper()}_PROXY, or exempt {parts.hostname} with NO_PROXY"
        )
    return proxy


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
