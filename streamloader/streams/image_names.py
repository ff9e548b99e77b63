"""Names of the images of a folder: their natural order, their numbers, and the numbers that are missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from streamloader.errors import CorruptStream
from streamloader.values import Array

__all__ = ["check_numbering", "find_numbers", "is_animation_name", "is_image", "may_be_animation", "order_naturally"]

_IMAGE_NAME: Final = re.compile(r"\.(jpe?g|jpe|jfif|png|apng|webp|gif|tiff?|bmp)$", re.IGNORECASE)
_ANIMATION_NAME: Final = re.compile(r"\.(gif|apng)$", re.IGNORECASE)
_UNCERTAIN_NAME: Final = re.compile(r"\.(png|webp)$", re.IGNORECASE)
_NUMBER: Final = re.compile(r"([0-9]+)")
_DIGITS: Final = "0123456789"
_MAX_DIGITS: Final = 18  # of an int64
_MAX_LISTED: Final = 10  # numbers in a message


def is_image(path: str) -> bool:
    """Return whether a path has the extension of an image or animation."""
    return _IMAGE_NAME.search(path) is not None


def is_animation_name(path: str) -> bool:
    """Return whether a path has an extension that only animations have."""
    return _ANIMATION_NAME.search(path) is not None


def may_be_animation(path: str) -> bool:
    """Return whether only the header of a file tells whether it is an image or an animation."""
    return _UNCERTAIN_NAME.search(path) is not None


def order_naturally(names: Sequence[str]) -> list[int]:
    """Return the order of `names` in which numbers in them count as numbers: 2.png comes before 10.png.

    Names that differ only in leading zeros are in the order of their characters.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    if len(set(map(len, names))) == 1 and find_numbers(names) is not None:
        return order  # digits of the same number of places
    return sorted(order, key=lambda number: _natural_key(names[number]))


def _natural_key(name: str) -> list[Any]:
    parts: list[Any] = _NUMBER.split(name)
    digits = (part.lstrip("0") for part in parts[1::2])
    parts[1::2] = [(len(part), part) for part in digits]  # the order of the numbers, however long they are
    return parts


def find_numbers(names: Sequence[str]) -> Array | None:
    """Return the number of each name (int64) if the names are alike but for one number. Otherwise return None."""
    if len(names) < 2:  # noqa: PLR2004
        return None
    prefix = _common_prefix(names).rstrip(_DIGITS)
    reversed_names = [name[::-1] for name in names]
    suffix = _common_prefix(reversed_names).rstrip(_DIGITS)
    start, end = len(prefix), -len(suffix) or None
    texts = [name[start:end] for name in names]
    if not all(text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS for text in texts):
        return None
    return np.fromiter(map(int, texts), np.int64, len(texts))


def _common_prefix(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what these two share, all between them share
    differing = (number for number, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    return first[: next(differing, len(first))]


def check_numbering(names: Sequence[str], folder: str) -> None:
    """Check that no number is missing in a folder of numbered images, and that none occurs twice.

    Numbers may begin anywhere, and advance by any step. Names that are not alike but for one number are not checked.

    Args:
        names: Names of the images, in natural order.
        folder: Path or address of the folder without secrets, for the error.

    Raises:
        CorruptStream: If a number is missing, or occurs twice. ``offset`` is the step at which it is missing.
            ``details`` has the first missing numbers.
    """
    numbers = find_numbers(names)
    if numbers is None:
        return
    steps = np.diff(numbers)
    advance = int(steps[steps > 0].min(initial=np.iinfo(np.int64).max))
    wrong = np.flatnonzero(steps != advance)
    if not len(wrong):
        return
    step = int(wrong[0]) + 1
    if steps[step - 1] == 0:
        raise CorruptStream(
            f"the images {names[step - 1]} and {names[step]} of {folder} have the same number: remove one of them",
            stream=folder, address=folder, offset=step,
        )  # fmt: skip
    missing = [
        number
        for position in wrong.tolist()[: _MAX_LISTED]
        for number in range(int(numbers[position]) + advance, int(numbers[position + 1]), advance)[:_MAX_LISTED]
    ][:_MAX_LISTED]  # fmt: skip
    total = int(((steps[wrong] - 1) // advance).clip(0).sum())
    others = f" and {total - 1} more" if total > 1 else ""
    raise CorruptStream(
        f"{folder} has no image with the number {missing[0]}{others}: {names[step]} follows {names[step - 1]}. Add it, "
        'or pass gaps="keep" to play the others without a pause',
        stream=folder, address=folder, offset=step, missing=missing, missing_count=total,
    )  # fmt: skip
