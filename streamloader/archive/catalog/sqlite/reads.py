"""What is asked of an SQLite catalog: each function is given the connection, and called in its thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, Header, Job, Located, Place, Snapshot, VideoRow
from streamloader.archive.catalog.query import Where
from streamloader.archive.catalog.sqlite.schema import reading
from streamloader.errors import CatalogError

__all__ = [
    "chunk_row", "chunk_rows", "chunks", "codings", "count", "find", "header", "indexes", "jobs", "locate", "paths",
    "short_path", "snapshot", "staged", "video_by", "whole_path",
]  # fmt: skip

_VIDEO: Final = (
    "number, content, name, start, nanoseconds, frames, chunks, height, width, turn, time_base_numerator, "
    "time_base_denominator, first_pts, end, mode, chunk_frames, source, bytes_in, bytes_out, metadata, added, origin"
)
_CHUNK: Final = (
    "chunks.number, chunks.first, chunks.frames, chunks.first_pts, chunks.place, chunks.path, chunks.bytes, "
    "chunks.digest, codings.key, chunks.note FROM chunks JOIN codings ON codings.number = chunks.coding"
)
_BY: Final = {
    "number": f"SELECT {_VIDEO} FROM videos WHERE number = ?",  # noqa: S608
    "name": f"SELECT {_VIDEO} FROM videos WHERE name = ?",  # noqa: S608
    "content": f"SELECT {_VIDEO} FROM videos WHERE content = ?",  # noqa: S608
    "time": f"SELECT {_VIDEO} FROM videos WHERE nanoseconds <= ? "  # noqa: S608
    "ORDER BY nanoseconds DESC, number DESC LIMIT 1",
}
_AT_ONCE: Final = 400  # values in one statement


def header(db: sqlite3.Connection) -> Header:
    """See :meth:`Catalog.header`."""
    with reading(db):
        archive, created = db.execute("SELECT id, created FROM archive").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        places = db.execute("SELECT number, url, weight FROM places ORDER BY number").fetchall()
    return Header(archive, schema, created, tuple(Place(*place) for place in places))


def snapshot(db: sqlite3.Connection, stop: int | None = None) -> Snapshot:
    """See :meth:`Catalog.snapshot`; `stop`: of the videos numbered below it."""
    found = db.execute(
        f"SELECT number, start + frames, first_chunk + chunks, {_VIDEO} FROM videos "  # noqa: S608 - constant
        "WHERE number < ? ORDER BY number DESC LIMIT 1",
        (2**62 if stop is None else stop,),
    ).fetchone()
    if found is None:
        return Snapshot()
    number, frames, chunks, *rest = found
    last = _video_row(rest)
    return Snapshot(number + 1, frames, chunks, last.nanoseconds + last.duration)


def video_by(db: sqlite3.Connection, what: str, value: Any) -> VideoRow | None:
    """Return the video with this number, name or content, or the one that plays at a time."""
    found = db.execute(_BY[what], (value,)).fetchone()
    return None if found is None else _video_row(found)


def locate(db: sqlite3.Connection, address: str, start: int, stop: int) -> list[Located]:
    """See :meth:`Catalog.locate`."""
    if stop <= start and start >= 0:
        return []
    found = []
    with reading(db):
        videos = db.execute(
            f"SELECT key, {_VIDEO} FROM videos WHERE number >= "  # noqa: S608 - constant
            "(SELECT number FROM videos WHERE start <= ? ORDER BY start DESC LIMIT 1) AND number <= "
            "(SELECT number FROM videos WHERE start < ? ORDER BY start DESC LIMIT 1) ORDER BY number",
            (start, stop),
        ).fetchall()
        at = start
        for key, *values in videos:
            video = _video_row(values)
            low, high = max(start - video.start, 0), min(stop - video.start, video.frames)
            rows = db.execute(
                f"SELECT {_CHUNK} WHERE video = ? AND first >= "  # noqa: S608 - constant
                "(SELECT max(first) FROM chunks WHERE video = ? AND first <= ?) AND first < ? ORDER BY first",
                (key, key, low, high),
            )
            held = tuple(chunk_row(video.content, row) for row in rows)
            at = _follow(video, held, at)
            found.append(Located(video, held))
    if at < stop:
        raise CatalogError(
            f"the catalog {address} does not have the frames {start} to {stop} of the archive: frame {at} is missing",
            address=address,
            offset=at,
        )
    return found


def chunks(db: sqlite3.Connection, content: bytes, start: int, stop: int) -> list[ChunkRow]:
    """See :meth:`Catalog.chunks`."""
    return chunk_rows(
        content,
        db.execute(
            f"SELECT {_CHUNK} WHERE video = (SELECT key FROM videos WHERE content = ?) "  # noqa: S608 - constant
            "AND chunks.number >= ? AND chunks.number < ? ORDER BY chunks.number",
            (content, start, stop),
        ),
    )


def indexes(db: sqlite3.Connection, address: str, content: bytes, numbers: Sequence[int]) -> list[bytes]:
    """See :meth:`Catalog.indexes`."""
    found: dict[int, bytes] = {}
    with reading(db):
        key = db.execute("SELECT key FROM videos WHERE content = ?", (content,)).fetchone()
        if key is not None:
            wanted = [key[0] << 24 | number for number in dict.fromkeys(numbers) if 0 <= number < 1 << 24]
            for part in _parts(wanted):
                marks = ",".join("?" * len(part))
                for row, data in db.execute(f"SELECT id, data FROM indexes WHERE id IN ({marks})", part):  # noqa: S608
                    found[row & (1 << 24) - 1] = data
    for number in numbers:
        if number not in found:
            raise CatalogError(
                f"the catalog {address} has no frame index of chunk {number} of video {content.hex()}",
                address=address,
                offset=number,
            )
    return [found[number] for number in numbers]


def codings(db: sqlite3.Connection, address: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """See :meth:`Catalog.codings`."""
    found: dict[str, Mapping[str, Any]] = {}
    with reading(db):
        for part in _parts(list(dict.fromkeys(keys))):
            marks = ",".join("?" * len(part))
            for key, told in db.execute(f"SELECT key, told FROM codings WHERE key IN ({marks})", part):  # noqa: S608
                found[key] = json.loads(told)
    for key in keys:
        if key not in found:
            raise CatalogError(f"the catalog {address} does not know the coding {key}", address=address)
    return [found[key] for key in keys]


def find(db: sqlite3.Connection, where: Where, start: int, stop: int, most: int) -> tuple[list[VideoRow], int]:
    """Look at up to `most` videos numbered [start, stop); return those that match, and where to go on (or `stop`)."""
    rows = db.execute(
        f"SELECT {_VIDEO} FROM videos WHERE number >= ? AND number < ? ORDER BY number LIMIT ?",  # noqa: S608 - constant
        (start, stop, most),
    ).fetchall()
    videos = [_video_row(row) for row in rows]
    after = videos[-1].number + 1 if len(videos) == most else stop
    return [video for video in videos if where(video.metadata)], after


def count(db: sqlite3.Connection, where: Where, start: int, stop: int, most: int) -> tuple[Snapshot, int]:
    """The same, but their sums alone."""
    videos, after = find(db, where, start, stop, most)
    total = Snapshot(
        len(videos),
        sum(video.frames for video in videos),
        sum(video.chunks for video in videos),
        sum(video.duration for video in videos),
    )
    return total, after


def paths(
    db: sqlite3.Connection, place: int, after: tuple[int, int], most: int
) -> tuple[list[tuple[str, str]], tuple[int, int] | None]:
    """Look at up to `most` chunks; return (content, path) of those in one place, and after which one to go on."""
    with reading(db):
        rows = db.execute(
            "SELECT video, first, place, path FROM chunks WHERE (video, first) > (?, ?) ORDER BY video, first LIMIT ?",
            (*after, most),
        ).fetchall()
        contents = {}
        for key in dict.fromkeys(row[0] for row in rows):
            (contents[key],) = db.execute(
                "SELECT content FROM videos WHERE key = ? UNION ALL SELECT content FROM jobs WHERE key = ?", (key, key)
            ).fetchone() or (b"",)
    found = [
        (contents[key].hex(), whole_path(contents[key].hex(), path)) for key, _, where, path in rows if where == place
    ]
    return found, rows[-1][:2] if len(rows) == most else None


def staged(db: sqlite3.Connection, content: bytes) -> list[ChunkRow]:
    """See :meth:`Catalog.staged`."""
    return chunk_rows(
        content,
        db.execute(
            f"SELECT {_CHUNK} WHERE video = (SELECT key FROM jobs WHERE content = ?) "  # noqa: S608 - constant
            "ORDER BY chunks.number",
            (content,),
        ),
    )


def jobs(db: sqlite3.Connection) -> list[Job]:
    """See :meth:`Catalog.jobs`."""
    rows = db.execute("SELECT content, name, source, begun, beat FROM jobs ORDER BY content")
    return [Job(content.hex(), *rest) for content, *rest in rows]


# --- rows ------------------------------------------------------------------------------------------------------------


def whole_path(content: str, path: str) -> str:
    """Return the path of a chunk as others know it: inside, the folder that most lie in is left out."""
    return f"chunks/{content[:2]}/{content}{path}" if path.startswith("/") else path


def short_path(content: str, path: str) -> str:
    """Return it as it is kept."""
    return path.removeprefix(f"chunks/{content[:2]}/{content}")


def chunk_rows(content: bytes, rows: Iterable[Sequence[Any]]) -> list[ChunkRow]:
    """Make chunks of one video out of what was read."""
    name = content.hex()
    return [chunk_row(name, row) for row in rows]


def chunk_row(content: str, row: Sequence[Any]) -> ChunkRow:
    """Make a chunk out of what was read."""
    number, first, frames, first_pts, place, path, size, digest, coding, note = row
    return ChunkRow(
        content, number, first, frames, first_pts, place, whole_path(content, path), size, f"sha256:{digest.hex()}",
        coding, note,
    )  # fmt: skip


def _video_row(row: Sequence[Any]) -> VideoRow:
    (
        number, content, name, start, nanoseconds, frames, chunks, height, width, turn, numerator, denominator,
        first_pts, end, mode, chunk_frames, source, bytes_in, bytes_out, metadata, added, origin,
    ) = row  # fmt: skip
    return VideoRow(
        content=content.hex(), name=name, frames=frames, chunks=chunks, height=height, width=width,
        turn=(bool(turn & 1), bool(turn & 2), bool(turn & 4)), time_base=Fraction(numerator, denominator),
        first_pts=first_pts, end=end, mode=mode, chunk_frames=chunk_frames, source=source, bytes_in=bytes_in,
        bytes_out=bytes_out, metadata=json.loads(metadata), origin=json.loads(origin), added=added, number=number,
        start=start, nanoseconds=nanoseconds,
    )  # fmt: skip


def _follow(video: VideoRow, held: Sequence[ChunkRow], at: int) -> int:
    """Return the frame of the archive up to which these chunks reach without a gap, if they hold `at`."""
    for chunk in held:
        if chunk.first + video.start > at:
            break
        at = video.start + chunk.first + chunk.frames
    return at


def _parts(values: list[Any]) -> list[list[Any]]:
    return [values[at : at + _AT_ONCE] for at in range(0, len(values), _AT_ONCE)]
