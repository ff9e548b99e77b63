"""Keep the texts of pages, and lists of pages, on disk. What a snapshot has played once never changes.

Each record is a block of :class:`streamloader.stores.wrappers.cache_blocks.BlockFiles`: written as a whole, compared
with its digests when it is read, in folders that no other user can change.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import platformdirs

from streamloader.arguments import expand_path
from streamloader.common.error_translation import error_translator
from streamloader.common.guarded_files import GuardedFolder, UnsafePath, lock_file
from streamloader.errors import ConfigError, CorruptStream, StorageFull
from streamloader.stores.wrappers.cache_blocks import BlockFiles

__all__ = ["KeptFiles", "KeptPage", "default_folder", "hash_name"]

_CACHE_VARIABLE: Final = "STREAMLOADER_CACHE"
_LOCK_TIMEOUT_S: Final = 60.0  # of a lock that is held for milliseconds
_HEADER_BYTES: Final = 64 << 10  # the first page of a block, whose digest is checked alone
_FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)
_PAGE, _SEEN, _LATEST, _LIST = range(4)  # kinds of records, which end their names


def default_folder() -> str:
    """Return the folder of articles in ``$STREAMLOADER_CACHE``, or else in the user's cache folder."""
    root = expand_path(os.environ.get(_CACHE_VARIABLE) or platformdirs.user_cache_dir("streamloader"), create=True)
    return f"{os.path.abspath(root)}/articles"


def hash_name(*parts: str) -> str:
    """Return a name of 40 hexadecimal digits for some texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class KeptPage:
    """What became of a page: its text, or the reason why it has none.

    Attributes:
        text: Main text in UTF-8. Empty if the page was left out.
        etag: ETag of the page, or "".
        modified: Last-Modified of the page, or "".
        error: Name of the class of the error, such as ``"AccessDenied"``. "" if the page has a text.
        message: Message of the error.
        encoding: Character encoding of the page.
    """

    text: bytes
    etag: str = ""
    modified: str = ""
    error: str = ""
    message: str = ""
    encoding: str = ""

    @property
    def length(self) -> int:
        """Size of the text in bytes."""
        return len(self.text)


@dataclass(frozen=True, slots=True)
class PageSummary:
    """What became of a page, without its text.

    Attributes:
        length: Size of the text in bytes.
        error: Name of the class of the error, or "".
        message: Message of the error.
    """

    length: int
    error: str
    message: str


class KeptFiles:
    """The records in one folder, which processes share. All methods block.

    Args:
        folder: Folder of the records. It is created on first use, accessible to this user only.

    Raises:
        ConfigError: If other users can change what is in the folder, or it cannot be read or written.
        StorageFull: If its disk is full.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._blocks = BlockFiles(f"{folder}/records", None)

    # --- pages -------------------------------------------------------------------------------------------------------

    def read_page(self, name: str) -> KeptPage | None:
        """Return what is kept of a page, or None."""
        record = self._read(name, _PAGE)
        return None if record is None else KeptPage(record[1], **_without_length(record[0]))

    def summarize_page(self, name: str) -> PageSummary | None:
        """Return what is kept of a page, without reading its text."""
        record = self._read(name, _PAGE, _HEADER_BYTES)
        if record is None:
            return None
        return PageSummary(int(record[0]["length"]), str(record[0]["error"]), str(record[0]["message"]))

    def keep_page(self, name: str, page: KeptPage, key: str) -> KeptPage:
        """Keep a page, unless another process has kept it first. Return what is kept.

        Raises:
            CorruptStream: If the page was kept before, its record was lost, and it is another text now.
        """
        header = {field: value for field, value in asdict(page).items() if field != "text"}
        digest = hashlib.sha256(f"{page.error}\0".encode() + page.text).hexdigest()
        with self._lock(f"page-{name[0]}"):
            kept = self.read_page(name)
            if kept is not None:
                return kept
            seen = self._read(name, _SEEN)
            if seen is not None and seen[0]["digest"] != digest:
                raise CorruptStream(
                    f"{key} changed since it was first read, and the cache in {self.folder} has lost its first text: "
                    "choose a new snapshot=, and start again",
                    stream=key,
                    address=key,
                    offset=0,
                )
            self._write(name, _SEEN, {"digest": digest})
            self._write(name, _PAGE, header | {"length": page.length}, page.text)
        return page

    def find_latest(self, url_name: str) -> KeptPage | None:
        """Return what the latest snapshot has kept of a page, if its server has stated a version of it."""
        record = self._read(url_name, _LATEST)
        page = None if record is None else self.read_page(str(record[0]["name"]))
        return page if page is not None and (page.etag or page.modified) else None

    def note_latest(self, url_name: str, name: str) -> None:
        """Note that a page of the latest snapshot is kept under `name`."""
        self._write(url_name, _LATEST, {"name": name})

    # --- lists and other documents -----------------------------------------------------------------------------------

    def read_document(self, name: str) -> dict[str, Any] | None:
        """Return a document, or None if there is none of this name."""
        record = self._read(name, _LIST)
        return None if record is None else record[0]

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Write a document, replacing the one of this name."""
        self._write(name, _LIST, document)

    # --- files -------------------------------------------------------------------------------------------------------

    def _read(self, name: str, kind: int, max_bytes: int | None = None) -> tuple[dict[str, Any], bytes] | None:
        with self._translated():
            part = self._blocks.read(f"{name}-{kind}", 0, max_bytes)
        if part is None:
            return None
        header, _, text = part.data.partition(b"\n")
        return json.loads(header), text

    def _write(self, name: str, kind: int, header: dict[str, Any], text: bytes = b"") -> None:
        data = json.dumps(header).encode() + b"\n" + text
        with self._translated():
            self._blocks.write(f"{name}-{kind}", data, len(data))

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with self._translated(), GuardedFolder(self.folder, create=True) as folder:
            lock = lock_file(folder, f"{name}.lock", _LOCK_TIMEOUT_S)
            lock.__enter__()
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        with translate_errors(self.folder):
            yield


@error_translator
def translate_errors(folder: str) -> Iterator[None]:
    """Raise errors of the file system as errors of this package.

    Raises:
        ConfigError: If the folder cannot be used.
        StorageFull: If its disk is full.
    """
    try:
        yield
    except UnsafePath as error:
        raise ConfigError(
            f"articles cannot be kept in cache_dir={folder!r}: {error.message}", address=folder
        ) from error
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise StorageFull(f"articles cannot be kept in {folder}: {error.strerror}", address=folder) from error
        raise ConfigError(
            f"articles cannot be kept in cache_dir={folder!r}: {error.strerror or error}", address=folder
        ) from error


def _without_length(header: dict[str, Any]) -> dict[str, str]:
    return {field: str(value) for field, value in header.items() if field != "length"}
