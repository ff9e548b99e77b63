"""Names of contents, chunks, videos and sources. Equal content gets equal names, in every process and at any time.

`VideoRow.origin` holds the result of :func:`build_origin`: ``digest``, ``version`` and ``bytes`` of the source,
``settings`` of the cut (from ``CutSettings.to_json``), ``format``, ``video`` if something about the source is unusual
(``pixel_aspect``, ``stream`` of ``video_streams``, ``cropping``, ``clock_jumps``), and ``address`` if
`VideoRow.source` hides values in which sources may differ: see :func:`compute_address_tag`.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from streamloader.common.printable import make_storable
from streamloader.errors import ConfigError
from streamloader.redaction import MASK, get_user_name, has_hidden_host, identify_address, redact_address
from streamloader.stores.container_addresses import split_container_address
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file, scheme_of

__all__ = [
    "CHUNK_FORMAT_VERSION",
    "build_origin",
    "compute_address_tag",
    "compute_content",
    "fill_name_template",
    "find_distinct_template",
    "get_default_name",
    "identify_source",
    "is_former_default_name",
    "is_name_template",
    "normalize_metadata",
    "remove_secrets",
]

CHUNK_FORMAT_VERSION: Final = 1  # raised when equal sources and settings give different chunks
_NAMELESS: Final = "video"
_FIELD: Final = re.compile(r"\{(\w*)\}")
_TEMPLATES: Final = ("{parent}/{name}", "{grandparent}/{parent}/{name}", "{path}")  # from short names to long ones
_TAG_ROUNDS: Final = 20_000
_TAG_BYTES: Final = 16
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


def compute_address_tag(address: str) -> str:
    """Return a digest that distinguishes sources whose stored addresses are equal, or "" if they show everything.

    Everyone who reads a catalog may try to guess the hidden values from the digest. It is therefore slow to compute
    (PBKDF2, about 10 ms), and values that are known to be secret are no part of it. A short secret under another name
    can still be guessed.
    """
    source, identity = remove_secrets(address), identify_source(address)
    if source == identity:
        return ""
    secret, salt = (text.encode("utf-8", "surrogatepass") for text in (identity, source))
    return hashlib.pbkdf2_hmac("sha256", secret, salt, _TAG_ROUNDS, _TAG_BYTES).hex()


def build_origin(
    digest: str,
    version: str | None,
    size: int,
    settings: Mapping[str, Any],
    address_tag: str = "",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the value of `VideoRow.origin`.

    Args:
        digest: Digest of the source, ``"sha256:..."``.
        version: Version of the source in its store. None if the store has no versions.
        size: Size of the source in bytes.
        settings: Result of ``CutSettings.to_json``.
        address_tag: Result of :func:`compute_address_tag`. Defaults to "", which is not stored.
        facts: Facts about the source that may be unusual, plain JSON values: ``pixel_aspect`` as a list of two
            numbers, ``stream``, ``video_streams``, ``cropping`` and ``clock_jumps``. What is usual is not stored.
            Defaults to none.
    """
    origin = {
        "digest": digest, "version": version, "bytes": size, "settings": dict(settings), "format": CHUNK_FORMAT_VERSION,
    }  # fmt: skip
    unusual = _select_unusual(facts) if facts else {}
    if unusual:
        origin["video"] = unusual
    return origin | {"address": address_tag} if address_tag else origin


def _select_unusual(facts: Mapping[str, Any]) -> dict[str, Any]:
    unusual: dict[str, Any] = {}
    width, height = facts["pixel_aspect"]
    if width != height:
        unusual["pixel_aspect"] = f"{width}/{height}"
    if facts["video_streams"] > 1:
        unusual |= {name: facts[name] for name in ("stream", "video_streams")}
    if any(facts["cropping"]):
        unusual["cropping"] = list(facts["cropping"])
    if facts["clock_jumps"]:
        unusual["clock_jumps"] = facts["clock_jumps"]
    return unusual


def get_default_name(address: str) -> str:
    """Return the default name of a video: the name of its folder and of its file, such as ``camA/0001.mp4``.

    It depends on nothing but the file, so that it is the same whatever was added before, alone or with others, and by
    any spelling of the path: links in the path of a local file's folder are followed. The suffix belongs to it, because
    ``x.mp4`` and ``x.mkv`` are two videos. A copy in another place has the same name.
    """
    *folders, file = map(str, make_storable(_split_path(address, follow_links=True)))
    return "/".join([*folders[-1:], file or _NAMELESS])


def is_former_default_name(name: str, address: str) -> bool:
    """Return whether earlier versions of this package may have given this name to a video by default.

    It was the name of its file without the suffix, with as many folders before it as it took, or with a number behind.
    """
    *folders, file = map(str, make_storable(_split_path(address)))
    stem = posixpath.splitext(file)[0] or file or _NAMELESS
    if name.startswith(f"{stem}#"):
        return True
    endings = {"/".join([*folders[start:], end]) for end in (stem, file) for start in range(len(folders) + 1)}
    return name in endings


def fill_name_template(template: str, address: str) -> str:
    """Return the name of a video by a template such as ``{parent}/{stem}``.

    Args:
        template: Text with fields in braces: ``stem`` (name of the file without its suffix), ``suffix`` (with the dot),
            ``name`` (name of the file), ``parent`` and ``grandparent`` (names of the folders that it is in, or ""), and
            ``path`` (all folders and the name of the file, without the first slash or the scheme).
        address: Address of the video.

    Raises:
        ConfigError: If the template has another field.
    """
    *folders, file = map(str, make_storable(_split_path(address)))
    stem, suffix = posixpath.splitext(file)
    path = "/".join([*folders, file])
    folders = ["", "", *folders]
    values = {
        "stem": stem, "suffix": suffix, "name": file, "parent": folders[-1], "grandparent": folders[-2], "path": path,
    }  # fmt: skip

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            fields = ", ".join(f"{{{name}}}" for name in values)
            raise ConfigError(f"name={template!r}: there is no field {match[0]}. Use {fields}")
        return values[match[1]]

    return str(make_storable(_FIELD.sub(fill, template)))


def is_name_template(name: str) -> bool:
    """Return whether a name has fields that differ from video to video."""
    return _FIELD.search(name) is not None


def find_distinct_template(addresses: Sequence[str]) -> str | None:
    """Return the shortest usual template that gives each of these videos a name of its own, or None if none does."""
    for template in _TEMPLATES:
        if len({fill_name_template(template, address) for address in addresses}) == len(addresses):
            return template
    return None


def _split_path(address: str, *, follow_links: bool = False) -> list[str]:
    """Return the folders of a video, from the outermost, and the name of its file, without secrets.

    Args:
        address: Address of the video.
        follow_links: Whether links to the folder of a local file, or to a folder above, are resolved. The name of the
            file itself is always that of the link. Defaults to False.
    """
    container = split_container_address(address)
    if container is not None:
        return [*_split_path(container[0], follow_links=follow_links), *_split_names(container[1])]
    if is_local_file(address):
        folder, name = os.path.split(os.path.abspath(local_path(address)))
        path = os.path.join(os.path.realpath(folder) if follow_links else folder, name)
    else:
        # What follows the last "@" is no login, even if the address cannot be taken apart.
        shown = address.rpartition("@")[2] if has_hidden_host(address) else redact_address(address)
        path = shown.rpartition("://")[2].rpartition(f"{MASK}@")[2]
        if scheme_of(address) in ("http", "https"):
            path = unquote(re.split(r"[?#]", path, maxsplit=1)[0], errors="surrogateescape")
    return _split_names(path) or [""]


def _split_names(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def remove_secrets(address: str) -> str:
    """Return an address as the catalog stores it: without password, query values and other secrets.

    A user name without special characters is kept, except for HTTP. The path of a local file becomes absolute. What a
    catalog or a terminal does not take is escaped: bytes of a name that are no UTF-8, and control characters.
    """
    if is_local_file(address):
        shown = os.path.abspath(local_path(address))
    else:
        shown = _replace_login(address, redact_address(address))
    return str(make_storable(shown))


def identify_source(address: str) -> str:
    """Return the text that distinguishes a source from others, see :func:`streamloader.redaction.identify_address`.

    It equals :func:`remove_secrets` if that shows everything in which sources may differ.
    """
    if is_local_file(address):
        return os.path.abspath(local_path(address))
    return _replace_login(address, identify_address(address))


def _replace_login(address: str, shown: str) -> str:
    """Return `shown` with the user name of `address`, if that may be stored, or else without a login."""
    user = None if scheme_of(address) in ("http", "https") else get_user_name(address)
    return shown.replace(f"://{MASK}@", "://" if user is None else f"://{user}@", 1)


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
    try:
        json.dumps(plain, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, from a file name that is not UTF-8
        plain = make_storable(plain, keep_lines=True)
    return plain
