"""``streamloader inspect``: what is in an archive."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamloader.cli.arguments import parse_count, parse_json_object
from streamloader.cli.tables import Section, open_printer
from streamloader.errors import ConfigError

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the command to those there are."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "inspect",
        help="show what is in an archive",
        description="Show what is in an archive: its videos, where their chunks are, how they are coded, and what is "
        "being added. Reads nothing but the catalog.",
    )
    parser.add_argument("archive", metavar="ARCHIVE", help="url of the catalog, or the folder of a local archive")
    parser.add_argument("video", nargs="?", metavar="NAME", help="of one video, to be shown with its chunks")
    parser.add_argument(
        "--where", type=parse_json_object, metavar="JSON", help='list videos whose metadata match: {"camera": 3}'
    )
    parser.add_argument(
        "--limit", type=parse_count, default=20, metavar="N", help="videos, or chunks, that are listed (20)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.archive.catalog.registry import shared_catalog
    from streamloader.archive.location import catalog_url
    from streamloader.archive.summary import look_at, look_at_video

    if arguments.video is not None and arguments.where is not None:
        raise ConfigError("NAME is one video, --where chooses several: give one of them")
    with shared_catalog(catalog_url(arguments.archive)) as catalog:
        if arguments.video is None:
            told = catalog.call(look_at(catalog.it, arguments.where, arguments.limit))
        else:
            told = catalog.call(look_at_video(catalog.it, arguments.video, arguments.limit))
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        open_printer(terminal=sys.stdout.isatty()).print(_archive(told) if arguments.video is None else _video(told))
    return 0


# --- what is shown ---------------------------------------------------------------------------------------------------


def _archive(told: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import size

    matching, chunks = told["matching"], told["chunk_bytes"]
    facts = {
        "catalog": told["catalog"],
        "created": _date(told["created"]),
        "videos": f"{told['videos']:,}",
        "frames": f"{told['frames']:,}",
        "time": _time(told["seconds"]),
    }
    if matching["where"] is not None:
        facts["matching"] = f"{matching['videos']:,} videos, {matching['frames']:,} frames: {matching['where']}"
    if matching["videos"]:
        facts["size"] = f"{size(matching['bytes_out'])} in chunks, {size(matching['bytes_in'])} in the sources"
        facts["pictures"] = _counted(matching["sizes"], "videos")
        facts["cut by"] = _counted(matching["modes"], "videos")
    if chunks:
        some = told["chunks_looked_at"] < told["chunks"]
        facts["chunks"] = f"{told['chunks']:,}" + (f"; of the first {told['chunks_looked_at']:,}:" if some else "")
        facts["  each"] = (
            f"{size(chunks['least'])} to {size(chunks['most'])}, half of them up to {size(chunks['median'])}; "
            f"{told['chunk_frames']['least']:,} to {told['chunk_frames']['most']:,} frames"
        )
        facts["  codecs"] = _counted(told["codecs"], "chunks")
        if told["encoded_anew"]:
            facts["  encoded anew"] = f"{told['encoded_anew']:,}, which could not be copied"
    yield Section("", facts=facts)
    columns: Sequence[str] = ("#", "place", "weight", "chunks", "size")
    rows: list[Sequence[str]] = [
        (str(p["number"]), p["url"], f"{p['weight']:g}", f"{p['chunks']:,}", size(p["bytes"])) for p in told["places"]
    ]
    yield Section("places", columns, rows)
    if told["listed"]:
        columns = ("#", "video", "first", "frames", "picture", "time", "chunks", "size")
        rows = [
            (
                str(v["number"]), v["name"], f"{v['start']:,}", f"{v['frames']:,}", f"{v['height']}x{v['width']}",
                _time(v["seconds"]), f"{v['chunks']:,}", size(v["bytes_out"]),
            )
            for v in told["listed"]
        ]  # fmt: skip
        left = matching["videos"] - len(rows)
        yield Section("videos", columns, rows, f"and {left:,} more: --limit shows them" if left else "")
    if told["jobs"]:
        columns = ("video", "source", "begun", "last at work")
        rows = [(job["name"], job["source"], _ago(job["begun"]), _ago(job["beat"])) for job in told["jobs"]]
        yield Section("being added", columns, rows)


def _video(told: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import size

    facts = {
        "video": f"{told['name']} (number {told['number']} of {told['catalog']})",
        "source": told["source"],
        "added": _date(told["added"]),
        "frames": f"{told['frames']:,}, number {told['start']:,} to {told['start'] + told['frames'] - 1:,} of all",
        "time": f"{_time(told['seconds'])} ({told['frames'] / max(told['seconds'], 1e-9):.3f} frames/s on average)",
        "picture": f"{told['height']}x{told['width']}",
        "size": f"{size(told['bytes_out'])} in {told['chunks']:,} chunks, {size(told['bytes_in'])} in the source",
        "cut by": told["mode"],
        "codecs": _counted(told["codecs"], "chunks"),
        "metadata": json.dumps(told["metadata"], ensure_ascii=False),
        "content": told["content"],
    }
    yield Section("", facts=facts)
    columns: Sequence[str] = ("#", "place", "chunks", "size")
    rows: list[Sequence[str]] = [
        (str(p["number"]), p["url"], f"{p['chunks']:,}", size(p["bytes"])) for p in told["places"] if p["chunks"]
    ]
    yield Section("places", columns, rows)
    columns = ("#", "first", "frames", "key frames", "codec", "size", "place", "path", "note")
    rows = [
        (
            str(c["number"]), f"{c['first']:,}", f"{c['frames']:,}", f"{c['key_frames']:,}", c["codec"],
            size(c["bytes"]), str(c["place"]), c["path"], c["note"],
        )
        for c in told["listed"]
    ]  # fmt: skip
    left = told["chunks"] - len(rows)
    yield Section("chunks", columns, rows, f"and {left:,} more: --limit shows them" if left else "")


def _counted(counts: Mapping[str, int], what: str) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    shown = [
        f"{name} ({count:,} {what.removesuffix('s') if count == 1 else what})"
        for name, count in list(counts.items())[:4]
    ]
    return ", ".join(shown) + (f" and {len(counts) - 4} others" if len(counts) > 4 else "")  # noqa: PLR2004


def _time(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}"


def _date(when: float) -> str:
    return dt.datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _ago(when: float) -> str:
    return f"{_time(max(0.0, time.time() - when))} ago"
