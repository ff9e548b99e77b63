"""Index files: one SQLite file with all that opening many videos needs.

The table ``blocks`` has the addresses and summaries of all videos in their order, many in a compressed piece, so that a
million are read in a second. The table ``indexes`` has the version and the index of each video, which is read when the
video is opened. A file is only ever replaced as a whole, so readers take no locks.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import quote

import numpy as np

from streamloader.common.error_translation import error_translator
from streamloader.common.guarded_files import open_regular_file
from streamloader.common.inflate import inflate
from streamloader.errors import CorruptStream, StreamNotFound, UnreadableStream
from streamloader.media.video.index import VERIFY_LEVELS, IndexSettings, VideoIndex
from streamloader.media.video.index_blob import InvalidBlob, decode_index
from streamloader.media.video.summary import SUMMARY, are_possible
from streamloader.stream_table import StringColumn
from streamloader.values import Array

__all__ = ["FileVersion", "IndexColumns", "IndexFile", "IndexFileWriter", "StoredIndex", "is_index_file"]

_APPLICATION_ID: Final = 0x534C5649  # "SLVI": distinguishes index files from other databases
_SQLITE_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100  # of an SQLite file
_FORMAT: Final = 3
_SCHEMA: Final = (
    "CREATE TABLE header (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    (
        "CREATE TABLE blocks (number INTEGER PRIMARY KEY, videos INTEGER NOT NULL, bytes INTEGER NOT NULL, "
        "data BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE indexes (id INTEGER PRIMARY KEY, size INTEGER, mtime_ns INTEGER, version TEXT, modified REAL, "
        "data BLOB NOT NULL)"
    ),
    (
        "CREATE TABLE skipped (address TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, version TEXT, modified REAL, "
        "error TEXT NOT NULL, message TEXT NOT NULL) WITHOUT ROWID"
    ),
)
_ENTRY: Final = np.dtype([("summary", SUMMARY), ("id", "<i8")])
_BLOCK_VIDEOS: Final = 8192
_MAX_VIDEOS: Final = 1 << 28
_MAX_ADDRESS_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = 4096
_MAX_VALUE_BYTES: Final = 1 << 29
_MAX_INFLATED_RATIO: Final = 64  # of the blocks of a file to its size; addresses compress to about a tenth
_MAX_SMALL_BYTES: Final = 1 << 26  # of blocks, for any file
_ROWS_PER_STATEMENT: Final = 1000
_MAX_SAMPLES: Final = 100
# What reading a hostile file raises: SQLite's errors, and those of values of other types.
_READ_ERRORS: Final = (sqlite3.Error, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error)


class FileVersion(NamedTuple):
    """Version of a video when it was indexed.

    Attributes:
        size: Size in bytes, or None if it is unknown.
        mtime_ns: Modification time of a local file in ns. None for a video in a store.
        version: Version in a store, or None.
        modified: Modification time in a store in seconds since 1970, or None.
    """

    size: int | None
    mtime_ns: int | None
    version: str | None = None
    modified: float | None = None


class StoredIndex(NamedTuple):
    """Index of one video in a file.

    Attributes:
        version: Version of the video.
        frames: Index of its frames.
    """

    version: FileVersion
    frames: VideoIndex


class IndexColumns(NamedTuple):
    """All videos of a file, in their order.

    Attributes:
        addresses: Address of each video: relative to the folder of the file, or absolute.
        records: Summary of each, in the layout of :data:`streamloader.media.video.summary.SUMMARY`.
        ids: Number of its index, int64.
    """

    addresses: StringColumn
    records: Array
    ids: Array


def is_index_file(path: str) -> bool:
    """Return whether a local file begins like an index file: SQLite's header, with the number of this application."""
    try:
        with open(open_regular_file(path), "rb", buffering=0) as file:
            header = file.read(_HEADER_BYTES)
    except OSError:
        return False
    return header.startswith(_SQLITE_MAGIC) and header[68:72] == _APPLICATION_ID.to_bytes(4, "big")


class IndexFile:
    """An index file, open for reading. Use it as a context manager.

    Args:
        path: Path of the local file.
        name: Name of the file for error messages. Defaults to its path.

    Attributes:
        settings: Settings with which the videos were indexed.
        sample_addresses: One address of each origin of videos, except those in the folder of the file.

    Raises:
        StreamNotFound: If there is no such file.
        UnreadableStream: If it is not an index file, or one of a newer version.
        CorruptStream: If it is damaged.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        self._name = name or path
        try:
            os.close(open_regular_file(path))
            self._bytes = os.path.getsize(path)
        except FileNotFoundError as error:
            raise StreamNotFound(f"there is no index file {self._name}", address=self._name) from error
        except OSError as error:
            raise UnreadableStream(f"{self._name} cannot be read: {error.strerror}", address=self._name) from error
        self._db = sqlite3.connect(
            f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1", uri=True, isolation_level=None,
            check_same_thread=False,
        )  # fmt: skip
        try:
            with self._translate_errors():
                self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
                self._db.execute("PRAGMA trusted_schema = OFF")
                self._db.execute("PRAGMA cell_size_check = ON")
                self._check_format()
                header = dict(self._db.execute("SELECT name, value FROM header LIMIT 100").fetchall())
                stream = json.loads(header["stream"])
                self.settings = IndexSettings(str(header["damaged"]), header["verify"], stream=stream)
                self.sample_addresses = _parse_addresses(header["samples"])
                self._videos, self._blocks = int(header["videos"]), int(header["blocks"])
                if self.settings.damaged not in ("raise", "keep") or self.settings.verify not in VERIFY_LEVELS:
                    raise ValueError("its settings are unknown")
                if stream is not None and (type(stream) is not int or stream < 0):
                    raise ValueError("its video stream is unknown")
        except BaseException:
            self._db.close()
            raise

    def __len__(self) -> int:
        """Return the number of videos."""
        return self._videos

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def read_columns(self) -> IndexColumns:
        """Return addresses and summaries of all videos.

        Raises:
            CorruptStream: If the file is damaged.
        """
        with self._translate_errors():
            if not 0 < self._videos <= _MAX_VIDEOS or not 0 < self._blocks <= self._videos:
                raise ValueError("its number of videos is impossible")
            totals = self._db.execute("SELECT count(*), sum(videos), sum(bytes) FROM blocks").fetchone()
            if totals[:2] != (self._blocks, self._videos):
                raise ValueError("its blocks do not have all videos")
            if totals[2] > max(_MAX_SMALL_BYTES, self._bytes * _MAX_INFLATED_RATIO):
                raise ValueError("its blocks declare an impossible size")
            entries = np.empty(self._videos, _ENTRY)
            sizes = np.empty(self._videos, np.int64)
            texts = np.empty(max(0, totals[2] - self._videos * (_ENTRY.itemsize + 4)), np.uint8)
            row = offset = 0
            for number in range(self._blocks):
                block = self._read_block(number)
                sizes[row : row + len(block[0])] = block[1]
                entries[row : row + len(block[0])] = block[0]
                texts[offset : offset + len(block[2])] = block[2]
                row, offset = row + len(block[0]), offset + len(block[2])
            if row != self._videos or offset != len(texts):
                raise ValueError("its blocks do not have all videos")
            records = np.ascontiguousarray(entries["summary"])
            if not are_possible(records).all() or int(entries["id"].min()) < 0:
                raise ValueError("a summary is impossible")
            ids = np.ascontiguousarray(entries["id"])
            del entries
            np.cumsum(sizes, out=sizes)
            return IndexColumns(StringColumn(texts, sizes), records, ids)

    def _read_block(self, number: int) -> tuple[Array, Array, Array]:
        """Return entries, sizes of addresses in bytes, and addresses of one block."""
        row = self._db.execute("SELECT videos, bytes, data FROM blocks WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise ValueError("a block is missing")
        count, body_bytes, data = row
        fixed = count * (_ENTRY.itemsize + 4)
        if not 0 < count <= _BLOCK_VIDEOS or not fixed <= body_bytes <= fixed + count * _MAX_ADDRESS_BYTES:
            raise ValueError("the size of a block is impossible")
        body = inflate(data, body_bytes)
        if len(body) != body_bytes:
            raise ValueError("a block is shorter than declared")
        entries = np.frombuffer(body, _ENTRY, count)
        sizes = np.frombuffer(body, "<u4", count, count * _ENTRY.itemsize).astype(np.int64)
        text = np.frombuffer(body, np.uint8, offset=fixed)
        if int(sizes.min()) < 1 or int(sizes.sum()) != len(text):
            raise ValueError("the addresses of a block have impossible sizes")
        bytes(text).decode("utf-8", "surrogatepass")
        starts = np.cumsum(sizes) - sizes
        if ((text[starts] & 0xC0) == 0x80).any() or not text.all():
            raise ValueError("an address is no text")
        return entries, sizes, text

    def read_sizes(self, ids: Array) -> Array:
        """Return the size in bytes of each video, int64, -1 where unknown. This reads the whole file.

        Args:
            ids: Numbers of the indexes, int64.

        Raises:
            CorruptStream: If the file is damaged.
        """
        with self._translate_errors():
            rows = np.fromiter(
                self._db.execute("SELECT id, ifnull(size, -1) FROM indexes ORDER BY id"),
                np.dtype([("id", "<i8"), ("size", "<i8")]),
            )
            positions = np.minimum(np.searchsorted(rows["id"], ids), len(rows) - 1)
            found = rows[positions]
            return np.where(found["id"] == ids, np.maximum(found["size"], -1), -1)

    def read_index(self, id_: int) -> StoredIndex:
        """Return the index of one video.

        Raises:
            CorruptStream: If it is missing or damaged.
        """
        with self._translate_errors():
            row = self._db.execute(
                "SELECT size, mtime_ns, version, modified, data FROM indexes WHERE id = ?", (id_,)
            ).fetchone()
            if row is None:
                raise ValueError(f"the index {id_} is missing")
            version = _check_version(row[:4])
            return StoredIndex(version, decode_index(row[4], version.size))

    def read_versions(self) -> dict[int, FileVersion]:
        """Return the version of every video by the number of its index."""
        with self._translate_errors():
            rows = self._db.execute("SELECT id, size, mtime_ns, version, modified FROM indexes LIMIT ?", (_MAX_VIDEOS,))
            return {int(row[0]): _check_version(row[1:]) for row in rows}

    def read_skipped(self) -> dict[str, tuple[FileVersion, str, str]]:
        """Return the version, the class of the error and its message, for each video that was left out, by address."""
        with self._translate_errors():
            rows = self._db.execute(
                "SELECT address, size, mtime_ns, version, modified, error, message FROM skipped LIMIT ?", (_MAX_VIDEOS,)
            )
            return {str(row[0]): (_check_version(row[1:5]), str(row[5]), str(row[6])) for row in rows}

    def _check_format(self) -> None:
        application, version = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application != _APPLICATION_ID or version != _FORMAT:
            reason = "is not an index file" if application != _APPLICATION_ID else "has another version of the format"
            raise UnreadableStream(
                f"{self._name} {reason}: make it with `streamloader index VIDEOS --to FILE`", address=self._name
            )
        found = self._db.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL LIMIT 100").fetchall()
        if sorted(found) != sorted((sql,) for sql in _SCHEMA):
            raise ValueError("its tables are not those of this format")

    @error_translator
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except _READ_ERRORS as error:
            if isinstance(error, (UnreadableStream, CorruptStream)):
                raise
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
                raise UnreadableStream(
                    f"{self._name} is not an index file: make it with `streamloader index VIDEOS --to FILE`",
                    address=self._name,
                ) from error
            reason = error if isinstance(error, (InvalidBlob, ValueError)) else type(error).__name__
            raise CorruptStream(
                f"the index file {self._name} is damaged ({reason}): make it again", address=self._name
            ) from error


def _check_version(row: Sequence[Any]) -> FileVersion:
    size, mtime_ns, version, modified = row
    if (
        not (size is None or (type(size) is int and size >= 0))
        or not (mtime_ns is None or type(mtime_ns) is int)
        or not (version is None or type(version) is str)
        or not (modified is None or type(modified) is float)
    ):
        raise ValueError("the version of a video is impossible")
    return FileVersion(size, mtime_ns, version, modified)


class IndexFileWriter:
    """Writes a new index file. Use it as a context manager: without :meth:`finish`, nothing remains.

    Args:
        path: Path of a new local file.
        settings: Settings with which the videos are indexed.
    """

    def __init__(self, path: str, settings: IndexSettings) -> None:
        self._path = path
        self._settings = settings
        self._next_id = 0
        self._rows: list[tuple[Any, ...]] = []
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))  # as other files of a user
        try:
            self._db = sqlite3.connect(os.path.abspath(path), uri=True, isolation_level=None)
            self._db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._db.execute("PRAGMA journal_mode = OFF")  # a file that is not finished is deleted
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            self._db.execute("BEGIN")
            for sql in _SCHEMA:
                self._db.execute(sql)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._db.close()
        Path(self._path).unlink(missing_ok=True)

    def copy_indexes(self, path: str, ids: Iterable[int]) -> None:
        """Copy indexes of another file, under the same numbers. Call it before any other method.

        Args:
            path: Path of the other file, which :class:`IndexFile` has opened.
            ids: Numbers of the indexes.
        """
        self._db.execute("COMMIT")
        self._db.execute("ATTACH ? AS old", (f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1",))
        self._db.execute("BEGIN")
        self._db.execute("CREATE TEMP TABLE kept (id INTEGER PRIMARY KEY)")
        self._db.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((id_,) for id_ in ids))
        self._db.execute("INSERT INTO main.indexes SELECT * FROM old.indexes WHERE id IN (SELECT id FROM kept)")
        (last,) = self._db.execute("SELECT max(id) FROM old.indexes").fetchone()
        self._next_id = (last or 0) + 1
        self._db.execute("DROP TABLE kept")
        self._db.execute("COMMIT")
        self._db.execute("DETACH old")
        self._db.execute("BEGIN")

    def add_index(self, version: FileVersion, data: bytes) -> int:
        """Add the encoded index of a video, and return its number."""
        id_, self._next_id = self._next_id, self._next_id + 1
        self._rows.append((id_, *version, data))
        if len(self._rows) >= _ROWS_PER_STATEMENT:
            self._flush()
        return id_

    def add_skipped(self, address: str, version: FileVersion, error: str, message: str) -> None:
        """Add a video that was left out."""
        row = (_as_plain_text(address), *version, error, _as_plain_text(message))
        self._db.execute("INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def finish(self, addresses: Sequence[str], records: Array, ids: Array, target: str) -> None:
        """Add the list of videos, and give the finished file its name. It replaces a file of that name.

        Args:
            addresses: Address of each video.
            records: Summary of each.
            ids: Number of the index of each.
            target: Path of the finished file, on the same file system.
        """
        self._flush()
        entries = np.empty(len(addresses), _ENTRY)
        entries["summary"], entries["id"] = records, ids
        starts = range(0, len(addresses), _BLOCK_VIDEOS)
        for number, start in enumerate(starts):
            texts = [text.encode("utf-8", "surrogatepass") for text in addresses[start : start + _BLOCK_VIDEOS]]
            sizes = np.array([len(text) for text in texts], "<u4")
            body = entries[start : start + len(texts)].tobytes() + sizes.tobytes() + b"".join(texts)
            self._db.execute(
                "INSERT INTO blocks VALUES (?, ?, ?, ?)", (number, len(texts), len(body), zlib.compress(body))
            )
        header = {
            "damaged": self._settings.damaged,
            "stream": json.dumps(self._settings.stream),
            "verify": self._settings.verify,
            "videos": str(len(addresses)),
            "blocks": str(len(starts)),
            "samples": json.dumps(_sample_origins(addresses)),
        }
        self._db.executemany("INSERT INTO header VALUES (?, ?)", header.items())
        self._db.execute("COMMIT")
        self._db.close()
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(self._path, target)

    def _flush(self) -> None:
        self._db.executemany("INSERT INTO indexes VALUES (?, ?, ?, ?, ?, ?)", self._rows)
        self._rows.clear()


def _sample_origins(addresses: Iterable[str]) -> list[str]:
    """Return one absolute address of each origin."""
    samples: dict[str, str] = {}
    for address in addresses:
        scheme, separator, rest = address.partition("://")
        if separator or address.startswith("/"):
            samples.setdefault(f"{scheme}://{rest.partition('/')[0]}" if separator else "/", address)
    return [_as_plain_text(address) for address in samples.values()][:_MAX_SAMPLES]


def _parse_addresses(text: str) -> list[str]:
    addresses = json.loads(text)
    if not isinstance(addresses, list) or not all(isinstance(each, str) and each for each in addresses):
        raise ValueError("its list of origins is impossible")
    return addresses[:_MAX_SAMPLES]


def _as_plain_text(text: str) -> str:
    """Return text that SQLite can store. Names of files may contain parts of characters."""
    return text.encode("utf-8", "backslashreplace").decode()
