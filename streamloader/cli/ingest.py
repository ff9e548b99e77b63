"""``streamloader ingest``: videos into an archive."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.cli.arguments import (
    parse_frame_rate,
    parse_frame_size,
    parse_json_pair,
    parse_text_pair,
    parse_weight,
)
from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog
    from streamloader.archive.ingest.report import IngestReport
    from streamloader.media.chunks.settings import CutSettings
    from streamloader.stores.io_thread import Shared

__all__ = ["add_parser"]

_CATALOG: Final = "catalog.sqlite"  # of an archive in a local folder
_NOTES: Final = 10  # that are shown one by one


def add_parser(commands: Any) -> None:
    """Add the command to those there are."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ingest",
        help="add videos to an archive: cut into chunks, in stores, found through a catalog",
        description="Add videos to an archive, which is made if it is not there. Packets are copied, so frames stay "
        "as they are, bit for bit; where a cut cannot be made so, just that chunk is encoded losslessly. Can be "
        "interrupted at any time: the same command again goes on where it was. Exit status: 0 if all videos are in the "
        "archive then, 1 if some could not be added, 2 if nothing could be done.",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, patterns, directories, addresses of stores")
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--to", action="append", default=[], metavar="STORE",
        help="folder, or address of one in a store, that chunks are put into; several for several servers",
    )  # fmt: skip
    where.add_argument(
        "--weight", action="append", default=[], type=parse_weight, metavar="W",
        help="share of chunks of each new --to, in the same order (1)",
    )  # fmt: skip
    where.add_argument(
        "--catalog", metavar="URL", help=f"file or database of the catalog (STORE/{_CATALOG}, where STORE is local)"
    )
    where.add_argument("--spread", choices=("weight", "free"), default="weight", help="by weight, or by free space too")
    where.add_argument(
        "--storage-options", metavar="FILE", help="JSON: options of stores, or beginnings of addresses with theirs"
    )
    _add_cutting(parser.add_argument_group("how they are cut"))
    what = parser.add_argument_group("what is kept with them")
    what.add_argument("--name", help="of the video, if it is only one (that of its file)")
    what.add_argument(
        "--metadata", action="append", default=[], type=parse_json_pair, metavar="NAME=VALUE",
        help="kept with each video, to find it by; VALUE is JSON, or a text",
    )  # fmt: skip
    how = parser.add_argument_group("how it is done")
    how.add_argument("--engine", choices=("local", "ray"), default="local", help="processes, or a Ray cluster")
    how.add_argument("--ray-address", metavar="ADDRESS", help="of the Ray cluster (the one this machine is part of)")
    how.add_argument("--jobs", type=int, metavar="N", help="how much is done side by side (as many as there are cores)")
    how.add_argument("--json", action="store_true", help="print the report as one JSON document")
    how.add_argument("--quiet", action="store_true", help="do not show how far it is")
    how.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _add_cutting(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mode", choices=("copy", "encode", "lossless"), default="copy", help="(copy)")
    group.add_argument("--chunk-frames", type=int, default=1000, metavar="N", help="frames of a chunk, about (1000)")
    group.add_argument("--codec", help="encoder of --mode encode (libx264)")
    group.add_argument(
        "--option", action="append", default=[], type=parse_text_pair, metavar="NAME=VALUE", help="of the encoder"
    )
    group.add_argument("--gop", type=int, metavar="N", help="frames between key frames, where encoded (12)")
    group.add_argument("--size", type=parse_frame_size, metavar="HxW", help="of the frames of --mode encode")
    group.add_argument(
        "--fps", type=parse_frame_rate, help="frames a second of --mode encode, such as 25 or 30000/1001"
    )
    group.add_argument("--audio", action="store_true", help="keep the sound in the chunks, for players")
    group.add_argument(
        "--verify",
        choices=("frames", "edges"),
        default="frames",
        help="which frames of each chunk are compared (frames)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.archive.catalog.registry import shared_catalog
    from streamloader.archive.ingest import add_videos
    from streamloader.media.chunks.settings import CutSettings

    options = _storage_options(arguments.storage_options)
    settings = CutSettings(
        mode=arguments.mode,
        chunk_frames=arguments.chunk_frames,
        codec=arguments.codec,
        options=dict(arguments.option),
        gop=arguments.gop,
        size=arguments.size,
        fps=arguments.fps,
        audio=arguments.audio,
        verify=arguments.verify,
    )
    with shared_catalog(_catalog_url(arguments)) as catalog, _what_is_kept():
        only = _places(catalog, arguments.to, arguments.weight)
        # What libraries print (Ray, of workers that died) is not the report: stdout is for that alone.
        with contextlib.redirect_stdout(sys.stderr):
            report = add_videos(
                catalog,
                arguments.videos,
                settings,
                name=arguments.name,
                metadata=dict(arguments.metadata),
                engine=arguments.engine,
                jobs=arguments.jobs,
                spread=arguments.spread,
                storage_options=options,
                progress=not arguments.quiet,
                ray_address=arguments.ray_address,
                on_error="report",
                only=only,
            )
    if arguments.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print(_told(report, settings))
    return 1 if report.failed else 0


@contextlib.contextmanager
def _what_is_kept() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _say("what was done is kept: the same command again goes on there")
        raise


def _catalog_url(arguments: argparse.Namespace) -> str:
    from streamloader.stores.local import local_path
    from streamloader.stores.registry import scheme_of

    if arguments.catalog:
        return str(arguments.catalog)
    if not arguments.to:
        raise ConfigError("say where the archive is: --to STORE, or --catalog URL of one that is there")
    first = arguments.to[0]
    if scheme_of(first) not in ("", "file"):
        raise ConfigError(f"{first} is not of this machine: say where the catalog is to be, with --catalog")
    return os.path.join(os.path.expanduser(local_path(first)), _CATALOG)


def _places(catalog: Shared[Catalog], stores: Sequence[str], weights: Sequence[float]) -> list[int] | None:
    """Make the archive if there is none, or add places to it; return those that take the new chunks."""
    from streamloader.archive.create import ensure_places

    if len(weights) > len(stores):
        raise ConfigError("--weight belongs to a --to, and there are more of the former")
    given = {store: weights[number] if number < len(weights) else 1.0 for number, store in enumerate(stores)}
    if len(given) < len(stores):
        raise ConfigError("a --to is there twice")
    places = ensure_places(catalog, given)
    if places.created:
        _say(f"made an archive with its catalog at {catalog.it.url}")
    if places.added:
        _say(f"the archive has {len(places.added)} more places now: {', '.join(place.url for place in places.added)}")
    return places.numbers if stores else None


def _storage_options(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--storage-options {path} cannot be read as JSON: {error}") from error
    if not isinstance(told, dict):
        raise ConfigError(f"--storage-options {path} must hold a JSON object")
    return told


def _told(report: IngestReport, settings: CutSettings) -> str:
    """Return the report as people read it."""
    from streamloader.archive.ingest.progress import duration, size

    lines = []
    for note in report.notes[:_NOTES]:
        last = note.first + note.frames - 1
        lines.append(f"note: {note.video}, chunk {note.chunk} (frames {note.first}-{last}): {note.note}")
    if len(report.notes) > _NOTES:
        lines.append(f"note: and {len(report.notes) - _NOTES} more chunks (--json tells all)")
    lines += [f"known: {known.source} is {known.video.name!r} of the archive" for known in report.recognised[:_NOTES]]
    if len(report.recognised) > _NOTES:
        lines.append(f"known: and {len(report.recognised) - _NOTES} more")
    for failed in report.failed:
        kept = " (what was done of it is kept)" if failed.resumable else ""
        what = failed.error.message
        lines.append(f"failed: {what if failed.source in what else f'{failed.source}: {what}'}{kept}")
    counts = [f"{len(report.added)} {'video' if len(report.added) == 1 else 'videos'} added"]
    counts += [f"{len(report.recognised)} known already"] if report.recognised else []
    counts += [f"{len(report.failed)} failed"] if report.failed else []
    lines.append(f"{', '.join(counts)} in {duration(report.seconds)}")
    if report.added:
        chunks = sum(video.chunks for video in report.added)
        ratio = report.bytes_out / report.bytes_in if report.bytes_in else 0.0
        lines.append(
            f"{report.frames:,} frames in {chunks:,} {'chunk' if chunks == 1 else 'chunks'} ({settings.mode}): "
            f"{size(report.bytes_in)} in, {size(report.bytes_out)} out ({ratio:.0%}), "
            f"{report.frames_per_second:,.0f} frames/s"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
