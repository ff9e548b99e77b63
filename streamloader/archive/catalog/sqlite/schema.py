"""The form of an SQLite catalog, how it came about, and how such a file is made and opened."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from streamloader.archive.catalog.base import SCHEMA, Place
from streamloader.errors import CatalogError, CatalogExists, CatalogNotFound, CatalogTooNew

__all__ = [
    "APPLICATION", "FORM", "MIGRATIONS", "Opened", "identity", "make_file", "open_file", "reading", "writing",
]  # fmt: skip

APPLICATION: Final = 0x534C4341  # "SLCA": tells the file from databases of others
_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = 100  # bytes
_PAGE: Final = 8192  # bytes: a few frame indexes, or a hundred chunks
_UNFINISHED: Final = ".streamloader-new-"

# `key` stands for the content of a video, or job, inside the file. Jobs give keys out, and videos take theirs over.
# Chunks are in order of what they are looked up by. An index has the id key * 2^24 + number of its chunk.
FORM: Final = """
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


class Opened:
    """A connection to a catalog file.

    Attributes:
        db: the connection; it commits by itself unless told to begin.
        writable: whether it can be written.
        frozen: the file is read as if nobody could change it: see :func:`open_file`.
        was: :func:`identity` of the file when it was opened.
    """

    def __init__(self, path: str, how: str, *, writable: bool, frozen: bool) -> None:
        self.path = path
        self.writable = writable
        self.frozen = frozen
        self.was = identity(path, exact=frozen)  # before it is opened: a change in between is noticed, too
        self.db = _probed(path, how)


@contextlib.contextmanager
def writing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Do all or nothing, and on disk when it is done."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def reading(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """See the same state in all statements."""
    db.execute("BEGIN")
    try:
        yield db
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def identity(path: str, *, exact: bool) -> tuple[int, ...]:
    """Return what tells whether a file is still the same one; `exact`: and has not been written either."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    if not exact:
        return status.st_dev, status.st_ino
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, _size(f"{path}-wal")


# --- making ----------------------------------------------------------------------------------------------------------


def make_file(path: str, places: Sequence[Place]) -> None:
    """Make an empty catalog; whole or not at all, with the rights that the umask leaves.

    Raises:
        CatalogExists: there is something already.
        CatalogError: the file cannot be made.
    """
    if os.path.lexists(path):
        raise CatalogExists(f"there is a file already: {path}", address=path)
    for left in (f"{path}-wal", f"{path}-journal"):
        if os.path.lexists(left):  # SQLite would take it for a part of the new file
            raise CatalogError(f"{left} was left by a catalog that is gone: move it away first", address=path)
    folder = os.path.dirname(path)
    unfinished = os.path.join(folder, f"{_UNFINISHED}{secrets.token_hex(8)}")
    try:
        os.makedirs(folder, exist_ok=True)
        # Not SQLite: it leaves out the group's rights, whatever the umask is.
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            _fill(unfinished, places)
            _place(unfinished, path)
        finally:
            for part in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished + part)
        _sync(folder)
    except FileExistsError as error:
        raise CatalogExists(f"there is a file already: {path}", address=path) from error
    except OSError as error:
        raise CatalogError(f"cannot make {path}: {error.strerror or error}", address=path) from error


def _fill(path: str, places: Sequence[Place]) -> None:
    with contextlib.closing(_connect(path, "mode=rw")) as db:
        db.execute(f"PRAGMA page_size = {_PAGE}")
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        with writing(db):
            for statement in FORM.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO archive VALUES (?, ?)", (secrets.token_hex(16), time.time()))
            rows = [(place.number, place.url, place.weight) for place in places]
            db.executemany("INSERT INTO places VALUES (?, ?, ?)", rows)
            db.execute(f"PRAGMA user_version = {SCHEMA}")
    _sync(path)


def _place(unfinished: str, path: str) -> None:
    """Give a finished file its name, if nobody else has it."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        # No links on this file system: take the name first, then replace it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        os.replace(unfinished, path)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some file systems
            raise
    finally:
        os.close(descriptor)


# --- opening ---------------------------------------------------------------------------------------------------------


def open_file(path: str) -> Opened:
    """Open a catalog, and bring an older form to this one's.

    Without the right to write it is only read. Where it cannot even be shared with writers, since their lock file
    cannot be made beside it, it is read as a file that nobody changes ("frozen"), and whoever reads has to look before
    and after whether that is so.

    Raises:
        CatalogNotFound: there is none.
        CatalogTooNew: it was made by a newer version of this package.
        CatalogError: it is something else, or cannot be read.
    """
    _check_header(path)
    writable = os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK | os.X_OK)
    opened = _open_writable(path) if writable else _open_readable(path)
    try:
        _bring_up(opened)
    except BaseException:
        opened.db.close()
        raise
    return opened


def _open_writable(path: str) -> Opened:
    return Opened(path, "mode=rw", writable=True, frozen=False)


def _open_readable(path: str) -> Opened:
    try:
        return Opened(path, "mode=ro", writable=False, frozen=False)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if _size(f"{path}-wal"):
            raise CatalogError(
                f"{path} cannot be read without the right to write beside it: a writer died and left {path}-wal; "
                "open it once where it can be written",
                address=path,
            ) from error
    return Opened(path, "mode=ro&immutable=1", writable=False, frozen=True)


def _probed(path: str, how: str) -> sqlite3.Connection:
    db = _connect(path, how)
    try:
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _connect(path: str, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(path)}?{how}", uri=True, isolation_level=None, cached_statements=256)
    for setting in (
        "busy_timeout = 100",  # ms; then the caller looks at its own deadline
        "synchronous = FULL",  # what was committed survives a power cut
        "fullfsync = ON",  # on macOS too
        "cache_size = -16384",  # KiB
        "journal_size_limit = 67108864",
        "temp_store = MEMORY",
        "trusted_schema = OFF",
        "cell_size_check = ON",
    ):
        db.execute(f"PRAGMA {setting}")
    return db


def _check_header(path: str) -> None:
    """See by its first bytes whether a file is a catalog, before SQLite touches it."""
    try:
        if os.path.isdir(path):
            raise CatalogNotFound(f"{path} is a folder, not the file of a catalog", address=path)
        with open(path, "rb") as file:
            header = file.read(_HEADER)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CatalogNotFound(f"there is no catalog at {path}", address=path) from error
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror or error}", address=path) from error
    if not header.startswith(_MAGIC) or len(header) < _HEADER:
        raise CatalogError(f"{path} is no SQLite database", address=path)
    if int.from_bytes(header[68:72], "big") != APPLICATION:
        raise CatalogError(f"{path} is a database of something else, not the catalog of an archive", address=path)


def _bring_up(opened: Opened) -> None:
    db, path = opened.db, opened.path
    form = _version(db)
    if form > SCHEMA:
        raise CatalogTooNew(
            f"{path} has form {form}, but this version of streamloader knows {SCHEMA}: upgrade streamloader",
            address=path,
        )
    if form == SCHEMA:
        return
    if not opened.writable:
        raise CatalogError(
            f"{path} has the older form {form} and may not be written: open it once where it can be, which brings "
            f"it to form {SCHEMA}",
            address=path,
        )
    with writing(db):
        for step in range(_version(db), SCHEMA):  # perhaps somebody else has done it meanwhile
            MIGRATIONS[step](db)
            db.execute(f"PRAGMA user_version = {step + 1}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _add_origins(db: sqlite3.Connection) -> None:
    """Form 0 did not keep how videos were made."""
    db.execute("ALTER TABLE videos ADD COLUMN origin TEXT NOT NULL DEFAULT '{}'")


# By the form that each begins with; all steps to the newest form are one transaction.
MIGRATIONS: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {0: _add_origins}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
