"""Make text of foreign origin printable: names and messages from servers, files, catalogs and worker processes.

A terminal obeys escape sequences in what it prints, and shows text in the order that bidirectional controls state. A
line break in a name forges another line of a log. Such characters are therefore shown as escapes, as ``repr`` does.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_SHOWN_CHARACTERS", "make_error_printable", "make_printable"]

MAX_SHOWN_CHARACTERS: Final = 200
_OMISSION: Final = "..."
_LINE_BREAK: Final = "\n"


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
