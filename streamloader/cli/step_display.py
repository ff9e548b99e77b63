"""Show on a terminal which step of a command is running."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Final

from streamloader.common.printable import make_printable

__all__ = ["open_step_display"]

_CLEAR_LINE: Final = "\r\x1b[K"


@contextlib.contextmanager
def open_step_display(label: str, stream: IO[str] | None = None) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the name of the step which starts. The line disappears at the end.

    Args:
        label: Name of the work, such as "examining".
        stream: Text stream for the line. Nothing is shown if it is no terminal. Defaults to stderr.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda _step: None
        return

    def show(step: str) -> None:
        stream.write(f"{_CLEAR_LINE}{label}: {make_printable(step, 60)} ...")
        stream.flush()

    try:
        yield show
    finally:
        stream.write(_CLEAR_LINE)
        stream.flush()
