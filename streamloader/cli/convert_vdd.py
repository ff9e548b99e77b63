"""``streamloader convert-vdd``: convert ``.vdd`` files, which contain a pickle, to packs."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

from streamloader.arguments import expand_path
from streamloader.cli.arguments import COMPRESSIONS, make_compressor, parse_positive_count
from streamloader.cli.examples import add_examples
from streamloader.common.count_display import open_count_display
from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError
from streamloader.redaction import clean

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert-vdd",
        help="convert .vdd files, which contain a pickle, to packs",
        description="Convert .vdd files to packs. A .vdd file contains a pickle, and opening a pickle can run any "
        "program, so nothing else here opens one. Each file is read in a process of its own, with limited memory and "
        "time, which admits containers, texts and bytes alone; a file with anything else is refused, and nothing is "
        "written for it. The .vdd files stay as they are, and so do packs that exist already. Exit status: 0 if all "
        "files are converted, 2 otherwise.",
    )
    add_examples(parser, "streamloader convert-vdd photos --i-trust-this-file")
    parser.add_argument("folder", metavar="FOLDER", help="folder with .vdd files, or one such file")
    parser.add_argument(
        "--i-trust-this-file", action="store_true", help="confirm that you know who has made the files. Needed"
    )
    parser.add_argument("--output", metavar="FOLDER", help="folder for the packs (that of the .vdd files)")
    parser.add_argument("--compress", choices=COMPRESSIONS, help="compress the members (they are stored as they are)")
    parser.add_argument(
        "--max-memory", type=parse_positive_count, metavar="BYTES",
        help="maximum memory to read one file (half of this machine's, at most 8 GiB)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.datasets.directory.vdd import convert_vdd, find_vdd_files

    folder = expand_path(arguments.folder)
    if not arguments.i_trust_this_file:
        raise ConfigError(
            f"{make_printable(folder)} is not converted: .vdd files contain a pickle, and a pickle can run any program "
            "when it is opened. If you know who has made these files, repeat the command with --i-trust-this-file: "
            "they are then read in a limited process that admits names and bytes alone. Where the files in the "
            "subdirectories still exist, `streamloader pack` makes packs of them, and no .vdd file is needed"
        )
    compressor = make_compressor(arguments.compress)
    sources = find_vdd_files(folder)
    targets = [_find_target(source, arguments.output) for source in sources]
    with contextlib.suppress(FileExistsError):
        if arguments.output:
            os.makedirs(expand_path(arguments.output))
    converted = []
    for source, target in zip(sources, targets, strict=True):
        if os.path.lexists(target):
            print(clean(f"left as it is: {make_printable(target, 1000)} exists already"))
            continue
        with contextlib.ExitStack() as stack:
            label = f"converting {make_printable(os.path.basename(source), 40)}"
            show = _show_nothing if arguments.quiet else stack.enter_context(open_count_display(label))
            converted.append(
                convert_vdd(source, target, compressor=compressor, memory_bytes=arguments.max_memory, show=show)
            )
    print(
        _format_summary(len(converted), sum(pack.members for pack in converted), sum(pack.bytes for pack in converted))
    )
    return 0


def _find_target(source: str, output: str | None) -> str:
    folder, name = os.path.split(source)
    return os.path.join(expand_path(output) if output else folder, f"{name.removesuffix('.vdd')}.pack")


def _show_nothing(_done: int, _total: int) -> None:
    pass


def _format_summary(packs: int, members: int, size: int) -> str:
    from streamloader.archive.ingest.progress import format_size

    return (
        f"{packs:,} {'pack' if packs == 1 else 'packs'} written: {members:,} {'file' if members == 1 else 'files'}, "
        f"{format_size(size)}"
    )
