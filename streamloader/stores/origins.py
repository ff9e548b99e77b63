"""Limit what an address reaches that the user did not name: one in a catalog, a manifest or an index.

The author of such a document would otherwise choose which hosts this machine contacts, from inside its network, and
which of them receive the user's passwords, tokens and keys. The rule is the same for all documents:

- The user names an address by passing it in this call, or by binding options to its origin in ``storage_options``:
  ``{"https://cdn.example": {"token": ...}, "ssh://me@box": {}}``. An empty mapping is enough. A prefix without a host
  (``"s3://"``) names nothing. The origin of the document itself is named, too.
- An address that the user named is opened with the options that apply to it, and with the credentials of the
  environment.
- Any other address is only opened anonymously, without options that are meant for a server, and only at public
  addresses: ``http(s)://`` and ``s3://`` can do that. All other schemes are refused before any connection.
- Addresses without a host need no such limit: those of this machine and of its memory, and ``ipfs://``, which the
  user's own node or gateway serves, and whose bytes are compared with the address.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from streamloader.errors import UntrustedAddress
from streamloader.redaction import redact_address
from streamloader.stores.registry import scheme_of, select_options, split_address

__all__ = ["LOCAL_SCHEMES", "is_bound", "make_untrusted_error", "select_access"]

LOCAL_SCHEMES: Final = ("", "file", "memory")
_SCHEMES_WITHOUT_HOST: Final = (*LOCAL_SCHEMES, "ipfs", "ipns")
_LOCAL_OPTIONS: Final = ("timeouts", "limits", "retry", "digests", "cache_dir", "cache_bytes")  # sent to no server
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Settings of the environment that choose the server of s3:// addresses.
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def is_bound(address: str, storage_options: Mapping[str, Any] | None) -> bool:
    """Return whether options are bound to the origin of an address, so that the user has named it."""
    bound = {name: options for name, options in (storage_options or {}).items() if _names_host(name)}
    return bool(bound) and select_options(address, {name: {"bound": True} for name in bound}) != {}


def select_access(
    address: str, storage_options: Mapping[str, Any] | None, *, named: bool, document: str
) -> dict[str, Any]:
    """Return the options with which the store of an address may be opened.

    Args:
        address: Address of a store or of an object in it.
        storage_options: Options from the user, see :func:`streamloader.stores.registry.select_options`.
        named: Whether the user passed the address in this call.
        document: Address of the catalog, manifest or index that contains the address. The user named it.

    Raises:
        UntrustedAddress: If the address can only be opened when the user names it.
        ConfigError: If `storage_options` are malformed.
    """
    scheme = scheme_of(address)
    if named or scheme in _SCHEMES_WITHOUT_HOST or _share_origin(address, document):
        return select_options(address, storage_options)
    bound = {name: options for name, options in (storage_options or {}).items() if _names_host(name)}
    if bound and is_bound(address, bound):
        return select_options(address, bound)
    options = {name: value for name, value in (storage_options or {}).items() if "://" not in name}
    if withheld := sorted(set(options) - set(_LOCAL_OPTIONS)):
        raise make_untrusted_error(address, document, f"{', '.join(withheld)} in storage_options= would be sent there")
    if scheme in _DEFAULT_PORTS:
        return options | {"anonymous": True, "scope": "public"}
    if scheme != "s3":
        raise make_untrusted_error(address, document, f"{scheme}:// logs in with credentials of this machine")
    if any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        raise make_untrusted_error(address, document, "AWS_ENDPOINT_URL sets another server for s3://")
    return options | {"anonymous": True}


def _names_host(prefix: str) -> bool:
    return bool(prefix.partition("://")[2].strip("/"))


def _share_origin(address: str, document: str) -> bool:
    if scheme_of(address) != scheme_of(document):
        return False
    origin = _get_origin(address)
    return bool(origin) and origin == _get_origin(document)


def _get_origin(address: str) -> str:
    """Return scheme, host and port of an address. Return "" if it names no host."""
    scheme = scheme_of(address)
    if scheme in _DEFAULT_PORTS:
        try:
            parts = urlsplit(address)
            return f"{scheme}://{parts.hostname}:{parts.port or _DEFAULT_PORTS[scheme]}" if parts.hostname else ""
        except ValueError:
            return ""
    return "" if scheme in _SCHEMES_WITHOUT_HOST else split_address(address)[0].lower()


def make_untrusted_error(address: str, document: str, reason: str) -> UntrustedAddress:
    """Build the error for an address that only a document names.

    Args:
        address: Address that is not used.
        document: Address of the document.
        reason: Reason why it is not used, as a sentence.
    """
    try:
        root = split_address(address)[0]
    except ValueError:
        root = address
    shown = redact_address(address)
    return UntrustedAddress(
        f"{shown} is named by {redact_address(document)} and not by you, so it is not used: {reason}. If you "
        f"trust it, name it: pass places={{number: {shown!r}}} for a place of an archive, or bind options to "
        f"it, which may be empty: storage_options={{{redact_address(root)!r}: {{}}}}",
        address=address,
    )
