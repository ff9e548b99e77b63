"""The bytes of a video that is added: as a local file whose digest is known, and that nobody changes meanwhile."""

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
from typing import Any, Final

import anyio.to_thread

from streamloader.archive.ingest.naming import without_secrets
from streamloader.errors import NotFound, ObjectChanged, StoreError, StreamNotFound
from streamloader.stores.base import Store
from streamloader.stores.io_thread import shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import scheme_of
from streamloader.values import ObjectInfo

__all__ = ["Source", "gathered", "is_local", "local_version", "opened"]

_PIECE: Final = 4 << 20  # bytes that are hashed and written in one go
_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,8}")

Tick = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A video as a local file.

    Attributes:
        path: of the file.
        address: where it comes from, without secrets.
        digest: ``"sha256:..."`` of its bytes.
        size: of the file, in bytes.
        version: that its store, or file system, has given it; None if it has none.
        in_place: whether it is the user's own file, which may change at any time.
    """

    path: str
    address: str
    digest: str
    size: int
    version: str | None
    in_place: bool

    def check(self) -> None:
        """See whether the file is still the one that was hashed.

        Raises:
            ObjectChanged: it is not.
        """
        if not self.in_place:
            return
        try:
            now = local_version(os.stat(self.path))
        except OSError:
            now = "none"
        if now != self.version:
            raise ObjectChanged(
                f"{self.address} was changed while it was added: nothing of it was kept. Leave it alone, and add it "
                "again",
                address=self.address,
            )


def is_local(address: str) -> bool:
    """Whether an address is that of a file of this machine."""
    return scheme_of(address) in ("", "file")


def local_version(status: os.stat_result) -> str:
    """Return what changes when a local file does: size, time and inode, as local stores have it."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


@contextlib.contextmanager
def opened(
    address: str, info: ObjectInfo | None, options: Mapping[str, Any], folder: str, tick: Tick
) -> Iterator[Source]:
    """Give a video as a local file: itself, or a copy in `folder` that is removed afterwards.

    Args:
        address: of the video.
        info: what its store said of it, if that is known.
        options: of its store.
        folder: for a copy.
        tick: is told, again and again, what is going on ("fetching" or "reading") and how many bytes that was so far.

    Raises:
        StreamNotFound: there is no such file.
        ObjectChanged: it was changed while it was read.
        StoreError: it cannot be had, or there is no room for a copy.
    """
    if is_local(address):
        yield _in_place(os.path.abspath(local_path(address)), tick)
        return
    target = os.path.join(folder, f"source{_suffix(address)}")
    try:
        store, path = shared_store(address, options)
        with store:
            _require_room(folder, without_secrets(address), info.size if info else None)
            told, digest, size = store.call(_fetch(store.store, path, target, info, tick))
        yield Source(target, without_secrets(address), digest, size, told.version, in_place=False)
    except NotFound as error:
        raise StreamNotFound(error.message, address=error.address) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)


def _in_place(path: str, tick: Tick) -> Source:
    hasher = hashlib.sha256()
    size = 0
    try:
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            buffer = bytearray(_PIECE)
            while count := file.readinto(buffer):
                hasher.update(memoryview(buffer)[:count])
                size += count
                tick("reading", size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StreamNotFound(f"{path} does not exist", address=path) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", address=path, errno=error.errno) from error
    source = Source(path, path, f"sha256:{hasher.hexdigest()}", size, local_version(before), in_place=True)
    source.check()
    return source


async def _fetch(
    store: Store, path: str, target: str, info: ObjectInfo | None, tick: Tick
) -> tuple[ObjectInfo, str, int]:
    hasher = hashlib.sha256()
    size = 0
    told = info or ObjectInfo(path)

    def begin(found: ObjectInfo, _: int) -> None:
        nonlocal told
        told = replace(found, version=found.version or told.version)

    def keep(pieces: list[bytes]) -> None:
        for piece in pieces:
            hasher.update(piece)
            file.write(piece)

    try:
        with open(target, "wb") as file:  # noqa: ASYNC230 - a new local file
            async with contextlib.aclosing(gathered(store, path, told.version, begin)) as found:
                async for pieces in found:
                    await anyio.to_thread.run_sync(keep, pieces)
                    size += sum(map(len, pieces))
                    tick("fetching", size)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot keep a copy of {store.address(path)} in {os.path.dirname(target)} while it is cut: "
            f"{error.strerror}. TMPDIR names another folder for such copies",
            address=store.address(path),
            errno=error.errno,
        ) from error
    return told, f"sha256:{hasher.hexdigest()}", size


async def gathered(
    store: Store, path: str, version: str | None, begin: Callable[[ObjectInfo, int], None]
) -> AsyncGenerator[list[bytes], None]:
    """Yield the object in lists of pieces that are worth a visit to a thread."""
    pieces: list[bytes] = []
    gathered = 0
    async with contextlib.aclosing(store.stream(path, version=version, on_begin=begin)) as chunks:
        async for chunk in chunks:
            pieces.append(chunk)
            gathered += len(chunk)
            if gathered >= _PIECE:
                yield pieces
                pieces, gathered = [], 0
    if pieces:
        yield pieces


def _require_room(folder: str, address: str, size: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if size is not None and free < size:
        raise StoreError(
            f"{address} has {size:,} bytes, of which a copy is needed while it is cut, and {folder} has only {free:,} "
            "free: set TMPDIR to a folder with more room",
            address=address,
            errno=errno.ENOSPC,
        )


def _suffix(address: str) -> str:
    """Return the ending of the file's name, which FFmpeg goes by for some formats; nothing else of the name."""
    path = re.split(r"[?#]", address.partition("://")[2], maxsplit=1)[0]
    suffix = posixpath.splitext(path)[1]
    return suffix if _SUFFIX.fullmatch(suffix) else ""
