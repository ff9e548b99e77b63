"""``streamloader plan``: show what an epoch will be like, before a loader is built."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from streamloader.cli.arguments import parse_frame_rate, parse_frame_size, parse_positive_count, read_storage_options
from streamloader.cli.examples import add_examples
from streamloader.cli.tables import Section, open_printer, print_json
from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.streams.base import StreamDataset

__all__ = ["add_parser"]

_KINDS: Final = ("videos", "index", "archive", "texts")
_FRAME_OPTIONS: Final = ("size", "pix_fmt", "stride", "fps", "max_frames")


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="show batches, padding, loads, memory and bytes of an epoch",
        description="Show what an epoch of MultiStreamer will be like: its batches and padding with each switch and "
        "tail, the loads of the lanes, the memory of the ring, and the bytes to be read. Videos are indexed (once; "
        "indexes are cached), and nothing is decoded for the plan. The same as loader.plan_report().",
    )
    add_examples(parser, "streamloader plan videos --batch-size 32 --window 16 --ranks 4")
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, patterns, directories, or store addresses")
    parser.add_argument(
        "--kind", choices=_KINDS, default="videos",
        help="what VIDEOS are: videos, one index file, one archive, or texts, whose steps are bytes (videos)",
    )  # fmt: skip
    _add_loader_options(parser.add_argument_group("loader"))
    _add_frame_options(parser.add_argument_group("frames"))
    parser.add_argument(
        "--storage-options", metavar="FILE", help="JSON file of store options, or of store options by address prefix"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _add_loader_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch-size", type=parse_positive_count, required=True, metavar="N", help="lanes of each rank")
    group.add_argument("--window", type=parse_positive_count, required=True, metavar="T", help="steps of a batch")
    group.add_argument("--ranks", type=parse_positive_count, default=1, metavar="R", help="number of ranks (1)")
    group.add_argument(
        "--switch", choices=("pack", "align"), default="pack",
        help="start the next stream at once, or in the next window (pack)",
    )  # fmt: skip
    group.add_argument(
        "--tail", choices=("pad", "drop", "cycle"), default="pad",
        help="pad lanes that end early, stop at the first one, or let them start over (pad)",
    )  # fmt: skip
    group.add_argument(
        "--prefetch-factor", type=parse_positive_count, metavar="N",
        help="batches prepared ahead (2, and more for small batches)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="seed of the shuffle (0)")


def _add_frame_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--size", type=parse_frame_size, metavar="HxW", help="frame size (that of the videos)")
    group.add_argument("--pix-fmt", choices=("rgb24", "gray", "yuv420p"), help="pixel format (rgb24)")
    group.add_argument("--stride", type=parse_positive_count, metavar="N", help="use every n-th frame (1)")
    group.add_argument("--fps", type=parse_frame_rate, help="resample to a frame rate, such as 25 or 30000/1001")
    group.add_argument("--max-frames", type=parse_positive_count, metavar="N", help="longest stream, in steps")


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.loader.multistreamer import plan_dataset

    report = plan_dataset(
        _create_dataset(arguments),
        arguments.batch_size,
        arguments.window,
        prefetch_factor=arguments.prefetch_factor,
        seed=arguments.seed,
        switch=arguments.switch,
        tail=arguments.tail,
        world_size=arguments.ranks,
    )
    if arguments.json:
        print_json(report.to_dict())
    else:
        sections = (Section(table.title, table.columns, table.rows, table.footer) for table in report.to_tables())
        open_printer(terminal=sys.stdout.isatty()).print(sections)
    return 0


def _create_dataset(arguments: argparse.Namespace) -> StreamDataset:
    """Return the dataset of the command. No other function knows the kinds of datasets.

    Raises:
        ConfigError: If the arguments do not go together.
    """
    from streamloader.archive.streams import ArchiveStreams
    from streamloader.streams.text import TextStreams
    from streamloader.streams.video import VideoStreams

    addresses: list[str] = arguments.videos
    storage_options = read_storage_options(arguments.storage_options)
    frame_options = {name: value for name in _FRAME_OPTIONS if (value := getattr(arguments, name)) is not None}
    if arguments.kind == "videos":
        return VideoStreams(addresses, **frame_options, storage_options=storage_options)
    if arguments.kind in ("archive", "index"):
        if len(addresses) > 1:
            raise ConfigError(f"--kind {arguments.kind} takes one address, got {len(addresses)}")
        open_one = ArchiveStreams if arguments.kind == "archive" else VideoStreams.from_index
        return open_one(addresses[0], **frame_options, storage_options=storage_options)
    if frame_options:
        option = next(iter(frame_options)).replace("_", "-")
        raise ConfigError(f"--{option} is an option for frames: leave it out with --kind texts")
    return TextStreams(addresses, storage_options=storage_options)
