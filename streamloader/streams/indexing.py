"""Options, input and progress of indexing videos, for a dataset and for an index file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamloader.common.count_display import open_count_display
from streamloader.errors import ConfigError
from streamloader.media.video.index import VERIFY_LEVELS, IndexSettings, VerifyLevel, validate_stream
from streamloader.media.video.limits import validate_max_pixels
from streamloader.stores.search import Unreadable

if TYPE_CHECKING:
    from streamloader.media.video.bulk_indexer import ProgressDisplay
    from streamloader.media.video.remote import Video
    from streamloader.stores.addresses import SourceFile
    from streamloader.values import Array

__all__ = ["log_unusual_videos", "make_index_settings", "make_videos", "show_indexing", "validate_unreadable"]

_LOG_INTERVAL_S: Final = 5.0
_MAX_LISTED: Final = 3  # names in a line of the log
_log = logging.getLogger("streamloader")


def make_videos(files: Sequence[SourceFile], storage_options: Mapping[str, Any] | None) -> list[Video]:
    """Return the videos in files and objects."""
    from streamloader.media.video.remote import RemoteVideo

    return [
        file.address if file.info is None else RemoteVideo(file.address, file.info, storage_options) for file in files
    ]


def make_index_settings(damaged: str, verify: VerifyLevel, max_pixels: int, stream: int | None = None) -> IndexSettings:
    """Return validated settings.

    Raises:
        ConfigError: If one is invalid. The message names valid values.
    """
    if damaged not in ("raise", "keep"):
        raise ConfigError(f'damaged must be "raise" or "keep", got {damaged!r}')
    if verify not in VERIFY_LEVELS:
        raise ConfigError(f"verify must be one of {', '.join(VERIFY_LEVELS)}, got {verify!r}")
    return IndexSettings(damaged, verify, validate_max_pixels(max_pixels), validate_stream(stream))


def log_unusual_videos(names: Sequence[str], records: Array, stream: int | None) -> None:
    """Write to the log which videos have several video streams, and in which the clock jumps.

    Args:
        names: Path of each video, or address without secrets.
        records: Record of each, in the layout of :data:`streamloader.media.video.summary.SUMMARY`.
        stream: Number of the video stream that the user has chosen, or None.
    """
    several = np.flatnonzero(records["video_streams"] > 1) if stream is None else np.zeros(0, np.int64)
    if len(several):
        _log.warning(
            "%s: of several video streams, the one that is marked as default is played, else the first one. "
            "stream= chooses another", _list_names(names, several),
        )  # fmt: skip
    jumps = np.flatnonzero(records["jumps"])
    if len(jumps):
        _log.warning(
            "%s: the clock of the file jumps, as where recordings were joined. Times go on without a gap there",
            _list_names(names, jumps),
        )


def _list_names(names: Sequence[str], numbers: Array) -> str:
    shown = ", ".join(names[number] for number in numbers[:_MAX_LISTED].tolist())
    return shown if len(numbers) <= _MAX_LISTED else f"{shown} and {len(numbers) - _MAX_LISTED} more videos"


def validate_unreadable(value: Unreadable) -> Unreadable:
    """Return the handling of files that cannot be used, and of directories that may not be read, if it is valid.

    Raises:
        ConfigError: If it is not.
    """
    if value not in (None, "raise", "skip"):
        raise ConfigError(f'unreadable must be "raise" or "skip", got {value!r}')
    return value


@contextlib.contextmanager
def show_indexing(total: int, noun: str = "videos") -> Iterator[ProgressDisplay]:
    """Show how many videos, or files of another kind, are indexed: a bar on a terminal, and a line in the log."""
    last_log = time.monotonic()
    with open_count_display(f"indexing {noun}") as show:

        def report(done: int, total: int) -> None:
            nonlocal last_log
            show(done, total)
            if time.monotonic() - last_log > _LOG_INTERVAL_S:
                last_log = time.monotonic()
                _log.info("indexed %d of %d %s", done, total, noun)

        report(0, total)
        yield report
