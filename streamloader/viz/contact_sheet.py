"""Looking at batches: a contact sheet in which a person sees at once whether they are coherent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from streamloader.loader.batch import Batch
    from streamloader.values import Array

__all__ = ["contact_sheet"]

_BACK = (24, 26, 31)
_TEXT = (208, 212, 220)
_FAINT = (128, 134, 146)
_BEGIN = (255, 159, 28)
_PADDING = (58, 61, 68)
_BORDER, _GAP, _LEFT, _TOP, _BELOW = 4, 4, 64, 30, 16  # pixels
_NARROWEST = 520  # pixels across, for the line at the top


def contact_sheet(
    batches: Iterable[Batch | Mapping[str, Array]],
    *,
    field: str = "data",
    names: Sequence[str] | None = None,
    every: int = 1,
    height: int = 84,
) -> Image:
    """Draw consecutive batches: rows are lanes, columns are time, and a border marks where a stream begins.

    Args:
        batches: of one loader, in order; or dicts as ``batch.numpy()`` gives them.
        field: the image field to draw: uint8, (B, T, C, H, W) or (B, T, H, W, C), C = 1 or 3.
        names: of the streams by ordinal, such as ``[info.key for info in loader.streams]``.
        every: steps for one column. A column shows its first step, or the first on which a stream begins in it.
        height: of a frame in the picture, pixels.

    Returns:
        a ``PIL.Image.Image``.

    Raises:
        ConfigError: there is no batch, or the field holds no images.
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("a contact sheet needs Pillow: pip install streamloader[demo]") from error
    frames, marks = _joined(batches, field)
    columns = _columns(marks["reset"], every)
    lanes, width = frames.shape[0], max(1, round(height * frames.shape[3] / frames.shape[2]))
    across, down = width + _GAP + 2 * _BORDER, height + _BELOW + _GAP + 2 * _BORDER
    wide = max(_LEFT + columns.shape[1] * across + _GAP, _NARROWEST)
    sheet = Image.new("RGB", (wide, _TOP + lanes * down + _GAP), _BACK)
    draw = ImageDraw.Draw(sheet)
    draw.text((_LEFT, 8), f"time ->   one column is {every} step{'s' * (every > 1)}", _FAINT, font_size=13)
    _legend(draw, sheet.width)
    for lane in range(lanes):
        top = _TOP + lane * down
        draw.text((8, top + height // 2), f"lane {lane}", _TEXT, font_size=13)
        for column, step in enumerate(columns[lane].tolist()):
            left = _LEFT + column * across
            box = (left, top, left + width + 2 * _BORDER - 1, top + height + 2 * _BORDER - 1)
            if not marks["valid"][lane, step]:
                draw.rectangle(box, _PADDING)
                continue
            begins = bool(marks["reset"][lane, step])
            if begins:
                draw.rectangle(box, _BEGIN)
            image = Image.fromarray(np.ascontiguousarray(frames[lane, step])).resize((width, height))
            sheet.paste(image, (left + _BORDER, top + _BORDER))
            label = str(int(marks["step"][lane, step]))
            if begins and names is not None:
                label = _fitted(draw, names[int(marks["stream"][lane, step])], across)
            draw.text((left + _BORDER, box[3] + 2), label, _BEGIN if begins else _FAINT, font_size=11)
    return sheet


def _joined(batches: Iterable[Batch | Mapping[str, Array]], field: str) -> tuple[Array, dict[str, Array]]:
    """Join batches along time; frames as (B, T, H, W, 3)."""
    parts = [batch if isinstance(batch, Mapping) else batch.numpy() for batch in batches]
    if not parts:
        raise ConfigError("a contact sheet needs at least one batch")
    if field not in parts[0]:
        raise ConfigError(f"the batches have no field {field!r}; they have {', '.join(parts[0])}")
    frames = np.concatenate([_channels_last(part[field]) for part in parts], 1)
    names = ("reset", "valid", "step", "stream")
    return frames, {name: np.concatenate([part[name] for part in parts], 1) for name in names}


def _channels_last(frames: Array) -> Array:
    if frames.dtype != np.uint8 or frames.ndim != 5:  # noqa: PLR2004 - (B, T) and an image
        raise ConfigError(f"a contact sheet draws uint8 images (B, T, C, H, W), got {frames.dtype} {frames.shape}")
    if frames.shape[-1] not in (1, 3):
        frames = np.moveaxis(frames, 2, -1)
    if frames.shape[-1] not in (1, 3):
        raise ConfigError(f"a contact sheet draws images of 1 or 3 channels, got {frames.shape}")
    return np.broadcast_to(frames, (*frames.shape[:-1], 3))


def _columns(reset: Array, every: int) -> Array:
    """Return, for each lane and column, the step to show: where a stream begins, else the first."""
    if every < 1:
        raise ConfigError(f"every is 1 or more, got {every}")
    starts = np.arange(0, reset.shape[1], every)
    shown = np.empty((reset.shape[0], len(starts)), np.int64)
    for column, start in enumerate(starts):
        shown[:, column] = start + reset[:, start : start + every].argmax(1)  # 0 where there is none
    return shown


def _legend(draw: ImageDraw, width: int) -> None:
    entries: list[tuple[str, Any]] = [("a stream begins", _BEGIN), ("padding", _PADDING)]
    right = width - 8
    for text, colour in reversed(entries):
        right -= int(draw.textlength(text, font_size=13))
        draw.text((right, 8), text, _FAINT, font_size=13)
        right -= 18
        draw.rectangle((right, 10, right + 11, 21), colour)
        right -= 14


def _fitted(draw: ImageDraw, text: str, width: int) -> str:
    while len(text) > 1 and draw.textlength(text, font_size=11) > width:
        text = text[:-2].rstrip("…") + "…"
    return text
