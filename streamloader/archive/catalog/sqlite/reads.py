"""Reads of an SQLite catalog. Each function is called in the catalog's thread, with its connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from streamloader.archive.catalog.base import (
    CatalogHeader,
    ChunkRow,
    IngestJob,
    LocatedChunks,
    Place,
    Snapshot,
    VideoRow,
)
from streamloader.archive.catalog.query import MetadataQuery
from streamloader.archive.catalog.sqlite.schema import read_transaction
from streamloader.errors import CatalogError

__all__ = [
    "count_page", "expand_path", "find_page", "get_chunks", "get_codings", "get_header", "get_indexes", "get_snapshot",
    "get_staged_chunks", "get_video_by", "list_jobs", "list_paths_page", "locate_frames", "parse_chunk_row",
    "parse_chunk_rows", "shorten_path",
]  # fmt: skip

_VIDEO_COLUMNS: Final = (
    "number, content, name, start, nanoseconds, frames, chunks, height, width, turn, time_base_numerator, "
    "time_base_denominator, first_pts, end, mode, chunk_frames, source, bytes_in, bytes_out, metadata, added, origin"
)
_CHUNK_COLUMNS: Final = (
    "chunks.number, chunks.first, chunks.frames, chunks.first_pts, chunks.place, chunks.path, chunks.bytes, "
    "chunks.digest, codings.key, chunks.note FROM chunks JOIN codings ON codings.number = chunks.coding"
)
_VIDEO_QUERIES: Final = {
    "number": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE number = ?",  # noqa: S608
    "name": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE name = ?",  # noqa: S608
    "content": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE content = ?",  # noqa: S608
    "time": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE nanoseconds <= ? "  # noqa: S608
    "ORDER BY nanoseconds DESC, number DESC LIMIT 1",
}
_MAX_VALUES_PER_STATEMENT: Final = 400


def get_header(db: sqlite3.Connection) -> CatalogHeader:
    """Return the header, see :meth:`Catalog.get_header`."""
    with read_transaction(db):
        archive_id, created = db.execute("SELECT id, created FROM archive").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        places = db.execute("SELECT number, url, weight FROM places ORDER BY number").fetchall()
    return CatalogHeader(archive_id, version, created, tuple(Place(*place) for place in places))


def get_snapshot(db: sqlite3.Connection, stop: int | None = None) -> Snapshot:
    """Return the extent of the videos numbered below `stop`, by default of all videos."""
    row = db.execute(
        f"SELECT number, start + frames, first_chunk + chunks, {_VIDEO_COLUMNS} FROM videos "  # noqa: S608 - constant
        "WHERE number < ? ORDER BY number DESC LIMIT 1",
        (2**62 if stop is None else stop,),
    ).fetchone()
    if row is None:
        return Snapshot()
    number, frames, chunks, *rest = row
    last = _parse_video_row(rest)
    return Snapshot(number + 1, frames, chunks, last.start_ns + last.duration_ns)


def get_video_by(db: sqlite3.Connection, column: str, value: Any) -> VideoRow | None:
    """Return the video with this number, name or content, or the video at this time in nanoseconds.

    Args:
        db: Connection of the catalog.
        column: ``"number"``, ``"name"``, ``"content"`` or ``"time"``.
        value: Value to look up.
    """
    row = db.execute(_VIDEO_QUERIES[column], (value,)).fetchone()
    return None if row is None else _parse_video_row(row)


def locate_frames(db: sqlite3.Connection, address: str, start: int, stop: int) -> list[LocatedChunks]:
    """Return the chunks that hold a range of frames, see :meth:`Catalog.locate_frames`."""
    if stop <= start and start >= 0:
        return []
    located = []
    with read_transaction(db):
        videos = db.execute(
            f"SELECT key, {_VIDEO_COLUMNS} FROM videos WHERE number >= "  # noqa: S608 - constant
            "(SELECT number FROM videos WHERE start <= ? ORDER BY start DESC LIMIT 1) AND number <= "
            "(SELECT number FROM videos WHERE start < ? ORDER BY start DESC LIMIT 1) ORDER BY number",
            (start, stop),
        ).fetchall()
        covered = start
        for key, *values in videos:
            video = _parse_video_row(values)
            low, high = max(start - video.start, 0), min(stop - video.start, video.frames)
            rows = db.execute(
                f"SELECT {_CHUNK_COLUMNS} WHERE video = ? AND first >= "  # noqa: S608 - constant
                "(SELECT max(first) FROM chunks WHERE video = ? AND first <= ?) AND first < ? ORDER BY first",
                (key, key, low, high),
            )
            chunks = tuple(parse_chunk_row(video.content, row) for row in rows)
            covered = _extend_coverage(video, chunks, covered)
            located.append(LocatedChunks(video, chunks))
    if covered < stop:
        raise CatalogError(
            f"the catalog {address} does not have the frames {start} to {stop} of the archive: frame {covered} is "
            "missing",
            address=address,
            offset=covered,
        )
    return located


def get_chunks(db: sqlite3.Connection, content: bytes, start: int, stop: int) -> list[ChunkRow]:
    """Return chunks of a video, see :meth:`Catalog.get_chunks`."""
    return parse_chunk_rows(
        content,
        db.execute(
            f"SELECT {_CHUNK_COLUMNS} WHERE video = (SELECT key FROM videos WHERE content = ?) "  # noqa: S608 - constant
            "AND chunks.number >= ? AND chunks.number < ? ORDER BY chunks.number",
            (content, start, stop),
        ),
    )


def get_indexes(db: sqlite3.Connection, address: str, content: bytes, numbers: Sequence[int]) -> list[bytes]:
    """Return encoded frame indexes, see :meth:`Catalog.get_indexes`."""
    indexes: dict[int, bytes] = {}
    with read_transaction(db):
        key = db.execute("SELECT key FROM videos WHERE content = ?", (content,)).fetchone()
        if key is not None:
            ids = [key[0] << 24 | number for number in dict.fromkeys(numbers) if 0 <= number < 1 << 24]
            for batch in _split_values(ids):
                marks = ",".join("?" * len(batch))
                for row_id, data in db.execute(f"SELECT id, data FROM indexes WHERE id IN ({marks})", batch):  # noqa: S608
                    indexes[row_id & (1 << 24) - 1] = data
    for number in numbers:
        if number not in indexes:
            raise CatalogError(
                f"the catalog {address} has no frame index of chunk {number} of video {content.hex()}",
                address=address,
                offset=number,
            )
    return [indexes[number] for number in numbers]


def get_codings(db: sqlite3.Connection, address: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return codec parameters, see :meth:`Catalog.get_codings`."""
    codings: dict[str, Mapping[str, Any]] = {}
    with read_transaction(db):
        for batch in _split_values(list(dict.fromkeys(keys))):
            marks = ",".join("?" * len(batch))
            for key, text in db.execute(f"SELECT key, told FROM codings WHERE key IN ({marks})", batch):  # noqa: S608
                codings[key] = json.loads(text)
    for key in keys:
        if key not in codings:
            raise CatalogError(f"the catalog {address} has no coding {key}", address=address)
    return [codings[key] for key in keys]


def find_page(
    db: sqlite3.Connection, query: MetadataQuery, start: int, stop: int, limit: int
) -> tuple[list[VideoRow], int]:
    """Scan up to `limit` videos numbered [start, stop).

    Returns:
        The videos that match, and the number to continue with. It is `stop` after the last page.
    """
    rows = db.execute(
        f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE number >= ? AND number < ? "  # noqa: S608 - constant
        "ORDER BY number LIMIT ?",
        (start, stop, limit),
    ).fetchall()
    videos = [_parse_video_row(row) for row in rows]
    following = videos[-1].number + 1 if len(videos) == limit else stop
    return [video for video in videos if query(video.metadata)], following


def count_page(db: sqlite3.Connection, query: MetadataQuery, start: int, stop: int, limit: int) -> tuple[Snapshot, int]:
    """Scan up to `limit` videos numbered [start, stop), like :func:`find_page`, and sum up those that match."""
    videos, following = find_page(db, query, start, stop, limit)
    total = Snapshot(
        len(videos),
        sum(video.frames for video in videos),
        sum(video.chunks for video in videos),
        sum(video.duration_ns for video in videos),
    )
    return total, following


def list_paths_page(
    db: sqlite3.Connection, place: int, after: tuple[int, int], limit: int
) -> tuple[list[tuple[str, str]], tuple[int, int] | None]:
    """Scan up to `limit` chunks after the chunk `after`.

    Returns:
        The (content, path) of the chunks in one place, and the chunk to continue after. It is None after the last page.
    """
    with read_transaction(db):
        rows = db.execute(
            "SELECT video, first, place, path FROM chunks WHERE (video, first) > (?, ?) ORDER BY video, first LIMIT ?",
            (*after, limit),
        ).fetchall()
        contents = {}
        for key in dict.fromkeys(row[0] for row in rows):
            (contents[key],) = db.execute(
                "SELECT content FROM videos WHERE key = ? UNION ALL SELECT content FROM jobs WHERE key = ?", (key, key)
            ).fetchone() or (b"",)
    paths = [
        (contents[key].hex(), expand_path(contents[key].hex(), path))
        for key, _, chunk_place, path in rows
        if chunk_place == place
    ]
    return paths, rows[-1][:2] if len(rows) == limit else None


def get_staged_chunks(db: sqlite3.Connection, content: bytes) -> list[ChunkRow]:
    """Return the chunks of a job, see :meth:`Catalog.get_staged_chunks`."""
    return parse_chunk_rows(
        content,
        db.execute(
            f"SELECT {_CHUNK_COLUMNS} WHERE video = (SELECT key FROM jobs WHERE content = ?) "  # noqa: S608 - constant
            "ORDER BY chunks.number",
            (content,),
        ),
    )


def list_jobs(db: sqlite3.Connection) -> list[IngestJob]:
    """Return the unfinished jobs, see :meth:`Catalog.list_jobs`."""
    rows = db.execute("SELECT content, name, source, begun, beat FROM jobs ORDER BY content")
    return [IngestJob(content.hex(), *rest) for content, *rest in rows]


# --- rows ------------------------------------------------------------------------------------------------------------


def expand_path(content: str, path: str) -> str:
    """Return the full path of a chunk from its stored path, which omits the usual folder."""
    return f"chunks/{content[:2]}/{content}{path}" if path.startswith("/") else path


def shorten_path(content: str, path: str) -> str:
    """Return the stored path of a chunk from its full path, the inverse of :func:`expand_path`."""
    return path.removeprefix(f"chunks/{content[:2]}/{content}")


def parse_chunk_rows(content: bytes, rows: Iterable[Sequence[Any]]) -> list[ChunkRow]:
    """Build the chunks of one video from SQL rows."""
    content_hex = content.hex()
    return [parse_chunk_row(content_hex, row) for row in rows]


def parse_chunk_row(content: str, row: Sequence[Any]) -> ChunkRow:
    """Build a chunk from an SQL row."""
    number, first_frame, frames, first_pts, place, path, size, digest, coding, note = row
    return ChunkRow(
        content, number, first_frame, frames, first_pts, place, expand_path(content, path), size,
        f"sha256:{digest.hex()}", coding, note,
    )  # fmt: skip


def _parse_video_row(row: Sequence[Any]) -> VideoRow:
    (
        number, content, name, start, start_ns, frames, chunks, height, width, orientation_bits, numerator, denominator,
        first_pts, end, mode, chunk_frames, source, bytes_in, bytes_out, metadata, added, origin,
    ) = row  # fmt: skip
    orientation = bool(orientation_bits & 1), bool(orientation_bits & 2), bool(orientation_bits & 4)
    return VideoRow(
        content=content.hex(), name=name, frames=frames, chunks=chunks, height=height, width=width,
        orientation=orientation, time_base=Fraction(numerator, denominator),
        first_pts=first_pts, end=end, mode=mode, chunk_frames=chunk_frames, source=source, bytes_in=bytes_in,
        bytes_out=bytes_out, metadata=json.loads(metadata), origin=json.loads(origin), added=added, number=number,
        start=start, start_ns=start_ns,
    )  # fmt: skip


def _extend_coverage(video: VideoRow, chunks: Sequence[ChunkRow], covered: int) -> int:
    """Return the end of the frames that are covered without a gap, given that all frames before `covered` are."""
    for chunk in chunks:
        if chunk.first_frame + video.start > covered:
            break
        covered = video.start + chunk.first_frame + chunk.frames
    return covered


def _split_values(values: list[Any]) -> list[list[Any]]:
    return [
        values[offset : offset + _MAX_VALUES_PER_STATEMENT]
        for offset in range(0, len(values), _MAX_VALUES_PER_STATEMENT)
    ]
