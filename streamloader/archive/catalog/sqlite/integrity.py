"""Whether an SQLite catalog is in order."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from streamloader.archive.catalog.sqlite import reads
from streamloader.archive.catalog.sqlite.schema import reading
from streamloader.archive.catalog.validation import check_whole
from streamloader.errors import CatalogError

__all__ = ["PAGE", "Expected", "file_problems", "loose_problems", "video_problems"]

PAGE: Final = 50  # videos that are looked at in one transaction
_MOST: Final = 100  # problems of the file itself

_LOOSE: Final = (
    (
        "SELECT DISTINCT video FROM chunks WHERE video NOT IN (SELECT key FROM videos UNION ALL SELECT key FROM jobs)",
        "chunks belong to video key {}, which there is not",
    ),
    (
        "SELECT DISTINCT id >> 24 FROM indexes LEFT JOIN chunks ON video = id >> 24 AND number = id & 16777215 "  # noqa: ISC004
        "WHERE video IS NULL",
        "frame indexes of video key {} belong to no chunk",
    ),
    (
        "SELECT lower(hex(content)) FROM jobs WHERE content IN (SELECT content FROM videos)",
        "job {} is a video already",
    ),
    ("SELECT count(*) FROM archive HAVING count(*) != 1", "the archive has {} identities"),
    ("SELECT count(*) FROM places HAVING count(*) != max(number) + 1", "{} places are not numbered without a gap"),
)


@dataclass
class Expected:
    """What the next video has to begin with."""

    number: int = 0
    start: int = 0
    chunk: int = 0
    nanoseconds: int = 0


def file_problems(db: sqlite3.Connection) -> list[str]:
    """Return what SQLite finds wrong with the file."""
    try:
        told = [str(line) for (line,) in db.execute(f"PRAGMA integrity_check({_MOST})")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        told = [str(error)]
    return [] if told == ["ok"] else [f"the file is damaged: {line}" for line in told]


def video_problems(db: sqlite3.Connection, address: str, expected: Expected) -> tuple[list[str], bool]:
    """Look at the next :data:`PAGE` videos; return what is wrong, and whether there are more."""
    problems: list[str] = []
    with reading(db):
        rows = db.execute(
            "SELECT number, key, first_chunk FROM videos WHERE number >= ? ORDER BY number LIMIT ?",
            (expected.number, PAGE),
        ).fetchall()
        for number, key, first_chunk in rows:
            problems += _of_video(db, address, (number, key, first_chunk), expected)
    return problems, len(rows) == PAGE


def loose_problems(db: sqlite3.Connection) -> list[str]:
    """Return what belongs to nothing."""
    with reading(db):
        return [text.format(value) for query, text in _LOOSE for (value,) in db.execute(query)]


def _of_video(db: sqlite3.Connection, address: str, row: tuple[int, int, int], expected: Expected) -> list[str]:
    number, key, first_chunk = row
    video = reads.video_by(db, "number", number)
    assert video is not None
    told = []
    for what, found, wanted in (
        ("is number", number, expected.number),
        ("begins at frame", video.start, expected.start),
        ("begins at chunk", first_chunk, expected.chunk),
        ("begins at nanosecond", video.nanoseconds, expected.nanoseconds),
    ):
        if found != wanted:
            told.append(f"video {number} ({video.name}) {what} {found}, not {wanted}")
    content = bytes.fromhex(video.content)
    chunks = reads.chunks(db, content, 0, 1 << 24)
    try:
        check_whole(video, chunks, address)
    except CatalogError as error:
        told.append(f"video {number}: {error.message}")
    (bare,) = db.execute("SELECT count(*) FROM chunks WHERE video = ?", (key,)).fetchone()
    if bare != len(chunks):
        told.append(f"video {number} ({video.name}): {bare - len(chunks)} chunks have a coding that there is not")
    low = key << 24
    (lacking,) = db.execute(
        "SELECT count(*) FROM chunks LEFT JOIN indexes ON indexes.id = ? + chunks.number "
        "WHERE chunks.video = ? AND indexes.id IS NULL",
        (low, key),
    ).fetchone()
    if lacking:
        told.append(f"video {number} ({video.name}): {lacking} chunks have no frame index")
    (lost,) = db.execute(
        "SELECT count(*) FROM chunks WHERE video = ? AND place NOT IN (SELECT number FROM places)", (key,)
    ).fetchone()
    if lost:
        told.append(f"video {number} ({video.name}): {lost} chunks are in a place that there is not")
    expected.number, expected.start = number + 1, video.start + video.frames
    expected.chunk, expected.nanoseconds = first_chunk + video.chunks, video.nanoseconds + video.duration
    return told
