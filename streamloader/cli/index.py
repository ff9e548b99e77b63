"""``streamloader index``: make an index file of videos, or bring it up to date."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any, Final

from streamloader.cli.arguments import parse_count, parse_positive_count, read_storage_options
from streamloader.cli.examples import add_examples
from streamloader.cli.tables import print_json
from streamloader.common.printable import make_printable
from streamloader.media.video.index import VERIFY_LEVELS
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.redaction import clean

if TYPE_CHECKING:
    from streamloader.streams.make_index import IndexReport

__all__ = ["add_parser"]

_MAX_LISTED: Final = 20  # videos that were left out
_MAX_ADDRESS_CHARACTERS: Final = 1000


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "index",
        help="index videos once, into one file",
        description="Index videos on all cores, and write one file from which VideoStreams.from_index opens a million "
        "of them in seconds. It can be shipped with the videos: addresses below its folder are relative to it. The "
        "command can be interrupted at any time: what is indexed is in the cache. Exit status: 0 if all videos are in "
        "the file, 1 if some were left out, 2 if no file was written.",
    )
    add_examples(
        parser,
        "streamloader index videos --to videos/index.sqlite",
        "streamloader index s3://bucket/videos --to s3://bucket/videos/index.sqlite --update",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, patterns, directories, or store addresses")
    parser.add_argument("--to", required=True, metavar="FILE", help="path or store address of the index file")
    parser.add_argument(
        "--update", action="store_true",
        help="bring an existing file up to date: index what is new or changed, remove what is gone",
    )  # fmt: skip
    parser.add_argument(
        "--verify", choices=VERIFY_LEVELS,
        help="what proves an index: the tables of the file, its decoded ends, or all decoded frames (tables)",
    )  # fmt: skip
    parser.add_argument(
        "--damaged", choices=("raise", "keep"),
        help="refuse truncated or damaged videos, or keep their decodable frames (raise)",
    )  # fmt: skip
    parser.add_argument(
        "--unreadable", choices=("raise", "skip"),
        help="list all videos that cannot be used and stop, or leave them out (raise)",
    )  # fmt: skip
    parser.add_argument(
        "--stream", type=parse_count, metavar="N",
        help="number of the video stream in files with several, from 0 (the one that is marked as default)",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=parse_positive_count, default=DEFAULT_MAX_PIXELS, metavar="N",
        help=f"refuse videos with frames of more pixels ({DEFAULT_MAX_PIXELS})",
    )  # fmt: skip
    parser.add_argument("--executor", choices=("local", "ray"), default="local", help="processes, or a Ray cluster")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="address of the Ray cluster (this machine's own)")
    parser.add_argument("--storage-options", metavar="FILE", help="JSON file of store options")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.streams.make_index import index_videos

    options = read_storage_options(arguments.storage_options)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the report alone
        report = index_videos(
            arguments.videos,
            arguments.to,
            update=arguments.update,
            unreadable=arguments.unreadable,
            damaged=arguments.damaged,
            verify=arguments.verify,
            stream=arguments.stream,
            max_pixels=arguments.max_pixels,
            storage_options=options,
            executor=arguments.executor,
            ray_address=arguments.ray_address,
            progress=not arguments.quiet,
        )
    if arguments.json:
        print_json(dataclasses.asdict(report))
    else:
        print(_format_report(report))
    return 1 if report.skipped else 0


def _format_report(report: IndexReport) -> str:
    lines = [
        f"left out: {make_printable(video.address, _MAX_ADDRESS_CHARACTERS)}: {make_printable(video.message)}"
        for video in report.skipped[:_MAX_LISTED]
    ]
    if len(report.skipped) > _MAX_LISTED:
        lines.append(f"left out: and {len(report.skipped) - _MAX_LISTED:,} more (--json lists all)")
    counts = [
        f"{count:,} {name}"
        for name, count in (
            ("new", report.added), ("changed", report.changed), ("removed", report.removed),
            ("unchanged", report.unchanged), ("left out", len(report.skipped)),
        )
        if count
    ]  # fmt: skip
    lines.append(
        f"{report.videos:,} {'video' if report.videos == 1 else 'videos'} in {report.address} ({', '.join(counts)})"
    )
    return clean("\n".join(lines))
