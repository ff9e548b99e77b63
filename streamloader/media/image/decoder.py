"""Decode still images straight into the steps of a batch: upright, scaled, and in any of the pixel formats of videos.

JPEG becomes RGB or gray by libjpeg-turbo (simplejpeg), which decodes at 1/2, 1/4 or 1/8 of the size if that is at least
the requested one, and by OpenCV's bilinear or area filter. Everything else is decoded by FFmpeg (TIFF, and animations
of one frame, by Pillow, which reads more kinds of them) and converted by the converter of videos, so that its pixels
are those that a video of these images would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from streamloader.errors import CorruptStream, FrameSizeError, UnreadableStream
from streamloader.media.image.headers import ImageHeader, InvalidImage, parse_header
from streamloader.media.image.pillow import open_with_pillow, translate_pillow_errors
from streamloader.media.image.timing import read_times
from streamloader.media.video.convert import Converter
from streamloader.media.video.limits import PixelLimit
from streamloader.media.video.orientation import UPRIGHT

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    from streamloader.media.video.convert import OutputArray
    from streamloader.values import Array

__all__ = ["EncodedImage", "ImageDecoder"]

_CODECS: Final = {"jpeg": "mjpeg", "png": "png", "webp": "webp", "bmp": "bmp"}  # FFmpeg's names
_EIGHT_BIT_MODES: Final = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})  # Pillow's names
_SIXTEEN_BIT_MODES: Final = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_STRICT: Final = {"err_detect": "crccheck+bitstream+buffer+explode"}
_JPEG_FACTORS: Final = (8, 4, 2)  # of which libjpeg-turbo has fast code
_MIN_REDUCED_SIDE: Final = 16  # pixels
_MAX_BILINEAR_SHRINKAGE: Final = 1.5  # beyond it, the two pixels that it looks at leave out others
_HARMLESS: Final = "extraneous bytes before marker"  # libjpeg-turbo's warning about padding that some cameras write


class EncodedImage(NamedTuple):
    """The bytes of one image.

    Attributes:
        data: Whole file.
        name: Path or address without secrets, for error messages.
        stream: Key of its stream.
        step: Position in its stream.
        remedy: Advice for the user if the image is damaged.
    """

    data: bytes
    name: str
    stream: str
    step: int
    remedy: str = 'Repair or remove it, or pass damaged="keep" to show the image before it instead'


class ImageDecoder:
    """Decodes the images of one stream, in one thread at a time. It takes the place of a video's converter.

    Args:
        pix_fmt: Pixel format of the output, as for :class:`~streamloader.media.video.convert.Converter`.
        height: Height of the output in pixels, upright.
        width: Width of the output in pixels, upright.
        max_pixels: Maximum number of pixels of an image.
        scales: Whether images of other sizes are scaled. Otherwise they are an error.
    """

    def __init__(self, pix_fmt: str, height: int, width: int, max_pixels: int, *, scales: bool) -> None:
        self._pix_fmt = pix_fmt
        self._size = height, width
        self._max_pixels = max_pixels
        self._scales = scales
        self._converters = {UPRIGHT: Converter(pix_fmt, height, width)}
        self._last = self._converters[UPRIGHT]  # that converted the last frame
        self._decoded: Array = np.empty(0, np.uint8)  # memory for the pixels of a JPEG, before they are scaled
        self._scaled: Array = np.empty(0, np.uint8)

    @property
    def coding(self) -> tuple[int, int]:
        """MatrixCoefficients and VideoFullRangeFlag of the last image, as YUV output has them."""
        return self._last.coding

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of an image of ``"rgb24"`` or ``"gray"``."""
        return self._converters[UPRIGHT].shape

    def split_planes(self, arrays: list[Array]) -> list[Array]:
        """Return an array (n, H, W, C) for each plane, given the arrays of a stream's fields."""
        return self._converters[UPRIGHT].split_planes(arrays)

    def wrap_outputs(self, arrays: Sequence[Array]) -> list[OutputArray]:
        """Prepare output arrays (n, H, W, C), one for each plane of the pixel format."""
        return self._converters[UPRIGHT].wrap_outputs(arrays)

    def convert_into(self, image: EncodedImage, outputs: Sequence[OutputArray], row: int) -> None:
        """Decode an image into row `row` of `outputs`.

        Raises:
            CorruptStream: If the image is truncated or damaged. ``offset`` is its position in the stream.
            UnreadableStream: If the format is not accepted.
            MediaLimitExceeded: If it exceeds `max_pixels`.
            FrameSizeError: If its size is another one, and images are not scaled.
        """
        header = self._check_header(image)
        if header.format == "jpeg" and header.is_ycbcr and self._pix_fmt != "yuv420p":
            self._decode_jpeg(image, header, outputs, row)
            return
        if header.format == "tiff":
            frame, orientation = _decode_tiff(image, header), UPRIGHT  # Pillow has turned it
        elif header.is_animation:
            frame, orientation = _decode_only_frame(image, header, self._max_pixels), header.orientation
        else:
            frame, orientation = self._decode_frame(image, header), header.orientation
        converter = self._converters.get(orientation)
        if converter is None:
            converter = self._converters[orientation] = Converter(self._pix_fmt, *self._size, orientation)
        converter.name = image.name
        converter.convert_into(frame, outputs, row)
        self._last = converter

    def close(self) -> None:
        """Free the scalers."""
        for converter in self._converters.values():
            converter.close()

    def _check_header(self, image: EncodedImage) -> ImageHeader:
        try:
            header = parse_header(image.data)
        except InvalidImage as error:
            raise damaged_error(image, str(error)) from error
        limit = PixelLimit(self._max_pixels, image.name)
        limit.check(header.width, header.height)
        if header.is_animation and _count_frames(image, header) > 1:
            raise UnreadableStream(
                f"{image.name} is an animation among images: give it the extension of its format, and pass "
                'streams="files" to play each file as a stream',
                stream=image.stream, address=image.name, offset=image.step,
            )  # fmt: skip
        if not self._scales and header.upright_size != self._size:
            raise FrameSizeError(
                f"images of {image.stream} differ in size: {image.name} is {_describe(header.upright_size)} (height x "
                f"width), others are {_describe(self._size)}. Pass size=(height, width) to scale all to one size",
                stream=image.stream, address=image.name, offset=image.step,
                sizes=[list(self._size), list(header.upright_size)],
            )  # fmt: skip
        return header

    # --- JPEG by libjpeg-turbo ---------------------------------------------------------------------------------------

    def _decode_jpeg(self, image: EncodedImage, header: ImageHeader, outputs: Sequence[OutputArray], row: int) -> None:
        size = header.orientation.apply_to_size(*self._size)  # as stored
        target = outputs[0].array[row]
        is_final = len(outputs) == 1 and header.orientation == UPRIGHT and target.flags.c_contiguous
        factor = _choose_factor(header, size)
        decoded_size = -(-header.height // factor), -(-header.width // factor)
        if decoded_size == size:
            pixels = self._run_decoder(image, decoded_size, target if is_final else None)
        else:
            source = self._run_decoder(image, decoded_size, None)
            pixels = self._scale(source, size, target if is_final else None)
        if not is_final:
            _write_pixels(header.orientation.apply_to_image(pixels), outputs, row)

    def _run_decoder(self, image: EncodedImage, size: tuple[int, int], out: Array | None) -> Array:
        """Return the pixels (H, W, C) of a JPEG at a size that libjpeg-turbo has, in `out` if it is given."""
        import simplejpeg

        channels = 1 if self._pix_fmt == "gray" else 3
        if out is None:
            count = size[0] * size[1] * channels
            if len(self._decoded) < count:
                self._decoded = np.empty(count, np.uint8)
            out = self._decoded[:count].reshape(*size, channels)
        options: dict[str, Any] = {"min_height": size[0], "min_width": size[1], "buffer": out}
        colorspace = "GRAY" if channels == 1 else "RGB"
        try:
            try:
                result = simplejpeg.decode_jpeg(image.data, colorspace, **options)
            except ValueError as error:
                if _HARMLESS not in str(error):
                    raise
                result = simplejpeg.decode_jpeg(image.data, colorspace, strict=False, **options)
        except (ValueError, MemoryError) as error:
            raise damaged_error(image, str(error)) from error
        if result.shape != out.shape or not np.shares_memory(result, out):
            raise damaged_error(image, f"it decodes to {result.shape} instead of {out.shape}")
        return out

    def _scale(self, source: Array, size: tuple[int, int], out: Array | None) -> Array:
        """Return `source` (H, W, C) scaled to (height, width), in `out` if it is given."""
        import cv2

        if out is None:
            count = size[0] * size[1] * source.shape[2]
            if len(self._scaled) < count:
                self._scaled = np.empty(count, np.uint8)
            out = self._scaled[:count].reshape(*size, source.shape[2])
        shrinkage = max(source.shape[0] / size[0], source.shape[1] / size[1])
        method = cv2.INTER_LINEAR if shrinkage <= _MAX_BILINEAR_SHRINKAGE else cv2.INTER_AREA
        result = cv2.resize(source, size[::-1], dst=out, interpolation=method)
        if not np.shares_memory(result, out):  # OpenCV allocates what it cannot use
            out[...] = result.reshape(out.shape)
        return out

    # --- other formats by FFmpeg -------------------------------------------------------------------------------------

    def _decode_frame(self, image: EncodedImage, header: ImageHeader) -> VideoFrame:
        import av.error
        from av.packet import Packet

        packet = Packet(image.data)
        packet.is_keyframe = True  # FFmpeg adds other PNGs to the one before them
        try:
            frames = self._open_context(header, image).decode(packet)
        except (av.error.FFmpegError, EOFError, ValueError) as error:
            raise damaged_error(image, getattr(error, "strerror", None) or str(error)) from error
        if len(frames) != 1 or (frames[0].height, frames[0].width) != (header.height, header.width):
            raise damaged_error(image, "it does not decode to one image of the size that it declares")
        return frames[0]

    def _open_context(self, header: ImageHeader, image: EncodedImage) -> VideoCodecContext:
        """Return a decoder for one image: one that has decoded another image may have kept a part of it."""
        from av.codec.context import CodecContext

        context: VideoCodecContext = CodecContext.create(_CODECS[header.format], "r")  # type: ignore[assignment]
        context.thread_count = 1
        context.options = _STRICT | PixelLimit(self._max_pixels, image.name).decoder_option
        return context


def _count_frames(image: EncodedImage, header: ImageHeader) -> int:
    try:
        return len(read_times(image.data, header))
    except InvalidImage as error:
        raise damaged_error(image, str(error)) from error


def _decode_only_frame(image: EncodedImage, header: ImageHeader, max_pixels: int) -> VideoFrame:
    """Return the frame of a file whose format is one of animations, and which has one frame."""
    from streamloader.media.image.animation import AnimationReader

    reader = AnimationReader(image.data, header, 1, name=image.name, stream=image.stream, max_pixels=max_pixels)
    try:
        return reader.read_frame(0)
    except CorruptStream as error:
        raise damaged_error(image, error.message) from error
    finally:
        reader.close()


def _decode_tiff(image: EncodedImage, header: ImageHeader) -> VideoFrame:
    """Return a TIFF as an upright frame."""
    from av.video.frame import VideoFrame

    with (
        translate_pillow_errors(image.name, lambda problem: damaged_error(image, problem)),
        open_with_pillow(image.data, "tiff") as opened,
    ):
        if opened.mode in _SIXTEEN_BIT_MODES:
            pixels, format_ = np.asarray(opened).astype("<u2"), "gray16le"
        elif opened.mode in _EIGHT_BIT_MODES:
            pixels, format_ = np.asarray(opened.convert("RGB")), "rgb24"
        else:
            raise UnreadableStream(
                f"{image.name} has pixels of another type than 8 or 16 bits ({opened.mode}): convert it",
                stream=image.stream, address=image.name, offset=image.step,
            )  # fmt: skip
    if pixels.shape[:2] != header.upright_size:
        raise damaged_error(image, "it does not decode to one image of the size that it declares")
    return VideoFrame.from_ndarray(pixels, format=format_)


def damaged_error(image: EncodedImage, problem: str) -> CorruptStream:
    """Return the error for an image that cannot be decoded."""
    return CorruptStream(
        f"{image.name} cannot be decoded: {problem}. {image.remedy}",
        stream=image.stream,
        address=image.name,
        offset=image.step,
    )


def _choose_factor(header: ImageHeader, size: tuple[int, int]) -> int:
    """Return by how much a JPEG can be reduced while it is decoded, so that it is not smaller than `size`."""
    if min(header.height, header.width) < _MIN_REDUCED_SIDE:  # several factors lead to the same size
        return 1
    for factor in _JPEG_FACTORS:
        if -(-header.height // factor) >= size[0] and -(-header.width // factor) >= size[1]:
            return factor
    return 1


def _write_pixels(pixels: Array, outputs: Sequence[OutputArray], row: int) -> None:
    """Copy upright pixels (H, W, C) into row `row` of packed or planar (G, B, R) outputs."""
    if len(outputs) == 1:
        np.copyto(outputs[0].array[row], pixels)
        return
    import cv2

    packed = np.ascontiguousarray(pixels)
    for output, channel in zip(outputs, (1, 2, 0), strict=True):
        plane = output.array[row][..., 0]
        result = cv2.extractChannel(packed, channel, dst=plane)  # several times as fast as NumPy
        if not np.shares_memory(result, plane):
            plane[...] = result


def _describe(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
