"""Split the names of a shard's members into key and field, by the convention of WebDataset.

``train/0001.left.jpg`` is the field ``left.jpg`` of the sample ``train/0001``: the key ends at the first dot of the
last segment. Members of one sample lie next to each other.
"""

from __future__ import annotations

import re
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.containers.base import describe_unsafe_name
from streamloader.errors import ConfigError
from streamloader.stores.container_addresses import CONTAINER_SUFFIXES

__all__ = ["SHARD_SUFFIXES", "check_field", "check_key", "join_member_name", "split_member_name"]

SHARD_SUFFIXES: Final = tuple(suffix for suffix in CONTAINER_SUFFIXES if suffix not in (".pack", ".zip"))
MAX_KEY_BYTES: Final = 1024
MAX_FIELD_BYTES: Final = 128
_NAME: Final = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_METADATA: Final = re.compile(r"__[^/]*__(?:$|/)")
_KEY: Final = re.compile(r"(?:[^/]+/)*[^./]+")
_FIELD: Final = re.compile(r"[^/.\s][^/\s]*")


def split_member_name(name: str) -> tuple[str, str] | None:
    """Return key and field of a member. The field is in lower case.

    Returns:
        A tuple of two strings. None for what belongs to no sample: hidden names, names without a dot, WebDataset's
        metadata (``__name__``), and fields in underscores, such as ``__key__``, which samples have anyway.
    """
    match = _NAME.fullmatch(name)
    if match is None or _METADATA.match(name) or match[2].startswith("__"):
        return None
    return match[1], match[2].lower()


def join_member_name(key: str, field: str) -> str:
    """Return the name of the member that holds a field of a sample."""
    return f"{key}.{field}"


def check_key(key: object) -> str:
    """Return the key of a sample that is to be written.

    Raises:
        ConfigError: If readers would split its members' names differently, or if it is no name at all.
    """
    if not isinstance(key, str):
        raise ConfigError(f"the key of a sample must be a string, got {type(key).__name__}")
    problem = _find_key_problem(key)
    if problem is not None:
        raise ConfigError(f"the key {make_printable(key)!r} {problem}")
    return key


def _find_key_problem(key: str) -> str | None:
    if not key.isprintable():
        return "has characters that cannot be printed"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"has more than {MAX_KEY_BYTES} bytes"
    if not _KEY.fullmatch(key):
        return "must be names joined by '/', the last one without a dot: what follows the first dot is the field"
    if describe_unsafe_name(key) is not None:
        return "is an absolute name, or has a segment '.' or '..'"
    return "is a name of WebDataset's metadata" if _METADATA.match(f"{key}/") else None


def check_field(field: object) -> str:
    """Return the name of a field that is to be written.

    Raises:
        ConfigError: If it is no ending of a file name, or is not in lower case, as readers would return it.
    """
    if not isinstance(field, str) or not _FIELD.fullmatch(field) or not field.isprintable():
        raise ConfigError(
            f"the field {make_printable(field)!r} must be the ending of a file name, such as 'jpg' or 'left.jpg'"
        )
    if field != field.lower():
        raise ConfigError(f"the field {field!r} must be in lower case, because readers return it so")
    if len(field.encode()) > MAX_FIELD_BYTES or field.startswith("__") or field.endswith("__"):
        raise ConfigError(
            f"the field {field!r} must have at most {MAX_FIELD_BYTES} bytes, and neither start nor end with '__'"
        )
    return field
