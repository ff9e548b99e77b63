"""Consistency checks of SQLite catalogs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from streamloader.archive.catalog.fields import whole_number
from streamloader.archive.catalog.rows import MAX_CHUNKS_PER_VIDEO, MAX_FRAMES, check_field
from streamloader.archive.catalog.sqlite import reads
from streamloader.archive.catalog.sqlite.schema import read_transaction
from streamloader.archive.catalog.validation import check_coverage
from streamloader.errors import CatalogError

__all__ = ["PAGE_VIDEOS", "ExpectedOffsets", "find_file_problems", "find_orphan_problems", "find_video_problems"]

PAGE_VIDEOS: Final = 50  # videos that are checked in one transaction
_MAX_FILE_PROBLEMS: Final = 100

_ORPHAN_QUERIES: Final = (
    (
        "SELECT DISTINCT video FROM chunks WHERE video NOT IN (SELECT key FROM videos UNION ALL SELECT key FROM jobs)",
        "chunks refer to video key {}, which does not exist",
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
    ("SELECT count(*) FROM places HAVING count(*) != max(number) + 1", "{} places are not numbered without gaps"),
)


@dataclass
class ExpectedOffsets:
    """The numbers that the next video has to start with.

    Attributes:
        number: Number of the video.
        start: Number of its first frame in the archive.
        chunk: Number of chunks of all earlier videos.
        nanoseconds: Duration of all earlier videos in nanoseconds.
    """

    number: int = 0
    start: int = 0
    chunk: int = 0
    nanoseconds: int = 0


def find_file_problems(db: sqlite3.Connection) -> list[str]:
    """Return the problems that SQLite finds in the file itself."""
    try:
        lines = [str(line) for (line,) in db.execute(f"PRAGMA integrity_check({_MAX_FILE_PROBLEMS})")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        lines = [str(error)]
    return [] if lines == ["ok"] else [f"the file is damaged: {line}" for line in lines]


def find_video_problems(db: sqlite3.Connection, address: str, expected: ExpectedOffsets) -> tuple[list[str], bool]:
    """Check the next :data:`PAGE_VIDEOS` videos, and advance `expected`.

    Returns:
        The problems, and whether more videos follow.
    """
    problems: list[str] = []
    with read_transaction(db):
        rows = db.execute(
            "SELECT number, key, first_chunk FROM videos WHERE number >= ? ORDER BY number LIMIT ?",
            (expected.number, PAGE_VIDEOS),
        ).fetchall()
        for number, key, first_chunk in rows:
            problems += _check_video(db, address, (number, key, first_chunk), expected)
    return problems, len(rows) == PAGE_VIDEOS


def find_orphan_problems(db: sqlite3.Connection) -> list[str]:
    """Return the problems of rows that belong to no video, and of the archive as a whole."""
    with read_transaction(db):
        return [text.format(value) for query, text in _ORPHAN_QUERIES for (value,) in db.execute(query)]


def _check_video(
    db: sqlite3.Connection, address: str, row: tuple[int, int, int], expected: ExpectedOffsets
) -> list[str]:
    number, key, first_chunk = row
    (without_coding,) = db.execute(
        "SELECT count(*) FROM chunks WHERE video = ? AND coding NOT IN (SELECT number FROM codings)", (key,)
    ).fetchone()
    if without_coding:
        expected.number = number + 1
        return [f"video {number}: {without_coding} chunks have a coding that does not exist"]
    try:
        video = reads.get_video_by(db, "number", number)
        assert video is not None
        chunks = reads.get_chunks(db, bytes.fromhex(video.content), 0, MAX_CHUNKS_PER_VIDEO)
        first_chunk = check_field(f"video {number}", "first_chunk", first_chunk, whole_number(0, MAX_FRAMES))
    except CatalogError as error:  # a malformed row
        expected.number = number + 1
        return [f"video {number}: {error.message}"]
    problems = []
    for label, actual, wanted in (
        ("is number", number, expected.number),
        ("starts at frame", video.start, expected.start),
        ("starts at chunk", first_chunk, expected.chunk),
        ("starts at nanosecond", video.start_ns, expected.nanoseconds),
    ):
        if actual != wanted:
            problems.append(f"video {number} ({video.name}) {label} {actual}, not {wanted}")
    try:
        check_coverage(video, chunks, address)
    except CatalogError as error:
        problems.append(f"video {number}: {error.message}")
    low = reads.check_key("video", bytes.fromhex(video.content), key) << 24
    (without_index,) = db.execute(
        "SELECT count(*) FROM chunks LEFT JOIN indexes ON indexes.id = ? + chunks.number "
        "WHERE chunks.video = ? AND indexes.id IS NULL",
        (low, key),
    ).fetchone()
    if without_index:
        problems.append(f"video {number} ({video.name}): {without_index} chunks have no frame index")
    (without_place,) = db.execute(
        "SELECT count(*) FROM chunks WHERE video = ? AND place NOT IN (SELECT number FROM places)", (key,)
    ).fetchone()
    if without_place:
        problems.append(f"video {number} ({video.name}): {without_place} chunks are in a place that does not exist")
    expected.number, expected.start = number + 1, video.start + video.frames
    expected.chunk, expected.nanoseconds = first_chunk + video.chunks, video.start_ns + video.duration_ns
    return problems
