"""Writes to an SQLite catalog. Each function is one transaction, and is called in the catalog's thread."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Sequence
from typing import Final

from streamloader.archive.catalog.base import CatalogHeader, IngestJob, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.sqlite import reads
from streamloader.archive.catalog.sqlite.schema import write_transaction
from streamloader.archive.catalog.validation import canonical_json, check_coverage, check_metadata, check_places
from streamloader.common.printable import make_printable
from streamloader.errors import CatalogError, NameConflict

__all__ = ["abandon_job", "begin_job", "commit_video", "record_heartbeat", "set_places", "stage_chunks"]

_MAX_INTEGER: Final = 2**63 - 1  # SQLite's largest integer
_MAX_SOURCE_CHARACTERS: Final = 1000  # in a message
_DELETE_JOB_STATEMENTS: Final = (
    "DELETE FROM indexes WHERE id >= :low AND id < :high",
    "DELETE FROM chunks WHERE video = :key",
    "DELETE FROM jobs WHERE key = :key",
)


def set_places(db: sqlite3.Connection, places: Sequence[Place]) -> CatalogHeader:
    """Replace and add places, see :meth:`Catalog.set_places`."""
    with write_transaction(db):
        rows = [(place.number, place.url, place.weight) for place in check_places(places, reads.get_places(db))]
        db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", rows)
    return reads.get_header(db)


def begin_job(db: sqlite3.Connection, address: str, content: bytes, job: IngestJob) -> VideoRow | None:
    """Start or resume a job, see :meth:`Catalog.begin_job`."""
    with write_transaction(db):
        video = reads.get_video_by(db, "content", content)
        if video is not None:
            return video
        _check_name(db, address, job.name, content)
        db.execute(
            "INSERT INTO jobs (content, name, source, begun, beat) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (content) DO UPDATE SET name = excluded.name, source = excluded.source, beat = excluded.beat",
            (content, job.name, job.source, job.started, job.heartbeat),
        )
    return None


def record_heartbeat(db: sqlite3.Connection, content: bytes, now: float) -> None:
    """Update the heartbeat of a job, see :meth:`Catalog.record_heartbeat`."""
    with write_transaction(db):
        db.execute("UPDATE jobs SET beat = ? WHERE content = ?", (now, content))


def stage_chunks(db: sqlite3.Connection, address: str, chunks: Sequence[tuple[bytes, StagedChunk]]) -> None:
    """Store chunks of jobs, each with the bytes of its content identifier, see :meth:`Catalog.stage_chunks`."""
    keys: dict[bytes, int] = {}
    codings: dict[str, int] = {}
    with write_transaction(db):
        places = {number for (number,) in db.execute("SELECT number FROM places")}
        for content, chunk in chunks:
            if content not in keys:
                keys[content] = _get_job_key(db, address, content)
            if chunk.row.coding not in codings:
                codings[chunk.row.coding] = _store_coding(db, chunk)
            if chunk.row.place not in places:
                raise CatalogError(f"the archive {address} has no place {chunk.row.place}", address=address)
            db.execute("DELETE FROM chunks WHERE video = ? AND number = ?", (keys[content], chunk.row.number))
        for content, chunk in chunks:
            _insert_chunk(db, address, keys[content], codings[chunk.row.coding], chunk)


def commit_video(db: sqlite3.Connection, address: str, content: bytes, video: VideoRow) -> VideoRow:
    """Turn a job into a video, see :meth:`Catalog.commit_video`."""
    with write_transaction(db):
        existing = reads.get_video_by(db, "content", content)
        if existing is not None:
            return existing
        key = _get_job_key(db, address, content)
        _check_name(db, address, video.name, content)
        check_coverage(video, reads.get_staged_chunks(db, content), address)
        _check_indexes(db, address, key, video)
        before = reads.get_snapshot(db)
        video = dataclasses.replace(video, number=before.videos, start=before.frames, start_ns=before.duration_ns)
        if max(video.start_ns + video.duration_ns, abs(video.first_pts), abs(video.end)) > _MAX_INTEGER:
            raise CatalogError(f"{video.name}: the times of the archive do not fit into 64 bits", address=address)
        _insert_video(db, key, content, video, before.chunks)
        db.execute("DELETE FROM jobs WHERE key = ?", (key,))
        committed = reads.get_video_by(db, "number", video.number)
    assert committed is not None
    return committed


def abandon_job(db: sqlite3.Connection, content: bytes) -> None:
    """Delete a job and its chunks, see :meth:`Catalog.abandon_job`."""
    with write_transaction(db):
        row = db.execute("SELECT key FROM jobs WHERE content = ?", (content,)).fetchone()
        if row is not None:
            key = reads.check_key("job", content, row[0])
            values = {"key": key, "low": key << 24, "high": key + 1 << 24}
            for statement in _DELETE_JOB_STATEMENTS:
                db.execute(statement, values)


def _check_name(db: sqlite3.Connection, address: str, name: str, content: bytes) -> None:
    row = db.execute("SELECT content, source FROM videos WHERE name = ?", (name,)).fetchone()
    if row is not None and row[0] != content:
        raise NameConflict(
            f"the archive {address} has a video named {name!r} with other content, from "
            f"{make_printable(row[1], _MAX_SOURCE_CHARACTERS)}: choose another name= (or a template of names, such as "
            "'{grandparent}/{parent}/{name}')",
            stream=name,
            address=address,
        )


def _get_job_key(db: sqlite3.Connection, address: str, content: bytes) -> int:
    row = db.execute("SELECT key FROM jobs WHERE content = ?", (content,)).fetchone()
    if row is None:
        raise CatalogError(
            f"there is no job for video {content.hex()} in {address}: it was never started, or another process has "
            "committed or abandoned it",
            address=address,
        )
    return reads.check_key("job", content, row[0])


def _store_coding(db: sqlite3.Connection, chunk: StagedChunk) -> int:
    """Store a chunk's codec parameters unless they are stored already, and return their number."""
    key = chunk.row.coding
    db.execute("INSERT OR IGNORE INTO codings (key, told) VALUES (?, ?)", (key, canonical_json(chunk.coding)))
    return int(db.execute("SELECT number FROM codings WHERE key = ?", (key,)).fetchone()[0])


def _insert_chunk(db: sqlite3.Connection, address: str, key: int, coding: int, chunk: StagedChunk) -> None:
    row = chunk.row
    try:
        db.execute(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                key, row.first_frame, row.number, row.frames, row.first_pts, row.place,
                reads.shorten_path(row.content, row.path), row.bytes,
                bytes.fromhex(row.digest.removeprefix("sha256:")), coding, row.note,
            ),
        )  # fmt: skip
    except sqlite3.IntegrityError as error:
        raise CatalogError(
            f"two chunks of video {row.content} start at frame {row.first_frame}, or have the number {row.number}",
            address=address,
            offset=row.first_frame,
        ) from error
    db.execute("INSERT OR REPLACE INTO indexes VALUES (?, ?)", (key << 24 | row.number, chunk.index))


def _check_indexes(db: sqlite3.Connection, address: str, key: int, video: VideoRow) -> None:
    low, high = key << 24, key + 1 << 24
    (indexes,) = db.execute("SELECT count(*) FROM indexes WHERE id >= ? AND id < ?", (low, high)).fetchone()
    if indexes != video.chunks:
        raise CatalogError(f"{video.name}: {video.chunks} chunks, but {indexes} frame indexes", address=address)


def _insert_video(db: sqlite3.Connection, key: int, content: bytes, video: VideoRow, first_chunk: int) -> None:
    orientation_bits = sum(flag << bit for bit, flag in enumerate(video.orientation))
    values = {
        "number": video.number, "key": key, "content": content, "name": video.name, "start": video.start,
        "nanoseconds": video.start_ns, "first_chunk": first_chunk, "frames": video.frames, "chunks": video.chunks,
        "height": video.height, "width": video.width, "turn": orientation_bits,
        "time_base_numerator": video.time_base.numerator, "time_base_denominator": video.time_base.denominator,
        "first_pts": video.first_pts, "end": video.end, "mode": video.mode, "chunk_frames": video.chunk_frames,
        "source": video.source, "bytes_in": video.bytes_in, "bytes_out": video.bytes_out,
        "metadata": check_metadata(video.metadata), "added": video.added, "origin": canonical_json(video.origin),
    }  # fmt: skip
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT INTO videos ({names}) VALUES ({marks})", values)  # noqa: S608 - constant names
