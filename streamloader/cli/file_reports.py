"""Describe one file of any kind at any address: a video, a sound, an image, a text, or a container."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from streamloader.arguments import expand_path
from streamloader.common.printable import make_printable
from streamloader.errors import (
    CorruptContainer,
    StreamloaderError,
    UnreadableStream,
)
from streamloader.redaction import redact_address
from streamloader.stores.container_addresses import CONTAINER_SUFFIXES
from streamloader.values import ByteRange

if TYPE_CHECKING:
    from streamloader.cli.media_reports import MediaReports
    from streamloader.media.video.remote import Video
    from streamloader.stores.addresses import SourceFile

__all__ = ["describe_container", "describe_file", "guess_kind", "read_file"]

_HEAD_BYTES: Final = 64 << 10
_MAX_TEXT_BYTES: Final = 1 << 20  # that are read of a text
_MAX_IMAGE_BYTES: Final = 256 << 20  # of an animation, or of a header that is longer than usual
_MAX_MEMBERS: Final = 1_000_000  # of a container whose samples are counted
_TEXT_SUFFIXES: Final = (
    ".csv",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".srt",
    ".txt",
    ".tsv",
    ".vtt",
    ".xml",
    ".yaml",
    ".yml",
)
_TEXT_CONTROLS: Final = frozenset(b"\t\n\v\f\r\x1b")
_TIMESTAMP_NS: Final = 1e9


def guess_kind(name: str) -> str:
    """Return the kind of a file by its name: "video", "sound", "image", "text", "container" or "other"."""
    from streamloader.streams.audio import is_audio
    from streamloader.streams.image_names import is_image
    from streamloader.streams.video_names import is_video

    name = name.partition("?")[0].lower()
    kinds = (
        ("container", name.endswith(CONTAINER_SUFFIXES)),
        ("image", is_image(name)),
        ("video", is_video(name)),
        ("sound", is_audio(name)),
        ("text", name.endswith(_TEXT_SUFFIXES)),
    )
    return next((kind for kind, matches in kinds if matches), "other")


def describe_file(
    file: SourceFile,
    options: Mapping[str, Any] | None,
    *,
    media: MediaReports,
    is_fatal: Callable[[StreamloaderError], bool],
    strict: bool,
    stream: int | None = None,
) -> dict[str, Any]:
    """Return the report of one file: address, kind, size, version, modification time, details and error.

    The kind is found by the content, except for containers. Videos and sounds are indexed by their tables, and the
    indexes are cached. An error of the file is part of the report.

    Args:
        file: File, as :func:`streamloader.stores.addresses.expand_addresses` returns it.
        options: Options of its store, or None.
        media: Describes videos and sounds.
        is_fatal: Function that returns whether an error is raised, and not made a part of the report.
        stream: Number of the video stream of a video, from 0. Defaults to the one that is played.
        strict: Whether it is an error if a file has a content, and a name, of no known kind. Its kind is "other".

    Raises:
        StreamloaderError: If an error is fatal.
    """
    report: dict[str, Any] = {
        "address": redact_address(file.address),
        "kind": guess_kind(file.address),
        "size": None,
        "version": None,
        "modified": None,
        "details": None,
        "error": None,
    }
    try:
        video = _find_version(file, options, report)
        report["kind"], report["details"] = _describe(video, report["kind"], report["size"], stream, media)
    except StreamloaderError as error:
        if is_fatal(error):
            raise
        if strict or error.details.get("recognized", True):
            report["error"] = {"type": type(error).__name__, "message": error.message}
    return report


def _find_version(file: SourceFile, options: Mapping[str, Any] | None, report: dict[str, Any]) -> Video:
    """Return the file as the media functions take it, and record its size and version."""
    from streamloader.media.video.files import file_version
    from streamloader.media.video.remote import RemoteVideo

    if file.info is None:
        size, modified_ns = file_version(file.address)
        report.update(size=size, version=f"{size:x}-{modified_ns:x}", modified=modified_ns / _TIMESTAMP_NS)
        return file.address
    info = file.info
    version = None if info.version is None else make_printable(info.version)
    report.update(size=info.size, version=version, modified=info.modified)
    if info.size == 0:
        raise UnreadableStream(f"{redact_address(file.address)} is empty (0 bytes)", address=file.address)
    return RemoteVideo(file.address, info, options)


def _describe(
    video: Video, kind: str, size: int | None, stream: int | None, media: MediaReports
) -> tuple[str, dict[str, Any]]:
    """Return the kind of a file by its content, and its details."""
    if kind == "container":
        return kind, {}
    if isinstance(video, str) and (index := _describe_index_file(video)) is not None:
        return "index", index
    head = _read_head(video, size, _HEAD_BYTES)
    image = _describe_image(video, head, size)
    if image is not None:
        return "image", image
    if kind == "text" or (kind == "other" and _is_text(head)):
        return "text", _describe_text(video, size)
    return media.describe(video, kind, size, stream)


def _describe_image(video: Video, head: bytes, size: int | None) -> dict[str, Any] | None:
    """Return the details of an image, or None if the file is none."""
    from streamloader.media.image.headers import IncompleteImage, InvalidImage, parse_header
    from streamloader.streams.image_probe import parse_image

    try:
        is_complete = not parse_header(head).is_animation
    except IncompleteImage:
        is_complete = False
    except InvalidImage:
        return None
    data = head
    if not is_complete and (size is None or size > len(head)):
        data = _read_head(video, size, _MAX_IMAGE_BYTES)
    probe = parse_image(data, str(video), _max_pixels(), tolerant=False)
    header, times = probe.header, probe.times
    return {
        "format": header.format,
        "stored_size": [header.height, header.width],
        "frame_size": list(header.upright_size),
        "frames": 1 if times is None else len(times),
        "seconds": None if times is None else float((times.end - int(times.pts[0])) * times.time_base),
    }


def _describe_index_file(path: str) -> dict[str, Any] | None:
    """Return the details of an index file of videos, or None if the file is none."""
    from streamloader.media.video.index_file import IndexFile, is_index_file

    if not is_index_file(path):
        return None
    with IndexFile(path) as index:
        records = index.read_columns().records
        seconds = records["ticks"] * (records["numerator"] / records["denominator"])
        return {
            "videos": len(index),
            "frames": int(records["frames"].sum()),
            "seconds": float(seconds.sum()),
            "left_out": len(index.read_skipped()),
            "verify": index.settings.verify,
        }


def _max_pixels() -> int:
    from streamloader.media.video.limits import DEFAULT_MAX_PIXELS

    return DEFAULT_MAX_PIXELS


def _describe_text(video: Video, size: int | None) -> dict[str, Any]:
    """Return the details of a text, of which a limited number of bytes is read."""
    data = _read_head(video, size, _MAX_TEXT_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_complete = size is not None and len(data) >= size
    try:
        text = decoder.decode(data, final=is_complete)
    except UnicodeDecodeError:
        return {
            "encoding": None, "lines": None, "characters": None, "bytes_read": len(data), "complete": is_complete,
        }  # fmt: skip
    return {
        "encoding": "utf-8" if not text.startswith("\ufeff") else "utf-8 with a byte order mark",
        "lines": text.count("\n") + (bool(text) and not text.endswith("\n")),
        "characters": len(text),
        "bytes_read": len(data),
        "complete": is_complete,
    }


def _is_text(head: bytes) -> bool:
    """Return whether the beginning of a file is text in UTF-8, without control characters."""
    if any(byte < 32 and byte not in _TEXT_CONTROLS for byte in set(head)):  # noqa: PLR2004 - the first printable one
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _read_head(video: Video, size: int | None, count: int) -> bytes:
    """Return the first bytes of a file: `count`, or all if there are fewer."""
    from streamloader.media.video.files import open_media_file
    from streamloader.stores.io_thread import open_shared_store

    if isinstance(video, str):
        try:
            with os.fdopen(open_media_file(video), "rb", buffering=0) as file:
                return _read_all(file, count)
        except OSError as error:
            if isinstance(error, StreamloaderError):
                raise
            raise UnreadableStream(f"{video} cannot be read: {error.strerror}", address=video) from error
    shared, path = open_shared_store(video.address, video.options)
    with shared:
        span = None if size is None else ByteRange(0, min(count, size))
        return shared.read(path, span, version=video.info.version)[:count]


def read_file(file: SourceFile, options: Mapping[str, Any] | None, max_bytes: int) -> bytes:
    """Return the content of a small file, or its first `max_bytes` bytes.

    Raises:
        UnreadableStream: If a local file cannot be read.
        StoreError: If the store fails.
    """
    from streamloader.media.video.remote import RemoteVideo

    if file.info is None:
        return _read_head(file.address, None, max_bytes)
    return _read_head(RemoteVideo(file.address, file.info, options), file.info.size, max_bytes)


def _read_all(file: Any, count: int) -> bytes:
    pieces = []
    while count > 0 and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


# --- containers ------------------------------------------------------------------------------------------------------


def describe_container(address: str, options: Mapping[str, Any] | None, limit: int) -> dict[str, Any]:
    """Return the report of a container, with its first members. No member is opened.

    Args:
        address: Address of the container, without "!".
        options: Options of its store, or None.
        limit: Maximum number of listed members.

    Raises:
        StoreError: If the container cannot be read.
    """
    from streamloader.datasets.shards.naming import SHARD_SUFFIXES, split_member_name
    from streamloader.stores.io_thread import open_shared_store
    from streamloader.stores.local import local_path
    from streamloader.stores.registry import is_local_file, split_address

    if is_local_file(address):
        address = os.path.abspath(expand_path(local_path(address)))
    with open_shared_store(address, options)[0] as holder:
        info = holder.head(split_address(address)[1])
    listed: list[dict[str, Any]] = []
    kinds: dict[str, int] = {}
    fields: dict[str, int] = {}
    keys: set[str] = set()
    members = total = 0
    error: dict[str, str] | None = None
    shared, _ = open_shared_store(f"{address}!", options)
    with shared:
        try:
            for member in shared.list():
                members += 1
                total += member.size or 0
                kind = guess_kind(member.path)
                kinds[kind] = kinds.get(kind, 0) + 1
                if (parts := split_member_name(member.path)) is not None and len(keys) < _MAX_MEMBERS:
                    keys.add(parts[0])
                    fields[parts[1]] = fields.get(parts[1], 0) + 1
                if len(listed) < limit:
                    listed.append(
                        {"name": make_printable(member.path), "size": member.size, "modified": member.modified}
                    )
        except CorruptContainer as damage:
            error = {"type": type(damage).__name__, "message": damage.message}
    is_shard = address.partition("?")[0].lower().endswith(SHARD_SUFFIXES) and any(
        count == len(keys) for count in fields.values()
    )
    return {
        "address": redact_address(address),
        "kind": "shard" if is_shard else "container",
        "size": info.size,
        "version": None if info.version is None else make_printable(info.version),
        "modified": info.modified,
        "details": {
            "members": members,
            "member_bytes": total,
            "kinds": kinds,
            "samples": len(keys) if is_shard else None,
            "fields": {make_printable(name): count for name, count in sorted(fields.items())} if is_shard else None,
            "listed": listed,
        },
        "error": error,
    }
