"""The paths of chunks in their places. Only paths of this form are valid, wherever they come from."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["CHUNKS_FOLDER", "build_chunk_path", "extract_content", "is_path_of_chunk"]

CHUNKS_FOLDER: Final = "chunks"  # the folder of a place that holds its chunks, and nothing else
_SUFFIXES: Final = ("mp4", "mkv")
_DIGEST_DIGITS: Final = 16
_CHUNK_PATH: Final = re.compile(
    rf"{CHUNKS_FOLDER}/([0-9a-f]{{2}})/(\1[0-9a-f]{{62}})/[0-9]{{6,8}}-[0-9a-f]{{{_DIGEST_DIGITS}}}\.(?:{'|'.join(_SUFFIXES)})"
)


def build_chunk_path(content: str, number: int, digest: str, suffix: str) -> str:
    """Return the path of a chunk in its place.

    Args:
        content: Content identifier of the video.
        number: Number of the chunk in the video.
        digest: Digest of the chunk's file, ``"sha256:..."``.
        suffix: Suffix of the file name, with or without the dot.
    """
    short_digest = digest.removeprefix("sha256:")[:_DIGEST_DIGITS]
    return f"{CHUNKS_FOLDER}/{content[:2]}/{content}/{number:06d}-{short_digest}.{suffix.lstrip('.')}"


def is_path_of_chunk(path: object, content: str, number: int, digest: str) -> bool:
    """Return whether `path` is the path that the format gives to this chunk, see :func:`build_chunk_path`."""
    return (
        isinstance(path, str)
        and path[-3:] in _SUFFIXES
        and path == f"{CHUNKS_FOLDER}/{content[:2]}/{content}/{number:06d}-{digest[7:23]}.{path[-3:]}"
    )


def extract_content(path: str) -> str | None:
    """Return the content identifier in the path of a chunk. Return None for other paths."""
    match = _CHUNK_PATH.fullmatch(path)
    return match[2] if match else None
