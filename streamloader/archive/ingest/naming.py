"""What videos, chunks and sources are called: so that the same content gets the same names, whoever adds it, and when.

`VideoRow.origin` holds what :func:`origin` returns: ``digest``, ``version`` and ``bytes`` of the source, ``settings``
of the cut (as ``CutSettings.to_json`` gives them) and ``format``.
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
    "FORMAT",
    "ROOT",
    "chunk_path",
    "content_of",
    "content_of_path",
    "default_name",
    "origin",
    "password_of",
    "plain_metadata",
    "without_secrets",
]

FORMAT: Final = 1  # of chunks: it changes when the same source and settings give other chunks
ROOT: Final = "chunks"  # the folder of a place that holds all chunks, and nothing else
_CHUNK_PATH: Final = re.compile(r"chunks/([0-9a-f]{2})/(\1[0-9a-f]{62})/[^/]+")
_NO_CONTENT: Final = ("verify",)  # settings that change no chunk


def content_of(digest: str, settings: Mapping[str, Any]) -> str:
    """Return the name of what a source holds, cut so: 64 hexadecimal digits.

    It is the SHA-256 of the compact JSON, with sorted keys, of ``{"digest": digest, "format": FORMAT, "settings":
    settings}``, where ``verify`` is left out of the settings.

    Args:
        digest: ``"sha256:..."`` of the source.
        settings: as ``CutSettings.to_json`` gives them.
    """
    chosen = {name: value for name, value in settings.items() if name not in _NO_CONTENT}
    told = {"digest": digest, "format": FORMAT, "settings": chosen}
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def origin(digest: str, version: str | None, size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a source, see the module."""
    return {"digest": digest, "version": version, "bytes": size, "settings": dict(settings), "format": FORMAT}


def chunk_path(content: str, number: int, digest: str, suffix: str) -> str:
    """Return the path of a chunk in its place.

    Args:
        content: of its video.
        number: within it.
        digest: ``"sha256:..."`` of the file.
        suffix: of the file's name, with or without the dot.
    """
    return f"{ROOT}/{content[:2]}/{content}/{number:06d}-{digest.removeprefix('sha256:')[:16]}.{suffix.lstrip('.')}"


def content_of_path(path: str) -> str | None:
    """Return the content that the chunk at a path belongs to; None if no chunk has such a path."""
    found = _CHUNK_PATH.fullmatch(path)
    return found[2] if found else None


def default_name(address: str) -> str:
    """Return the name that a video gets if the user gives none: that of its file, without ending."""
    scheme = scheme_of(address)
    if scheme in ("", "file"):
        name = os.path.basename(local_path(address))
    else:
        rest = address.partition("://")[2]
        if scheme in ("http", "https"):
            rest = unquote(re.split(r"[?#]", rest, maxsplit=1)[0])
        name = posixpath.basename(rest.rstrip("/"))
    return posixpath.splitext(name)[0] or name or "video"


def without_secrets(address: str) -> str:
    """Return an address as it may be kept: no password, no signature; but the user's name where it is needed.

    Local files get their absolute path.
    """
    if scheme_of(address) in ("", "file"):
        return os.path.abspath(local_path(address))
    user = urlsplit(address).username if "@" in address else None
    told = redact(address)
    if user is None or scheme_of(address) in ("http", "https"):
        return told.replace("://***@", "://", 1)
    return told.replace("://***@", f"://{user}@", 1)


def password_of(address: str) -> str | None:
    """Return the password in an address, if there is one."""
    return urlsplit(address).password if "@" in address else None


def plain_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy of what a user says of a video, once it is known to be plain JSON.

    Raises:
        ConfigError: it is not.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ConfigError(f"metadata is a mapping of names to plain JSON values, got {type(metadata).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"metadata must be plain JSON values: {error}") from error
    if plain != dict(metadata):
        raise ConfigError("metadata must be plain JSON values: names are texts, sequences are lists")
    return plain
