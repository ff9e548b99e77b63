"""Describe a whole data set of shards in one file, which its writer writes last (docs/shards-format.md)."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from streamloader.common.printable import make_printable
from streamloader.datasets.shards.naming import SHARD_SUFFIXES
from streamloader.errors import ConfigError, DatasetError

__all__ = ["MANIFEST_NAME", "MAX_MANIFEST_BYTES", "Manifest", "ShardInfo"]

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 256 << 20  # two million shards

_FORMAT: Final = "streamloader-shards"
_VERSION: Final = 1
_MAX_BYTES: Final = (1 << 61) - 1
_MAX_SAMPLES: Final = 1 << 40  # of all shards together
_MIN_SAMPLE_BYTES: Final = 512  # the header of one member, decompressed
_COLUMNS: Final = ("names", "samples", "bytes", "data_bytes", "index_digests")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
# Names that mean the same in all stores: without "?", "#" and "%", which begin something else in HTTP addresses.
_SHARD_NAME: Final = re.compile(r"[^/\\?#%\x00-\x1f\x7f\ud800-\udfff]{1,255}")


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard of a data set.

    Attributes:
        name: Name of its file, in the folder of the data set.
        samples: Number of samples.
        bytes: Size of the file in bytes.
        data_bytes: Size of its decompressed content in bytes.
        index_digest: Digest of its index file, see :func:`streamloader.datasets.shards.index.digest_index`.
    """

    name: str
    samples: int
    bytes: int
    data_bytes: int
    index_digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        shards: Shards in their order.
        settings: Settings of the writer, as plain JSON.
    """

    shards: Sequence[ShardInfo]
    settings: Mapping[str, Any]

    def pack(self) -> bytes:
        """Return the content of the file.

        Raises:
            ConfigError: If the name of a shard is not allowed.
        """
        for info in self.shards:
            if not _is_shard_name(info.name):
                raise ConfigError(f"the shard {make_printable(info.name)!r} {_NAME_RULE}")
        rows = [(info.name, info.samples, info.bytes, info.data_bytes, info.index_digest) for info in self.shards]
        document: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "samples": sum(info.samples for info in self.shards),
            "shards": {name: [row[column] for row in rows] for column, name in enumerate(_COLUMNS)},
            "settings": dict(self.settings),
        }
        document["crc32"] = _checksum(document)
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, address: str) -> Manifest:
        """Return the manifest that a file contains.

        Args:
            data: Content of the file.
            address: Address of the file, for messages.

        Raises:
            DatasetError: If it is no manifest, is damaged or too new, or names files outside of its folder.
        """

        def fail(problem: str) -> NoReturn:
            raise DatasetError(
                f"{address}: {problem}. Copy it again, or make it again: streamloader index-shards",
                address=address,
                dataset=address,
            )

        if len(data) > MAX_MANIFEST_BYTES:
            fail(f"it has more than {MAX_MANIFEST_BYTES:,} bytes")
        try:
            document = json.loads(data, parse_constant=_refuse_constant)
            checksum = document.pop("crc32", None) if isinstance(document, dict) else None
            is_intact = checksum == _checksum(document)
        except (ValueError, RecursionError) as error:
            fail(f"it is no JSON, so it is no manifest of shards, or is cut: {error}")
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            fail(f"it is no manifest of shards: it lacks the format {_FORMAT!r}")
        if document.get("version") != _VERSION:
            shown = make_printable(document.get("version"))
            fail(f"the manifest has version {shown}, and this streamloader reads version {_VERSION}")
        if not is_intact:
            fail("the manifest is damaged: its checksum is wrong")
        shards = _parse_shards(document, fail)
        return cls(shards, document["settings"])


def _parse_shards(document: Mapping[str, Any], fail: Callable[[str], NoReturn]) -> tuple[ShardInfo, ...]:
    """Return the shards of a manifest whose checksum is right. It may have been made to do harm."""
    columns = document.get("shards")
    if not isinstance(columns, dict) or not all(isinstance(columns.get(name), list) for name in _COLUMNS):
        fail("the manifest lacks a column of its shards")
    if len({len(columns[name]) for name in _COLUMNS}) > 1 or not isinstance(document.get("settings"), dict):
        fail("the manifest has columns of different sizes, or no settings")
    rows = list(zip(*(columns[name] for name in _COLUMNS), strict=True))
    for name, *numbers, digest in rows:
        if not _is_shard_name(name):
            fail(f"the manifest names {make_printable(name)!r}, which {_NAME_RULE}")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            fail(f"the manifest has no digest of the index of {make_printable(name)!r}")
        if any(type(number) is not int or not 0 <= number <= _MAX_BYTES for number in numbers):
            fail(f"the manifest has impossible numbers for {make_printable(name)!r}")
        samples, _, data_bytes = numbers
        if samples * _MIN_SAMPLE_BYTES > data_bytes:
            fail(f"the manifest has more samples in {make_printable(name)!r} than fit into it")
    if sum(columns["samples"]) > _MAX_SAMPLES:
        fail(f"the manifest has more than {_MAX_SAMPLES:,} samples")
    if len({row[0] for row in rows}) != len(rows):
        fail("the manifest names a shard twice")
    return tuple(ShardInfo(*row) for row in rows)


def _checksum(document: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a document as compact JSON with sorted names."""
    return zlib.crc32(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


_NAME_RULE: Final = (
    f"must be a name within the folder, without any of \\ ? # %, that ends in {', '.join(SHARD_SUFFIXES)}"
)


def _is_shard_name(name: object) -> bool:
    return isinstance(name, str) and bool(_SHARD_NAME.fullmatch(name)) and name.lower().endswith(SHARD_SUFFIXES)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
