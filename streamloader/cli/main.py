"""Entry point of the command ``streamloader``: assemble the commands, and map errors to exit statuses."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from typing_extensions import override

from streamloader import __version__
from streamloader.cli import convert_vdd, demo, index, index_shards, ingest, inspect, pack, plan
from streamloader.cli.doctor import command as doctor
from streamloader.errors import StreamloaderError
from streamloader.redaction import clean

__all__ = ["main", "make_parser"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status.

    Args:
        argv: Command-line arguments without the program's name. Defaults to those of this process.

    Returns:
        0 on success, 2 after an error that the user can fix, 130 after Ctrl-C, or a status of the command's own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter of a name shows an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return demo.EXIT_INTERRUPTED
    except (StreamloaderError, OSError) as error:
        if arguments.debug:
            raise
        if isinstance(error, StreamloaderError):
            error.worker_traceback = None  # shown with --debug only
        print(f"streamloader: {clean(str(error))}", file=sys.stderr)
        return 2
    return status


class _CleanParser(argparse.ArgumentParser):
    """A parser whose messages quote arguments as they may be shown: a shell has put names of files there."""

    @override
    def error(self, message: str) -> NoReturn:
        super().error(clean(message))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with all subcommands."""
    parser = _CleanParser("streamloader", description="Batches whose rows are continuous in time.")
    parser.add_argument("--version", action="version", version=f"streamloader {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, index, index_shards, ingest, inspect, doctor, plan, pack, convert_vdd):
        command.add_parser(commands)
    return parser
