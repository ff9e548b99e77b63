"""Decode the fields of samples by their names, as WebDataset does. Nothing that could run code is ever decoded."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from streamloader.errors import ConfigError, MissingDependency, StreamloaderError
from streamloader.torch_support import as_tensor, require_torch

__all__ = ["IMAGE_FIELDS", "FieldDecoder", "FieldProblem", "make_decoder"]

FieldDecoder: TypeAlias = Callable[[str, bytes], Any]

IMAGE_FIELDS: Final = frozenset(
    {"jpg", "jpeg", "png", "ppm", "pgm", "pbm", "pnm", "webp", "bmp", "gif", "tif", "tiff", "jp2"}
)
# Not those whose readers start other programs (EPS), or read other files.
_IMAGE_FORMATS: Final = ("JPEG", "PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000")
_VIDEO_FIELDS: Final = frozenset(
    {"mp4", "avi", "mkv", "webm", "mov", "m4v", "mpg", "mpeg", "ts", "ogv", "h264", "mjpeg"}
)
_INTEGER_FIELDS: Final = frozenset({"cls", "cls2", "index", "inx", "id", "count"})
_TEXT_FIELDS: Final = frozenset({"txt", "text", "transcript"})
_JSON_FIELDS: Final = frozenset({"json", "jsn"})


class FieldProblem(Exception):
    """A field of a sample that cannot be decoded.

    Attributes:
        field: Name of the field.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def make_decoder(specs: tuple[Any, ...]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that decodes the fields of a sample.

    Args:
        specs: Decoders: ``"pil"``, ``"rgb8"`` or ``"torch"`` for images; ``"video"``; ``"bytes"``; a function of field
            and bytes that returns None for what it does not decode; or a mapping from fields to functions of bytes.

    Raises:
        ConfigError: If a decoder is unknown.
    """
    decoders = [(_find_decoder(spec), isinstance(spec, str)) for spec in specs]
    if not any(isinstance(spec, str) and spec == "bytes" for spec in specs):
        decoders.append((_decode_plain, True))

    def decode(sample: dict[str, Any]) -> dict[str, Any]:
        decoded = {}
        for field, value in sample.items():
            if field.startswith("__") or not isinstance(value, bytes):
                decoded[field] = value
                continue
            for decoder, is_own in decoders:
                result = _call_own_decoder(decoder, field, value) if is_own else decoder(field, value)
                if result is not None:
                    decoded[field] = result
                    break
            else:
                decoded[field] = value
        return decoded

    return decode


def _call_own_decoder(decoder: FieldDecoder, field: str, value: bytes) -> Any:
    try:
        return decoder(field, value)
    except MissingDependency:
        raise
    except Exception as error:  # Pillow's readers raise errors of any type for damaged data
        text = error.message if isinstance(error, StreamloaderError) else f"{type(error).__name__}: {error}"
        raise FieldProblem(field, text) from error


def _find_decoder(spec: Any) -> FieldDecoder:
    if isinstance(spec, str) and spec in _DECODERS:
        return _DECODERS[spec]
    if isinstance(spec, Mapping):
        return functools.partial(_decode_by_name, dict(spec))
    if callable(spec):
        found: FieldDecoder = spec
        return found
    raise ConfigError(
        f"decode({spec!r:.80}): must be one of {', '.join(map(repr, _DECODERS))}, a function or a mapping"
    )


def _decode_by_name(decoders: Mapping[str, Callable[[bytes], Any]], field: str, value: bytes) -> Any:
    decoder = decoders.get(field)
    return None if decoder is None else decoder(value)


def _extension(field: str) -> str:
    return field.rpartition(".")[2]


def _open_image(value: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("decoding images needs Pillow: pip install streamloader[images]") from error
    image = Image.open(io.BytesIO(value), formats=_IMAGE_FORMATS)
    image.load()
    return image.convert("RGB")


def _decode_pil(field: str, value: bytes) -> Any:
    return _open_image(value) if _extension(field) in IMAGE_FIELDS else None


def _decode_rgb8(field: str, value: bytes) -> Any:
    return np.array(_open_image(value)) if _extension(field) in IMAGE_FIELDS else None


def _decode_torch(field: str, value: bytes) -> Any:
    if _extension(field) not in IMAGE_FIELDS:
        return None
    require_torch('decode("torch") needs')
    import torch

    pixels = torch.from_numpy(np.array(_open_image(value)))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


def _decode_video(field: str, value: bytes) -> Any:
    if _extension(field) not in _VIDEO_FIELDS:
        return None
    from streamloader.media.video.decode_bytes import decode_video_bytes

    return as_tensor(decode_video_bytes(value, name=f"the member {field}"))


def _leave_bytes(_field: str, value: bytes) -> Any:
    return value


def _decode_plain(field: str, value: bytes) -> Any:
    """Decode numbers, texts, JSON and arrays."""
    extension = _extension(field)
    if extension in _INTEGER_FIELDS:
        return int(value)
    if extension in _TEXT_FIELDS:
        return value.decode()
    if extension in _JSON_FIELDS:
        return json.loads(value)
    if extension == "npy":
        return np.lib.format.read_array(io.BytesIO(value), allow_pickle=False)
    return None


_DECODERS: Final[dict[str, FieldDecoder]] = {
    "pil": _decode_pil,
    "rgb8": _decode_rgb8,
    "torch": _decode_torch,
    "video": _decode_video,
    "bytes": _leave_bytes,
}
