"""Describe packs, and directories with packs, as plain values. Only indexes and listings of files are read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from streamloader.containers.pack.format import CUSTOM, STORED, ZLIB, ZSTD
from streamloader.containers.pack.mapped import MappedPack
from streamloader.datasets.directory.filenames import sort_naturally
from streamloader.datasets.directory.local_root import PACK_SUFFIX, FileStatus, LocalRoot
from streamloader.errors import CorruptContainer, NotFound, StoreError

__all__ = [
    "PackChanges",
    "compare_pack",
    "describe_compression",
    "has_packs",
    "open_pack",
    "summarize_directory",
    "summarize_pack",
]

_METHOD_NAMES: Final = {STORED: "stored", ZLIB: "zlib", ZSTD: "zstd", CUSTOM: "other"}


class PackChanges(NamedTuple):
    """Differences between a subdirectory and its pack.

    Attributes:
        new: Number of files that are not in the pack.
        changed: Names of the files that are newer than the pack, or have another size.
        removed: Number of members without a file.
    """

    new: int
    changed: list[str]
    removed: int


def has_packs(folder: str) -> bool:
    """Return whether a path is a folder that contains packs."""
    try:
        return any(name.endswith(PACK_SUFFIX) and not name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return False


def summarize_pack(path: str, limit: int) -> dict[str, Any]:
    """Return a description of a pack and of its first members, which JSON can express.

    Args:
        path: Path of the pack.
        limit: Maximum number of described members.

    Raises:
        CorruptContainer: If the pack is damaged.
        StoreError: If it cannot be read.
    """
    with open_pack(path) as pack:
        index = pack.index
        methods = None if index.methods is None else index.methods.tolist()
        sizes = _get_sizes(pack)
        listed = [
            {
                "name": index.name(row),
                "bytes": int(sizes[row]),
                "stored_bytes": int(index.starts[row + 1]) - int(index.starts[row]),
                "compression": _METHOD_NAMES[STORED if methods is None else methods[row]],
                "modified": int(index.modified[row]) / 1e9 or None,
            }
            for row in range(min(limit, len(pack)))
        ]
        return {
            "pack": os.path.abspath(path),
            **_describe_pack(pack),
            "metadata": dict(index.metadata),
            "listed": listed,
        }


def summarize_directory(
    path: str, limit: int, show: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Return a description of a directory and of its first packs, which JSON can express.

    The files of each subdirectory are compared with its pack, by name, size and time.

    Args:
        path: Path of the directory.
        limit: Maximum number of described packs.
        show: Function that is called with the numbers of described subdirectories and of all.

    Raises:
        StoreError: If the directory cannot be read.
    """
    root = LocalRoot(path)
    listing = root.list_root()
    names = sort_naturally({*listing.subdirectories, *listing.packs})
    subdirectories = set(listing.subdirectories)
    described = []
    for number, name in enumerate(names):
        show(number, len(names))
        is_subdirectory, has_pack = name in subdirectories, name in listing.packs
        described.append(_describe_subdirectory(root, name, is_subdirectory=is_subdirectory, has_pack=has_pack))
    states = Counter(each["state"] for each in described)
    packed = [each for each in described if each["members"] is not None]
    return {
        "directory": root.address,
        "subdirectories": len(subdirectories),
        "packs": len(listing.packs),
        "vdd_files": len(listing.legacy),
        **{key: sum(each[key] for each in packed) for key in ("members", "bytes", "stored_bytes", "pack_bytes")},
        "compression": dict(sum((Counter(each["compression"]) for each in packed), Counter())),
        "states": dict(states),
        "listed": described[:limit],
    }


def compare_pack(pack: MappedPack, statuses: dict[str, FileStatus]) -> PackChanges:
    """Compare a pack with the files of its subdirectory, by name, size and time where it is known.

    Args:
        pack: Pack whose members are files.
        statuses: Status of all files by name. Those that are in the pack are removed from it.
    """
    sizes = None if "data_manager" in pack.index.metadata else _get_sizes(pack).tolist()
    changed, removed = [], 0
    for row, (name, modified) in enumerate(zip(pack.index.names(), pack.index.modified.tolist(), strict=True)):
        status = statuses.pop(name, None)
        if status is None:
            removed += 1
        elif (modified and modified != status.modified) or (sizes is not None and sizes[row] != status.size):
            changed.append(name)
    return PackChanges(len(statuses), changed, removed)


def describe_compression(counts: Mapping[str, int]) -> str:
    """Return the numbers of members by compression as a text for people."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _describe_subdirectory(root: LocalRoot, name: str, *, is_subdirectory: bool, has_pack: bool) -> dict[str, Any]:
    """Describe a subdirectory and its pack, of which one may be missing."""
    entry: dict[str, Any] = dict.fromkeys(("members", "bytes", "stored_bytes", "pack_bytes"))
    entry |= {"name": name, "compression": {}, "state": "no pack", "note": ""}
    if not has_pack:
        return entry if root.list_names(name) else entry | {"state": "empty"}
    try:
        with open_pack(root.path(name + PACK_SUFFIX)) as pack:
            entry |= _describe_pack(pack)
            statuses = root.list_statuses(name) if is_subdirectory else None
            return entry | _compare(pack, statuses)
    except CorruptContainer as error:
        return entry | {"state": "damaged", "note": error.message}


def open_pack(path: str) -> MappedPack:
    """Open a pack.

    Raises:
        CorruptContainer: If it is damaged.
        StoreError: If it cannot be read.
    """
    try:
        return MappedPack.open(path)
    except CorruptContainer:
        raise
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else StoreError
        raise kind(f"{path} cannot be opened: {error.strerror or error}", address=path) from error


def _get_sizes(pack: MappedPack) -> np.ndarray[Any, Any]:
    """Return the size of each content in bytes."""
    index = pack.index
    return np.diff(index.starts[: len(pack) + 1].astype(np.int64)) if index.sizes is None else index.sizes


def _describe_pack(pack: MappedPack) -> dict[str, Any]:
    index = pack.index
    count = len(pack)
    methods = {STORED: count} if index.methods is None else Counter(index.methods.tolist())
    stored_bytes = int(index.starts[count]) - int(index.starts[0])
    return {
        "members": count,
        "bytes": int(_get_sizes(pack).sum(dtype=np.uint64)),
        "stored_bytes": stored_bytes,
        "pack_bytes": os.stat(pack.address).st_size,
        "compression": {_METHOD_NAMES[method]: number for method, number in sorted(methods.items()) if number},
    }


def _compare(pack: MappedPack, statuses: dict[str, FileStatus] | None) -> dict[str, str]:
    """Return whether a pack is a copy of the files of a subdirectory."""
    if statuses is None:
        return {"state": "no subdirectory", "note": ""}
    if "serializer" in pack.index.metadata:
        return {"state": "not compared", "note": f"made with the serializer {pack.index.metadata['serializer']}"}
    changes = compare_pack(pack, statuses)
    counts = (("new", changes.new), ("changed", len(changes.changed)), ("removed", changes.removed))
    note = ", ".join(f"{count:,} {word}" for word, count in counts if count)
    return {"state": "out of date" if note else "up to date", "note": note}
