"""Data managers for images: of Pillow, and arrays of OpenCV, with conversions between the two.

Only common formats of pictures are decoded, none of whose readers starts another program or opens another file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from streamloader.datasets.directory.managers import Buffer, FileDataManager
from streamloader.errors import ConfigError, CorruptSample, MissingDependency

__all__ = ["OpenCVDataManager", "PillowDataManager", "opencv_to_pil", "pil_to_opencv"]

ColorMode: TypeAlias = Literal["color", "grayscale", "unchanged"]

_PILLOW_FORMATS: Final = ("JPEG", "PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000")
_PILLOW_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_OPENCV_SIGNATURES: Final = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    *(b"P%d" % number for number in range(1, 7)),  # PBM, PGM, PPM
    b"BM",
    *(b"GIF87a", b"GIF89a"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF, and BigTIFF
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),  # JPEG 2000
)
_OPENCV_DTYPES: Final = {
    **dict.fromkeys((".jpg", ".jpeg", ".bmp", ".webp"), ("uint8",)),
    **dict.fromkeys((".png", ".jp2", ".pgm", ".ppm"), ("uint8", "uint16")),
    **dict.fromkeys((".tif", ".tiff"), ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")),
}
_JPEG_ENDINGS: Final = (".jpg", ".jpeg")
_JPEG_QUALITY: Final = 95
_GRAY_DIMENSIONS: Final = 2
_COLOR_DIMENSIONS: Final = 3
_BGR_ORDER: Final = {"RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3]}  # its own inverse
_GRAY_MODES: Final = {"uint8": "L", "uint16": "I;16", "int32": "I", "float32": "F"}
_ARRAY_MODES: Final = frozenset({*_GRAY_MODES.values(), *_BGR_ORDER, "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class PillowDataManager(FileDataManager):
    """Images of Pillow. The ending of a file name selects the format. Needs the extra ``images``.

    Formats: JPEG (written with quality 95 and full chroma), PNG, WebP (lossless), BMP, GIF, PNM, TIFF and JPEG 2000.
    Images are decoded when they are loaded, so they hold no file open. Bytes are PNG, or TIFF for modes that PNG lacks.

    Args:
        mode: Mode that images are converted to when they are loaded, such as ``"RGB"``. Defaults to that of the file.
        save_options: Options of ``Image.save``, such as ``{"quality": 80}``. Defaults to those above.
    """

    mode: str | None = None
    save_options: Mapping[str, Any] = field(default_factory=dict)

    def deserialize(self, data: Buffer) -> Any:
        """Return the image.

        Raises:
            CorruptSample: If the bytes are damaged, or of no format above.
            MissingDependency: If Pillow is not installed.
        """
        image_module = _import_pillow()
        try:
            image = image_module.open(io.BytesIO(data), formats=_PILLOW_FORMATS)
            image.load()
        except Exception as error:  # Pillow's readers raise errors of any type for damaged data
            raise CorruptSample(f"the image cannot be decoded: {type(error).__name__}: {error}") from error
        try:
            return image if self.mode is None else image.convert(self.mode)
        except ValueError as error:
            raise ConfigError(f"PillowDataManager(mode={self.mode!r:.80}): {error}") from error

    def _encode(self, value: Any, path: str | None) -> bytes:
        image_module = _import_pillow()
        if not isinstance(value, image_module.Image):
            raise ConfigError(f"PillowDataManager takes images of Pillow, got {type(value).__name__}")
        image_format = _find_serial_format(value) if path is None else _find_pillow_format(image_module, path)
        file = io.BytesIO()
        try:
            value.save(file, image_format, **{**_PILLOW_OPTIONS.get(image_format, {}), **self.save_options})
        except (OSError, ValueError, TypeError, KeyError, OverflowError, SystemError) as error:
            name = path or "bytes"
            raise ConfigError(f"an image of mode {value.mode} cannot be written as {name}: {error}") from error
        return file.getvalue()


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("images need Pillow: pip install streamloader[images]") from error
    return Image


def _find_pillow_format(image_module: Any, path: str) -> str:
    ending = path[path.rfind(".") :].lower()
    image_format = image_module.registered_extensions().get(ending)
    if image_format not in _PILLOW_FORMATS:
        raise ConfigError(f"{path}: its ending names no format that images are written in, such as .png or .jpg")
    return str(image_format)


def _find_serial_format(image: Any) -> str:
    return "PNG" if image.mode in _PNG_MODES else "TIFF"


@dataclass(frozen=True)
class OpenCVDataManager(FileDataManager):
    """Images as arrays of OpenCV, whose colors are in the order BGR. Needs the extra ``opencv``.

    The ending of a file name selects the format. JPEG is written with quality 95. Bytes are PNG, or TIFF where PNG has
    no such type.

    Args:
        mode: Kind of the loaded arrays. ``"color"``, as ``cv2.imread`` has it: uint8 (H, W, 3), turned as the file
            demands. ``"grayscale"``: uint8 (H, W). ``"unchanged"``: dtype and channels of the file, alpha too. Defaults
            to ``"color"``.
    """

    mode: ColorMode = "color"

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in get_args(ColorMode):
            raise ConfigError(
                f"OpenCVDataManager(mode={self.mode!r:.80}): must be one of {', '.join(get_args(ColorMode))}"
            )

    def deserialize(self, data: Buffer) -> np.ndarray[Any, Any]:
        """Return the image as an array that can be written to.

        Raises:
            CorruptSample: If the bytes are damaged or cut, or of no format that is decoded.
            MissingDependency: If OpenCV is not installed.
        """
        cv2 = _import_opencv()
        _check_image_file(data)
        flags = {"color": cv2.IMREAD_COLOR, "grayscale": cv2.IMREAD_GRAYSCALE, "unchanged": cv2.IMREAD_UNCHANGED}
        try:
            image: np.ndarray[Any, Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags[self.mode])
        except cv2.error as error:
            raise CorruptSample(f"the image cannot be decoded: {error}") from error
        if image is None:
            raise CorruptSample("the image cannot be decoded")
        return image

    def _encode(self, value: Any, path: str | None) -> bytes:
        cv2 = _import_opencv()
        if not isinstance(value, np.ndarray):
            raise ConfigError(f"OpenCVDataManager takes arrays, got {type(value).__name__}")
        ending = _find_opencv_ending(value, path)
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if ending in _JPEG_ENDINGS else []
        reason = ""
        try:
            is_written, encoded = cv2.imencode(ending, np.ascontiguousarray(value), options)
        except cv2.error as error:
            is_written, encoded, reason = False, b"", f": {error}"
        if not is_written:
            raise ConfigError(f"an array {value.dtype} {value.shape} cannot be written as {path or ending}{reason}")
        return bytes(encoded)


def _import_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency("arrays of OpenCV need opencv: pip install streamloader[opencv]") from error
    return cv2


def _check_image_file(data: Buffer) -> None:
    head = bytes(data[:12])
    if not head.startswith(_OPENCV_SIGNATURES) and (head[:4], head[8:]) != (b"RIFF", b"WEBP"):
        raise CorruptSample("the image cannot be decoded: it has none of the formats that are decoded")


def _find_opencv_ending(array: np.ndarray[Any, Any], path: str | None) -> str:
    """Return the ending for a format. OpenCV would write other dtypes as 8 bits, with a warning to the terminal only.

    Raises:
        ConfigError: If the path names no format, or one that cannot hold the array.
    """
    if path is None:
        return ".png" if array.dtype.name in _OPENCV_DTYPES[".png"] else ".tiff"
    ending = path[path.rfind(".") :].lower()
    dtypes = _OPENCV_DTYPES.get(ending)
    if dtypes is None:
        raise ConfigError(f"{path}: its ending names no format that images are written in, such as .png or .jpg")
    if array.dtype.name not in dtypes:
        raise ConfigError(f"{path} cannot hold an array {array.dtype}, only {', '.join(dtypes)}: convert it first")
    return ending


# --- conversions -----------------------------------------------------------------------------------------------------


def pil_to_opencv(image: Any) -> np.ndarray[Any, Any]:
    """Return an image of Pillow as an array for OpenCV, which shares no memory with it. OpenCV itself is not needed.

    Args:
        image: Image. Mode ``L`` becomes uint8 (H, W); ``RGB`` uint8 (H, W, 3) in the order BGR; ``RGBA`` uint8
            (H, W, 4) in the order BGRA; ``I;16`` uint16 (H, W); ``I`` int32 and ``F`` float32 (H, W). ``1`` becomes
            ``L``; all others ``RGBA`` if they have transparency, and ``RGB`` otherwise.

    Raises:
        ConfigError: If it is no image of Pillow.
    """
    if not hasattr(image, "getbands"):
        raise ConfigError(f"pil_to_opencv takes images of Pillow, got {type(image).__name__}")
    if image.mode not in _ARRAY_MODES:
        image = image.convert(_find_array_mode(image))
    pixels = np.asarray(image)
    if pixels.ndim == _COLOR_DIMENSIONS:
        return np.ascontiguousarray(pixels[..., _BGR_ORDER[image.mode]])
    return np.array(pixels, dtype=pixels.dtype.newbyteorder("="))


def opencv_to_pil(array: np.ndarray[Any, Any]) -> Any:
    """Return an array of OpenCV as an image of Pillow, which shares no memory with it. OpenCV itself is not needed.

    Args:
        array: Array uint8 (H, W) or (H, W, 1), in the order BGR (H, W, 3), or BGRA (H, W, 4), which become images of
            mode ``L``, ``RGB`` and ``RGBA``; or of one channel as uint16, int32 or float32: ``I;16``, ``I`` and ``F``.

    Raises:
        ConfigError: If the array has another shape or dtype. Pillow has no colors of 16 bits.
        MissingDependency: If Pillow is not installed.
    """
    image_module = _import_pillow()
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"opencv_to_pil takes arrays, got {type(array).__name__}")
    if array.ndim == _COLOR_DIMENSIONS and array.shape[2] == 1:
        array = array[..., 0]
    mode = _find_image_mode(array)
    height, width = array.shape[:2]
    order = _BGR_ORDER.get(mode)
    pixels = array if order is None else array[..., order]
    pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return image_module.frombytes(mode, (width, height), pixels.tobytes())


def _find_array_mode(image: Any) -> str:
    if image.mode == "1":
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _find_image_mode(array: np.ndarray[Any, Any]) -> str:
    name, channels = array.dtype.name, array.shape[2:]
    if array.ndim == _COLOR_DIMENSIONS and name == "uint8" and channels in ((3,), (4,)):
        return "RGB" if channels == (3,) else "RGBA"
    if array.ndim == _GRAY_DIMENSIONS and name in _GRAY_MODES:
        return _GRAY_MODES[name]
    raise ConfigError(
        f"an array {array.dtype} {array.shape} is no image that Pillow has: convert it to uint8 (H, W), (H, W, 3) or "
        f"(H, W, 4), or to (H, W) of {', '.join(_GRAY_MODES)}"
    )
