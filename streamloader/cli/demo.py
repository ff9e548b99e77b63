"""``streamloader demo``: stream videos into a small recurrent model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from streamloader.cli.arguments import parse_count, parse_frame_size, parse_positive_count, parse_seconds
from streamloader.cli.examples import add_examples
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS

__all__ = ["EXIT_INTERRUPTED", "add_parser"]

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, the convention of shells


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="stream videos into a small recurrent model, and plot the result",
        description="Stream videos through worker processes into a small recurrent next-frame model. Its hidden "
        "state is carried from batch to batch and reset by the mask. Saves contact_sheet.png and loss.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_examples(parser, "streamloader demo", "streamloader demo 'videos/*.mp4' --seconds 120 --out pictures")
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEOS", help="files, patterns or directories (default: four downloaded clips)"
    )
    parser.add_argument("--lanes", type=parse_positive_count, default=4, help="rows of a batch")
    parser.add_argument("--window", type=parse_positive_count, default=16, help="steps of a batch")
    parser.add_argument("--workers", type=parse_count, default=2, help="worker processes; 0 uses a thread")
    parser.add_argument(
        "--size", type=_parse_model_size, default=(96, 128), metavar="HxW", help="frame size, multiples of 8"
    )
    parser.add_argument("--stride", type=parse_positive_count, default=3, help="use every n-th frame")
    parser.add_argument(
        "--max-pixels", type=parse_positive_count, default=DEFAULT_MAX_PIXELS, metavar="N",
        help="refuse videos with frames of more pixels",
    )  # fmt: skip
    parser.add_argument("--seconds", type=parse_seconds, default=60.0, help="duration of the training")
    parser.add_argument(
        "--batches", type=parse_positive_count, help="train on this number of batches, however long it takes"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the stream order and of the model")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.torch_support import require_torch

    require_torch("the demo needs")
    from streamloader.demo.clips import fetch_clips
    from streamloader.demo.train import Settings, run

    videos = arguments.videos
    if not videos:
        clips = fetch_clips(before_download=lambda: print("downloading four clips (once) ...", flush=True))
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
            max_pixels=arguments.max_pixels,
            seconds=arguments.seconds,
            batches=arguments.batches,
            seed=arguments.seed,
        )
    )
    if not result.losses:
        print("interrupted before the first batch" if result.interrupted else "the videos contain no frames")
        return EXIT_INTERRUPTED if result.interrupted else 2
    early, late = result.mean(result.losses, first=True), result.mean(result.losses)
    print(
        f"{result.frames:,} frames in {result.seconds:.1f} s: {result.frames / result.seconds:,.0f} frames/s, "
        f"{result.waited / result.seconds:.1%} of the time spent waiting for data\n"
        f"loss (mean squared error of the next frame): {early:.5f} at the start, {late:.5f} at the end; "
        f"copying the last frame there: {result.mean(result.copying):.5f}"
    )
    for path in result.saved:
        print(f"saved {path}")
    return EXIT_INTERRUPTED if result.interrupted else 0


def _parse_model_size(text: str) -> tuple[int, int]:
    size = parse_frame_size(text)
    if min(size) < 8 or any(side % 8 for side in size):  # noqa: PLR2004 - the model's patches
        raise argparse.ArgumentTypeError(f"sides must be multiples of 8, got {text!r}")
    return size
