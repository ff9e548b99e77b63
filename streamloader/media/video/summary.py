"""What a dataset needs to know of a video before it is opened, found in this process or in a child process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamloader.errors import CorruptStream
from streamloader.media.video.limits import PixelLimit

if TYPE_CHECKING:
    from streamloader.media.parser_pool import ParserPool
    from streamloader.media.video.index import VideoIndex
    from streamloader.media.video.remote import Video
    from streamloader.media.video.selection import Selection

__all__ = ["VideoSummary", "summarize_in_child", "summarize_video"]

_MAX_FRAMES: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class VideoSummary:
    """Summary of one video.

    Attributes:
        frames: Number of frames in the file.
        steps: Number of steps of the stream.
        size: (height, width) of the upright frames in pixels.
    """

    frames: int
    steps: int
    size: tuple[int, int]


def summarize_video(
    video: Video, version: tuple[int, int] | None, damaged: str, max_pixels: int, selection: Selection
) -> VideoSummary:
    """Summarize a video by its index, which is read from the cache or made in this process.

    Args:
        video: Path of a local file, or a video in a store.
        version: Version of a local file, as for :func:`streamloader.media.video.index_cache.load_index`.
        damaged: ``"raise"`` or ``"keep"``, as there.
        max_pixels: Maximum number of pixels of a frame.
        selection: Frames that become steps.
    """
    from streamloader.media.video.index_cache import load_index

    return _summarize(video, load_index(video, damaged=damaged, version=version, max_pixels=max_pixels), selection)


def summarize_in_child(
    parsers: ParserPool,
    shared_by: int,
    video: Video,
    version: tuple[int, int] | None,
    damaged: str,
    max_pixels: int,
    selection: Selection,
) -> VideoSummary:
    """Summarize a video as :func:`summarize_video` does. An index that is not in the cache is made in a child process.

    Args:
        parsers: Pool of child processes.
        shared_by: Number of videos that one child process indexes concurrently.
        video: Path of a local file, or a video in a store.
        version: Version of a local file.
        damaged: ``"raise"`` or ``"keep"``.
        max_pixels: Maximum number of pixels of a frame.
        selection: Frames that become steps.
    """
    from streamloader.media.video.index_cache import find_index

    index = find_index(video, damaged=damaged, version=version, max_pixels=max_pixels)
    if index is not None:
        return _summarize(video, index, selection)
    arguments = video, version, damaged, max_pixels, selection
    answer = parsers.call(str(video), _summarize_for_parent, *arguments, shared_by=shared_by)
    return _check_answer(answer, PixelLimit(max_pixels, str(video)), selection)


def _summarize(video: Video, index: VideoIndex, selection: Selection) -> VideoSummary:
    steps = selection.count_video_steps(index)
    selection.check_steps(steps, len(index), str(video))
    return VideoSummary(len(index), steps, index.upright_size)


def _summarize_for_parent(*arguments: Any) -> list[int]:
    summary = summarize_video(*arguments)
    return [summary.frames, summary.steps, *summary.size]


def _check_answer(answer: Any, limit: PixelLimit, selection: Selection) -> VideoSummary:
    is_valid = isinstance(answer, list) and len(answer) == 4 and all(type(number) is int for number in answer)
    if not is_valid or min(answer) < 1 or max(answer) > _MAX_FRAMES:
        raise CorruptStream(
            f"the process that indexed {limit.name} gave an impossible answer: the file may have taken it over. Remove "
            "the file",
            stream=limit.name,
            address=limit.name,
        )
    frames, steps, height, width = answer
    limit.check(width, height)
    selection.check_steps(steps, frames, limit.name)
    return VideoSummary(frames, steps, (height, width))
