"""``streamloader index-shards``: index tar files of another program once, and make a manifest of them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from streamloader.cli.arguments import read_storage_options
from streamloader.cli.examples import add_examples
from streamloader.redaction import clean, redact_address

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "index-shards",
        help="index a folder of tar shards once, beside them",
        description="Read all tar files of a folder once, and write beside each of them an index with the offsets and "
        "checksums of its members, and a manifest of all. RemoteDataset then opens the folder at once, and detects "
        "damaged shards. A shard that has an intact index already, for a file of the same size, is not read: an "
        "interrupted command goes on, and one after shards were added reads those alone. A bad shard does not stop the "
        "others. Exit status: 0 if all shards are indexed, 1 if some were left out, 2 otherwise.",
    )
    add_examples(parser, "streamloader index-shards s3://bucket/shards")
    parser.add_argument("address", metavar="ADDRESS", help="path or store address of the folder")
    parser.add_argument(
        "--unreadable", choices=("raise", "skip"),
        help="list all shards that cannot be indexed and write no manifest, or leave them out (raise)",
    )  # fmt: skip
    parser.add_argument("--storage-options", metavar="FILE", help="JSON file of store options")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.datasets.shards.make_index import index_folder

    options = read_storage_options(arguments.storage_options)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report alone
        shards, skipped = index_folder(
            arguments.address, options, progress=not arguments.quiet, unreadable=arguments.unreadable
        )
    noun = "shard" if shards == 1 else "shards"
    left_out = f", {len(skipped):,} left out" if skipped else ""
    print(clean(f"{shards:,} {noun} indexed in {redact_address(arguments.address)}{left_out}"))
    return 1 if skipped else 0
