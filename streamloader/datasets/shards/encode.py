"""Encode the fields of samples as the members of a shard, by their names. Nothing is ever pickled."""

from __future__ import annotations

import io
import json
import operator
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamloader.datasets.shards.decode import IMAGE_FIELDS
from streamloader.datasets.shards.naming import check_field
from streamloader.errors import ConfigError, MissingDependency

__all__ = ["encode_image", "encode_sample", "guess_image_field", "to_array"]

_FORMATS: Final = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
}
_JPEG_QUALITY: Final = 95
_INTEGER_FIELDS: Final = frozenset({"cls", "cls2", "index", "inx", "id", "count"})
_MAGIC: Final = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


def encode_sample(key: str, sample: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """Return the fields of a sample as bytes, in their order. Names that start with "__" are left out.

    ``jpg``, ``png``, ``webp`` and such take images of Pillow, or uint8 arrays (H, W) or (H, W, 3); ``npy`` arrays;
    ``cls`` and such integers; ``json`` plain values. All other fields take strings, which become UTF-8, and every field
    takes bytes, which are written as they are.

    Raises:
        ConfigError: If a field is not a name, or its value is none that the field can hold.
        MissingDependency: If Pillow is needed and not installed.
    """
    members = []
    for name, value in sample.items():
        if isinstance(name, str) and name.startswith("__"):
            continue
        field = check_field(name)
        try:
            members.append((field, _encode(field, value)))
        except (TypeError, ValueError, OverflowError, OSError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the field {field!r} of the sample {key!r} cannot hold a value of type {type(value).__name__}: {error}"
            ) from error
    if not members:
        raise ConfigError(f"the sample {key!r} has no fields")
    return members


def encode_image(value: Any, field: str) -> bytes:
    """Return an image of Pillow, or an array uint8 (H, W) or (H, W, 3), as a file of the format that `field` names.

    JPEG is written with quality 95 and full chroma.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("writing images needs Pillow: pip install streamloader[images]") from error
    if not isinstance(value, Image.Image):
        value = to_array(value)
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise TypeError(f"images are uint8 arrays, got {value.dtype}")
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise TypeError("an image of Pillow, an array or bytes is needed")
    image_format = _FORMATS.get(field.rpartition(".")[2])
    if image_format is None:
        raise ValueError(f"images cannot be written as {field!r}: use {', '.join(_FORMATS)}")
    file = io.BytesIO()
    options = {"quality": _JPEG_QUALITY, "subsampling": 0} if image_format == "JPEG" else {}
    if image_format == "WEBP":
        options = {"lossless": True}
    value.save(file, image_format, **options)
    return file.getvalue()


def guess_image_field(data: bytes) -> str:
    """Return the field for the bytes of an image file.

    Raises:
        ConfigError: If they are those of no known format.
    """
    for magic, field in _MAGIC:
        if data.startswith(magic):
            return field
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise ConfigError("the bytes of an image are those of no format that is known: give images of Pillow")


def _encode(field: str, value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    extension = field.rpartition(".")[2]
    if extension in IMAGE_FIELDS:
        return encode_image(value, field)
    if extension in _INTEGER_FIELDS:
        return b"%d" % operator.index(value)
    if extension in ("json", "jsn"):
        return json.dumps(value, allow_nan=False).encode()
    if extension == "npy":
        return _encode_array(value)
    if isinstance(value, str):
        return value.encode()
    raise TypeError("it takes bytes or a string")


def to_array(value: Any) -> Any:
    """Return a tensor as an array, without its gradient, from any device. Other values are returned unchanged."""
    if not hasattr(value, "numpy"):
        return value
    return value.numpy(force=True) if hasattr(value, "detach") else value.numpy()


def _encode_array(value: Any) -> bytes:
    if isinstance(value, str):
        raise TypeError("it takes an array, a tensor or bytes; 'txt' takes strings")
    array = np.asarray(to_array(value))
    if array.dtype.hasobject:
        raise TypeError("arrays of objects would need pickle")
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
