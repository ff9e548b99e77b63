"""``streamloader pack``: make packs of the files in a directory."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any, Final

from streamloader.arguments import expand_path
from streamloader.cli.arguments import COMPRESSIONS, make_compressor
from streamloader.cli.examples import add_examples
from streamloader.common.count_display import open_count_display
from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError, NotFound
from streamloader.redaction import clean

__all__ = ["add_parser"]

_MEGABYTE: Final = 1_000_000
_MAX_ADDRESS_CHARACTERS: Final = 1000


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "pack",
        help="make packs of many small files, which open at once",
        description="Make a pack of each subdirectory, DIR/NAME.pack beside DIR/NAME/, as "
        "VirtualDirectory.save_state() does: only packs that are missing or out of date are written. With --output, "
        "make one pack of all files below DIR, subfolders included. Packs appear as a whole, or not at all. Left out "
        "are hidden files, and packs beside the folder of which they are a copy. Exit status: 0 if all packs are "
        "there, 2 otherwise.",
    )
    add_examples(parser, "streamloader pack photos", "streamloader pack photos --output photos.pack --compress zstd")
    parser.add_argument("folder", metavar="DIR", help="directory with subdirectories; with --output, any folder")
    parser.add_argument("--output", metavar="FILE.pack", help="write one pack of all files below DIR")
    parser.add_argument(
        "--compress", choices=COMPRESSIONS,
        help="compress the files (they are stored as they are). Images and videos do not become smaller",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    folder = expand_path(arguments.folder)
    if not os.path.isdir(folder):
        raise NotFound(f"there is no folder {make_printable(folder, _MAX_ADDRESS_CHARACTERS)}", address=folder)
    return _pack_folder(folder, arguments) if arguments.output else _pack_subdirectories(folder, arguments)


def _pack_folder(folder: str, arguments: argparse.Namespace) -> int:
    from streamloader.datasets.directory.pack_folder import pack_folder

    target = expand_path(arguments.output)
    if not target.endswith(".pack"):
        raise ConfigError(f"--output {make_printable(target)}: the name of a pack ends with .pack")
    with contextlib.ExitStack() as stack:
        show = None if arguments.quiet else stack.enter_context(open_count_display("packing megabytes"))
        packed = pack_folder(
            folder,
            target,
            compressor=make_compressor(arguments.compress),
            show=lambda done, total: show(done // _MEGABYTE, total // _MEGABYTE) if show else None,
        )
    _print_summary(
        packed.members, packed.bytes, f"in {make_printable(target, _MAX_ADDRESS_CHARACTERS)}", packed.pack_bytes
    )
    return 0


def _pack_subdirectories(folder: str, arguments: argparse.Namespace) -> int:
    from streamloader.datasets.directory.pack_subdirectories import pack_subdirectories

    packed = pack_subdirectories(folder, compressor=make_compressor(arguments.compress), verbose=not arguments.quiet)
    packs = _format_count(packed.written + packed.unchanged, "pack")
    counts = f"{packed.written:,} written, {packed.unchanged:,} up to date"
    _print_summary(packed.members, packed.bytes, f"in {packs}", packed.pack_bytes, f": {counts}")
    return 0


def _print_summary(files: int, size: int, target: str, pack_bytes: int, counts: str = "") -> None:
    from streamloader.archive.ingest.progress import format_size

    print(clean(f"{_format_count(files, 'file')} ({format_size(size)}) {target} ({format_size(pack_bytes)}){counts}"))


def _format_count(count: int, noun: str) -> str:
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"
