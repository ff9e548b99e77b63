"""Checks of what a worker process sends: strict JSON, the types and limits of fields, and log records.

A worker has parsed untrusted media, so a bug in a parser may have given it to someone else. All that it sends passes
these checks before it is used. A worker that sends anything else is killed, and replaced like one that died.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from streamloader.common.printable import make_printable

__all__ = [
    "LOGGER_NAME",
    "MAX_INT64",
    "MAX_LOG_CHARS",
    "MAX_LOG_LEVEL",
    "MAX_NESTING",
    "MIN_LOG_LEVEL",
    "Check",
    "InvalidMessage",
    "WorkerLog",
    "check_fields",
    "check_flag",
    "check_nesting",
    "integer",
    "list_of",
    "one_of",
    "optional",
    "parse_json",
    "text",
]

MAX_INT64: Final = (1 << 63) - 1
MAX_LOG_CHARS: Final = 16_384
MIN_LOG_LEVEL, MAX_LOG_LEVEL = logging.DEBUG, logging.CRITICAL
LOGGER_NAME: Final = re.compile(r"streamloader(?:\.[A-Za-z0-9_]{1,60}){0,6}")
_LOG_LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
MAX_NESTING: Final = 64
_MAX_SHOWN_CHARS: Final = 60
_MAX_LOG_LINES: Final = 100  # of one record
_MAX_LOG_BURST: Final = 1000  # lines
_MAX_LOG_LINES_PER_S: Final = 100.0

_MAX_LOGGERS: Final = 100  # that workers may create, because loggers are never freed
_used_names: Final[set[str]] = {"streamloader"}

Check = Callable[[Any, str], Any]  # takes a value and its name, and returns the value


class InvalidMessage(ValueError):
    """A worker sent a message that no correct worker sends. The text says what is wrong, and is printable."""


# --- JSON ------------------------------------------------------------------------------------------------------------


def parse_json(data: bytes | bytearray | memoryview) -> Any:
    """Parse JSON in UTF-8. The caller has limited its size.

    Raises:
        InvalidMessage: If it is not valid UTF-8 or JSON, or is nested too deeply.
    """
    try:
        value = json.loads(str(data, "utf-8"))
    except RecursionError:
        raise InvalidMessage("its JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidMessage(f"its JSON is malformed ({type(error).__name__})") from None
    check_nesting(value)
    return value


def check_nesting(value: Any) -> None:
    """Check that lists and dicts are not nested more than 64 levels deep.

    Raises:
        InvalidMessage: If they are.
    """
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [container for container in level if type(container) is dict or type(container) is list]
        if not level:
            return
        level = [item for container in level for item in (container.values() if type(container) is dict else container)]
    raise InvalidMessage(f"its JSON is nested more than {MAX_NESTING} levels deep")


# --- fields ----------------------------------------------------------------------------------------------------------


def integer(low: int = 0, high: int = MAX_INT64) -> Check:
    """Return a check for whole numbers from `low` to `high`. Booleans and floats are none."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise InvalidMessage(f"{name} is {_show(value)} instead of a whole number from {low} to {high}")
        return value

    return check


def text(max_chars: int, pattern: re.Pattern[str] | None = None) -> Check:
    """Return a check for texts that UTF-8 can encode, of limited length, which match a pattern if one is given."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not str or len(value) > max_chars:
            raise InvalidMessage(f"{name} is {_show(value)} instead of a text of up to {max_chars} characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidMessage(f"{name} is {_show(value)}, which is not valid Unicode") from None
        if pattern is not None and not pattern.fullmatch(value):
            raise InvalidMessage(f"{name} is {_show(value)}, which is not a valid value")
        return value

    return check


def check_flag(value: Any, name: str) -> Any:
    """Check that a value is True or False, and return it."""
    if type(value) is not bool:
        raise InvalidMessage(f"{name} is {_show(value)} instead of true or false")
    return value


def one_of(*values: Any) -> Check:
    """Return a check for values that equal one of `values`, and have its type."""

    def check(value: Any, name: str) -> Any:
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            raise InvalidMessage(f"{name} is {_show(value)}, which is not a valid value")
        return value

    return check


def optional(check_value: Check) -> Check:
    """Return a check for null, and for values that pass another check."""
    return lambda value, name: None if value is None else check_value(value, name)


def list_of(check_item: Check, max_items: int, min_items: int = 0) -> Check:
    """Return a check for lists whose items pass another check."""

    def check(value: Any, name: str) -> Any:
        if type(value) is not list or not min_items <= len(value) <= max_items:
            raise InvalidMessage(f"{name} is {_show(value)} instead of a list of {min_items} to {max_items} items")
        for item in value:
            check_item(item, f"an item of {name}")
        return value

    return check


def check_fields(value: Any, fields: Mapping[str, Check], name: str) -> dict[str, Any]:
    """Check that a value is a dict with exactly these fields, and return it.

    Args:
        value: Value to check.
        fields: Check of each field.
        name: Name of the value, for the error.

    Raises:
        InvalidMessage: If it is not.
    """
    if type(value) is not dict:
        raise InvalidMessage(f"{name} is {_show(value)} instead of an object")
    if value.keys() != fields.keys():
        raise InvalidMessage(f"{name} has the fields {_show(sorted(value))} instead of {sorted(fields)}")
    for field, check in fields.items():
        check(value[field], f"{name}.{field}")
    return value


def _show(value: Any) -> str:
    """Return a short, printable description of a value."""
    if isinstance(value, (dict, set)):
        return f"a {type(value).__name__} of {len(value)} items"
    if isinstance(value, list):
        return f"a list of {len(value)} items: {_show(', '.join(_show(item) for item in value[:3]))}"
    if isinstance(value, str):
        return repr(make_printable(value, _MAX_SHOWN_CHARS))
    if isinstance(value, int) and abs(value) > MAX_INT64:
        return "a number of more than 64 bits"
    return make_printable(repr(value), _MAX_SHOWN_CHARS)


# --- texts and log records -------------------------------------------------------------------------------------------


class WorkerLog:
    """Passes log records of a worker on to this process's loggers.

    A record gets the text of the worker and nothing else: no arguments, no position in a source file, no exception.
    Each of its lines is a record of its own that begins with the worker's label, so a worker cannot forge records of
    others. Records beyond 100 lines a second, after a burst of 1000, are dropped and counted.

    Args:
        label: Label of the worker, such as ``"worker 3"``.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._allowance = float(_MAX_LOG_BURST)
        self._refilled_at = time.monotonic()
        self._dropped = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Log a record, which has ``name``, ``level`` and ``message``.

        Raises:
            InvalidMessage: If one of them is not valid.
        """
        name = text(MAX_LOG_CHARS, LOGGER_NAME)(record["name"], "the name of a logger")
        level = one_of(*_LOG_LEVELS)(record["level"], "the level of a log record")
        message = text(MAX_LOG_CHARS)(record["message"], "the message of a log record")
        if len(_used_names) < _MAX_LOGGERS:
            _used_names.add(name)
        logger = logging.getLogger(name if name in _used_names else "streamloader")
        if not logger.isEnabledFor(level):
            return
        lines = message.splitlines() or [""]
        if len(lines) > _MAX_LOG_LINES:
            lines[_MAX_LOG_LINES - 1 :] = [f"({len(lines) - _MAX_LOG_LINES + 1} more lines)"]
        now = time.monotonic()
        self._allowance += (now - self._refilled_at) * _MAX_LOG_LINES_PER_S
        self._allowance, self._refilled_at = min(self._allowance, _MAX_LOG_BURST), now
        if len(lines) > self._allowance:
            self._dropped += 1
            return
        self._allowance -= len(lines)
        if self._dropped:
            logger.warning("%s: %d log records were dropped, because there were too many", self._label, self._dropped)
            self._dropped = 0
        for line in lines:
            logger.log(level, "%s: %s", self._label, make_printable(line, MAX_LOG_CHARS, keep_lines=False))
