"""Show examples at the end of help texts."""

from __future__ import annotations

import argparse
from typing import Final

from typing_extensions import override

__all__ = ["add_examples"]

_HEADING: Final = "example"


def add_examples(parser: argparse.ArgumentParser, *commands: str) -> None:
    """Show examples at the end of the help text of a command.

    Args:
        parser: Parser of the command.
        *commands: Command lines, at least one.
    """
    heading = f"{_HEADING}{'' if len(commands) == 1 else 's'}:"
    parser.epilog = "\n".join([heading, *(f"  {command}" for command in commands)])
    shows_defaults = parser.formatter_class is argparse.ArgumentDefaultsHelpFormatter
    parser.formatter_class = _DefaultsHelpFormatter if shows_defaults else _ExamplesHelpFormatter


class _ExamplesHelpFormatter(argparse.HelpFormatter):
    """Wraps all text but the examples."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_HEADING) else super()._fill_text(text, width, indent)


class _DefaultsHelpFormatter(_ExamplesHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows default values, too."""
