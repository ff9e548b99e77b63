"""Pack the files below a folder into one pack, whatever their number and size."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import RawIOBase
from typing import Final, NamedTuple

from streamloader.common.guarded_files import open_regular_file
from streamloader.config import Limits
from streamloader.containers.pack.build import PackBuilder, create_pack
from streamloader.containers.pack.format import PackCompressor
from streamloader.datasets.directory.codec import drop_recent
from streamloader.datasets.directory.filenames import sort_names
from streamloader.datasets.directory.local_root import PACK_SUFFIX
from streamloader.errors import AccessDenied, ConfigError, NotFound, ObjectChanged, StoreError
from streamloader.stores.listing_budget import HELD_ENTRY_BYTES, ListingBudget
from streamloader.stores.local_search import walk_files

__all__ = ["MAX_COMPRESSED_BYTES", "PackedFolder", "pack_folder"]

MAX_COMPRESSED_BYTES: Final = 256 << 20  # of a file that is compressed, because it is held in memory for that
_MAX_WHOLE_BYTES: Final = 4 << 20  # of a file that is copied without pieces
_PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class PackedFolder:
    """Result of packing a folder.

    Attributes:
        path: Path of the pack.
        members: Number of members.
        bytes: Size of all files together in bytes.
        pack_bytes: Size of the pack in bytes.
    """

    path: str
    members: int
    bytes: int
    pack_bytes: int


class _FoundFile(NamedTuple):
    name: str
    path: str
    size: int


def pack_folder(
    folder: str,
    target: str,
    *,
    compressor: PackCompressor | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> PackedFolder:
    """Write a pack of all files below a folder, which appears as a whole or not at all.

    The names of the members are the paths of the files below the folder, with "/" between their parts. Hidden files and
    folders are left out, and so are the pack itself and packs beside the folder of which they are a copy. Links are
    followed, but not in circles. No file is held in memory as a whole, except to compress it: files above 256 MiB are
    stored as they are.

    Args:
        folder: Path of the folder.
        target: Path of the pack. A file of that name is replaced.
        compressor: Compressor of the members. Defaults to none.
        show: Function that is called with the numbers of packed bytes and of all.

    Raises:
        NotFound: If there is no such folder.
        ObjectChanged: If a file changes while it is packed.
        LimitExceeded: If there are too many files, or links lead to the same folders again and again.
        StoreError: If a file cannot be read, or the pack cannot be written.
        ConfigError: If a pack cannot hold the name of a file.
    """
    files = _find_files(folder, target)
    progress = _Progress(sum(file.size for file in files), show)
    max_whole_bytes = _MAX_WHOLE_BYTES if compressor is None else MAX_COMPRESSED_BYTES
    try:
        with create_pack(target, compressor=compressor) as builder:
            for file in files:
                _add_file(builder, file, max_whole_bytes, progress.count)
        pack_bytes = os.stat(target).st_size
    except StoreError:
        raise
    except ValueError as error:
        raise ConfigError(f"{folder} cannot be packed: {error}") from error
    except OSError as error:
        raise _make_error(error, target, "cannot be written") from error
    return PackedFolder(target, len(files), progress.packed_bytes, pack_bytes)


def _find_files(folder: str, target: str) -> list[_FoundFile]:
    """Return all files below a folder, in the order of their names in a pack."""
    if not os.path.isdir(folder):
        raise NotFound(f"there is no folder {folder}", address=folder)
    root, found = os.path.join(folder, ""), {}
    target_path = os.path.realpath(target)
    for path in walk_files(root, ListingBudget(Limits(), folder, entry_bytes=HELD_ENTRY_BYTES)):
        with contextlib.suppress(FileNotFoundError):  # deleted since, or a link that leads nowhere
            status = _get_status(path)
            if stat.S_ISREG(status.st_mode) and not _is_copy(path) and os.path.realpath(path) != target_path:
                found[path.removeprefix(root)] = path, status.st_size
    return [_FoundFile(name, *found[name]) for name in sort_names(found)]


def _is_copy(path: str) -> bool:
    """Return whether a file is the pack of a subdirectory beside it."""
    return path.endswith(PACK_SUFFIX) and os.path.isdir(path.removesuffix(PACK_SUFFIX))


def _get_status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _make_error(error, path, "cannot be read") from error


def _add_file(builder: PackBuilder, file: _FoundFile, max_whole_bytes: int, count: Callable[[int], None]) -> None:
    try:
        fd = open_regular_file(file.path)
    except OSError as error:
        raise _make_error(error, file.path, "cannot be read") from error
    with open(fd, "rb", buffering=0) as source:
        status = os.fstat(fd)
        modified = drop_recent(status.st_mtime_ns)
        pieces = _read_pieces(source, file.path, status, count)
        if status.st_size <= max_whole_bytes:
            builder.add(file.name, b"".join(pieces), modified=modified)
        else:
            builder.add_stream(file.name, pieces, modified=modified)


def _read_pieces(source: RawIOBase, path: str, status: os.stat_result, count: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the content of a file, which must not change.

    Raises:
        ObjectChanged: If it has another size or time at its end.
        StoreError: If it cannot be read.
    """
    size = 0
    try:
        while size <= status.st_size and (piece := source.read(_PIECE_BYTES)):  # a file may grow without end
            size += len(piece)
            count(len(piece))
            yield piece
        new_status = os.fstat(source.fileno())
    except OSError as error:
        raise _make_error(error, path, "cannot be read") from error
    if (size, new_status.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise ObjectChanged(f"{path} has changed while it was packed: pack the folder again", address=path)


class _Progress:
    """Counts the packed bytes.

    Args:
        total_bytes: Number of bytes to pack.
        show: Function that is called with the number of packed bytes and `total_bytes`.
    """

    def __init__(self, total_bytes: int, show: Callable[[int, int], None]) -> None:
        self._total_bytes = total_bytes
        self._show = show
        self.packed_bytes = 0

    def count(self, size: int) -> None:
        """Count further bytes."""
        self.packed_bytes += size
        self._show(self.packed_bytes, self._total_bytes)


def _make_error(error: OSError, path: str, problem: str) -> StoreError:
    kind: type[StoreError] = StoreError
    if isinstance(error, FileNotFoundError):
        kind = NotFound
    elif isinstance(error, PermissionError):
        kind = AccessDenied
    return kind(f"{path} {problem}: {error.strerror or error}", address=path, errno=error.errno)
