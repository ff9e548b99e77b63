"""Checks of single values that a catalog stores: numbers, texts, lists and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

__all__ = [
    "MAX_SHOWN_CHARS", "Check", "RefusedValue", "describe_value", "list_of", "parse_json_object", "real_number", "text",
    "whole_number",
]  # fmt: skip

MAX_SHOWN_CHARS: Final = 80  # of a value in a message
_MAX_TEXT_CHARS: Final = 1 << 20
_MAX_JSON_CHARS: Final = 16 << 20
_MAX_UNCHECKED_BRACKETS: Final = 32  # JSON with no more brackets cannot be nested too deeply
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class RefusedValue(ValueError):
    """The value of a field cannot be used. The message is the reason, as a predicate of the field."""


# Returns the value of a field in the form that rows have, or raises RefusedValue.
Check: TypeAlias = Callable[[Any], Any]


def whole_number(low: int, high: int) -> Check:
    """Return a check for whole numbers from `low` to `high`."""

    def check(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise RefusedValue(f"is {describe_value(value)} instead of a whole number")
        if not low <= value <= high:
            raise RefusedValue(f"is {value}, but must be from {low} to {high}")
        return int(value)  # drivers have integer classes of their own

    return check


def real_number(low: float, high: float) -> Check:
    """Return a check for finite numbers from `low` to `high`."""

    def check(value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise RefusedValue(f"is {describe_value(value)} instead of a number")
        if not (low <= value <= high and math.isfinite(value)):
            raise RefusedValue(f"is {describe_value(value)}, but must be from {low:g} to {high:g}")
        return float(value)

    return check


def text(max_chars: int = _MAX_TEXT_CHARS, *, min_chars: int = 1, printable: bool = False, pattern: str = "") -> Check:
    """Return a check for texts.

    Args:
        max_chars: Maximum number of characters.
        min_chars: Minimum number of characters.
        printable: Whether control characters are refused.
        pattern: Regular expression for the whole text. Empty to accept any text.
    """
    compiled = re.compile(pattern, re.ASCII) if pattern else None

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise RefusedValue(f"is {describe_value(value)} instead of a text")
        if not min_chars <= len(value) <= max_chars:
            raise RefusedValue(f"has {len(value)} characters, but must have {min_chars} to {max_chars}")
        if not value.isascii():
            _require_unicode(value)
        if printable and _CONTROL.search(value):
            raise RefusedValue(f"is {describe_value(value)}, which contains control characters")
        if compiled is not None and compiled.fullmatch(value) is None:
            raise RefusedValue(f"is {describe_value(value)}, which does not have the form {pattern}")
        return value

    return check


def list_of(check_item: Check, max_items: int) -> Check:
    """Return a check for lists whose items pass `check_item`."""

    def check(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise RefusedValue(f"is {describe_value(value)} instead of a list")
        if len(value) > max_items:
            raise RefusedValue(f"has {len(value)} items, but must have {max_items} at most")
        return [check_item(item) for item in value]

    return check


def parse_json_object(value: Any) -> dict[str, Any]:
    """Return the JSON object in a text.

    Raises:
        RefusedValue: If it is not the text of a JSON object, or is too large or nested too deeply.
    """
    if not isinstance(value, str):
        raise RefusedValue(f"is {describe_value(value)} instead of a text")
    if len(value) > _MAX_JSON_CHARS:
        raise RefusedValue(f"has {len(value)} characters, but must have {_MAX_JSON_CHARS} at most")
    try:
        if not value.isascii():
            _require_unicode(value)
        document = _JSON.decode(value)
        if "\\u" in value:  # an escape may stand for half a character
            _require_unicode(json.dumps(document, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:MAX_SHOWN_CHARS]
        raise RefusedValue(f"is {describe_value(value)}, which is not JSON: {reason}") from error
    if not isinstance(document, dict):
        raise RefusedValue(f"is {describe_value(value)} instead of a JSON object")
    if value.count("{") + value.count("[") > _MAX_UNCHECKED_BRACKETS:
        _require_shallow(document, 0)
    return document


def _require_shallow(value: Any, depth: int) -> None:
    if depth > _MAX_UNCHECKED_BRACKETS:
        raise RefusedValue(f"is nested deeper than {_MAX_UNCHECKED_BRACKETS} levels")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_shallow(item, depth + 1)


def _require_unicode(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RefusedValue(f"is {describe_value(value)}, which is not valid Unicode") from None


def _refuse_constant(name: str) -> NoReturn:
    raise RefusedValue(f"{name} is not a JSON value")


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RefusedValue(f"{digits[:MAX_SHOWN_CHARS]} is too large for a number")
    return number


def describe_value(value: Any) -> str:
    """Return a short description of any value."""
    if isinstance(value, (str, bytes)):
        return repr(value[:MAX_SHOWN_CHARS])
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)[:MAX_SHOWN_CHARS]
    return f"a {type(value).__name__}"


_JSON: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_parse_float)
