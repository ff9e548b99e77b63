"""Parsers of argument values, mostly for the ``type=`` of :meth:`argparse.ArgumentParser.add_argument`."""

from __future__ import annotations

import argparse
import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.datasets.directory.compressors import ZlibCompressor, ZstdCompressor

__all__ = [
    "COMPRESSIONS",
    "make_compressor",
    "parse_count",
    "parse_frame_rate",
    "parse_frame_size",
    "parse_json_object",
    "parse_json_pair",
    "parse_positive_count",
    "parse_seconds",
    "parse_text_pair",
    "parse_weight",
    "read_storage_options",
]

COMPRESSIONS: Final = ("zstd", "zlib")


def make_compressor(name: str | None) -> ZlibCompressor | ZstdCompressor | None:
    """Return the compressor of packs with a name of `COMPRESSIONS`, or None without a name."""
    from streamloader.datasets.directory.compressors import ZlibCompressor, ZstdCompressor

    return None if name is None else ZstdCompressor() if name == "zstd" else ZlibCompressor()


def parse_count(text: str, minimum: int = 0) -> int:
    """Parse a whole number of `minimum` or more."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"must be a whole number of {minimum} or more, got {text!r}")
    return int(text)


def parse_positive_count(text: str) -> int:
    """Parse a whole number of 1 or more."""
    return parse_count(text, minimum=1)


def parse_seconds(text: str) -> float:
    """Parse a duration in seconds, above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:  # also refuses NaN
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


def parse_frame_size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHTxWIDTH`` in pixels; return (height, width)."""
    height, _, width = text.partition("x")
    try:
        return int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH such as 240x320, got {text!r}") from None


def parse_frame_rate(text: str) -> Fraction:
    """Parse a frame rate in frames per second, such as ``25`` or ``30000/1001``."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a number such as 25 or 30000/1001, got {text!r}") from None


def parse_weight(text: str) -> float:
    """Parse a finite number of 0 or more."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, got {text!r}")
    return weight


def parse_text_pair(text: str) -> tuple[str, str]:
    """Parse ``NAME=VALUE``; return (name, value)."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    return name, value


def parse_json_pair(text: str) -> tuple[str, Any]:
    """Parse ``NAME=VALUE``; the value is parsed as JSON where it is valid JSON, and kept as a string otherwise."""
    name, value = parse_text_pair(text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be JSON such as '{{\"camera\": 3}}': {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object such as '{{\"camera\": 3}}', got {text!r}")
    return value


def read_storage_options(path: str | None) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None without a file.

    Raises:
        ConfigError: If the file cannot be read, or contains no JSON object.
    """
    if path is None:
        return None
    if path.lstrip().startswith("{"):  # not shown again: it may contain secrets
        raise ConfigError(
            "--storage-options takes the name of a file with a JSON object, because all users of a machine can see its "
            "command lines: write the options into a file"
        )
    try:
        with open(path, encoding="utf-8") as file:
            options = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--storage-options {path} cannot be read as JSON: {error}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"--storage-options {path} must contain a JSON object")
    return options
