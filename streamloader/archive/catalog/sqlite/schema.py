"""The schema of SQLite catalogs, its migrations, and functions that create and open a catalog's file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from streamloader.archive.catalog.base import SCHEMA_VERSION, Place
from streamloader.common.guarded_files import open_regular_file
from streamloader.errors import CatalogError, CatalogExists, CatalogNotFound, CatalogTooNew
from streamloader.stores.spelling_advice import explain_missing_path

__all__ = [
    "APPLICATION_ID", "MIGRATIONS", "SCHEMA_SQL", "CatalogFile", "create_file", "get_file_identity", "open_file",
    "read_transaction", "write_transaction",
]  # fmt: skip

APPLICATION_ID: Final = 0x534C4341  # "SLCA": distinguishes catalogs from other databases
_log = logging.getLogger("streamloader")
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_PAGE_BYTES: Final = 8192  # holds a few frame indexes, or a hundred chunks
_UNFINISHED_PREFIX: Final = ".streamloader-new-"
_CHECKPOINT_ATTEMPTS: Final = 10  # of 0.1 s each
_SIDE_FILE_SUFFIXES: Final = ("-wal", "-shm", "-journal")  # of the files that SQLite keeps beside a database
_MAX_VALUE_BYTES: Final = 32 << 20  # of a value or row: a view or a generated column can make any number of bytes

# `key` stands for the content of a video or job inside the file. A job allocates the key, and its video takes it over.
# Chunks are stored in the order of their lookups. The id of an index is key * 2^24 + number of its chunk.
SCHEMA_SQL: Final = """
CREATE TABLE archive (id TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE places (number INTEGER PRIMARY KEY, url TEXT NOT NULL, weight REAL NOT NULL);
CREATE TABLE jobs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    content BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    begun REAL NOT NULL,
    beat REAL NOT NULL
);
CREATE TABLE videos (
    number INTEGER PRIMARY KEY,
    key INTEGER NOT NULL UNIQUE,
    content BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    start INTEGER NOT NULL UNIQUE,
    nanoseconds INTEGER NOT NULL,
    first_chunk INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    time_base_numerator INTEGER NOT NULL,
    time_base_denominator INTEGER NOT NULL,
    first_pts INTEGER NOT NULL,
    end INTEGER NOT NULL,
    mode TEXT NOT NULL,
    chunk_frames INTEGER NOT NULL,
    source TEXT NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    added REAL NOT NULL,
    origin TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX videos_by_time ON videos (nanoseconds);
CREATE TABLE codings (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, told TEXT NOT NULL);
CREATE TABLE chunks (
    video INTEGER NOT NULL,
    first INTEGER NOT NULL,
    number INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    first_pts INTEGER NOT NULL,
    place INTEGER NOT NULL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    digest BLOB NOT NULL,
    coding INTEGER NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (video, first)
) WITHOUT ROWID;
CREATE UNIQUE INDEX chunks_by_number ON chunks (video, number);
CREATE TABLE indexes (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
"""

_TABLES: Final = frozenset({"archive", "places", "jobs", "videos", "codings", "chunks", "indexes"})
_VIRTUAL: Final = re.compile(r"(?i)\s*CREATE\s+VIRTUAL\b")


class CatalogFile:
    """An open connection to a catalog's file.

    Args:
        path: Path of the file.
        uri_options: Query of SQLite's file URI.
        writable: Whether the file can be written.
        immutable: Whether SQLite reads the file without locks, see :func:`open_file`.

    Attributes:
        db: SQLite connection in autocommit mode.
        path: Path of the file.
        writable: Whether the file can be written.
        immutable: Whether SQLite reads the file without locks, see :func:`open_file`.
        identity: Result of :func:`get_file_identity` when the file was opened.
        has_log: Whether this connection may have written changes that are only in the file's log (``-wal``).
    """

    def __init__(self, path: str, uri_options: str, *, writable: bool, immutable: bool) -> None:
        self.path = path
        self.writable = writable
        self.immutable = immutable
        self.has_log = False
        # Before the file is opened, so that a change in between is noticed.
        self.identity = get_file_identity(path, exact=immutable)
        self.db = _connect_and_probe(path, uri_options)

    def checkpoint(self) -> None:
        """Copy the changes in the log to the file itself, and empty the log.

        SQLite does so when the last connection is closed. Until then, a copy of the file alone would lack them. A
        transaction of another connection may hold changes back: what can be copied is copied in any case, and a warning
        says that the file alone is not complete. What others have left in the log is copied as far as nobody has to
        wait for it.
        """
        if not self.has_log:
            if self.writable and _get_size(f"{self.path}-wal"):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            return
        for _ in range(_CHECKPOINT_ATTEMPTS):
            is_blocked, _, _ = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # waits for busy_timeout
            if not is_blocked:
                self.has_log = False
                return
        _log.warning(
            "%s lacks its newest changes, which stay in its log beside it: a transaction of another program holds them "
            "back. A copy of the file alone is not complete until that transaction and this program have ended. Or "
            "copy it with: sqlite3 FILE \"VACUUM INTO 'COPY'\"", self.path,
        )  # fmt: skip


@contextlib.contextmanager
def write_transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Run the statements of the block atomically. They are on disk when the block ends."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def read_transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Read the same state in all statements of the block."""
    db.execute("BEGIN")
    try:
        yield db
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def get_file_identity(path: str, *, exact: bool) -> tuple[int, ...]:
    """Return values that differ between two files at a path. Return an empty tuple if there is no file.

    Args:
        path: Path of the file.
        exact: Whether the values also change when the file is written.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ()
    if not exact:
        return status.st_dev, status.st_ino
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, _get_size(f"{path}-wal")


# --- creating --------------------------------------------------------------------------------------------------------


def create_file(path: str, places: Sequence[Place]) -> None:
    """Create an empty catalog atomically, with the permissions that the umask leaves.

    Raises:
        CatalogExists: If a file exists at the path.
        CatalogError: If the file cannot be created.
    """
    if os.path.lexists(path):
        raise CatalogExists(f"a file exists already: {path}", address=path)
    for leftover in (f"{path}-wal", f"{path}-journal"):
        if os.path.lexists(leftover):  # SQLite would apply it to the new file
            raise CatalogError(f"{leftover} belongs to a catalog that is gone: move it away first", address=path)
    folder = os.path.dirname(path)
    unfinished = os.path.join(folder, f"{_UNFINISHED_PREFIX}{secrets.token_hex(8)}")
    try:
        os.makedirs(folder, exist_ok=True)
        # Not created by SQLite, which omits the group's permissions even if the umask allows them.
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            _write_empty_catalog(unfinished, places)
            _publish_file(unfinished, path)
        finally:
            for suffix in ("", *_SIDE_FILE_SUFFIXES):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished + suffix)
        _fsync(folder)
    except FileExistsError as error:
        raise CatalogExists(f"a file exists already: {path}", address=path) from error
    except OSError as error:
        raise CatalogError(f"cannot create {path}: {error.strerror or error}", address=path) from error


def _write_empty_catalog(path: str, places: Sequence[Place]) -> None:
    with contextlib.closing(_connect(path, "mode=rw")) as db:
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        with write_transaction(db):
            for statement in SCHEMA_SQL.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO archive VALUES (?, ?)", (secrets.token_hex(16), time.time()))
            rows = [(place.number, place.url, place.weight) for place in places]
            db.executemany("INSERT INTO places VALUES (?, ?, ?)", rows)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    _fsync(path)


def _publish_file(unfinished: str, path: str) -> None:
    """Give a finished file its name. Raise FileExistsError if the name is taken."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        # This file system has no hard links: reserve the name first, then replace the reserved file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        os.replace(unfinished, path)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders on some file systems
            raise
    finally:
        os.close(descriptor)


# --- opening ---------------------------------------------------------------------------------------------------------


def open_file(path: str) -> CatalogFile:
    """Open a catalog's file, and migrate an older schema.

    Without write permission the file is only read. If SQLite cannot even create its lock file beside it, the file is
    opened as immutable, without locks. The caller then has to check the file's identity before and after each read.

    Raises:
        CatalogNotFound: If there is no file.
        CatalogTooNew: If a newer version of this package made the catalog.
        CatalogError: If the file is not a catalog, or cannot be read, or if another user planted a file beside it.
    """
    _check_file_header(path)
    try:
        _check_side_files(path)
    except FileNotFoundError as error:
        raise CatalogNotFound(f"there is no catalog at {path}{_explain(path)}", address=path) from error
    writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK | os.X_OK)
    file = _open_writable(path) if writable else _open_read_only(path)
    try:
        _check_schema(file)
        _migrate(file)
    except BaseException:
        file.db.close()
        raise
    return file


def _open_writable(path: str) -> CatalogFile:
    return CatalogFile(path, "mode=rw", writable=True, immutable=False)


def _open_read_only(path: str) -> CatalogFile:
    try:
        return CatalogFile(path, "mode=ro", writable=False, immutable=False)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if _get_size(f"{path}-wal"):
            raise CatalogError(
                f"{path} cannot be read without write permission beside it, because a writer was killed and left "
                f"{path}-wal: open the catalog once where it can be written",
                address=path,
            ) from error
    return CatalogFile(path, "mode=ro&immutable=1", writable=False, immutable=True)


def _connect_and_probe(path: str, uri_options: str) -> sqlite3.Connection:
    db = _connect(path, uri_options)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: str, uri_options: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(path)}?{uri_options}", uri=True, isolation_level=None, cached_statements=256)
    for setting in (
        "busy_timeout = 100",  # ms; the caller checks its own deadline then
        "synchronous = FULL",  # commits survive a power failure
        "fullfsync = ON",  # on macOS too
        "cache_size = -16384",  # KiB
        "journal_size_limit = 67108864",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
        "cell_size_check = ON",
    ):
        db.execute(f"PRAGMA {setting}")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    return db


def _explain(path: str) -> str:
    """Return what a path that does not exist may have been meant to be. Other spellings are relative paths."""
    return explain_missing_path(os.path.relpath(path))


def _check_file_header(path: str) -> None:
    """Check that a file is a catalog by its first bytes, before SQLite opens it."""
    try:
        if os.path.isdir(path):
            raise CatalogNotFound(f"{path} is a folder, not the file of a catalog", address=path)
        with os.fdopen(open_regular_file(path), "rb") as file:
            header = file.read(_HEADER_BYTES)
    except CatalogError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CatalogNotFound(f"there is no catalog at {path}{_explain(path)}", address=path) from error
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror or error}", address=path) from error
    if not header.startswith(_MAGIC) or len(header) < _HEADER_BYTES:
        raise CatalogError(f"{path} is not an SQLite database", address=path)
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise CatalogError(f"{path} is another application's database, not the catalog of an archive", address=path)


def _check_side_files(path: str) -> None:
    """Check the files that SQLite keeps beside a catalog, because SQLite applies their contents to the catalog.

    Raises:
        CatalogError: If one of them is not a regular file, or belongs to a user who cannot replace the catalog itself.
            This user, root and the owners of the catalog and of its folder can, and in a folder that users share on
            purpose (with write permission and without sticky bit) all of them.
    """
    folder = os.stat(os.path.dirname(path))
    is_shared = not folder.st_mode & stat.S_ISVTX and folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    writers = {0, os.geteuid(), folder.st_uid, os.stat(path).st_uid}
    for side_file in [path + suffix for suffix in _SIDE_FILE_SUFFIXES]:
        try:
            status = os.stat(side_file, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_uid not in writers and not is_shared:
            problem = f"belongs to another user (uid {status.st_uid})"
        else:
            continue
        raise CatalogError(
            f"{side_file} {problem}: another user may have put it there. Remove it, and keep the catalog in a folder "
            "where only its owner can put files",
            address=path,
        )


def _check_schema(file: CatalogFile) -> None:
    """Check that the tables hold stored rows. Views, computed columns and triggers are programs of the file's author.

    Tables and views that the user has added are never read, so they do no harm.
    """
    tables = set()
    for kind, name, table, sql in file.db.execute("SELECT type, lower(name), lower(tbl_name), sql FROM sqlite_schema"):
        if table in _TABLES and (kind not in ("table", "index") or _VIRTUAL.match(str(sql or ""))):
            raise _not_a_catalog(file, f"its {table} is not a plain table, but has a {kind} {name!r}")
        if kind == "table":
            tables.add(name)
    if missing := _TABLES - tables:
        raise _not_a_catalog(file, f"it has no table {min(missing)}")
    for table in sorted(_TABLES):
        hidden = file.db.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden", (table,)).fetchone()
        if hidden is not None:
            raise _not_a_catalog(file, f"its {table} is not a plain table, but computes the column {hidden[0]!r}")


def _not_a_catalog(file: CatalogFile, reason: str) -> CatalogError:
    return CatalogError(f"{file.path} is not the catalog of an archive: {reason}", address=file.path)


def _migrate(file: CatalogFile) -> None:
    db, path = file.db, file.path
    version = _read_schema_version(db)
    if version < 0:
        raise CatalogError(f"{path} has schema version {version}, which does not exist", address=path)
    if version > SCHEMA_VERSION:
        raise CatalogTooNew(
            f"{path} has schema version {version}, but this version of streamloader supports {SCHEMA_VERSION}: upgrade "
            "streamloader",
            address=path,
        )
    if version == SCHEMA_VERSION:
        return
    if not file.writable:
        raise CatalogError(
            f"{path} has the older schema version {version} and is read-only: open it once where it can be written, "
            f"which migrates it to version {SCHEMA_VERSION}",
            address=path,
        )
    with write_transaction(db):
        for step in range(_read_schema_version(db), SCHEMA_VERSION):  # another process may have migrated it by now
            MIGRATIONS[step](db)
            db.execute(f"PRAGMA user_version = {step + 1}")


def _read_schema_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _add_origins(db: sqlite3.Connection) -> None:
    """Migrate schema version 0, which did not store how videos were made."""
    db.execute("ALTER TABLE videos ADD COLUMN origin TEXT NOT NULL DEFAULT '{}'")


# By the schema version that each step starts from. All steps to the newest version are one transaction.
MIGRATIONS: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {0: _add_origins}


def _get_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
