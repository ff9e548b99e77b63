"""The command ``streamloader``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from streamloader import __version__
from streamloader.cli import ingest, inspect
from streamloader.errors import StreamloaderError

__all__ = ["main"]

_INTERRUPTED = 130  # as shells have it: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (StreamloaderError, OSError) as error:
        if arguments.debug:
            raise
        if isinstance(error, StreamloaderError):
            error.worker_traceback = None  # --debug shows it
        print(f"streamloader: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("streamloader", description="Batches whose rows are continuous in time.")
    parser.add_argument("--version", action="version", version=f"streamloader {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="stream videos into a small recurrent model, and draw what was streamed and learnt",
        description="Stream videos through worker processes into a small recurrent next-frame model whose hidden "
        "state is carried from batch to batch and reset by the mask. Saves contact_sheet.png and loss.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "videos", nargs="*", metavar="VIDEOS", help="files, patterns or directories (default: real clips)"
    )
    demo.add_argument("--lanes", type=_positive, default=4, help="rows of a batch")
    demo.add_argument("--window", type=_positive, default=16, help="steps of a batch")
    demo.add_argument("--workers", type=_count, default=2, help="worker processes; 0: a thread")
    demo.add_argument("--size", type=_size, default=(96, 128), metavar="HxW", help="frame size, multiples of 8")
    demo.add_argument("--stride", type=_positive, default=3, help="every how many frames one is taken")
    demo.add_argument("--seconds", type=_seconds, default=60.0, help="how long to train")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    demo.add_argument("--seed", type=int, default=0, help="of the order and of the model")
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    demo.set_defaults(run=_demo)
    ingest.add_parser(commands)
    inspect.add_parser(commands)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from streamloader.demo.clips import fetch_clips
    from streamloader.demo.train import Settings, run

    videos = arguments.videos
    if not videos:
        clips = fetch_clips(before_download=lambda: print("fetching four real clips (once) ...", flush=True))
        videos = [str(path) for path in clips.values()]
    result = run(
        Settings(
            videos,
            arguments.out,
            lanes=arguments.lanes,
            window=arguments.window,
            workers=arguments.workers,
            size=arguments.size,
            stride=arguments.stride,
            seconds=arguments.seconds,
            seed=arguments.seed,
        )
    )
    if not result.losses:
        print("interrupted before the first batch" if result.interrupted else "the videos hold no frames")
        return _INTERRUPTED if result.interrupted else 2
    early, late = result.mean(result.losses, first=True), result.mean(result.losses)
    print(
        f"{result.frames:,} frames in {result.seconds:.1f} s: {result.frames / result.seconds:,.0f} frames/s, "
        f"{result.waited / result.seconds:.1%} of the time spent waiting for data\n"
        f"loss (mean squared error of the next frame): {early:.5f} at the start, {late:.5f} at the end; "
        f"copying the last frame there: {result.mean(result.copying):.5f}"
    )
    for path in result.saved:
        print(f"saved {path}")
    return _INTERRUPTED if result.interrupted else 0


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of {least} or more, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, least=1)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:  # nor is nan
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        size = int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH such as 96x128, got {text!r}") from None
    if min(size) < 8 or any(side % 8 for side in size):  # noqa: PLR2004 - the model's patches
        raise argparse.ArgumentTypeError(f"sides must be multiples of 8, got {text!r}")
    return size
