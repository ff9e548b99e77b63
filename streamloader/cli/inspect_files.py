"""What ``streamloader inspect`` shows of files and folders at any address."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from streamloader.arguments import expand_path
from streamloader.cli.file_reports import describe_container, describe_file, guess_kind, read_file
from streamloader.cli.inspect_videos import describe_unusual
from streamloader.cli.media_reports import MediaReports
from streamloader.cli.step_display import open_step_display
from streamloader.cli.tables import Section
from streamloader.common.count_display import open_count_display
from streamloader.errors import ConfigError, DatasetError, StoreError, StreamloaderError
from streamloader.redaction import redact_address
from streamloader.streams.unreadable import ends_indexing

if TYPE_CHECKING:
    from streamloader.stores.addresses import SourceFile
    from streamloader.stores.search import UnreadableReport

__all__ = ["format_files", "summarize_address"]

_MAX_CONCURRENT_FILES: Final = 16
_MAX_TRANSIENT_FAILURES: Final = 8
_WAIT_S: Final = 0.2  # between two looks at the progress
_MAX_SIZES: Final = 5  # different frame sizes that are shown of a folder


def summarize_address(
    address: str, options: Mapping[str, Any] | None, *, limit: int, max_files: int, stream: int | None = None
) -> dict[str, Any]:
    """Return the report of a file, a container, or a folder (docs/streams.md describes its keys).

    Args:
        address: Path, address or pattern.
        options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        limit: Maximum number of listed files or members.
        max_files: Maximum number of files of a folder that are opened. The others are only counted.
        stream: Number of the video stream of a single video, from 0. Defaults to the one that is played.

    Raises:
        ConfigError: If `stream` is given for something else than a file.
        StreamNotFound: If there is nothing at the address.
        StoreError: If a store cannot be reached or denies access.
    """
    from streamloader.stores.addresses import expand_addresses
    from streamloader.stores.registry import select_options
    from streamloader.stores.search import UnreadableReport

    selected = select_options(address, options)
    with open_step_display("inspecting") as show:
        show("listing files")
        found = UnreadableReport()
        files = expand_addresses(address, None, selected, unreadable=found)
    found.check(files)
    if len(files) == 1 and _is_same(files[0].address, address):
        if guess_kind(address) == "container":
            return describe_container(address, selected, limit)
        with MediaReports() as media:
            is_fatal = _FailureCount(0).count
            return describe_file(files[0], selected, media=media, is_fatal=is_fatal, strict=True, stream=stream)
    if stream is not None:
        raise ConfigError(f"{address} is no video: --stream selects one of its streams")
    return _summarize_folder(address, files, found, selected, limit, max_files)


def format_files(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yield what is printed of a report."""
    if report["kind"] == "directory":
        yield from _format_folder(report)
    else:
        yield from _format_file(report)


def _is_same(found: str, address: str) -> bool:
    """Return whether an expanded address is the address itself, and not what a pattern or a directory contains."""
    import os

    from streamloader.stores.local import local_path
    from streamloader.stores.registry import is_local_file, split_address

    if is_local_file(address):
        return os.path.abspath(found) == os.path.abspath(expand_path(local_path(address)))
    return split_address(found) == split_address(address)


# --- folders ---------------------------------------------------------------------------------------------------------


def _summarize_folder(
    address: str,
    files: Sequence[SourceFile],
    found: UnreadableReport,
    options: Mapping[str, Any],
    limit: int,
    max_files: int,
) -> dict[str, Any]:
    listed = [_describe_unreadable(name, error, found) for name, error in sorted(found.entries.items())]
    examined = [*listed, *_describe_files(files[:max_files], options)]
    kinds: dict[str, dict[str, Any]] = {}
    for report in [*examined, *(_count_only(file) for file in files[max_files:])]:
        _add_to_totals(kinds.setdefault(report["kind"], _make_totals()), report)
    unreadable = [report for report in examined if report["error"] is not None]
    return {
        "address": redact_address(address),
        "kind": "directory",
        "files": len(files) + len(listed),
        "bytes": sum(totals["bytes"] for totals in kinds.values()),
        "examined": len(examined),
        "dataset": _find_dataset(address, files, options),
        "kinds": dict(sorted(kinds.items())),
        "listed": [report for report in examined if report["error"] is None][:limit],
        "unreadable_files": len(unreadable),
        "unreadable": unreadable[:limit],
    }


def _find_dataset(address: str, files: Sequence[SourceFile], options: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the numbers of samples and shards by the manifest in a folder, or None if it has none."""
    from streamloader.datasets.shards.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest

    root = address.rstrip("/")
    found = next((file for file in files if file.address.rstrip("/") == f"{root}/{MANIFEST_NAME}"), None)
    if found is None:
        return None
    try:
        manifest = Manifest.parse(read_file(found, options, MAX_MANIFEST_BYTES), redact_address(found.address))
    except DatasetError:  # of another program
        return None
    return {"samples": sum(shard.samples for shard in manifest.shards), "shards": len(manifest.shards)}


def _describe_files(files: Sequence[SourceFile], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the report of each file. Several are examined at the same time."""
    from streamloader.stores.io_thread import close_shared_stores

    with open_count_display("inspecting files") as show, MediaReports() as media:
        pool = ThreadPoolExecutor(min(_MAX_CONCURRENT_FILES, max(1, len(files))), "inspect")
        try:
            is_fatal = _FailureCount(_MAX_TRANSIENT_FAILURES).count
            futures = [
                pool.submit(describe_file, file, options, media=media, is_fatal=is_fatal, strict=False)
                for file in files
            ]
            for done, future in enumerate(futures):
                _wait(future)
                if (error := future.exception()) is not None:  # a fatal one: the others are not waited for
                    raise error
                show(done + 1, len(files))
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            close_shared_stores()  # ends the reads of the other threads
            media.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class _FailureCount:
    """Counts failures of stores that do not come from one file, so that a server that is gone ends the work.

    Args:
        limit: Number of such failures after which the next one is fatal.
    """

    def __init__(self, limit: int) -> None:
        self._remaining = limit

    def count(self, error: StreamloaderError) -> bool:
        """Return whether an error is fatal."""
        if not ends_indexing(error):
            return False
        self._remaining -= 1
        return self._remaining < 0 or not isinstance(error, StoreError)


def _wait(future: Future[Any]) -> None:
    """Wait for a result in short steps, so that an interrupt is noticed."""
    while not future.done():
        with contextlib.suppress(TimeoutError):
            future.exception(_WAIT_S)


def _describe_unreadable(name: str, error: StreamloaderError, found: UnreadableReport) -> dict[str, Any]:
    """Return the report of an entry that the search could not read: a directory, a pipe, a link to nothing."""
    return {
        "address": name,
        "kind": guess_kind(name) if name in found.files else "directory",
        "size": None,
        "version": None,
        "modified": None,
        "details": None,
        "error": {"type": type(error).__name__, "message": error.message},
    }


def _count_only(file: SourceFile) -> dict[str, Any]:
    import os

    size = None if file.info is None else file.info.size
    if file.info is None:
        with contextlib.suppress(OSError):
            size = os.path.getsize(file.address)
    return {"kind": guess_kind(file.address), "size": size, "details": None, "error": None}


def _make_totals() -> dict[str, Any]:
    return {"files": 0, "bytes": 0, "frames": 0, "seconds": 0.0, "unreadable": 0, "frame_sizes": {}}


def _add_to_totals(totals: dict[str, Any], report: Mapping[str, Any]) -> None:
    details = report["details"] or {}
    totals["files"] += 1
    totals["bytes"] += report["size"] or 0
    totals["frames"] += details.get("frames") or 0
    totals["seconds"] += details.get("seconds") or 0.0
    totals["unreadable"] += report["error"] is not None
    if "frame_size" in details:
        size = _format_size(details["frame_size"])
        totals["frame_sizes"][size] = totals["frame_sizes"].get(size, 0) + 1


# --- formatting ------------------------------------------------------------------------------------------------------


def _format_folder(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size

    dataset = report["dataset"]
    facts = {"folder": report["address"], "files": f"{report['files']:,}", "size": format_size(report["bytes"])}
    if dataset is not None:
        facts["data set"] = f"{dataset['samples']:,} samples in {dataset['shards']:,} shards, by its manifest"
    if report["examined"] < report["files"]:
        facts["examined"] = f"the first {report['examined']:,} files: raise --max-files to open more"
    yield Section("", facts=facts)
    columns: Sequence[str] = ("kind", "files", "size", "frames", "time", "unreadable", "frame sizes")
    rows: list[Sequence[str]] = [
        (
            kind,
            f"{totals['files']:,}",
            format_size(totals["bytes"]),
            f"{totals['frames']:,}" if totals["frames"] else "",
            _format_duration(totals["seconds"]) if totals["seconds"] else "",
            f"{totals['unreadable']:,}" if totals["unreadable"] else "",
            _format_counts(totals["frame_sizes"]),
        )
        for kind, totals in report["kinds"].items()
    ]
    yield Section("totals", columns, rows)
    if report["listed"]:
        columns = ("file", "kind", "size", "frames", "keys", "frame size", "rate", "time", "codec", "note")
        rows = [_list_cells(each, report["address"]) for each in report["listed"]]
        remaining = report["examined"] - report["unreadable_files"] - len(rows)
        yield Section("files", columns, rows, _format_rest(remaining))
    if report["unreadable"]:
        rows = [
            (_shorten(each["address"], report["address"]), each["error"]["message"]) for each in report["unreadable"]
        ]
        remaining = report["unreadable_files"] - len(rows)
        yield Section("files that cannot be read", ("file", "reason"), rows, _format_rest(remaining))


def _list_cells(report: Mapping[str, Any], folder: str) -> Sequence[str]:
    from streamloader.archive.ingest.progress import format_size

    details = report["details"] or {}
    fps, rate = details.get("fps"), details.get("rate")
    return (
        _shorten(report["address"], folder),
        report["kind"],
        "" if report["size"] is None else format_size(report["size"]),
        f"{details['frames']:,}" if "frames" in details else "",
        f"{details['key_frames']:,}" if "key_frames" in details else "",
        _format_size(details["frame_size"]) if "frame_size" in details else "",
        f"{fps:.5g}/s" if fps else f"{rate / 1e3:g} kHz" if rate else "",
        _format_duration(details["seconds"]) if details.get("seconds") else "",
        details.get("codec") or details.get("format") or "",
        ", ".join(_list_notes(details)),
    )


def _list_notes(details: Mapping[str, Any]) -> Iterator[str]:
    if details.get("rotation") or details.get("mirrored"):
        yield _format_rotation(details)
    if details.get("constant_rate") is False:
        yield "variable rate"
    if details.get("seekable") is False:
        yield "not seekable"
    if "pixel_format" in details and (sounds := len(details["sounds"])):
        yield "sound" if sounds == 1 else f"{sounds} sounds"
    if details.get("lines") is not None:
        more = "" if details["complete"] else "+"
        yield f"{details['lines']:,}{more} lines"


def _shorten(address: str, folder: str) -> str:
    """Return an address relative to the folder that is shown, if it lies below it."""
    root = folder.rstrip("/") + "/"
    return address.removeprefix(root) if address != root else address


def _format_file(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size

    size = report["size"]
    facts = {
        "address": report["address"],
        "kind": report["kind"],
        "size": "unknown" if size is None else format_exact_size(size),
        "version": report["version"] or "none",
    }
    if report["modified"] is not None:
        facts["modified"] = _format_date(report["modified"])
    details = report["details"]
    if details is not None:
        describe = {
            "video": _list_video_facts,
            "sound": _list_sound_facts,
            "image": _list_image_facts,
            "index": _list_index_facts,
            "text": _list_text_facts,
            "container": _list_container_facts,
            "shard": _list_container_facts,
        }[report["kind"]]
        facts |= describe(details)
    if report["error"] is not None:
        facts["error"] = f"{report['error']['type']}: {report['error']['message']}"
    yield Section("", facts=facts)
    if details is not None and details.get("sounds"):
        columns: Sequence[str] = ("#", "codec", "rate", "channels", "layout", "time", "language", "note")
        rows: list[Sequence[str]] = [
            (
                str(sound["index"]),
                sound["codec"] or "unknown",
                f"{sound['rate']:,} Hz" if sound["rate"] else "",
                str(sound["channels"] or ""),
                sound["layout"] or "",
                "" if sound["seconds"] is None else _format_duration(sound["seconds"]),
                _format_language(sound["language"]),
                ", ".join(sound["disposition"]),
            )
            for sound in details["sounds"]
        ]
        yield Section("sound streams", columns, rows)
    if report["kind"] == "video" and details is not None and len(details["videos"]) > 1:
        columns = ("#", "codec", "frame size", "language", "note")
        rows = [
            (
                str(each["index"]),
                each["codec"] or "unknown",
                _format_size(each["size"]) if each["size"] else "",
                _format_language(each["language"]),
                ", ".join(each["disposition"]),
            )
            for each in details["videos"]
        ]
        yield Section("video streams", columns, rows)
    if details is not None and details.get("listed"):
        rows = [
            (each["name"], "" if each["size"] is None else format_size(each["size"]), _format_date(each["modified"]))
            for each in details["listed"]
        ]
        yield Section("members", ("member", "size", "modified"), rows, _format_rest(details["members"] - len(rows)))


def _list_video_facts(details: Mapping[str, Any]) -> dict[str, str]:
    gap = details["longest_gap"]
    facts = {
        "container": f"{details['format_name']} ({details['format']})",
        "codec": " ".join(filter(None, (details["codec"], details["profile"]))),
        "frames": f"{details['frames']:,}",
        "key frames": f"{details['key_frames']:,}, at most {gap:,} {'frame' if gap == 1 else 'frames'} apart",
        "time": _format_duration(details["seconds"]) + (f", from {details['start']:.3f} s" if details["start"] else ""),
        "rate": _format_rate(details),
        "frame size": _format_size(details["frame_size"]) + " (height x width)",
        "rotation": _format_rotation(details) or "none",
        "colours": _format_colors(details),
    }
    if details["bits_per_second"]:
        facts["bit rate"] = f"{details['bits_per_second'] / 1e3:,.0f} kbit/s"
    streams = len(details["videos"]) + len(details["sounds"]) + sum(details["others"].values())
    facts["streams"] = f"{streams}: " + ", ".join(
        [
            f"{len(details['videos'])} video",
            *([f"{len(details['sounds'])} sound"] if details["sounds"] else []),
            *(f"{count} {kind}" for kind, count in details["others"].items()),
        ]
    )
    facts |= describe_unusual({**details, "stream": details["video_stream"]})
    if details["retimed"]:
        facts["timestamps"] = "repaired: the file has none for some frames, or repeated, disordered or jumping ones"
    if not details["seekable"]:
        facts["access"] = "frames are counted from the start: seeking does not find them"
    if details["damaged"]:
        facts["damage"] = details["note"]
    return facts


def _format_rate(details: Mapping[str, Any]) -> str:
    if details["fps"] is None:
        return "unknown"
    declared = "" if details["declared_fps"] is None else f" ({details['declared_fps']} declared)"
    return f"{details['fps']:.6g} frames/s, {'constant' if details['constant_rate'] else 'variable'}{declared}"


def _format_rotation(details: Mapping[str, Any]) -> str:
    turned = f"{details['rotation']} degrees clockwise" if details["rotation"] else ""
    return ", then ".join(filter(None, ("mirrored" if details["mirrored"] else "", turned)))


def _format_colors(details: Mapping[str, Any]) -> str:
    if "pixel_format" not in details:
        return "unknown"
    names = {
        "range": details["color_range"],
        "matrix": details["color_space"],
        "primaries": details["color_primaries"],
        "transfer": details["color_transfer"],
    }
    known = [f"{name} {value}" for name, value in names.items() if value is not None]
    known += ["interlaced"] if details["interlaced"] else []
    return ", ".join(
        [f"{details['pixel_format']} ({details['bits']} bits)", *(known or ["matrix and range unspecified"])]
    )


def _list_sound_facts(details: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "container": f"{details['format_name']} ({details['format']})",
        "codec": details["codec"],
        "time": "unknown" if details["seconds"] is None else _format_duration(details["seconds"]),
        "samples": f"{details['samples']:,} at {details['rate']:,} Hz, {details['sample_format']}",
        "channels": f"{details['channels']} ({details['layout']})",
    }
    if details["bits_per_second"]:
        facts["bit rate"] = f"{details['bits_per_second'] / 1e3:,.0f} kbit/s"
    return facts


def _list_image_facts(details: Mapping[str, Any]) -> dict[str, str]:
    facts = {"format": details["format"], "frame size": _format_size(details["frame_size"]) + " (height x width)"}
    if details["frame_size"] != details["stored_size"]:
        facts["stored size"] = _format_size(details["stored_size"])
    if details["frames"] > 1:
        facts["frames"] = f"{details['frames']:,}"
        facts["time"] = _format_duration(details["seconds"])
    return facts


def _list_index_facts(details: Mapping[str, Any]) -> dict[str, str]:
    return {
        "videos": f"{details['videos']:,}",
        "frames": f"{details['frames']:,}",
        "time": _format_duration(details["seconds"]),
        "left out": f"{details['left_out']:,}",
        "proven by": details["verify"],
    }


def _list_text_facts(details: Mapping[str, Any]) -> dict[str, str]:
    facts = {"encoding": details["encoding"] or "not utf-8"}
    if details["lines"] is not None:
        part = "" if details["complete"] else f" in the first {details['bytes_read']:,} bytes"
        facts["length"] = f"{details['lines']:,} lines, {details['characters']:,} characters{part}"
    return facts


def _list_container_facts(details: Mapping[str, Any]) -> dict[str, str]:
    from streamloader.archive.ingest.progress import format_size

    facts = {"members": f"{details['members']:,} ({format_size(details['member_bytes'])})"}
    if details["kinds"]:
        facts["kinds"] = ", ".join(f"{count:,} {kind}" for kind, count in sorted(details["kinds"].items()))
    if details["samples"] is not None:
        facts["samples"] = f"{details['samples']:,}"
        facts["fields"] = ", ".join(f"{name} ({count:,})" for name, count in details["fields"].items())
    return facts


def _format_size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _format_counts(counts: Mapping[str, int]) -> str:
    common = sorted(counts.items(), key=lambda item: -item[1])
    shown = [name if len(counts) == 1 else f"{name} ({count:,})" for name, count in common[:_MAX_SIZES]]
    return ", ".join([*shown, *([f"and {len(common) - _MAX_SIZES} others"] if len(common) > _MAX_SIZES else [])])


def format_exact_size(size: int) -> str:
    """Return a number of bytes as text for users, with the exact number where it differs."""
    from streamloader.archive.ingest.progress import format_size

    return f"{size} B" if size < 1000 else f"{format_size(size)} ({size:,} bytes)"  # noqa: PLR2004


def _format_language(language: str | None) -> str:
    return "" if language in (None, "und") else str(language)


def _format_rest(count: int) -> str:
    return f"and {count:,} more: raise --limit to list them" if count > 0 else ""


def _format_duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.2f} s"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{remainder:02}"


def _format_date(timestamp: float | None) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):  # not a time that this machine can represent
        if timestamp is not None:
            return dt.datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return "unknown"
