"""The SQLite database in which the indexes of a user's videos are cached, for all threads of this process.

A cache is never a reason to fail: a database that is damaged, or that another user may have planted, is replaced by an
empty one; where there can be none, nothing is cached. Several processes may read and write at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import socket
import sqlite3
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from streamloader.common.file_systems import is_network_folder
from streamloader.common.guarded_files import GuardedFolder, UnsafePath, lock_file
from streamloader.common.printable import make_printable

__all__ = ["TAG_BYTES", "CacheKey", "CachedIndex", "IndexDatabase", "close_databases", "get_database"]

T = TypeVar("T")

TAG_BYTES: Final = 32
_FORMAT: Final = 7  # raise it when the rows below or the results of index_video change
_SCHEMA: Final = "CREATE TABLE indexes (id INTEGER PRIMARY KEY, verify INTEGER, summary BLOB, data BLOB)"
_UPSERT: Final = (
    "INSERT INTO indexes VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET verify = excluded.verify, "  # noqa: S608
    "summary = excluded.summary, data = excluded.data WHERE excluded.verify >= verify "
    f"OR substr(excluded.summary, 1, {TAG_BYTES}) != substr(summary, 1, {TAG_BYTES})"
)
# The summary of a row: its tag, a CRC-32 of what follows and of the data, a CRC-32 of what follows, a payload.
_SUMMARY: Final = struct.Struct(f"<{TAG_BYTES}sII")
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")
_BUSY_TIMEOUT_S: Final = 20.0
_LOCK_TIMEOUT_S: Final = 10.0
_KEYS_PER_QUERY: Final = 500  # SQLite allows 999 parameters in old versions
_MAX_ROW_BYTES: Final = 1 << 29
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
_log = logging.getLogger("streamloader")


class CacheKey(NamedTuple):
    """Key of the index of one version of one video.

    Attributes:
        id: Number of its row, 64 bits of a digest of its address. The row of another version of it is replaced.
        tag: More bits of the digest, and a digest of the version.
    """

    id: int
    tag: bytes


class CachedIndex(NamedTuple):
    """One row.

    Attributes:
        key: Key of the video's version.
        verify: Number of the level by which the index is proven.
        payload: Summary of the index.
        data: The index.
    """

    key: CacheKey
    verify: int
    payload: bytes
    data: bytes


class IndexDatabase:
    """The database in one folder. All methods are thread-safe.

    Args:
        folder: Path of the folder of the cache.
        on_unsafe: Function that is called with the error if other users can change what is in the folder.
    """

    def __init__(self, folder: str, on_unsafe: Callable[[UnsafePath], None]) -> None:
        self._folder = folder
        self._on_unsafe = on_unsafe
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._identity = (0, 0)  # device and inode of the open file
        self._checked: tuple[int, ...] | None = None  # signature of the files that were checked last

    @functools.cached_property
    def _name(self) -> str:
        """Name of the file. SQLite needs shared memory, so each machine has its own on a network file system."""
        host = f"-{socket.gethostname()}" if is_network_folder(self._folder) else ""
        return f"videos{host.replace('/', '_')}.sqlite"

    def find_payloads(self, keys: Sequence[CacheKey], min_verify: int) -> list[bytes | None]:
        """Return the payload of each key, or None if there is no intact row of this level or a higher one."""
        wanted: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            wanted.setdefault(key.id, []).append(number)
        found: list[bytes | None] = [None] * len(keys)
        ids = sorted(wanted)

        def find(db: sqlite3.Connection) -> None:
            for start in range(0, len(ids), _KEYS_PER_QUERY):
                part = ids[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT id, summary FROM indexes WHERE id IN ({marks}) AND verify >= ?"  # noqa: S608
                for id_, summary in db.execute(query, [*part, min_verify]):
                    for number in wanted[id_]:
                        found[number] = _read_payload(summary, keys[number].tag)

        self._run(find, None)
        return found

    def find_index(self, key: CacheKey, min_verify: int) -> tuple[bytes, bytes] | None:
        """Return payload and data of a key, or None if there is no intact row of this level or a higher one."""

        def find(db: sqlite3.Connection) -> tuple[bytes, bytes] | None:
            query = "SELECT summary, data FROM indexes WHERE id = ? AND verify >= ?"
            row = db.execute(query, (key.id, min_verify)).fetchone()
            payload = None if row is None else _read_payload(row[0], key.tag)
            if payload is None or not isinstance(row[1], bytes):
                return None
            if zlib.crc32(row[1], zlib.crc32(payload)) != _SUMMARY.unpack_from(row[0])[1]:
                _log.info("a cached index in %s is damaged, indexing its video again", self._path)
                return None
            return payload, row[1]

        return self._run(find, None)

    def store(self, rows: Iterable[CachedIndex]) -> None:
        """Store indexes in one transaction. A row of the same version that is proven by a higher level is kept."""
        values = []
        for key, verify, payload, data in rows:
            checksum = zlib.crc32(payload)
            summary = _SUMMARY.pack(key.tag, zlib.crc32(data, checksum), checksum) + payload
            values.append((key.id, verify, summary, data))

        def write(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                db.executemany(_UPSERT, values)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

        if values:
            self._run(write, None, create=True)

    def close(self) -> None:
        """Close the file. The next call opens it again."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()

    @functools.cached_property
    def _path(self) -> str:
        return f"{self._folder}/{_FORMAT}/{self._name}"

    def _run(self, work: Callable[[sqlite3.Connection], T], default: T, *, create: bool = False) -> T:
        """Return ``work(connection)``, or `default` if there is no usable database."""
        with self._lock:
            try:
                for is_repeated in (False, True):
                    try:
                        return self._run_once(work, default, create=create)
                    except sqlite3.DatabaseError as error:
                        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                        if code not in _DAMAGED or is_repeated:
                            raise
                        _log.info("cannot use the cache of indexes %s, replacing it: %s", self._path, str(error))
                        self._replace()
            except UnsafePath as error:
                self._on_unsafe(error)
            except FileNotFoundError:
                pass
            except (OSError, sqlite3.Error) as error:
                _log.info("cannot use the cache of indexes %s: %s", self._path, make_printable(error))
            return default

    def _run_once(self, work: Callable[[sqlite3.Connection], T], default: T, *, create: bool) -> T:
        if self._db is not None and self._checked is not None and self._checked == self._take_signature():
            return work(self._db)
        self._checked = None
        with self._open_folder(create=create) as folder:
            signature = self._take_signature()
            try:
                identity = self._check_files(folder)
            except UnsafePath as error:
                _log.info("replacing a file in the cache of indexes: %s", error.message)
                self._replace()
                identity = None
            if self._db is not None and identity != self._identity:
                self.close()  # another process has replaced the file
            if self._db is None:
                if identity is None and not create:
                    return default
                self._connect(folder)
            assert self._db is not None
            result = work(self._db)
        self._checked = signature
        return result

    def _take_signature(self) -> tuple[int, ...] | None:
        """Return values that change with owner, permissions and entries of the folders, and with the file, or None.

        As long as they are the same, what was checked is still true.
        """
        try:
            folder, subfolder = os.lstat(self._folder), os.lstat(os.path.dirname(self._path))
            file = os.lstat(self._path)
        except OSError:
            return None
        return (
            folder.st_dev, folder.st_ino, folder.st_mode, folder.st_uid, folder.st_ctime_ns,
            subfolder.st_dev, subfolder.st_ino, subfolder.st_mode, subfolder.st_uid, subfolder.st_ctime_ns,
            file.st_dev, file.st_ino, file.st_mode, file.st_uid, file.st_nlink,
        )  # fmt: skip

    @contextlib.contextmanager
    def _open_folder(self, *, create: bool) -> Iterator[GuardedFolder]:
        """Open the folder of the database."""
        with (
            GuardedFolder(self._folder, create=create) as folder,
            folder.open_folder(str(_FORMAT), create=create) as subfolder,
        ):
            yield subfolder

    def _check_files(self, folder: GuardedFolder) -> tuple[int, int] | None:
        """Return device and inode of the database, or None if there is none.

        The file is not opened for that: closing it would release the locks that SQLite holds in this process.

        Raises:
            UnsafePath: If another user may have planted one of the files.
        """
        identity = None
        for name in (self._name, *(self._name + suffix for suffix in _SIDE_FILES)):
            with contextlib.suppress(FileNotFoundError):
                status = folder.check_file(name)
                if name == self._name:
                    identity = status.st_dev, status.st_ino
        return identity

    def _connect(self, folder: GuardedFolder) -> None:
        with contextlib.suppress(FileExistsError):  # created for this user only, as SQLite does not
            os.close(folder.open_file(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        db = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=False
        )
        try:
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA temp_store = MEMORY")
            with contextlib.suppress(sqlite3.OperationalError):  # a folder that can only be read
                db.execute("PRAGMA journal_mode = WAL")
            self._prepare_schema(db)
            identity = self._check_files(folder)
            if identity is None:
                raise FileNotFoundError(self._path)
        except BaseException:
            db.close()
            raise
        self._db, self._identity = db, identity

    def _prepare_schema(self, db: sqlite3.Connection) -> None:
        """Create the table in an empty database. A database with anything else is none of this cache."""
        for _ in range(2):
            found = db.execute("SELECT sql FROM sqlite_master").fetchall()
            if found == [(_SCHEMA,)]:
                return
            if not found:
                with contextlib.suppress(sqlite3.OperationalError):  # another process creates it at the same time
                    db.execute(_SCHEMA)
        error = sqlite3.DatabaseError("it has another schema")
        error.sqlite_errorcode = sqlite3.SQLITE_NOTADB
        raise error

    def _replace(self) -> None:
        """Delete a file that cannot be used, unless another process has done so. The next call creates it again."""
        damaged, self._identity = self._identity if self._db is not None else None, (0, 0)
        self.close()
        with self._open_folder(create=False) as folder, lock_file(folder, "lock", _LOCK_TIMEOUT_S):
            if damaged is not None:
                with contextlib.suppress(OSError):
                    if self._check_files(folder) not in (None, damaged):
                        return
            for name in (*(self._name + suffix for suffix in _SIDE_FILES), self._name):
                with contextlib.suppress(FileNotFoundError):
                    folder.unlink(name)


def _read_payload(summary: object, tag: bytes) -> bytes | None:
    """Return the payload of a row's summary, or None if it is damaged or of another version of a video."""
    if not isinstance(summary, bytes) or summary[:TAG_BYTES] != tag or len(summary) < _SUMMARY.size:
        return None
    payload = summary[_SUMMARY.size :]
    return payload if zlib.crc32(payload) == _SUMMARY.unpack_from(summary)[2] else None


# --- sharing ---------------------------------------------------------------------------------------------------------

_databases: dict[str, IndexDatabase] = {}
_databases_lock = threading.Lock()
_inherited: Final[list[IndexDatabase]] = []


def get_database(folder: str, on_unsafe: Callable[[UnsafePath], None]) -> IndexDatabase:
    """Return the database of a folder, with the arguments of :class:`IndexDatabase`."""
    with _databases_lock:
        if folder not in _databases:
            _databases[folder] = IndexDatabase(folder, on_unsafe)
        return _databases[folder]


def close_databases() -> None:
    """Close the databases of this process. Later calls open them again."""
    with _databases_lock:
        databases = list(_databases.values())
        _databases.clear()
    for database in databases:
        database.close()


def _forget_databases() -> None:
    """Called in a forked child. It never closes them, because that would release the locks of its parent."""
    global _databases_lock  # noqa: PLW0603 - another thread of the parent may hold it
    _databases_lock = threading.Lock()
    _inherited.extend(_databases.values())
    _databases.clear()


atexit.register(close_databases)
os.register_at_fork(after_in_child=_forget_databases)
