"""Find out what a root in a store contains: by a listing, or by looking for packs where there are no listings."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from streamloader.common.gather import gather_bounded
from streamloader.containers.base import ContainerSource
from streamloader.containers.pack.container import read_index_bytes
from streamloader.containers.pack.format import PackFooter
from streamloader.datasets.directory.local_root import PACK_SUFFIX, FileStatus
from streamloader.datasets.directory.remote_fetch import GONE
from streamloader.errors import AccessDenied, CorruptContainer, LimitExceeded, NotFound, NotSupported, StoreError
from streamloader.stores.base import Store
from streamloader.values import ObjectInfo

__all__ = ["PackParts", "StoreListing", "find_packs", "make_file_status", "make_listing", "read_pack"]

_LEGACY_SUFFIX: Final = ".vdd"
_MAX_REQUESTS: Final = 32
_NS: Final = 1_000_000_000


class StoreListing(NamedTuple):
    """Contents of a root in a store.

    Attributes:
        files: Status of each file by subdirectory and name.
        packs: Metadata of each pack by the name of its subdirectory.
        legacy: Names of the files ``*.vdd``.
    """

    files: dict[str, dict[str, FileStatus]]
    packs: dict[str, ObjectInfo]
    legacy: list[str]


class PackParts(NamedTuple):
    """What was read of a pack.

    Attributes:
        info: Metadata of the pack, in the version that was read.
        footer: Footer. None for whole packs.
        data: Bytes of the index, or the whole pack.
    """

    info: ObjectInfo
    footer: PackFooter | None
    data: bytes | mmap.mmap


def make_listing(entries: Iterable[ObjectInfo], base: str, show: Callable[[int, int], None]) -> StoreListing:
    """Return the contents of a root from a recursive listing. Only files directly in subdirectories count.

    Args:
        entries: Entries of the listing.
        base: Path of the root in the store.
        show: Function that is called with the number of entries, and 0 for the unknown number of all.
    """
    listing = StoreListing({}, {}, [])
    prefix_size = len(base) + 1 if base else 0
    for count, info in enumerate(entries):
        show(count, 0)
        folder, slash, name = info.path[prefix_size:].partition("/")
        if folder.startswith(".") or name.startswith(".") or "/" in name:
            continue
        if slash and name:
            listing.files.setdefault(folder, {})[name] = make_file_status(info)
        elif folder.endswith(PACK_SUFFIX):
            listing.packs[folder.removesuffix(PACK_SUFFIX)] = info
        elif folder.endswith(_LEGACY_SUFFIX):
            listing.legacy.append(folder)
    return listing


def make_file_status(info: ObjectInfo) -> FileStatus:
    """Return the status of a file from its metadata. The size is -1 if it is unknown."""
    modified = 0 if info.modified is None else int(info.modified * _NS)
    return FileStatus(-1 if info.size is None else info.size, modified, modified, info.version)


async def find_packs(store: Store, paths: dict[str, str]) -> dict[str, ObjectInfo]:
    """Return the metadata of the packs that exist, by name.

    Args:
        store: Store without listings.
        paths: Paths to look at, by name.

    Raises:
        AccessDenied: If the server shows none of them. Some deny access to what does not exist.
        StoreError: If the store fails otherwise.
    """
    results = await gather_bounded((_look_up(store, path) for path in paths.values()), limit=_MAX_REQUESTS)
    found = {name: info for name, info in zip(paths, results, strict=True) if isinstance(info, ObjectInfo)}
    denied = next((error for error in results if isinstance(error, AccessDenied)), None)
    if denied is not None and not found:
        raise denied
    return found


async def _look_up(store: Store, path: str) -> ObjectInfo | StoreError:
    try:
        return await store.head(path)
    except (NotFound, AccessDenied) as error:
        return error


async def read_pack(
    store: Store, info: ObjectInfo, *, whole: bool, on_bytes: Callable[[int], None]
) -> PackParts | StoreError:
    """Read the index of a pack, or the whole pack. Return the error if it is gone, damaged or another one.

    Args:
        store: Store.
        info: Metadata of the pack.
        whole: Whether to read the whole pack.
        on_bytes: Function that is called with the number of bytes that came.

    Raises:
        NotSupported: If the server does not tell its size.
        LimitExceeded: If it is too large for memory, or has too many members.
        StoreError: If the store fails otherwise.
    """
    if info.size is None:
        address = store.address(info.path)
        raise NotSupported(f"{address}: the server does not tell the size, which spans need", address=address)
    try:
        if whole:
            return PackParts(info, None, await _read_whole(store, info, info.size, on_bytes))
        footer, data, base = await read_index_bytes(ContainerSource(store, info))
        on_bytes(footer.index_size)
        return PackParts(info, footer, bytes(data[base : base + footer.index_size]))
    except (CorruptContainer, *GONE) as error:
        return error


async def _read_whole(store: Store, info: ObjectInfo, size: int, on_bytes: Callable[[int], None]) -> bytes | mmap.mmap:
    """Return an object in memory that forked processes share. Pieces are written where they stay."""
    if not size:
        return b""
    if size > store.limits.object_bytes:
        address = store.address(info.path)
        raise LimitExceeded(
            f"{address} has {size} bytes, and is not read into memory: pass load_to_memory=False, or raise "
            "Limits(object_bytes=...)",
            address=address,
        )
    memory = mmap.mmap(-1, size)
    position = 0

    def receive(piece: bytes) -> None:
        nonlocal position
        memory[position : position + len(piece)] = piece
        position += len(piece)
        on_bytes(len(piece))

    await store.fetch(info.path, None, receive, version=info.version, size=info.size)
    return memory
