"""Parse ``metadata.txt``, which names the files of a folder: one relative path a line, in UTF-8."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.containers.base import describe_unsafe_name
from streamloader.errors import CorruptShard
from streamloader.stream_table import StringColumn

__all__ = ["METADATA_NAME", "FolderNames", "parse_metadata"]

METADATA_NAME: Final = "metadata.txt"

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_FIRST_PRINTABLE: Final = " "
_ORDINARY_NAME: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*")
_MAX_ORDINARY_CHARACTERS: Final = 500
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class FolderNames:
    """Names of the files of a folder.

    Attributes:
        names: Paths of the files, relative to the folder.
        bad_lines: Errors of the lines that name no file, in their order.
    """

    names: StringColumn
    bad_lines: tuple[CorruptShard, ...] = ()


def parse_metadata(data: bytes, address: str) -> FolderNames:
    """Return the files that a ``metadata.txt`` names, in its order.

    Lines may end with CR LF, and the first one may begin with a byte order mark. Empty lines, the file's own name and
    repeated names are left out. A line that could lead out of the folder, or that no file can have as its name, is
    an error.

    Args:
        data: Content of the file.
        address: Address of the file, for messages.
    """
    offset = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    names: dict[str, None] = {}
    errors: list[CorruptShard] = []
    repeated = 0
    for number, line in enumerate(data[offset:].split(b"\n"), 1):
        content = line.removesuffix(b"\r").removeprefix(b"./")
        if content and content != METADATA_NAME.encode():
            name, problem = _decode_name(content)
            if problem is not None:
                errors.append(_make_line_error(address, number, offset, name, problem))
            elif name in names:
                repeated += 1
            else:
                names[name] = None
        offset += len(line) + 1
    if repeated:
        _log.warning("%s names %d files more than once; each of them is one sample", address, repeated)
    return FolderNames(StringColumn.from_strings(names), tuple(errors))


def _decode_name(content: bytes) -> tuple[str, str | None]:
    """Return a name, and what is wrong with it."""
    try:
        name = content.decode()
    except UnicodeDecodeError:
        return content.decode(errors="backslashreplace"), "it is not UTF-8"
    if len(name) <= _MAX_ORDINARY_CHARACTERS and _ORDINARY_NAME.fullmatch(name):  # in a fraction of the time
        return name, None
    if any(character < _FIRST_PRINTABLE for character in name):
        return name, "it contains control characters"
    if name.startswith("\\") or name[1:2] == ":":
        return name, "it is an absolute path of Windows"
    if ".." in name.split("\\"):
        return name, "it contains '..'"
    problem = describe_unsafe_name(name)
    return name, None if problem is None else problem.replace("a member", "it is a path", 1)


def _make_line_error(address: str, number: int, offset: int, name: str, problem: str) -> CorruptShard:
    return CorruptShard(
        f"{address}, line {number}: {make_printable(name)!r} is not the path of a file in the folder: {problem}. "
        "Correct the line, or leave it out with on_error='skip'",
        address=address,
        offset=offset,
        line=number,
        member=make_printable(name),
    )
