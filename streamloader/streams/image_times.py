"""Times of the images of a folder: from their names, from a table, or from the user's function."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from streamloader.errors import ConfigError, StreamloaderError, UnreadableStream
from streamloader.values import Array

__all__ = ["ImageTimesOption", "TimeUnit", "describe_times", "resolve_times", "validate_times"]

TimeUnit: TypeAlias = Literal["s", "ms", "us", "ns"]
ImageTimesOption: TypeAlias = (
    "str | os.PathLike[str] | Mapping[str, float] | Callable[[str, Sequence[str]], Sequence[float]] | None"
)

_NANOSECONDS: Final = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_LAST_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)[^0-9]*$")
_SEPARATORS: Final = (";", "\t", ",")  # the first of these that a line has; otherwise spaces
_TIME_HEADING: Final = re.compile(r"(time|timestamp|t|seconds)\b", re.IGNORECASE)
_MAX_NANOSECONDS: Final = (1 << 63) - 1


def validate_times(times: ImageTimesOption, unit: str) -> None:
    """Check the options of times.

    Raises:
        ConfigError: If one is invalid.
    """
    if not isinstance(unit, str) or unit not in _NANOSECONDS:
        raise ConfigError(f"time_unit must be one of {', '.join(_NANOSECONDS)}, got {unit!r}")
    if times is not None and not (isinstance(times, (str, os.PathLike, Mapping)) or callable(times)):
        raise ConfigError(
            'times must be "names", the name of a table in each folder, a mapping from the names of images to seconds, '
            f"or a function of folder and names, got {type(times).__name__}"
        )


def describe_times(times: ImageTimesOption) -> str | None:
    """Return the source of times as a plain value, for the settings of a dataset."""
    if times is None or isinstance(times, str):
        return times
    return "table" if isinstance(times, (Mapping, os.PathLike)) else "function"


def resolve_times(
    times: Any, unit: str, names: Sequence[str], folder: str, read_table: Callable[[str], bytes]
) -> Array:
    """Return the time of each image of a folder in nanoseconds, int64 (n,).

    Args:
        times: Option of the dataset, not None.
        unit: Unit of times in names and tables.
        names: Names of the images, in their order.
        folder: Path or address of the folder without secrets.
        read_table: Function that returns the content of a file in the folder.

    Raises:
        UnreadableStream: If an image has no time, or times run backwards.
        ConfigError: If the user's function returns something else than a time for each image.
    """
    if times == "names":
        result = [_parse_time(_number_in(name), unit) for name in names]
    elif isinstance(times, Mapping):
        result = [_find_time(times, name, folder) for name in names]
    elif callable(times):
        result = _call_function(times, names, folder)
    else:
        result = _read_table(read_table(os.fspath(times)), unit, names)
    for step, (name, time) in enumerate(zip(names, result, strict=True)):
        if time is None or not -_MAX_NANOSECONDS <= time <= _MAX_NANOSECONDS:
            raise UnreadableStream(
                f"the image {name} of {folder} has no time in {_source(times)}",
                stream=folder,
                address=folder,
                offset=step,
            )
    array = np.array(result, np.int64)
    backwards = np.flatnonzero(np.diff(array) < 0)
    if len(backwards):
        step = int(backwards[0]) + 1
        raise UnreadableStream(
            f"the times of {folder} run backwards: {names[step]} is before {names[step - 1]}, which precedes it in the "
            "order of names. Rename the images",
            stream=folder, address=folder, offset=step,
        )  # fmt: skip
    return array


def _source(times: Any) -> str:
    if times == "names":
        return "its name"
    return f"the table {os.fspath(times)}" if isinstance(times, (str, os.PathLike)) else "times="


def _number_in(name: str) -> str:
    match = _LAST_NUMBER.search(name.rpartition(".")[0] or name)
    return match[1] if match else ""


def _parse_time(text: str, unit: str) -> int | None:
    try:
        time = Decimal(text) * _NANOSECONDS[unit]
        return int(time) if abs(time) <= _MAX_NANOSECONDS else None
    except (ArithmeticError, ValueError):
        return None


def _find_time(times: Mapping[str, float], name: str, folder: str) -> int | None:
    for candidate in (f"{folder.rstrip('/')}/{name}", f"{folder.rstrip('/').rpartition('/')[2]}/{name}", name):
        if candidate in times:
            return _to_nanoseconds(times[candidate])
    return None


def _to_nanoseconds(seconds: Any) -> int | None:
    value = float(seconds)
    return round(value * _NANOSECONDS["s"]) if np.isfinite(value) else None


def _call_function(function: Any, names: Sequence[str], folder: str) -> list[int | None]:
    try:
        result = [_to_nanoseconds(seconds) for seconds in function(folder, list(names))]
    except StreamloaderError:
        raise
    except Exception as error:
        raise ConfigError(f"times raised {type(error).__name__} for {folder}: {error}", stream=folder) from error
    if len(result) != len(names):
        raise ConfigError(f"times returned {len(result)} times for the {len(names)} images of {folder}", stream=folder)
    return result


def _read_table(data: bytes, unit: str, names: Sequence[str]) -> list[int | None]:
    """Return the times in a text of lines: a time for each image in its order, or rows of a time and a name.

    Of several columns of numbers, the times are in the one whose heading says so, or else in the first.
    """
    lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
    rows = [_split_cells(line) for line in lines if line and not line.startswith("#")]
    heading = next((_split_cells(line.lstrip("# ")) for line in reversed(lines) if line.startswith("#")), [])
    if rows and all(_parse_time(cell, unit) is None for cell in rows[0]):
        heading, *rows = rows
    time_columns = [number for number, cell in enumerate(heading) if _TIME_HEADING.match(cell)]
    wanted = set(names)
    by_name: dict[str, int | None] = {}
    in_order: list[int | None] = []
    for row in rows:
        files = [cell.rpartition("/")[2] for cell in row]
        named = next((number for number, cell in enumerate(files) if cell in wanted), None)
        order = [*(time_columns if len(row) == len(heading) else []), *range(len(row))]
        values = [_parse_time(row[number], unit) for number in order if number != named]
        time = next((value for value in values if value is not None), None)
        if named is not None:
            by_name[files[named]] = time
        in_order.append(None if None in values else time)  # something else than a number may be a name
    if by_name or len(rows) != len(names):
        return [by_name.get(name) for name in names]
    return in_order


def _split_cells(line: str) -> list[str]:
    separator = next((each for each in _SEPARATORS if each in line), None)
    return [cell.strip().strip("\"'") for cell in line.split(separator)]
