"""Videos of an index file: where they are, whether they may be opened, and their indexes.

A user names the index file, and its author names the videos. An address in it that is relative lies in the folder of
the file. What an absolute address may reach is decided by :mod:`streamloader.stores.origins`; a file that comes from a
store may in addition not name local files, unless the user has named them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from streamloader.arguments import expand_path
from streamloader.common.guarded_files import GuardedFolder, UnsafePath
from streamloader.errors import (
    ConfigError,
    CorruptStream,
    NotFound,
    StreamloaderError,
    StreamNotFound,
    UntrustedAddress,
)
from streamloader.media.video.files import file_version, make_changed_error
from streamloader.media.video.index import IndexSettings, VideoIndex
from streamloader.media.video.index_cache import index_cache_folder
from streamloader.media.video.index_file import FileVersion, IndexColumns, IndexFile
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.remote import RemoteVideo, Video
from streamloader.redaction import redact_address
from streamloader.stores.base import Store
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path
from streamloader.stores.origins import LOCAL_SCHEMES, is_bound, select_access
from streamloader.stores.registry import is_local_file, scheme_of, select_options, spell_address, split_address
from streamloader.values import Array, ObjectInfo

__all__ = ["IndexSource", "folder_of"]

_FOLDER: Final = "files"  # within the folder of the cache
_KEPT_S: Final = 7 * 86400.0  # for which earlier versions of an index file stay in the cache
_PERCENT_ENCODED: Final = ("http", "https")
_UPDATE: Final = "make the index file again (streamloader index VIDEOS --to FILE --update), and build the loader again"


class IndexSource:
    """The videos of one index file.

    Args:
        address: Path or address of the index file.
        storage_options: Options of stores, or options by address prefix.
        max_pixels: Maximum number of pixels of a frame.

    Attributes:
        settings: Settings with which the videos were indexed. Known after :meth:`read_columns`.
    """

    def __init__(self, address: str, storage_options: Mapping[str, Any] | None, max_pixels: int) -> None:
        address = spell_address(address)
        self._address = address if not is_local_file(address) else os.path.abspath(_expand_user(local_path(address)))
        self._name = redact_address(self._address)
        self._storage_options = storage_options
        self._max_pixels = max_pixels
        self._path = ""  # of the local file
        self._identity = (0, 0)  # its size and modification time
        self._folder = folder_of(self._address)
        self.settings = IndexSettings()

    def read_columns(self) -> IndexColumns:
        """Fetch the file if it is in a store, and return its addresses and summaries.

        Raises:
            StreamNotFound: If there is no such file.
            UnreadableStream: If it is not an index file.
            CorruptStream: If it is damaged.
            StoreError: If it cannot be fetched.
            UntrustedAddress: If the user has to name an origin of videos in it.
            ConfigError: If there is no folder for a copy.
        """
        self._path = self._address if is_local_file(self._address) else self._fetch()
        self._identity = _identify(self._path, self._name)
        with IndexFile(self._path, self._name) as file:
            self.settings = file.settings
            for address in file.sample_addresses:  # all others are checked when they are opened
                self._select_access(self._resolve(address), address)
            return file.read_columns()

    def read_sizes(self, ids: Array) -> Array:
        """Return the size in bytes of each video, int64, -1 where unknown.

        Args:
            ids: Numbers of their indexes.

        Raises:
            CorruptStream: If the index file is damaged.
        """
        with IndexFile(self._path, self._name) as file:
            return file.read_sizes(ids)

    def is_in_store(self, address: str) -> bool:
        """Return whether a video of the file is in a store."""
        is_absolute = scheme_of(address) or address.startswith("/")
        return not is_local_file(address if is_absolute else self._address)

    def load(self, address: str, id_: int, frames: int) -> tuple[Video, VideoIndex]:
        """Return a video of the file, if it is still the one that was indexed, and its index.

        Args:
            address: Address of the video, as the file has it.
            id_: Number of its index.
            frames: Number of its frames, as the file had it when it was read.

        Raises:
            CorruptStream: If the video or the index file was changed, or the index file is damaged.
            StreamNotFound: If the video does not exist.
            UntrustedAddress: If the user has to name the video's origin.
            MediaLimitExceeded: If its frames exceed the limit on pixels.
            StoreError: If the store of the video fails.
        """
        if _identify(self._path, self._name) != self._identity:
            raise CorruptStream(
                f"the index file {self._name} was changed since the loader was built: build the loader again",
                address=self._name,
            )
        with IndexFile(self._path, self._name) as file:
            version, index = file.read_index(id_)
        if len(index) != frames:
            raise CorruptStream(
                f"the index file {self._name} is damaged (the index of {redact_address(address)} is another one): make "
                "it again",
                address=self._name,
            )
        full = self._resolve(address, is_path=version.mtime_ns is not None)
        options = self._select_access(full, address)
        video = _check_local(full, version) if is_local_file(full) else _check_object(full, version, options)
        PixelLimit(self._max_pixels, str(video)).check(index.width, index.height)
        return video, index

    def _resolve(self, address: str, *, is_path: bool = False) -> str:
        """Return the full address of a video.

        Args:
            address: Address of the video, as the file has it.
            is_path: Whether it was a local path when it was indexed. Servers of the web need that percent-encoded.
        """
        if scheme_of(address) or address.startswith("/"):
            return address
        if any(part in ("", ".", "..") for part in address.split("/")):
            raise CorruptStream(
                f"the index file {self._name} has an address that leads out of its folder: {address!r:.200}",
                address=self._name,
            )
        needs_encoding = is_path and scheme_of(self._folder) in _PERCENT_ENCODED
        return f"{self._folder}/{quote(address, errors='surrogateescape') if needs_encoding else address}"

    def _select_access(self, full: str, address: str) -> dict[str, Any]:
        if full != address:  # in the folder of the file
            return select_options(full, self._storage_options)
        if is_local_file(full):
            if is_local_file(self._address) or is_bound(f"file://{local_path(full)}", self._storage_options):
                return {}
            folder = os.path.dirname(local_path(full))
            raise UntrustedAddress(
                f"{full} is named by {self._name}, which comes from a store, and not by you, so it is not used. If you "
                f"trust the file, name the folder: storage_options={{{f'file://{folder}'!r}: {{}}}}",
                address=full,
            )
        if (
            scheme_of(full) in LOCAL_SCHEMES
            and not is_local_file(self._address)
            and scheme_of(self._address) not in LOCAL_SCHEMES
            and not is_bound(full, self._storage_options)
        ):
            raise UntrustedAddress(
                f"{full} is named by {self._name}, which comes from a store, and not by you, so it is not used",
                address=full,
            )
        return select_access(full, self._storage_options, named=False, document=self._address)

    # --- index files in stores ---------------------------------------------------------------------------------------

    def _fetch(self) -> str:
        """Return the path of a copy of the current version of the file in the cache."""
        shared, path = open_shared_store(self._address, select_options(self._address, self._storage_options))
        with shared:
            try:
                info = shared.head(path)
                name = _name_version(self._address, info)
                with _open_cache_folder() as folder:
                    with contextlib.suppress(FileNotFoundError):
                        folder.check_file(name)
                        os.utime(name, dir_fd=folder.fd)
                        return f"{folder.path}/{name}"
                    temporary = f".new-{secrets.token_hex(8)}"
                    try:
                        descriptor = folder.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                        with os.fdopen(descriptor, "wb") as output:
                            shared.call(_download(shared.store, path, info, output))
                        folder.replace(temporary, name)
                    except BaseException:
                        with contextlib.suppress(FileNotFoundError):
                            folder.unlink(temporary)
                        raise
                    _remove_old_versions(folder, name)
                    return f"{folder.path}/{name}"
            except NotFound as error:
                raise StreamNotFound(error.message, address=error.address) from error
            except UnsafePath as error:
                raise ConfigError(
                    f"an index file in a store needs a folder for a copy: {error.message}. Or let STREAMLOADER_CACHE "
                    "name another folder",
                    address=self._name,
                ) from error
            except OSError as error:
                if isinstance(error, StreamloaderError):
                    raise
                raise ConfigError(
                    f"the copy of {self._name} cannot be written ({error}): let STREAMLOADER_CACHE name another folder",
                    address=self._name,
                ) from error


def folder_of(address: str) -> str:
    """Return the address of the folder of a file, without a "/" at its end."""
    return address.partition("?")[0].rpartition("/")[0] if not is_local_file(address) else os.path.dirname(address)


def _expand_user(path: str) -> str:
    return expand_path(path)


def _identify(path: str, name: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise StreamNotFound(f"there is no index file {name}: {error.strerror}", address=name) from error
    return status.st_size, status.st_mtime_ns


def _check_local(full: str, indexed: FileVersion) -> str:
    """Return the path of a local video, if it is the one that was indexed.

    A video that was in a store when it was indexed, and was then copied here, is recognized by its size.
    """
    path = local_path(full)
    size, mtime_ns = file_version(path)
    if size != indexed.size or (indexed.mtime_ns is not None and mtime_ns != indexed.mtime_ns):
        raise make_changed_error(path, size, indexed.size, _UPDATE)
    return path


def _check_object(full: str, indexed: FileVersion, options: Mapping[str, Any]) -> RemoteVideo:
    """Return a video in a store, pinned to the version that was indexed.

    A video that was local when it was indexed, and was then copied to the store, is recognized by its size.
    """
    path = split_address(full)[1]
    info = ObjectInfo(path, indexed.size, indexed.version, indexed.modified)
    if indexed.version is None:
        with open_shared_store(full, options)[0] as store:
            current = store.head(path)
        is_copy = indexed.mtime_ns is not None
        if current.size != indexed.size or (not is_copy and current.modified != indexed.modified):
            raise make_changed_error(redact_address(full), current.size, indexed.size, _UPDATE)
        info = current if is_copy else info
    return RemoteVideo(full, info, dict(options))


async def _download(store: Store, path: str, info: ObjectInfo, output: Any) -> None:
    async with contextlib.aclosing(store.stream(path, version=info.version, size=info.size)) as pieces:
        async for piece in pieces:
            output.write(piece)


def _name_version(address: str, info: ObjectInfo) -> str:
    """Return the name of the copy of one version of a file: digests of its address and of its version."""
    version = repr((info.size, info.version, info.modified if info.version is None else None))
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() for text in (address, version)]
    return f"{digests[0][:32]}-{digests[1][:32]}.sqlite"


@contextlib.contextmanager
def _open_cache_folder() -> Iterator[GuardedFolder]:
    with (
        GuardedFolder(str(index_cache_folder()), create=True) as parent,
        parent.open_folder(_FOLDER, create=True) as folder,
    ):
        yield folder


def _remove_old_versions(folder: GuardedFolder, name: str) -> None:
    """Remove other versions of a file that nobody has opened for a week."""
    limit = time.time() - _KEPT_S
    for other in os.listdir(folder.fd):
        if other != name and other.partition("-")[0] == name.partition("-")[0]:
            with contextlib.suppress(OSError):
                if os.stat(other, dir_fd=folder.fd, follow_symlinks=False).st_mtime < limit:
                    Path(folder.path, other).unlink()
