"""Play indexed images: decode them one by one into the steps of a batch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from typing_extensions import override

from streamloader.errors import CorruptStream, MediaLimitExceeded, UnreadableStream
from streamloader.streams.base import PreparedStream, Stream
from streamloader.streams.frames import FrameStream
from streamloader.values import Array

if TYPE_CHECKING:
    from streamloader.media.image.animation import AnimationReader
    from streamloader.media.image.decoder import ImageDecoder
    from streamloader.media.video.convert import Converter, OutputArray
    from streamloader.media.video.reader import VideoFrame
    from streamloader.streams.augment import StreamTransform
    from streamloader.streams.image_files import ImageFiles, ImageSource, StoredImages

__all__ = ["AnimationStream", "ImageFolderStream", "PreparedImages"]

_MAX_AHEAD_STEPS: Final = 32
_log = logging.getLogger("streamloader")


class PreparedImages(PreparedStream):
    """The images of a store, of which the first ones are being fetched.

    Args:
        open_with: Function that opens the stream with a random generator and the source.
        source: Open source of the images.
    """

    def __init__(
        self, open_with: Callable[[np.random.Generator, ImageSource], Awaitable[Stream]], source: StoredImages
    ) -> None:
        self._open_with = open_with
        self._source = source

    @property
    @override
    def ready(self) -> bool:  # type: ignore[override]
        return self._source.is_idle

    @override
    async def open(self, rng: np.random.Generator) -> Stream:
        self._source.drop_failed()
        return await self._open_with(rng, self._source)

    @override
    def release(self) -> None:
        self._source.close()


class _SelectedFrames(FrameStream):
    """Frames of a stream that were selected, with their times.

    Args:
        steps: Number of the image (int64) and time in seconds (float64) of each step.
        converter: Converter of the frames, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        waits_for_bytes: Whether reading waits for a server.
    """

    def __init__(
        self,
        steps: tuple[Array, Array],
        converter: Converter | ImageDecoder,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        waits_for_bytes: bool,
    ) -> None:
        self._numbers, self._times = steps
        super().__init__(len(self._numbers), converter, names, transform, waits_for_bytes=waits_for_bytes)

    def times(self, start: int, out: Array) -> None:
        """Write the times of the steps from `start` on, in seconds after the first image."""
        times = self._times[start : start + len(out)]
        out[: len(times)] = times


class ImageFolderStream(_SelectedFrames):
    """Reads the selected images of one folder.

    Args:
        source: Source of the bytes, which the stream closes.
        files: Files of the images.
        steps: Number of the image and time of each step.
        decoder: Decoder of the images, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        key: Key of the stream.
        keeps_damaged: Whether the image before a damaged one is shown in its place.
    """

    def __init__(
        self,
        source: ImageSource,
        files: ImageFiles,
        steps: tuple[Array, Array],
        decoder: ImageDecoder,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        key: str,
        keeps_damaged: bool,
    ) -> None:
        super().__init__(steps, decoder, names, transform, waits_for_bytes=source.waits_for_bytes)
        self._source = source
        self._files = files
        self._key = key
        self._keeps_damaged = keeps_damaged
        self._shown: dict[int, int] = {}  # number of a damaged image -> number of the one that is shown instead

    @override
    def _read_frames(self, start: int, end: int) -> Iterator[int]:
        yield from range(start, end)

    @override
    def _write_frame(self, frame: int, outputs: Sequence[OutputArray], row: int) -> None:
        number = int(self._numbers[frame])
        if row and self._numbers[frame - 1] == number:  # shown for several steps
            for output in outputs:
                output.array[row] = output.array[row - 1]
            return
        upcoming: Sequence[int] = ()
        if self._source.waits_for_bytes:
            upcoming = list(dict.fromkeys(self._numbers[frame + 1 : frame + 1 + _MAX_AHEAD_STEPS].tolist()))
        try:
            self._decode(number, self._source.read(number, upcoming), outputs, row)
        except _DamagedImage as damage:
            if not self._keeps_damaged:
                raise damage.error from damage.error.__cause__
            self._show_neighbour(number, damage.error, outputs, row)

    def _decode(self, number: int, data: bytes, outputs: Sequence[OutputArray], row: int) -> None:
        from streamloader.media.image.decoder import EncodedImage

        image = EncodedImage(data, self._files.name(number), self._key, number)
        try:
            self._converter.convert_into(image, outputs, row)
        except MediaLimitExceeded as error:
            error.stream, error.offset = self._key, number
            raise
        except (CorruptStream, UnreadableStream) as error:
            raise _DamagedImage(error) from error

    def _show_neighbour(
        self, number: int, reason: CorruptStream | UnreadableStream, outputs: Sequence[OutputArray], row: int
    ) -> None:
        """Write the last image before a damaged one that can be decoded, or else the first one after it."""
        damaged = [number]
        for candidate in itertools.chain(range(number - 1, -1, -1), range(number + 1, len(self._files))):
            other = self._shown.get(candidate, candidate)
            try:
                self._decode(other, self._source.read(other), outputs, row)
            except _DamagedImage:
                damaged.append(other)
                continue
            self._shown.update(dict.fromkeys(damaged, other))
            _log.warning("stream %s shows %s instead: %s", self._key, self._files.name(other), reason.message)
            return
        raise reason

    @override
    def _close(self) -> None:
        self._source.close()
        super()._close()


class _DamagedImage(Exception):
    """An image cannot be decoded.

    Attributes:
        error: Error that says why.
    """

    def __init__(self, error: CorruptStream | UnreadableStream) -> None:
        super().__init__(error)
        self.error = error


class AnimationStream(_SelectedFrames):
    """Reads the selected frames of one animation.

    Args:
        reader: Reader of the file, which the stream closes.
        steps: Number of the frame and time of each step.
        converter: Converter of the frames, which the stream closes.
        names: Names of the fields.
        transform: The user's transform, or None.
        waits_for_bytes: Whether the file is in a store.
        keeps_damaged: Whether the last frame before damage is shown from there on.
    """

    def __init__(
        self,
        reader: AnimationReader,
        steps: tuple[Array, Array],
        converter: Converter,
        names: Sequence[str],
        transform: StreamTransform | None,
        *,
        waits_for_bytes: bool,
        keeps_damaged: bool,
    ) -> None:
        super().__init__(steps, converter, names, transform, waits_for_bytes=waits_for_bytes)
        self._reader = reader
        self._keeps_damaged = keeps_damaged
        self._last_intact: int | None = None  # number of the last frame before damage, once that is known

    @override
    def _read_frames(self, start: int, end: int) -> Iterator[VideoFrame]:
        for number in self._numbers[start:end].tolist():
            yield self._read_frame(number)

    def _read_frame(self, number: int) -> VideoFrame:
        if self._last_intact is not None:
            number = min(number, self._last_intact)
        try:
            return self._reader.read_frame(number)
        except CorruptStream as error:
            if not self._keeps_damaged or not error.offset:
                raise
            _log.warning("stream %s shows the frame before it from there on: %s", error.stream, error.message)
            self._last_intact = error.offset - 1
            return self._reader.read_frame(self._last_intact)

    @override
    def _close(self) -> None:
        self._reader.close()
        super()._close()
