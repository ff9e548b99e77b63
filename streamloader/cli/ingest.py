"""``streamloader ingest``: add videos to an archive."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.arguments import expand_path
from streamloader.cli.arguments import (
    parse_count,
    parse_frame_rate,
    parse_frame_size,
    parse_json_pair,
    parse_positive_count,
    parse_text_pair,
    parse_weight,
    read_storage_options,
)
from streamloader.cli.examples import add_examples
from streamloader.cli.tables import print_json
from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.redaction import clean

if TYPE_CHECKING:
    from streamloader.archive.catalog.base import Catalog
    from streamloader.archive.create import EnsuredPlaces
    from streamloader.archive.ingest.report import IngestReport
    from streamloader.media.chunks.settings import CutSettings
    from streamloader.stores.io_thread import SharedResource

__all__ = ["add_parser"]

_CATALOG_FILE: Final = "catalog.sqlite"  # within the folder of a local archive
_MAX_ADDRESS_CHARACTERS: Final = 1000
_MAX_LISTED: Final = 10  # notes, and known videos, that are printed one by one


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ingest",
        help="cut videos into chunks and add them to an archive",
        description="Add videos to an archive, which is created if it does not exist. Packets are copied, so frames "
        "stay identical, bit for bit. Where a cut without encoding is impossible, only that chunk is encoded, and "
        "losslessly. Ingest can be interrupted at any time: the same command resumes it. A bad video does not stop the "
        "others, and is listed at the end. Exit status: 0 if all videos are in the archive, 1 if some could not be "
        "added or were left out, 2 if nothing could be done.",
    )
    add_examples(parser, "streamloader ingest videos --to archive --catalog archive/catalog.sqlite")
    parser.add_argument("videos", nargs="+", metavar="VIDEOS", help="files, patterns, directories, or store addresses")
    where = parser.add_argument_group("destination")
    where.add_argument(
        "--to", action="append", default=[], metavar="STORE",
        help="folder, or address of a folder in a store, that receives chunks; may be repeated for several servers. "
        "Without it, the places in the catalog do, but none on another machine",
    )  # fmt: skip
    where.add_argument(
        "--weight", action="append", default=[], type=parse_weight, metavar="W",
        help="share of the chunks for each new --to, in the same order (1)",
    )  # fmt: skip
    where.add_argument(
        "--catalog", metavar="URL",
        help=f"file or database of the catalog (STORE/{_CATALOG_FILE} if STORE is local)",
    )  # fmt: skip
    where.add_argument(
        "--spread", choices=("weight", "free"), default="weight",
        help="distribute chunks by weight only, or by weight and free space (weight)",
    )  # fmt: skip
    where.add_argument(
        "--storage-options", metavar="FILE",
        help="JSON file of store options, or of store options by address prefix; a prefix such as ssh://me@box also "
        "names a place of the catalog",
    )  # fmt: skip
    _add_cutting(parser.add_argument_group("cutting"))
    description = parser.add_argument_group("description of the videos")
    description.add_argument(
        "--name", metavar="NAME",
        help="name of the video, if there is only one, or a template of the names of all, with the fields stem, "
        "suffix, name, parent, grandparent and path: {grandparent}/{parent}/{stem} ({parent}/{name})",
    )  # fmt: skip
    description.add_argument(
        "--metadata", action="append", default=[], type=parse_json_pair, metavar="NAME=VALUE",
        help="metadata stored with each video, for searching; VALUE is JSON or a string",
    )  # fmt: skip
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--unreadable", choices=("raise", "skip"),
        help="count videos that cannot be used, and directories that may not be read, as failed, or leave them out "
        "with a warning (videos fail, directories are left out)",
    )  # fmt: skip
    execution.add_argument("--executor", choices=("local", "ray"), default="local", help="processes, or a Ray cluster")
    execution.add_argument("--ray-address", metavar="ADDRESS", help="address of the Ray cluster (this machine's own)")
    execution.add_argument("--jobs", type=int, metavar="N", help="number of parallel tasks (number of cores)")
    execution.add_argument("--json", action="store_true", help="print the report as one JSON document")
    execution.add_argument("--quiet", action="store_true", help="do not show progress")
    execution.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _add_cutting(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mode", choices=("copy", "encode", "lossless"), default="copy", help="how to cut (copy)")
    group.add_argument(
        "--chunk-frames", type=int, default=1000, metavar="N", help="approximate frames per chunk (1000)"
    )
    group.add_argument("--codec", help="encoder of --mode encode (libx264)")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        type=parse_text_pair,
        metavar="NAME=VALUE",
        help="option of the encoder",
    )
    group.add_argument("--gop", type=int, metavar="N", help="frames between key frames of encoded chunks (12)")
    group.add_argument("--size", type=parse_frame_size, metavar="HxW", help="frame size of --mode encode")
    group.add_argument("--fps", type=parse_frame_rate, help="frame rate of --mode encode, such as 25 or 30000/1001")
    group.add_argument(
        "--stream", type=parse_count, metavar="N",
        help="number of the video stream in files with several, from 0 (the one that is marked as default)",
    )  # fmt: skip
    group.add_argument(
        "--max-pixels", type=parse_positive_count, default=DEFAULT_MAX_PIXELS, metavar="N",
        help=f"refuse videos with frames of more pixels ({DEFAULT_MAX_PIXELS})",
    )  # fmt: skip
    group.add_argument(
        "--damaged", choices=("raise", "keep"), default="raise",
        help="refuse truncated and damaged videos, or take the frames of them that can be decoded (raise)",
    )  # fmt: skip
    group.add_argument("--audio", action="store_true", help="keep the audio in the chunks, for media players")
    group.add_argument(
        "--verify",
        choices=("frames", "edges"),
        default="frames",
        help="compare all frames of each chunk with the source, or only those at its edges (frames)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.archive.catalog.registry import get_shared_catalog
    from streamloader.archive.ingest import add_videos
    from streamloader.media.chunks.settings import CutSettings

    options = read_storage_options(arguments.storage_options)
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
        stream=arguments.stream,
        max_pixels=arguments.max_pixels,
        damaged=arguments.damaged,
    )
    with get_shared_catalog(_catalog_url(arguments)) as catalog, _resume_hint():
        ensured = _resolve_places(catalog, arguments.to, arguments.weight)
        # stdout is for the report alone; libraries print there too (Ray, when a worker dies).
        with contextlib.redirect_stdout(sys.stderr):
            report = add_videos(
                catalog,
                arguments.videos,
                settings,
                name=arguments.name,
                metadata=dict(arguments.metadata),
                executor=arguments.executor,
                jobs=arguments.jobs,
                spread=arguments.spread,
                storage_options=options,
                progress=not arguments.quiet,
                ray_address=arguments.ray_address,
                on_error="report",
                unreadable=arguments.unreadable,
                places=ensured.numbers or None,
                addresses=ensured.addresses,
            )
    if arguments.json:
        print_json(report.to_json())
    else:
        print(_format_report(report, settings))
    return 1 if report.failed or report.skipped else 0


@contextlib.contextmanager
def _resume_hint() -> Iterator[None]:
    """Explain after Ctrl-C that the same command resumes the work."""
    try:
        yield
    except KeyboardInterrupt:
        _print_message("finished work is kept: run the same command again to resume")
        raise


def _catalog_url(arguments: argparse.Namespace) -> str:
    from streamloader.stores.local import local_path
    from streamloader.stores.registry import scheme_of, spell_address

    if arguments.catalog:
        return str(arguments.catalog)
    if not arguments.to:
        raise ConfigError("the archive is not specified: give --to STORE, or --catalog URL for an existing archive")
    first = spell_address(arguments.to[0])
    if scheme_of(first) not in ("", "file"):
        raise ConfigError(f"{first} is not a local folder, so the catalog needs a location of its own: give --catalog")
    return os.path.join(expand_path(local_path(first)), _CATALOG_FILE)


def _resolve_places(catalog: SharedResource[Catalog], stores: Sequence[str], weights: Sequence[float]) -> EnsuredPlaces:
    """Create the archive, or add places to it. Return the places that receive the new chunks, if `stores` names any."""
    from streamloader.archive.create import ensure_places

    if len(weights) > len(stores):
        raise ConfigError("there are more --weight than --to arguments: each --weight belongs to a --to")
    given = {store: weights[number] if number < len(weights) else 1.0 for number, store in enumerate(stores)}
    if len(given) < len(stores):
        raise ConfigError("a --to is given twice")
    places = ensure_places(catalog, given)
    if places.created:
        _print_message(f"created an archive with its catalog at {catalog.resource.url}")
    if places.added:
        count = f"{len(places.added)} {'place' if len(places.added) == 1 else 'places'}"
        _print_message(f"added {count} to the archive: {', '.join(place.url for place in places.added)}")
    return places


def _format_report(report: IngestReport, settings: CutSettings) -> str:
    """Return the report as text for people."""
    from streamloader.archive.ingest.progress import format_duration, format_size

    lines = []
    for note in report.notes[:_MAX_LISTED]:
        last = note.first_frame + note.frames - 1
        where = f"{make_printable(note.video)}, chunk {note.chunk} (frames {note.first_frame}-{last})"
        lines.append(f"note: {where}: {make_printable(note.note)}")
    if len(report.notes) > _MAX_LISTED:
        lines.append(f"note: and {len(report.notes) - _MAX_LISTED} more chunks (--json lists all)")
    lines += [
        f"known: {make_printable(known.source, _MAX_ADDRESS_CHARACTERS)} is already in the archive as "
        f"{make_printable(repr(known.video.name))}"
        for known in report.existing[:_MAX_LISTED]
    ]
    if len(report.existing) > _MAX_LISTED:
        lines.append(f"known: and {len(report.existing) - _MAX_LISTED} more")
    for failed in report.failed:
        kept = " (its finished chunks are kept)" if failed.resumable else ""
        reason = failed.error.message
        source = make_printable(failed.source, _MAX_ADDRESS_CHARACTERS)
        lines.append(f"failed: {reason if source in reason else f'{source}: {reason}'}{kept}")
    for skipped in report.skipped:
        source, reason = make_printable(skipped.address, _MAX_ADDRESS_CHARACTERS), make_printable(skipped.message, None)
        lines.append(f"left out: {reason if source in reason else f'{source}: {reason}'}")
    counts = [f"{len(report.added)} {'video' if len(report.added) == 1 else 'videos'} added"]
    counts += [f"{len(report.existing)} already known"] if report.existing else []
    counts += [f"{len(report.failed)} failed"] if report.failed else []
    counts += [f"{len(report.skipped)} left out"] if report.skipped else []
    lines.append(f"{', '.join(counts)} in {format_duration(report.seconds)}")
    if report.added:
        chunks = sum(video.chunks for video in report.added)
        ratio = report.bytes_out / report.bytes_in if report.bytes_in else 0.0
        lines.append(
            f"{report.frames:,} frames in {chunks:,} {'chunk' if chunks == 1 else 'chunks'} ({settings.mode}): "
            f"{format_size(report.bytes_in)} in, {format_size(report.bytes_out)} out ({ratio:.0%}), "
            f"{report.frames_per_second:,.0f} frames/s"
        )
    return clean("\n".join(lines))


def _print_message(text: str) -> None:
    print(clean(text), file=sys.stderr)
