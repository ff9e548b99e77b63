"""The rows and columns of decoded pictures that a container declares not to be shown: find them, and remove them.

Matroska and WebM declare them as PixelCrop (RFC 9559, 5.1.4.1.28.8 to 11), MP4 and MOV as a clean aperture, ``clap``
(ISO/IEC 14496-12, 12.1.4). FFmpeg's programs remove them, its decoders do not. Cropping that a codec declares is
removed by its decoder.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import av.error
import av.filter

from streamloader.errors import CorruptStream
from streamloader.media.video.files import open_media_file
from streamloader.media.video.index import NOT_CROPPED, Cropping
from streamloader.media.video.structure import find_box, iterate_elements

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamloader.media.video.remote import VideoFile

__all__ = ["FrameCropper", "read_cropping"]

ReadAt: TypeAlias = "Callable[[int, int], bytes]"

_MAX_HEADER_BYTES: Final = 64 << 20  # of the part of a file that declares its tracks
_MAX_SIDE: Final = 1 << 20  # pixels
_SEGMENT: Final = 0x18538067
_CLUSTER: Final = 0x1F43B675
_CLUSTER_ID: Final = _CLUSTER.to_bytes(4, "big")
_HEAD_BYTES: Final = 64 << 10  # the tracks are described near the beginning
_TRACKS: Final = 0x1654AE6B
_TRACK_ENTRY: Final = 0xAE
_TRACK_TYPE: Final = 0x83
_VIDEO: Final = 0xE0
_IS_VIDEO: Final = 1  # a track type
_CROPS: Final = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}
_SAMPLE_ENTRY_BYTES: Final = 78  # of a visual sample entry, before its boxes and after its own header


def read_cropping(source: str | VideoFile | BytesIO, stream: VideoStream, number: int) -> Cropping:
    """Return what a container declares for one of its video streams.

    Args:
        source: Path of a local file, the open bytes of a video in a store, or a content in memory.
        stream: The stream.
        number: Number of the stream among the video streams of the file.
    """
    names = stream.container.format.name.split(",")
    context = stream.codec_context
    if "matroska" in names:
        find: Callable[[ReadAt, int, int, int], list[Cropping]] = _find_matroska_crops
    elif "mov" in names:
        find = _find_apertures
    else:
        return NOT_CROPPED
    with _open_reader(source) as (read, size):
        crops = find(read, size, context.height, context.width)
    if number >= len(crops):
        return NOT_CROPPED
    crop = crops[number]
    fits = crop.top + crop.bottom < context.height and crop.left + crop.right < context.width and min(crop) >= 0
    return crop if fits else NOT_CROPPED  # as FFmpeg


@contextlib.contextmanager
def _open_reader(source: str | VideoFile | BytesIO) -> Iterator[tuple[ReadAt, int]]:
    if isinstance(source, BytesIO):
        data = source.getbuffer()
        yield lambda offset, count: bytes(data[offset : offset + count]), len(data)
        return
    if not isinstance(source, str):
        yield source.remote.read_at, source.remote.size
        return
    with open(open_media_file(source), "rb") as file:

        def read(offset: int, count: int) -> bytes:
            file.seek(offset)
            return file.read(count)

        yield read, file.seek(0, 2)


# --- Matroska --------------------------------------------------------------------------------------------------------


def _find_matroska_crops(read: ReadAt, size: int, height: int, width: int) -> list[Cropping]:
    """Return the cropping of each video track of a Matroska file. The last two arguments are not used."""
    del height, width
    header, cluster, _ = read(0, _HEAD_BYTES).partition(_CLUSTER_ID)
    if cluster and not any(kind.to_bytes(2, "big") in header for kind in _CROPS):
        return []
    for kind, start, end in iterate_elements(read, 0, size):
        if kind == _SEGMENT:
            for inner, inner_start, inner_end in iterate_elements(read, start, min(end, size)):
                if inner == _CLUSTER:
                    break
                if inner == _TRACKS and inner_end - inner_start <= _MAX_HEADER_BYTES:
                    data = read(inner_start, inner_end - inner_start)
                    return [crop for crop in map(_read_track, _parse_elements(data, _TRACK_ENTRY)) if crop is not None]
            break
    return []


def _parse_elements(data: bytes, wanted: int) -> list[bytes]:
    found = iterate_elements(lambda offset, count: data[offset : offset + count], 0, len(data))
    return [data[start:end] for kind, start, end in found if kind == wanted]


def _read_track(entry: bytes) -> Cropping | None:
    """Return the cropping of a track, or None if it is no video."""
    if [int.from_bytes(value, "big") for value in _parse_elements(entry, _TRACK_TYPE)] != [_IS_VIDEO]:
        return None
    sides = {}
    for video in _parse_elements(entry, _VIDEO):
        for kind, name in _CROPS.items():
            for value in _parse_elements(video, kind):
                sides[name] = min(int.from_bytes(value[:8], "big"), _MAX_SIDE)
    return Cropping(**sides)


# --- MP4 and MOV -----------------------------------------------------------------------------------------------------


def _find_apertures(read: ReadAt, size: int, height: int, width: int) -> list[Cropping]:
    """Return the cropping of each video track of an MP4 or MOV file, whose frames have the given size."""
    span = find_box(read, size, b"moov", _MAX_HEADER_BYTES)
    if span is None:
        return []
    data = memoryview(read(span[0], span[1] - span[0]))
    crops = []
    for track in _children(data, b"trak"):
        for media in _children(track, b"mdia"):
            if [bytes(handler[8:12]) for handler in _children(media, b"hdlr")] != [b"vide"]:
                continue
            crops.append(_read_aperture(media, height, width))
    return crops


def _children(data: memoryview, wanted: bytes | None = None) -> list[memoryview]:
    """Return the contents of the boxes of one type, or of all types, up to one that is malformed."""
    found, offset = [], 0
    while len(data) - offset >= 8:
        length, kind = struct.unpack_from(">I4s", data, offset)
        if not 8 <= length <= len(data) - offset:
            break
        if wanted in (None, kind):
            found.append(data[offset + 8 : offset + length])
        offset += length
    return found


def _read_aperture(media: memoryview, height: int, width: int) -> Cropping:
    """Return the cropping of the first sample entry of a track."""
    tables = [table for inner in _children(media, b"minf") for table in _children(inner, b"stbl")]
    for descriptions in (entry for table in tables for entry in _children(table, b"stsd")):
        for entry in _children(descriptions[8:])[:1]:
            for aperture in _children(entry[_SAMPLE_ENTRY_BYTES:], b"clap"):
                if len(aperture) >= 32:
                    return _convert_aperture(struct.unpack(">IIIIiIiI", aperture[:32]), height, width)
    return NOT_CROPPED


def _convert_aperture(values: tuple[int, ...], height: int, width: int) -> Cropping:
    """Return the cropping of a clean aperture: its width and height, and how far its centre is from that of the frame.

    Bounds between two pixels are rounded to the inside, to whole pixels, as FFmpeg rounds them.
    """
    if not all(values[1::2]):
        return NOT_CROPPED
    clean_width, clean_height, across, down = (Fraction(values[number], values[number + 1]) for number in (0, 2, 4, 6))
    left, top = (width - clean_width) / 2 + across, (height - clean_height) / 2 + down
    right, bottom = width - clean_width - left, height - clean_height - top
    return Cropping(*(int(side) for side in (top, bottom, left, right)))


# --- frames ----------------------------------------------------------------------------------------------------------


class FrameCropper:
    """Crops the frames of one stream, in one thread at a time.

    As in FFmpeg's programs, size and position are rounded down to whole chroma samples.

    Args:
        cropping: Rows and columns to remove.
    """

    def __init__(self, cropping: Cropping) -> None:
        self._cropping = cropping
        self._key: tuple[Any, ...] = ()
        self._source: Any = None
        self._sink: Any = None
        self._graph: av.filter.Graph | None = None

    def crop(self, frame: VideoFrame) -> VideoFrame:
        """Return the part of a frame that is shown.

        Raises:
            CorruptStream: If nothing is left of the frame, because it is smaller than the container declares.
        """
        if self._cropping == NOT_CROPPED:
            return frame
        key = frame.width, frame.height, frame.format.name, frame.time_base, frame.colorspace, frame.color_range
        if key != self._key:
            self._configure(frame)
            self._key = key
        self._source.push(frame)
        cropped: VideoFrame = self._sink.pull()
        return cropped

    def _configure(self, frame: VideoFrame) -> None:
        top, bottom, left, right = self._cropping
        height, width = frame.height - top - bottom, frame.width - left - right
        if height <= 0 or width <= 0:
            raise CorruptStream(
                f"a frame has {frame.height}x{frame.width} pixels (height x width), and its container removes "
                f"{top + bottom} rows and {left + right} columns: nothing is left"
            )
        graph = av.filter.Graph()
        time_base = frame.time_base or Fraction(1, 1000)
        self._source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=time_base
        )
        crop = graph.add("crop", f"{width}:{height}:{left}:{top}")
        copy = graph.add("copy")  # libswscale converts planes at some other addresses wrongly
        self._sink = graph.add("buffersink")
        self._source.link_to(crop)
        crop.link_to(copy)
        copy.link_to(self._sink)
        try:
            graph.configure()
        except (av.error.FFmpegError, ValueError) as error:
            raise CorruptStream(
                f"a frame of {frame.height}x{frame.width} pixels (height x width) of the format {frame.format.name} "
                f"cannot be cropped to {height}x{width} pixels, as its container declares: {error}"
            ) from error
        self._graph = graph
