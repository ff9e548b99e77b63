"""Validation of the rows that are written to a catalog, shared by all kinds of catalogs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, IngestJob, Place, StagedChunk, VideoRow
from streamloader.archive.catalog.chunk_paths import is_path_of_chunk
from streamloader.errors import CatalogError, ConfigError
from streamloader.redaction import has_secrets

__all__ = [
    "MODES", "canonical_json", "check_chunk", "check_content", "check_coverage", "check_job", "check_metadata",
    "check_places", "check_video",
]  # fmt: skip

_MAX_METADATA_DEPTH: Final = 32
_MAX_INTEGER: Final = 2**63 - 1
_CONTENT_DIGITS: Final = 64
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_MAX_CHUNKS_PER_VIDEO: Final = 1 << 24
MODES: Final = frozenset({"copy", "encode", "lossless"})


def check_content(content: str) -> bytes:
    """Validate a content identifier, and return its 32 bytes.

    Raises:
        ConfigError: If the identifier is not 64 lower-case hexadecimal digits.
    """
    try:
        if len(content) != _CONTENT_DIGITS or content != content.lower():
            raise ValueError
        return bytes.fromhex(content)
    except (TypeError, ValueError):
        raise ConfigError(f"{content!r} is not a content identifier: it must be 64 hexadecimal digits") from None


def check_places(places: Sequence[Place], existing: Sequence[Place] = ()) -> tuple[Place, ...]:
    """Validate the places of a catalog, and return them by number.

    Args:
        places: New places of the catalog.
        existing: Places that the catalog has already.

    Raises:
        ConfigError: If there is no place, an existing place is missing, the numbers have a gap, a weight is negative or
            not finite, or an address contains a password.
    """
    ordered = sorted(places, key=lambda place: place.number)
    numbers = [place.number for place in ordered]
    if not ordered or numbers != list(range(len(ordered))):
        raise ConfigError(f"the places of an archive must be numbered from 0 without gaps, got {numbers}")
    if len(ordered) < len(existing):
        raise ConfigError(
            f"the archive has {len(existing)} places, and they hold chunks: pass all of them, with weight 0 for those "
            "that get no new chunks"
        )
    existing_urls = {place.url for place in existing}
    for place in ordered:
        if not place.url or not isinstance(place.url, str):
            raise ConfigError(f"place {place.number} has no address")
        if has_secrets(place.url) and place.url not in existing_urls:
            raise ConfigError(
                f"the address of place {place.number} contains a password, a query value or an unusual user name, "
                "which everyone who opens the archive could read: pass them as options instead",
                address=place.url,
            )
        if not (math.isfinite(place.weight) and place.weight >= 0):
            raise ConfigError(f"the weight of place {place.number} is {place.weight}: it must be 0 or more")
    return tuple(ordered)


def check_job(job: IngestJob) -> bytes:
    """Validate a job, and return its content identifier as 32 bytes.

    Raises:
        ConfigError: If the job has no name, or its content identifier is malformed.
    """
    if not job.name or not isinstance(job.name, str):
        raise ConfigError("a video needs a name")
    return check_content(job.content)


def check_chunk(chunk: StagedChunk) -> bytes:
    """Validate a chunk, and return the content identifier of its video as 32 bytes.

    Raises:
        ConfigError: If a value of the chunk is out of range or malformed.
    """
    row = chunk.row
    algorithm, _, digest = row.digest.partition(":")
    if not (
        algorithm == "sha256"
        and _DIGEST.fullmatch(digest)
        and 0 <= row.number < _MAX_CHUNKS_PER_VIDEO
        and row.first_frame >= 0
    ):
        raise ConfigError(
            f"chunk {row.number} from frame {row.first_frame} on, with digest {row.digest!r}, is not a valid chunk"
        )
    content = check_content(row.content)
    if row.frames < 1 or row.bytes < 1 or not row.coding:
        raise ConfigError(
            f"chunk {row.number} with {row.frames} frames and {row.bytes} bytes at {row.path!r} is not a valid chunk"
        )
    if not is_path_of_chunk(row.path, row.content, row.number, row.digest):
        raise ConfigError(
            f"chunk {row.number} of {row.content} cannot be at {row.path!r}: use the path that build_chunk_path() gives"
        )
    return content


def check_metadata(metadata: Mapping[str, Any]) -> str:
    """Validate metadata, and return them as JSON.

    Raises:
        ConfigError: If the metadata are not plain JSON values, or contain a name that queries cannot address.
    """
    _check_value(metadata, "", 0)
    return canonical_json(metadata)


def canonical_json(values: Mapping[str, Any]) -> str:
    """Return plain JSON values as canonical JSON: equal values give equal text.

    Raises:
        ConfigError: If the values are not plain JSON values.
    """
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"only plain JSON values can be stored with a video: {error}") from error
    return text


def check_video(video: VideoRow) -> None:
    """Validate the row of a video on its own.

    Raises:
        ConfigError: If a value of the row is out of range or malformed.
    """
    check_content(video.content)
    check_metadata(video.metadata)
    canonical_json(video.origin)
    if not video.name or not isinstance(video.name, str):
        raise ConfigError("a video needs a name")
    if video.mode not in MODES:
        raise ConfigError(f"mode {video.mode!r} is not one of {sorted(MODES)}")
    counts = (video.frames, video.chunks, video.height, video.width, video.chunk_frames)
    if min(counts) < 1 or video.end <= video.first_pts or video.time_base <= 0:
        raise ConfigError(
            f"{video.name} with {video.frames} frames of {video.height}x{video.width} in {video.chunks} chunks from "
            f"tick {video.first_pts} to {video.end} of {video.time_base} s is not a valid video"
        )


def check_coverage(video: VideoRow, chunks: Sequence[ChunkRow], address: str) -> None:
    """Check that chunks, ordered by number, cover a video without gaps or overlaps.

    Raises:
        CatalogError: If they do not.
    """
    first_frame = 0
    pts: int | None = None
    for number, chunk in enumerate(chunks):
        if chunk.number != number or chunk.first_frame != first_frame or chunk.frames < 1:
            raise CatalogError(
                f"{video.name}: chunk {number} should start at frame {first_frame}, but the next chunk is "
                f"{chunk.number} with {chunk.frames} frames from {chunk.first_frame} on",
                address=address,
                offset=first_frame,
            )
        if pts is not None and chunk.first_pts <= pts:
            raise CatalogError(
                f"{video.name}: chunk {number} starts at tick {chunk.first_pts}, the chunk before it at {pts}",
                address=address,
                offset=first_frame,
            )
        first_frame += chunk.frames
        pts = chunk.first_pts
    if len(chunks) != video.chunks or first_frame != video.frames:
        raise CatalogError(
            f"{video.name}: its {len(chunks)} chunks hold {first_frame} frames instead of {video.frames} in "
            f"{video.chunks} chunks: add the video again, which makes the missing chunks",
            address=address,
            offset=first_frame,
        )


def _check_value(value: object, name: str, depth: int) -> None:
    if depth > _MAX_METADATA_DEPTH:
        raise ConfigError(f"metadata {name!r} are nested deeper than {_MAX_METADATA_DEPTH} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key or "." in key or key.startswith("$") or "\0" in key:
                raise ConfigError(
                    f"metadata {name or 'of a video'!r}: {key!r} is not a valid name: use a text without dots and "
                    "without $ in front"
                )
            _check_value(item, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, name, depth + 1)
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        return
    elif isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise ConfigError(f"metadata {name!r}: {value} does not fit into 64 bits: pass it as text")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise ConfigError(f"metadata {name!r}: {value!r} is not a plain JSON value")
