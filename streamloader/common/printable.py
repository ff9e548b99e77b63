"""Make text of foreign origin printable: names and messages from servers, files, catalogs and worker processes.

A terminal obeys escape sequences in what it prints, and shows text in the order that bidirectional controls state. A
line break in a name forges another line of a log. Such characters are therefore shown as escapes, as ``repr`` does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["MAX_SHOWN_CHARACTERS", "make_error_printable", "make_printable", "make_storable"]

MAX_SHOWN_CHARACTERS: Final = 200
_OMISSION: Final = "..."
_LINE_BREAK: Final = "\n"
_UNSTORABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # general categories of Unicode: controls, surrogates, breaks


def make_printable(text: object, limit: int | None = MAX_SHOWN_CHARACTERS, *, keep_lines: bool = False) -> str:
    r"""Return text that a terminal or log shows as it is, on one line, and cut off if it is long.

    Control characters, line breaks, bidirectional controls, invisible characters and lone surrogates become escapes
    such as ``\x1b``, ``\n``, ``\u202e`` and ``\udcff``. Letters of all scripts are kept.

    Args:
        text: Text to show. Other values are converted with ``str``.
        limit: Maximum number of characters. None for no limit. Defaults to 200.
        keep_lines: Whether line feeds are kept, for text that this package has composed. Defaults to False.
    """
    shown = text if isinstance(text, str) else str(text)
    if limit is not None:  # first, so that huge text costs nothing
        shown = _cut(shown, limit)
    if shown.isprintable():
        return shown
    escaped = "".join(
        character if character.isprintable() or (keep_lines and character == _LINE_BREAK) else _escape(character)
        for character in shown
    )
    return escaped if limit is None else _cut(escaped, limit)


def make_storable(value: Any, *, keep_lines: bool = False) -> Any:
    r"""Return plain JSON values whose texts every catalog, file and program accepts.

    Bytes of a file name that are no UTF-8 (Python has lone surrogates for them), control characters and line breaks
    become escapes such as ``\udce9`` and ``\x1b``. All other characters are kept, invisible ones too.

    Args:
        value: Text, or a nested list, tuple or mapping of plain values.
        keep_lines: Whether line feeds are kept. Defaults to False.
    """
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(
            _escape(character)
            if unicodedata.category(character) in _UNSTORABLE and not (keep_lines and character == _LINE_BREAK)
            else character
            for character in value
        )
    if isinstance(value, Mapping):
        return {make_storable(name): make_storable(item, keep_lines=keep_lines) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [make_storable(item, keep_lines=keep_lines) for item in value]
    return value


def make_error_printable(error: BaseException) -> None:
    """Make the texts of another package's exception printable, so that its traceback may be shown.

    For exceptions that quote a server or a file, before they become the cause of an error of this package.
    """
    error.args = tuple(make_printable(item) if isinstance(item, str) else item for item in error.args)


def _cut(text: str, limit: int) -> str:
    """Return the beginning of a long text. Its end alone could be the end of a password without its address."""
    return text if len(text) <= limit else text[: max(0, limit - len(_OMISSION))] + _OMISSION


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
