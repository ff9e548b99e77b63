"""``streamloader inspect``: show what is at an address: a file of any kind, a folder, a pack, or an archive."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamloader.cli.arguments import parse_count, parse_json_object, parse_positive_count, read_storage_options
from streamloader.cli.examples import add_examples
from streamloader.cli.inspect_files import format_files, summarize_address
from streamloader.cli.inspect_packs import format_packs, summarize_packs
from streamloader.cli.inspect_videos import describe_unusual
from streamloader.cli.tables import Section, open_printer, print_json
from streamloader.errors import ConfigError

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what is in a video, a sound, an image, a text, a container, a folder or an archive",
        description="Show what is at an address. Of a file: its size and version; of a video, its container, streams, "
        "frames, key frames, rate, frame size, rotation and colours; of a sound, its samples; of a container or shard, "
        "its members. Of a folder or pattern: totals, a line for each file, and the files that cannot be read, with "
        "reasons. Files are indexed by their tables (once; indexes are cached), and videos are not read whole where "
        "their tables suffice. Of an archive: its videos, the places and codecs of their chunks, and the videos that "
        "are being added; only the catalog is read. Of a pack, or a directory with packs: members, compression, and "
        "which packs are out of date. Exit status: 0, or 1 if a file cannot be read, or 2 if there is nothing to show.",
    )
    add_examples(
        parser,
        "streamloader inspect movie.mkv",
        "streamloader inspect s3://bucket/videos --limit 50",
        "streamloader inspect 'ssh://me@box/data/*.mp4' --json",
        "streamloader inspect archive.sqlite --where '{\"camera\": 3}'",
    )
    parser.add_argument(
        "address", metavar="URL",
        help="path, address or pattern of files; a folder; a container; URL of a catalog, or folder of an archive",
    )  # fmt: skip
    parser.add_argument(
        "video", nargs="?", metavar="NAME", help="name of one video of an archive to show with its chunks"
    )
    parser.add_argument(
        "--where",
        type=parse_json_object,
        metavar="JSON",
        help='list only videos whose metadata match, such as {"camera": 3}',
    )
    parser.add_argument(
        "--limit", type=parse_count, default=20, metavar="N", help="maximum number of listed items (20)"
    )
    parser.add_argument("--stream", type=parse_count, metavar="N", help="number of the video stream of a video, from 0")
    parser.add_argument(
        "--max-files", type=parse_positive_count, default=1000, metavar="N",
        help="maximum number of files of a folder that are opened; the others are counted (1000)",
    )  # fmt: skip
    parser.add_argument("--storage-options", metavar="FILE", help="JSON file of store options")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.archive.location import is_catalog_address
    from streamloader.stores.registry import spell_address

    arguments.address = spell_address(arguments.address)
    if arguments.video is not None and arguments.where is not None:
        raise ConfigError("NAME selects one video and --where selects several: give only one of the two")
    selects_videos = arguments.video is not None or arguments.where is not None
    packs = summarize_packs(arguments.address, arguments.limit)
    if packs is not None:
        if selects_videos:
            raise ConfigError(f"{arguments.address} is no archive: NAME and --where select its videos")
        _print_report(arguments, packs, format_packs(packs))
        return 0
    if selects_videos or is_catalog_address(arguments.address):
        if arguments.stream is not None:
            raise ConfigError(f"{arguments.address} is no video: --stream selects one of its streams")
        return _show_archive(arguments)
    options = read_storage_options(arguments.storage_options)
    report = summarize_address(
        arguments.address, options, limit=arguments.limit, max_files=arguments.max_files, stream=arguments.stream
    )
    _print_report(arguments, report, format_files(report))
    return 1 if report.get("error") or report.get("unreadable_files") else 0


def _show_archive(arguments: argparse.Namespace) -> int:
    from streamloader.archive.catalog.registry import get_shared_catalog
    from streamloader.archive.location import catalog_url
    from streamloader.archive.summary import summarize_archive, summarize_video

    with get_shared_catalog(catalog_url(arguments.address)) as catalog:
        if arguments.video is None:
            report = catalog.call(summarize_archive(catalog.resource, arguments.where, arguments.limit))
        else:
            report = catalog.call(summarize_video(catalog.resource, arguments.video, arguments.limit))
    _print_report(arguments, report, _archive_sections(report) if arguments.video is None else _video_sections(report))
    return 0


def _print_report(arguments: argparse.Namespace, report: Mapping[str, Any], sections: Iterator[Section]) -> None:
    if arguments.json:
        print_json(report)
    else:
        open_printer(terminal=sys.stdout.isatty()).print(sections)


# --- formatting ---------------------------------------------------------------------------------------------------


def _archive_sections(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size

    matching, chunks = report["matching"], report["chunk_bytes"]
    facts = {
        "catalog": report["catalog"],
        "created": _format_date(report["created"]),
        "videos": f"{report['videos']:,}",
        "frames": f"{report['frames']:,}",
        "time": _format_duration(report["seconds"]),
    }
    if matching["where"] is not None:
        facts["matching"] = f"{matching['videos']:,} videos, {matching['frames']:,} frames: {matching['where']}"
    if matching["videos"]:
        facts["size"] = (
            f"{format_size(matching['bytes_out'])} in chunks, {format_size(matching['bytes_in'])} in the sources"
        )
        facts["frame sizes"] = _format_counts(matching["sizes"], "videos")
        facts["cut modes"] = _format_counts(matching["modes"], "videos")
    if chunks:
        partial = report["chunks_scanned"] < report["chunks"]
        facts["chunks"] = f"{report['chunks']:,}" + (f"; of the first {report['chunks_scanned']:,}:" if partial else "")
        facts["  each"] = (
            f"{format_size(chunks['min'])} to {format_size(chunks['max'])}, median {format_size(chunks['median'])}; "
            f"{report['chunk_frames']['min']:,} to {report['chunk_frames']['max']:,} frames"
        )
        facts["  codecs"] = _format_counts(report["codecs"], "chunks")
        if report["reencoded"]:
            facts["  encoded"] = f"{report['reencoded']:,} that could not be copied"
    yield Section("", facts=facts)
    columns: Sequence[str] = ("#", "place", "weight", "chunks", "size")
    rows: list[Sequence[str]] = [
        (str(p["number"]), p["url"], f"{p['weight']:g}", f"{p['chunks']:,}", format_size(p["bytes"]))
        for p in report["places"]
    ]
    yield Section("places", columns, rows)
    if report["listed"]:
        columns = ("#", "video", "first", "frames", "frame size", "time", "chunks", "size")
        rows = [
            (
                str(v["number"]), v["name"], f"{v['start']:,}", f"{v['frames']:,}", f"{v['height']}x{v['width']}",
                _format_duration(v["seconds"]), f"{v['chunks']:,}", format_size(v["bytes_out"]),
            )
            for v in report["listed"]
        ]  # fmt: skip
        remaining = matching["videos"] - len(rows)
        yield Section(
            "videos", columns, rows, f"and {remaining:,} more: raise --limit to list them" if remaining else ""
        )
    if report["jobs"]:
        columns = ("video", "source", "started", "last heartbeat")
        rows = [
            (job["name"], job["source"], _format_age(job["started"]), _format_age(job["heartbeat"]))
            for job in report["jobs"]
        ]
        yield Section("being added", columns, rows)


def _video_sections(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size

    first, last = report["start"], report["start"] + report["frames"] - 1
    rate = report["frames"] / max(report["seconds"], 1e-9)
    facts = {
        "video": f"{report['name']} (number {report['number']} of {report['catalog']})",
        "source": report["source"],
        "added": _format_date(report["added"]),
        "frames": f"{report['frames']:,}, numbers {first:,} to {last:,} of the archive",
        "time": f"{_format_duration(report['seconds'])} ({rate:.3f} frames/s on average)",
        "frame size": f"{report['height']}x{report['width']}",
        **describe_unusual(report),
        "size": f"{format_size(report['bytes_out'])} in {report['chunks']:,} chunks, "
        f"{format_size(report['bytes_in'])} in the source",
        "cut mode": report["mode"],
        "codecs": _format_counts(report["codecs"], "chunks"),
        "metadata": json.dumps(report["metadata"], ensure_ascii=False),
        "content": report["content"],
    }
    yield Section("", facts=facts)
    columns: Sequence[str] = ("#", "place", "chunks", "size")
    rows: list[Sequence[str]] = [
        (str(p["number"]), p["url"], f"{p['chunks']:,}", format_size(p["bytes"]))
        for p in report["places"]
        if p["chunks"]
    ]
    yield Section("places", columns, rows)
    columns = ("#", "first", "frames", "key frames", "codec", "size", "place", "path", "note")
    rows = [
        (
            str(c["number"]), f"{c['first']:,}", f"{c['frames']:,}", f"{c['key_frames']:,}", c["codec"],
            format_size(c["bytes"]), str(c["place"]), c["path"], c["note"],
        )
        for c in report["listed"]
    ]  # fmt: skip
    remaining = report["chunks"] - len(rows)
    yield Section("chunks", columns, rows, f"and {remaining:,} more: raise --limit to list them" if remaining else "")


def _format_counts(counts: Mapping[str, int], unit: str) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    items = [
        f"{name} ({count:,} {unit.removesuffix('s') if count == 1 else unit})"
        for name, count in list(counts.items())[:4]
    ]
    return ", ".join(items) + (f" and {len(counts) - 4} others" if len(counts) > 4 else "")  # noqa: PLR2004


def _format_duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.2f} s"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{remainder:02}"


def _format_date(timestamp: float) -> str:
    try:
        return dt.datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (ValueError, OverflowError, OSError):  # not a time that this machine can represent
        return "unknown"


def _format_age(timestamp: float) -> str:
    return f"{_format_duration(max(0.0, time.time() - timestamp))} ago"
