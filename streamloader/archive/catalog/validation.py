"""What every kind of catalog demands of what is put into it, before it does so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from streamloader.archive.catalog.base import ChunkRow, Job, Place, StagedChunk, VideoRow
from streamloader.errors import CatalogError, ConfigError

__all__ = [
    "canonical_json", "check_chunk", "check_content", "check_job", "check_metadata", "check_places", "check_video",
    "check_whole",
]  # fmt: skip

_DEEPEST: Final = 32  # objects and lists within each other, in metadata
_LARGEST: Final = 2**63 - 1  # of whole numbers
_CONTENT: Final = 64  # hexadecimal digits
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_MOST: Final = 1 << 24  # chunks of one video
_MODES: Final = frozenset({"copy", "encode", "lossless"})


def check_content(content: str) -> bytes:
    """Return the 32 bytes that a video's content is named by.

    Raises:
        ConfigError: these are not 64 hexadecimal digits in lower case.
    """
    try:
        if len(content) != _CONTENT or content != content.lower():
            raise ValueError
        return bytes.fromhex(content)
    except (TypeError, ValueError):
        raise ConfigError(f"{content!r} names no content of a video: that takes 64 hexadecimal digits") from None


def check_places(places: Sequence[Place], old: Sequence[Place] = ()) -> tuple[Place, ...]:
    """Return the places by number; `old` are those that are there.

    Raises:
        ConfigError: there is none, one of `old` is missing, numbers leave a gap, a weight makes no sense, or an address
            holds a password.
    """
    found = sorted(places, key=lambda place: place.number)
    numbers = [place.number for place in found]
    if not found or numbers != list(range(len(found))):
        raise ConfigError(f"the places of an archive are numbered from 0 without a gap, not {numbers}")
    if len(found) < len(old):
        raise ConfigError(
            f"the archive has {len(old)} places, and chunks lie in them: give all of them, with weight 0 for those "
            "that take no more"
        )
    for place in found:
        if not place.url or not isinstance(place.url, str):
            raise ConfigError(f"place {place.number} has no address")
        if "://" in place.url and _has_password(place.url):
            raise ConfigError(
                f"the address of place {place.number} holds a password, which everybody who opens the archive would "
                "see: give it by option instead",
                address=place.url,
            )
        if not (math.isfinite(place.weight) and place.weight >= 0):
            raise ConfigError(f"the weight of place {place.number} is {place.weight}: it has to be 0 or more")
    return tuple(found)


def check_job(job: Job) -> bytes:
    """Return the 32 bytes that name a job's content.

    Raises:
        ConfigError: the job makes no sense.
    """
    if not job.name or not isinstance(job.name, str):
        raise ConfigError("a video needs a name")
    return check_content(job.content)


def check_chunk(chunk: StagedChunk) -> bytes:
    """Return the 32 bytes that name the content of a chunk's video.

    Raises:
        ConfigError: the chunk makes no sense.
    """
    row = chunk.row
    kind, _, digest = row.digest.partition(":")
    if not (kind == "sha256" and _DIGEST.fullmatch(digest) and 0 <= row.number < _MOST and row.first >= 0):
        raise ConfigError(f"chunk {row.number} from frame {row.first} on, with digest {row.digest!r}, makes no sense")
    if row.frames < 1 or row.bytes < 1 or not row.path or row.path.startswith("/") or not row.coding:
        raise ConfigError(f"chunk {row.number} of {row.frames} frames, {row.bytes} bytes at {row.path!r}: that is none")
    return check_content(row.content)


def check_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON.

    Raises:
        ConfigError: they are not plain JSON values, or have a name that queries cannot ask for.
    """
    _check_value(metadata, "", 0)
    return canonical_json(metadata)


def canonical_json(values: Mapping[str, Any]) -> str:
    """Return plain JSON values as JSON, the same for the same values.

    Raises:
        ConfigError: they are none.
    """
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"only plain JSON values can be kept with a video: {error}") from error
    return text


def check_video(video: VideoRow) -> None:
    """See that a video makes sense in itself.

    Raises:
        ConfigError: it does not.
    """
    check_content(video.content)
    check_metadata(video.metadata)
    canonical_json(video.origin)
    if not video.name or not isinstance(video.name, str):
        raise ConfigError("a video needs a name")
    if video.mode not in _MODES:
        raise ConfigError(f"{video.mode!r} is none of {sorted(_MODES)}")
    counts = (video.frames, video.chunks, video.height, video.width, video.chunk_frames)
    if min(counts) < 1 or video.end <= video.first_pts or video.time_base <= 0:
        raise ConfigError(
            f"{video.name} has {video.frames} frames of {video.height}x{video.width} in {video.chunks} chunks from "
            f"tick {video.first_pts} to {video.end} of {video.time_base} s: that is no video"
        )


def check_whole(video: VideoRow, chunks: Sequence[ChunkRow], address: str) -> None:
    """See that chunks, by number, add up to a video.

    Raises:
        CatalogError: they do not.
    """
    first = 0
    pts: int | None = None
    for number, chunk in enumerate(chunks):
        if chunk.number != number or chunk.first != first or chunk.frames < 1:
            raise CatalogError(
                f"{video.name}: chunk {number} should begin at frame {first}, but chunk {chunk.number} with "
                f"{chunk.frames} frames from {chunk.first} on follows",
                address=address,
                offset=first,
            )
        if pts is not None and chunk.first_pts <= pts:
            raise CatalogError(
                f"{video.name}: chunk {number} begins at tick {chunk.first_pts}, the one before it at {pts}",
                address=address,
                offset=first,
            )
        first += chunk.frames
        pts = chunk.first_pts
    if len(chunks) != video.chunks or first != video.frames:
        raise CatalogError(
            f"{video.name}: its {len(chunks)} chunks hold {first} frames, but it should be {video.frames} in "
            f"{video.chunks}: add it again, which goes on with what is missing",
            address=address,
            offset=first,
        )


def _has_password(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return False


def _check_value(value: object, name: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ConfigError(f"metadata {name!r}: deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or not key or "." in key or key.startswith("$") or "\0" in key:
                raise ConfigError(f"metadata {name or 'of a video'!r}: {key!r} is no name: no dots, no $ in front")
            _check_value(item, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, name, depth + 1)
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        return
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ConfigError(f"metadata {name!r}: {value} takes more than 64 bits: write it as text")
    elif not isinstance(value, float) or not math.isfinite(value):
        raise ConfigError(f"metadata {name!r}: {value!r} is no plain JSON value")
