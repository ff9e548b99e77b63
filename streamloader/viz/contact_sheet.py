"""Contact sheets of batches, which show at a glance whether the batches are coherent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamloader.errors import ConfigError, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

    from streamloader.loader.batch import Batch
    from streamloader.values import Array

__all__ = ["contact_sheet"]

_BACKGROUND = (24, 26, 31)
_TEXT = (208, 212, 220)
_FAINT_TEXT = (128, 134, 146)
_STREAM_START = (255, 159, 28)
_PADDING = (58, 61, 68)
_BORDER_PX, _GAP_PX, _LEFT_MARGIN_PX, _TOP_MARGIN_PX, _LABEL_PX = 4, 4, 64, 30, 16
_MIN_WIDTH_PX = 520  # room for the heading and the legend


def contact_sheet(
    batches: Iterable[Batch | Mapping[str, Array]],
    *,
    field: str = "data",
    names: Sequence[str] | None = None,
    every: int = 1,
    height: int = 84,
) -> Image:
    """Draw consecutive batches: one row per lane, time from left to right, and a border where a stream starts.

    Args:
        batches: Consecutive batches of one loader, or dicts as ``batch.numpy()`` returns them.
        field: Name of the image field to draw: uint8, (B, T, C, H, W) or (B, T, H, W, C), with C = 1 or 3. Defaults to
            ``"data"``.
        names: Name of each stream by ordinal, such as ``[info.key for info in loader.streams]``, which labels its first
            step. By default, every label is the number of the step.
        every: Number of steps per column. A column shows the first step on which a stream starts, or its first step.
            Defaults to 1.
        height: Height of a frame in the sheet, in pixels. Defaults to 84.

    Returns:
        The sheet, a ``PIL.Image.Image``.

    Raises:
        ConfigError: If there is no batch, or the field contains no images.
        MissingDependency: If Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingDependency("a contact sheet needs Pillow: pip install streamloader[demo]") from error
    frames, marks = _join_batches(batches, field)
    columns = _select_steps(marks["reset"], every)
    lanes, width = frames.shape[0], max(1, round(height * frames.shape[3] / frames.shape[2]))
    cell_width, cell_height = width + _GAP_PX + 2 * _BORDER_PX, height + _LABEL_PX + _GAP_PX + 2 * _BORDER_PX
    sheet_width = max(_LEFT_MARGIN_PX + columns.shape[1] * cell_width + _GAP_PX, _MIN_WIDTH_PX)
    sheet = Image.new("RGB", (sheet_width, _TOP_MARGIN_PX + lanes * cell_height + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (_LEFT_MARGIN_PX, 8), f"time ->   one column is {every} step{'s' * (every > 1)}", _FAINT_TEXT, font_size=13
    )
    _draw_legend(draw, sheet.width)
    for lane in range(lanes):
        top = _TOP_MARGIN_PX + lane * cell_height
        draw.text((8, top + height // 2), f"lane {lane}", _TEXT, font_size=13)
        for column, step in enumerate(columns[lane].tolist()):
            left = _LEFT_MARGIN_PX + column * cell_width
            box = (left, top, left + width + 2 * _BORDER_PX - 1, top + height + 2 * _BORDER_PX - 1)
            if not marks["valid"][lane, step]:
                draw.rectangle(box, _PADDING)
                continue
            starts = bool(marks["reset"][lane, step])
            if starts:
                draw.rectangle(box, _STREAM_START)
            image = Image.fromarray(np.ascontiguousarray(frames[lane, step])).resize((width, height))
            sheet.paste(image, (left + _BORDER_PX, top + _BORDER_PX))
            label = str(int(marks["step"][lane, step]))
            if starts and names is not None:
                label = _shorten(draw, names[int(marks["stream"][lane, step])], cell_width)
            draw.text((left + _BORDER_PX, box[3] + 2), label, _STREAM_START if starts else _FAINT_TEXT, font_size=11)
    return sheet


def _join_batches(batches: Iterable[Batch | Mapping[str, Array]], field: str) -> tuple[Array, dict[str, Array]]:
    """Concatenate batches along time. Return the frames as (B, T, H, W, 3), and the marks by name."""
    parts: list[Mapping[str, Array]] = [getattr(batch, "numpy", lambda batch=batch: batch)() for batch in batches]
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


def _select_steps(reset: Array, every: int) -> Array:
    """Return the step to draw for each lane and column: the first on which a stream starts, or the first."""
    if every < 1:
        raise ConfigError(f"every must be 1 or more, got {every}")
    starts = np.arange(0, reset.shape[1], every)
    steps = np.empty((reset.shape[0], len(starts)), np.int64)
    for column, start in enumerate(starts):
        steps[:, column] = start + reset[:, start : start + every].argmax(1)  # 0 if no stream starts
    return steps


def _draw_legend(draw: ImageDraw, width: int) -> None:
    entries: list[tuple[str, Any]] = [("a stream starts", _STREAM_START), ("padding", _PADDING)]
    right = width - 8
    for text, colour in reversed(entries):
        right -= int(draw.textlength(text, font_size=13))
        draw.text((right, 8), text, _FAINT_TEXT, font_size=13)
        right -= 18
        draw.rectangle((right, 10, right + 11, 21), colour)
        right -= 14


def _shorten(draw: ImageDraw, text: str, width: int) -> str:
    while len(text) > 1 and draw.textlength(text, font_size=11) > width:
        text = text[:-2].rstrip("…") + "…"
    return text
