"""What changes an SQLite catalog: each function is one transaction, and called in the catalog's thread."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Sequence
from typing import Final

from streamloader.archive.catalog.base import Header, Job, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.sqlite import reads
from streamloader.archive.catalog.sqlite.schema import writing
from streamloader.archive.catalog.validation import canonical_json, check_metadata, check_places, check_whole
from streamloader.errors import CatalogError, NameTaken

__all__ = ["abandon", "beat", "begin", "commit", "set_places", "stage"]

_LARGEST: Final = 2**63 - 1  # that SQLite can hold
_DROP: Final = (
    "DELETE FROM indexes WHERE id >= :low AND id < :high",
    "DELETE FROM chunks WHERE video = :key",
    "DELETE FROM jobs WHERE key = :key",
)


def set_places(db: sqlite3.Connection, places: Sequence[Place]) -> Header:
    """See :meth:`Catalog.set_places`."""
    with writing(db):
        old = [Place(*row) for row in db.execute("SELECT number, url, weight FROM places ORDER BY number")]
        rows = [(place.number, place.url, place.weight) for place in check_places(places, old)]
        db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", rows)
    return reads.header(db)


def begin(db: sqlite3.Connection, address: str, content: bytes, job: Job) -> VideoRow | None:
    """See :meth:`Catalog.begin`."""
    with writing(db):
        video = reads.video_by(db, "content", content)
        if video is not None:
            return video
        _check_name(db, address, job.name, content)
        db.execute(
            "INSERT INTO jobs (content, name, source, begun, beat) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (content) DO UPDATE SET name = excluded.name, source = excluded.source, beat = excluded.beat",
            (content, job.name, job.source, job.begun, job.beat),
        )
    return None


def beat(db: sqlite3.Connection, content: bytes, now: float) -> None:
    """See :meth:`Catalog.beat`."""
    with writing(db):
        db.execute("UPDATE jobs SET beat = ? WHERE content = ?", (now, content))


def stage(db: sqlite3.Connection, address: str, chunks: Sequence[tuple[bytes, StagedChunk]]) -> None:
    """See :meth:`Catalog.stage`; each with its content as bytes."""
    keys: dict[bytes, int] = {}
    codings: dict[str, int] = {}
    with writing(db):
        places = {number for (number,) in db.execute("SELECT number FROM places")}
        for content, chunk in chunks:
            if content not in keys:
                keys[content] = _job_key(db, address, content)
            if chunk.row.coding not in codings:
                codings[chunk.row.coding] = _coding(db, chunk)
            if chunk.row.place not in places:
                raise CatalogError(f"the archive {address} has no place {chunk.row.place}", address=address)
            db.execute("DELETE FROM chunks WHERE video = ? AND number = ?", (keys[content], chunk.row.number))
        for content, chunk in chunks:
            _put(db, address, keys[content], codings[chunk.row.coding], chunk)


def commit(db: sqlite3.Connection, address: str, content: bytes, video: VideoRow) -> VideoRow:
    """See :meth:`Catalog.commit`."""
    with writing(db):
        there = reads.video_by(db, "content", content)
        if there is not None:
            return there
        key = _job_key(db, address, content)
        _check_name(db, address, video.name, content)
        check_whole(video, reads.staged(db, content), address)
        _check_indexes(db, address, key, video)
        before = reads.snapshot(db)
        video = dataclasses.replace(video, number=before.videos, start=before.frames, nanoseconds=before.nanoseconds)
        if max(video.nanoseconds + video.duration, abs(video.first_pts), abs(video.end)) > _LARGEST:
            raise CatalogError(f"{video.name}: the times of the archive would take more than 64 bits", address=address)
        _insert(db, key, content, video, before.chunks)
        db.execute("DELETE FROM jobs WHERE key = ?", (key,))
        kept = reads.video_by(db, "number", video.number)
    assert kept is not None
    return kept


def abandon(db: sqlite3.Connection, content: bytes) -> None:
    """See :meth:`Catalog.abandon`."""
    with writing(db):
        found = db.execute("SELECT key FROM jobs WHERE content = ?", (content,)).fetchone()
        if found is not None:
            values = {"key": found[0], "low": found[0] << 24, "high": found[0] + 1 << 24}
            for statement in _DROP:
                db.execute(statement, values)


def _check_name(db: sqlite3.Connection, address: str, name: str, content: bytes) -> None:
    taken = db.execute("SELECT content FROM videos WHERE name = ?", (name,)).fetchone()
    if taken is not None and taken[0] != content:
        raise NameTaken(
            f"the archive {address} has a video named {name!r} with other content: give another name", address=address
        )


def _job_key(db: sqlite3.Connection, address: str, content: bytes) -> int:
    found = db.execute("SELECT key FROM jobs WHERE content = ?", (content,)).fetchone()
    if found is None:
        raise CatalogError(
            f"nobody is adding video {content.hex()} to {address}: it was not begun, or committed or "
            "abandoned meanwhile",
            address=address,
        )
    return int(found[0])


def _coding(db: sqlite3.Connection, chunk: StagedChunk) -> int:
    key = chunk.row.coding
    db.execute("INSERT OR IGNORE INTO codings (key, told) VALUES (?, ?)", (key, canonical_json(chunk.coding)))
    return int(db.execute("SELECT number FROM codings WHERE key = ?", (key,)).fetchone()[0])


def _put(db: sqlite3.Connection, address: str, key: int, coding: int, chunk: StagedChunk) -> None:
    row = chunk.row
    try:
        db.execute(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key, row.first, row.number, row.frames, row.first_pts, row.place,
                reads.short_path(row.content, row.path), row.bytes,
                bytes.fromhex(row.digest.removeprefix("sha256:")), coding, row.note,
            ),
        )  # fmt: skip
    except sqlite3.IntegrityError as error:
        raise CatalogError(
            f"two chunks of video {row.content} begin at frame {row.first}, or have the number {row.number}",
            address=address,
            offset=row.first,
        ) from error
    db.execute("INSERT OR REPLACE INTO indexes VALUES (?, ?)", (key << 24 | row.number, chunk.index))


def _check_indexes(db: sqlite3.Connection, address: str, key: int, video: VideoRow) -> None:
    low, high = key << 24, key + 1 << 24
    (found,) = db.execute("SELECT count(*) FROM indexes WHERE id >= ? AND id < ?", (low, high)).fetchone()
    if found != video.chunks:
        raise CatalogError(f"{video.name}: {video.chunks} chunks, but {found} frame indexes", address=address)


def _insert(db: sqlite3.Connection, key: int, content: bytes, video: VideoRow, first_chunk: int) -> None:
    values = {
        "number": video.number, "key": key, "content": content, "name": video.name, "start": video.start,
        "nanoseconds": video.nanoseconds, "first_chunk": first_chunk, "frames": video.frames, "chunks": video.chunks,
        "height": video.height, "width": video.width, "turn": sum(flag << at for at, flag in enumerate(video.turn)),
        "time_base_numerator": video.time_base.numerator, "time_base_denominator": video.time_base.denominator,
        "first_pts": video.first_pts, "end": video.end, "mode": video.mode, "chunk_frames": video.chunk_frames,
        "source": video.source, "bytes_in": video.bytes_in, "bytes_out": video.bytes_out,
        "metadata": check_metadata(video.metadata), "added": video.added, "origin": canonical_json(video.origin),
    }  # fmt: skip
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT INTO videos ({names}) VALUES ({marks})", values)  # noqa: S608 - names from above
