"""Sources of an ingest: each video becomes available as a local file with a known digest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import anyio.to_thread

from streamloader.archive.ingest.naming import remove_secrets
from streamloader.common.error_translation import error_translator
from streamloader.errors import NotFound, ObjectChanged, StoreError, StreamloaderError, StreamNotFound
from streamloader.media.video.files import open_media_file
from streamloader.stores.base import Store
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import is_local_file
from streamloader.values import ObjectInfo

__all__ = ["LocalSource", "ReportProgress", "get_local_version", "open_source", "read_batches"]

_BATCH_BYTES: Final = 4 << 20  # hashed and written by one call of a thread
_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,8}")

# Called with the current step ("fetching" or "reading") and the number of bytes that are processed so far.
ReportProgress: TypeAlias = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A video as a local file.

    Attributes:
        path: Path of the file.
        address: Address of the source, without secrets.
        digest: Digest of the file, ``"sha256:..."``.
        size: Size of the file in bytes.
        version: Version of the source in its store or file system. None if it has none.
        in_place: Whether `path` is the user's own file, which may change at any time.
    """

    path: str
    address: str
    digest: str
    size: int
    version: str | None
    in_place: bool

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was hashed.

        Raises:
            ObjectChanged: If the file was changed.
        """
        if not self.in_place:
            return
        try:
            version = get_local_version(os.stat(self.path))
        except OSError:
            version = "none"
        if version != self.version:
            raise ObjectChanged(
                f"{self.address} was changed while it was added, so nothing of it was kept: add it again, and do not "
                "change it during that time",
                address=self.address,
            )


def get_local_version(status: os.stat_result) -> str:
    """Return the version of a local file: size, modification time and inode, in the format of local stores."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


@error_translator
def open_source(
    address: str, info: ObjectInfo | None, options: Mapping[str, Any], folder: str, report: ReportProgress
) -> Iterator[LocalSource]:
    """Yield a video as a local file: the file itself, or a copy in `folder` that is removed afterwards.

    Args:
        address: Address of the video.
        info: Information from its store. None if it is not known.
        options: Options of its store.
        folder: Folder for a copy.
        report: Function that receives the progress.

    Raises:
        StreamNotFound: If there is no such file.
        ObjectChanged: If the file was changed while it was read.
        UnreadableStream: If the path is a pipe, socket or device.
        LimitExceeded: If the store does not declare the size of the file, and sends more than
            ``limits.unsized_bytes``.
        StoreError: If the file cannot be read, or there is not enough space for a copy.
    """
    if is_local_file(address):
        yield _hash_local_file(os.path.abspath(local_path(address)), report)
        return
    copy_path = os.path.join(folder, f"source{_get_suffix(address)}")
    try:
        store, path = open_shared_store(address, options)
        with store:
            _require_space(folder, remove_secrets(address), info.size if info else None)
            fetched, digest, size = store.call(_fetch(store.store, path, copy_path, info, report))
        yield LocalSource(copy_path, remove_secrets(address), digest, size, fetched.version, in_place=False)
    except NotFound as error:
        raise StreamNotFound(error.message, address=error.address) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy_path)


def _hash_local_file(path: str, report: ReportProgress) -> LocalSource:
    hasher = hashlib.sha256()
    size = 0
    try:
        with open(open_media_file(path), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            buffer = bytearray(_BATCH_BYTES)
            while size <= status.st_size and (count := file.readinto(buffer)):  # another program may append for ever
                hasher.update(memoryview(buffer)[:count])
                size += count
                report("reading", size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StreamNotFound(f"{path} does not exist", address=path) from error
    except StreamloaderError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", address=path, errno=error.errno) from error
    source = LocalSource(path, path, f"sha256:{hasher.hexdigest()}", size, get_local_version(status), in_place=True)
    source.check_unchanged()
    return source


async def _fetch(
    store: Store, path: str, copy_path: str, info: ObjectInfo | None, report: ReportProgress
) -> tuple[ObjectInfo, str, int]:
    """Copy an object to a local file. Return its information, its digest and its size in bytes."""
    hasher = hashlib.sha256()
    size = 0
    fetched = info or ObjectInfo(path)

    def take_info(response_info: ObjectInfo, _: int) -> None:
        nonlocal fetched
        declared = None if info is None else info.size
        fetched = replace(response_info, version=response_info.version or fetched.version)
        if None not in (declared, fetched.size) and declared != fetched.size:
            raise _make_changed_error(store.address(path), declared, fetched.size)
        if fetched.size is None:
            fetched = replace(fetched, size=declared)
        _require_space(os.path.dirname(copy_path), store.address(path), fetched.size)

    def save(batch: list[bytes]) -> None:
        for piece in batch:
            hasher.update(piece)
            file.write(piece)

    try:
        with open(copy_path, "wb") as file:  # noqa: ASYNC230 - a new local file
            async with contextlib.aclosing(read_batches(store, path, fetched.version, take_info)) as batches:
                async for batch in batches:
                    await anyio.to_thread.run_sync(save, batch)
                    size += sum(map(len, batch))
                    if fetched.size is not None and size > fetched.size:
                        raise _make_changed_error(store.address(path), fetched.size, size)
                    report("fetching", size)
    except StreamloaderError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write a copy of {store.address(path)} to {os.path.dirname(copy_path)}: {error.strerror}. Set "
            "TMPDIR to another folder for such copies",
            address=store.address(path),
            errno=error.errno,
        ) from error
    return fetched, f"sha256:{hasher.hexdigest()}", size


def _make_changed_error(address: str, declared: int | None, size: int | None) -> ObjectChanged:
    return ObjectChanged(
        f"{address} had {declared} bytes when it was listed, and has {size} or more now: add it again, and do not "
        "change it during that time",
        address=address,
        offset=declared,
    )


async def read_batches(
    store: Store, path: str, version: str | None, on_start: Callable[[ObjectInfo, int], None]
) -> AsyncGenerator[list[bytes], None]:
    """Yield the bytes of an object in lists of pieces that are large enough for one call of a thread.

    Args:
        store: Store of the object.
        path: Path of the object in the store.
        version: Expected version. None to accept any version.
        on_start: Function that receives the object's information and the first offset when the response starts.
    """
    batch: list[bytes] = []
    batch_bytes = 0
    async with contextlib.aclosing(store.stream(path, version=version, on_start=on_start)) as pieces:
        async for piece in pieces:
            batch.append(piece)
            batch_bytes += len(piece)
            if batch_bytes >= _BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
    if batch:
        yield batch


def _require_space(folder: str, address: str, size: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if size is not None and free < size:
        raise StoreError(
            f"{address} has {size:,} bytes and has to be copied while it is cut, but {folder} has only {free:,} bytes "
            "free: set TMPDIR to a folder with more space",
            address=address,
            errno=errno.ENOSPC,
        )


def _get_suffix(address: str) -> str:
    """Return the suffix of the file name, which FFmpeg needs to recognize some formats."""
    path = re.split(r"[?#]", address.partition("://")[2], maxsplit=1)[0]
    suffix = posixpath.splitext(path)[1]
    return suffix if _SUFFIX.fullmatch(suffix) else ""
