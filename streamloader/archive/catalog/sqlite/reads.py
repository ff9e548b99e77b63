"""Reads of an SQLite catalog. Each function is called in the catalog's thread, with its connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
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
from streamloader.archive.catalog.fields import text as text_check
from streamloader.archive.catalog.fields import whole_number
from streamloader.archive.catalog.query import MetadataQuery
from streamloader.archive.catalog.rows import (
    MAX_FRAMES,
    MAX_ROW_KEY,
    MAX_UNCOUNTED_VIDEOS,
    build_chunk,
    build_header,
    build_job,
    build_place,
    build_video,
    check_chunk_path,
    check_consecutive,
    check_field,
    check_index,
    check_located,
    check_video_count,
    parse_coding,
)
from streamloader.archive.catalog.sqlite.schema import read_transaction
from streamloader.errors import CatalogError

__all__ = [
    "check_key", "count_page", "find_page", "get_chunks", "get_codings", "get_header", "get_indexes", "get_places",
    "get_snapshot", "get_staged_chunks", "get_video_by", "list_jobs", "list_paths_page", "locate_frames",
    "shorten_path",
]  # fmt: skip

_VIDEO_NAMES: Final = (
    "number", "content", "name", "start", "nanoseconds", "frames", "chunks", "height", "width", "turn",
    "time_base_numerator", "time_base_denominator", "first_pts", "end", "mode", "chunk_frames", "source", "bytes_in",
    "bytes_out", "metadata", "added", "origin",
)  # fmt: skip
_VIDEO_COLUMNS: Final = ", ".join(_VIDEO_NAMES)
_CODING_COLUMNS: Final = "key, told"
_JOB_COLUMNS: Final = "content, name, source, begun, beat"
_CHUNK_COLUMNS: Final = (
    "chunks.number, chunks.first, chunks.frames, chunks.first_pts, chunks.place, chunks.path, chunks.bytes, "
    "chunks.digest, codings.key, chunks.note FROM chunks LEFT JOIN codings ON codings.number = chunks.coding"
)
_VIDEO_QUERIES: Final = {
    "number": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE number = ?",  # noqa: S608
    "name": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE name = ?",  # noqa: S608
    "content": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE content = ?",  # noqa: S608
    "time": f"SELECT {_VIDEO_COLUMNS} FROM videos WHERE nanoseconds <= ? "  # noqa: S608
    "ORDER BY nanoseconds DESC, number DESC LIMIT 1",
}

_MAX_VALUES_PER_STATEMENT: Final = 400
_CONTENT_BYTES: Final = 32
_ORIENTATIONS: Final = tuple((bool(bits & 1), bool(bits & 2), bool(bits & 4)) for bits in range(8))
_key: Final = whole_number(0, MAX_ROW_KEY)
_name: Final = text_check()
_count: Final = whole_number(0, MAX_FRAMES)


def get_header(db: sqlite3.Connection) -> CatalogHeader:
    """Return the header, see :meth:`Catalog.get_header`."""
    with read_transaction(db):
        archive = db.execute("SELECT id, created FROM archive").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        places = _read_places(db)
    if archive is None:
        raise CatalogError("the table archive has no row: restore the catalog from a copy")
    return build_header({"archive": archive[0], "schema": version, "created": archive[1]}, places)


def get_places(db: sqlite3.Connection) -> list[Place]:
    """Return the places of the archive, by number."""
    return [build_place(values) for values in _read_places(db)]


def _read_places(db: sqlite3.Connection) -> list[dict[str, Any]]:
    rows = db.execute("SELECT number, url, weight FROM places ORDER BY number")
    return [dict(zip(("number", "url", "weight"), row, strict=True)) for row in rows]


def get_snapshot(db: sqlite3.Connection, stop: int | None = None) -> Snapshot:
    """Return the extent of the videos numbered below `stop`, by default of all videos."""
    row = db.execute(
        f"SELECT first_chunk, {_VIDEO_COLUMNS} FROM videos "  # noqa: S608 - constant
        "WHERE number < ? ORDER BY number DESC LIMIT 1",
        (2**62 if stop is None else stop,),
    ).fetchone()
    if row is None:
        return Snapshot()
    first_chunk, *rest = row
    last = _parse_video_row(rest)
    if last.number >= MAX_UNCOUNTED_VIDEOS:
        (count,) = db.execute("SELECT count(*) FROM videos WHERE number <= ?", (last.number,)).fetchone()
        check_video_count(last, count)
    chunks = check_field(f"video {last.number} ({last.content!r})", "first_chunk", first_chunk, _count) + last.chunks
    return Snapshot(last.number + 1, last.start + last.frames, chunks, last.start_ns + last.duration_ns)


def get_video_by(db: sqlite3.Connection, column: str, value: Any) -> VideoRow | None:
    """Return the video with this number, name or content, or the video at this time in nanoseconds.

    Args:
        db: Connection of the catalog.
        column: ``"number"``, ``"name"``, ``"content"`` or ``"time"``.
        value: Value to look up.
    """
    row = db.execute(_VIDEO_QUERIES[column], (value,)).fetchone()
    return None if row is None else _parse_video_row(row)


def find_names(db: sqlite3.Connection, text: str, stop: int) -> list[str]:
    """Return the names of videos that contain a text, see :meth:`Catalog.find_names`."""
    rows = db.execute("SELECT name FROM videos WHERE instr(name, ?) AND number < ? ORDER BY number", (text, stop))
    return [check_field("a video", "name", name, _name) for (name,) in rows]


def locate_frames(db: sqlite3.Connection, start: int, stop: int) -> list[LocatedChunks]:
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
        for key, *values in videos:
            video = _parse_video_row(values)
            low, high = max(start - video.start, 0), min(stop - video.start, video.frames)
            rows = db.execute(
                f"SELECT {_CHUNK_COLUMNS} WHERE video = ? AND first >= "  # noqa: S608 - constant
                "(SELECT max(first) FROM chunks WHERE video = ? AND first <= ?) AND first < ? ORDER BY first",
                (key, key, low, high),
            )
            chunks = _parse_chunk_rows(video.content, rows)
            try:
                located.append(check_located(video, chunks, start, stop))
            except CatalogError:
                _explain_missing_chunk(db, key, video)
                raise
        try:
            check_consecutive(located, start, stop)
        except CatalogError:
            _explain_missing_video(db)
            raise
    return located


def _explain_missing_chunk(db: sqlite3.Connection, key: Any, video: VideoRow) -> None:
    """Raise an error that names the row of the video because of which a chunk was not found, if there is one."""
    for row in db.execute(f"SELECT {_CHUNK_COLUMNS} WHERE video = ?", (key,)):
        _parse_chunk_rows(video.content, [row])


def _explain_missing_video(db: sqlite3.Connection) -> None:
    """Raise an error that names the row because of which frames were not found, if there is one."""
    for row in db.execute(f"SELECT {_VIDEO_COLUMNS} FROM videos ORDER BY number"):  # noqa: S608 - constant
        _parse_video_row(row)


def get_chunks(db: sqlite3.Connection, content: bytes, start: int, stop: int) -> list[ChunkRow]:
    """Return chunks of a video, see :meth:`Catalog.get_chunks`."""
    return _parse_chunk_rows(
        content.hex(),
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
            low = check_key("video", content, key[0]) << 24
            ids = [low | number for number in dict.fromkeys(numbers) if 0 <= number < 1 << 24]
            for batch in _split_values(ids):
                marks = ",".join("?" * len(batch))
                for row_id, data in db.execute(f"SELECT id, data FROM indexes WHERE id IN ({marks})", batch):  # noqa: S608
                    number = row_id & (1 << 24) - 1
                    indexes[number] = check_index(content.hex(), number, data)
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
            for key, text in db.execute(f"SELECT {_CODING_COLUMNS} FROM codings WHERE key IN ({marks})", batch):  # noqa: S608
                codings[key] = parse_coding(key, _CODING_COLUMNS.split(", ")[1], text)
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
            "SELECT video, first, place, number, digest, path FROM chunks WHERE (video, first) > (?, ?) "
            "ORDER BY video, first LIMIT ?",
            (*after, limit),
        ).fetchall()
        contents = {}
        for key in dict.fromkeys(row[0] for row in rows):
            content = db.execute(
                "SELECT content FROM videos WHERE key = ? UNION ALL SELECT content FROM jobs WHERE key = ?", (key, key)
            ).fetchone()
            if content is not None:  # find_problems() reports chunks that belong to no video
                contents[key] = _format_content(content[0])
    paths = []
    for key, _, chunk_place, number, digest, path in rows:
        if chunk_place == place and key in contents:
            content_hex = contents[key]
            full_path = _expand_path(content_hex, path)
            paths.append((content_hex, check_chunk_path(content_hex, number, _format_digest(digest), full_path)))
    return paths, rows[-1][:2] if len(rows) == limit else None


def get_staged_chunks(db: sqlite3.Connection, content: bytes) -> list[ChunkRow]:
    """Return the chunks of a job, see :meth:`Catalog.get_staged_chunks`."""
    return _parse_chunk_rows(
        content.hex(),
        db.execute(
            f"SELECT {_CHUNK_COLUMNS} WHERE video = (SELECT key FROM jobs WHERE content = ?) "  # noqa: S608 - constant
            "ORDER BY chunks.number",
            (content,),
        ),
    )


def list_jobs(db: sqlite3.Connection) -> list[IngestJob]:
    """Return the unfinished jobs, see :meth:`Catalog.list_jobs`."""
    rows = db.execute(f"SELECT {_JOB_COLUMNS} FROM jobs ORDER BY content")  # noqa: S608 - constant
    names = _JOB_COLUMNS.split(", ")
    return [build_job(dict(zip(names, (_format_content(content), *rest), strict=True))) for content, *rest in rows]


# --- rows ------------------------------------------------------------------------------------------------------------


def check_key(kind: str, content: bytes, key: Any) -> int:
    """Return the key of a video or job after a check.

    Raises:
        CatalogError: If it is not a key.
    """
    checked: int = check_field(f"{kind} {content.hex()!r}", "key", key, _key)
    return checked


def shorten_path(content: str, path: str) -> str:
    """Return the stored path of a chunk, which omits the usual folder, from its full path."""
    return path.removeprefix(f"chunks/{content[:2]}/{content}")


def _expand_path(content: str, path: Any) -> Any:
    """Return the full path of a chunk from its stored path, the inverse of :func:`shorten_path`."""
    return f"chunks/{content[:2]}/{content}{path}" if isinstance(path, str) and path.startswith("/") else path


def _format_content(value: Any) -> Any:
    """Return a stored content identifier in the form that rows have. A malformed value stays as it is."""
    return value.hex() if isinstance(value, bytes) and len(value) == _CONTENT_BYTES else value


def _format_digest(value: Any) -> Any:
    """Return a stored digest in the form that rows have. A malformed value stays as it is."""
    return f"sha256:{value.hex()}" if isinstance(value, bytes) else value


def _parse_chunk_rows(content: str, rows: Iterable[Sequence[Any]]) -> list[ChunkRow]:
    """Build the chunks of one video from SQL rows."""
    return [
        build_chunk(
            content, number, first, frames, first_pts, place, _expand_path(content, path), size, _format_digest(digest),
            coding, note,
        )
        for number, first, frames, first_pts, place, path, size, digest, coding, note in rows
    ]  # fmt: skip


def _parse_video_row(row: Sequence[Any]) -> VideoRow:
    values = dict(zip(_VIDEO_NAMES, row, strict=True))
    values["content"] = _format_content(values["content"])
    values["time_base"] = values["time_base_numerator"], values["time_base_denominator"]
    if values["turn"] in range(len(_ORIENTATIONS)):
        values["turn"] = _ORIENTATIONS[int(values["turn"])]
    return build_video(values, parsed=True)


def _split_values(values: list[Any]) -> list[list[Any]]:
    return [
        values[offset : offset + _MAX_VALUES_PER_STATEMENT]
        for offset in range(0, len(values), _MAX_VALUES_PER_STATEMENT)
    ]
