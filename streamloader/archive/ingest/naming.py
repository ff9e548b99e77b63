"""Names of contents, chunks, videos and sources. Equal content gets equal names, in every process and at any time.

`VideoRow.origin` holds the result of :func:`build_origin`: ``digest``, ``version`` and ``bytes`` of the source,
``settings`` of the cut (from ``CutSettings.to_json``) and ``format``.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from streamloader.errors import ConfigError
from streamloader.redaction import redact
from streamloader.stores.local import local_path
from streamloader.stores.registry import scheme_of

__all__ = [
    "CHUNK_FORMAT_VERSION",
    "build_origin",
    "compute_content",
    "get_default_name",
    "get_password",
    "normalize_metadata",
    "remove_secrets",
]

CHUNK_FORMAT_VERSION: Final = 1  # raised when equal sources and settings give different chunks
_SETTINGS_WITHOUT_EFFECT: Final = ("verify",)  # settings that do not change the chunks


def compute_content(digest: str, settings: Mapping[str, Any]) -> str:
    """Return the content identifier of a source and cut settings, 64 hexadecimal digits.

    It is the SHA-256 of the compact JSON with sorted keys of ``{"digest": digest, "format": CHUNK_FORMAT_VERSION,
    "settings": settings}``, where the settings omit ``verify``.

    Args:
        digest: Digest of the source, ``"sha256:..."``.
        settings: Result of ``CutSettings.to_json``.
    """
    effective = {name: value for name, value in settings.items() if name not in _SETTINGS_WITHOUT_EFFECT}
    document = {"digest": digest, "format": CHUNK_FORMAT_VERSION, "settings": effective}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def build_origin(digest: str, version: str | None, size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of `VideoRow.origin`.

    Args:
        digest: Digest of the source, ``"sha256:..."``.
        version: Version of the source in its store. None if the store has no versions.
        size: Size of the source in bytes.
        settings: Result of ``CutSettings.to_json``.
    """
    return {
        "digest": digest, "version": version, "bytes": size, "settings": dict(settings), "format": CHUNK_FORMAT_VERSION,
    }  # fmt: skip


def get_default_name(address: str) -> str:
    """Return the default name of a video: the name of its file without the suffix."""
    scheme = scheme_of(address)
    if scheme in ("", "file"):
        name = os.path.basename(local_path(address))
    else:
        path = address.partition("://")[2]
        if scheme in ("http", "https"):
            path = unquote(re.split(r"[?#]", path, maxsplit=1)[0])
        name = posixpath.basename(path.rstrip("/"))
    return posixpath.splitext(name)[0] or name or "video"


def remove_secrets(address: str) -> str:
    """Return an address without password and signature, as the catalog stores it. A required user name is kept.

    The path of a local file becomes absolute.
    """
    if scheme_of(address) in ("", "file"):
        return os.path.abspath(local_path(address))
    user = urlsplit(address).username if "@" in address else None
    redacted = redact(address)
    if user is None or scheme_of(address) in ("http", "https"):
        return redacted.replace("://***@", "://", 1)
    return redacted.replace("://***@", f"://{user}@", 1)


def get_password(address: str) -> str | None:
    """Return the password in an address, or None."""
    return urlsplit(address).password if "@" in address else None


def normalize_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of a user's metadata. None becomes an empty mapping.

    Raises:
        ConfigError: If the metadata are not plain JSON values.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ConfigError(f"metadata must be a mapping of names to plain JSON values, got {type(metadata).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"metadata must be plain JSON values: {error}") from error
    if plain != dict(metadata):
        raise ConfigError("metadata must be plain JSON values: use texts as names, and lists for sequences")
    return plain
