"""Open images with Pillow, and translate its errors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from streamloader.common.error_translation import error_translator
from streamloader.errors import CorruptStream, MediaLimitExceeded, StreamloaderError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from streamloader.media.image.headers import ImageFormat

__all__ = ["open_with_pillow", "translate_pillow_errors"]

_FORMATS: Final = {"gif": "GIF", "png": "PNG", "tiff": "TIFF", "webp": "WEBP"}  # Pillow's names


def open_with_pillow(data: bytes, format_: ImageFormat) -> ImageFile:
    """Open an image or animation of a known format.

    Raises:
        Exception: If Pillow cannot open it, see :func:`translate_pillow_errors`.
    """
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=[_FORMATS[format_]])


@error_translator
def translate_pillow_errors(name: str, make_error: Callable[[str], CorruptStream]) -> Iterator[None]:
    """Translate the errors of Pillow, whose decoders of damaged files raise errors of many kinds.

    Args:
        name: Path or address of the image without secrets.
        make_error: Function that returns the error for damage, given a description of it.

    Raises:
        MediaLimitExceeded: If the image exceeds Pillow's own limit, ``PIL.Image.MAX_IMAGE_PIXELS``.
        CorruptStream: If Pillow fails otherwise.
    """
    from PIL import Image

    try:
        yield
    except StreamloaderError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaLimitExceeded(
            f"{name} exceeds the limit of Pillow, which decodes TIFF and animations ({error}): convert it to PNG or "
            "JPEG, or reduce it",
            stream=name, address=name, limit="pixels", allowed=Image.MAX_IMAGE_PIXELS,
        ) from error  # fmt: skip
    except Exception as error:
        raise make_error(f"{type(error).__name__}: {error}") from error
