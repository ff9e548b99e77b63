"""What ``streamloader inspect`` shows of packs, and of directories with packs."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamloader.arguments import expand_path
from streamloader.cli.tables import Section
from streamloader.common.count_display import open_count_display

__all__ = ["format_packs", "summarize_packs"]


def summarize_packs(address: str, limit: int) -> dict[str, Any] | None:
    """Return a description of the pack, or of the directory with packs, at an address. None if it is neither.

    An archive is none, even if there are packs in its folder.
    """
    from streamloader.archive.location import CATALOG_FILE
    from streamloader.datasets.directory.pack_summary import has_packs, summarize_directory, summarize_pack
    from streamloader.stores.local import local_path
    from streamloader.stores.registry import scheme_of

    if scheme_of(address) not in ("", "file"):
        return None
    path = expand_path(local_path(address))
    if os.path.isfile(path) and path.endswith(".pack"):
        return summarize_pack(path, limit)
    if has_packs(path) and not os.path.exists(os.path.join(path, CATALOG_FILE)):
        with open_count_display("comparing subdirectories") as show:
            return summarize_directory(path, limit, show)
    return None


def format_packs(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yield what is printed of a description."""
    return _format_pack(report) if "pack" in report else _format_directory(report)


def _format_pack(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size

    facts = {"pack": report["pack"], **_list_facts(report)}
    if report["metadata"]:
        facts["metadata"] = json.dumps(report["metadata"], ensure_ascii=False)
    yield Section("", facts=facts)
    columns: Sequence[str] = ("member", "size", "stored", "compression", "modified")
    rows: list[Sequence[str]] = [
        (
            member["name"], format_size(member["bytes"]), format_size(member["stored_bytes"]), member["compression"],
            _format_date(member["modified"]),
        )
        for member in report["listed"]
    ]  # fmt: skip
    yield Section("members", columns, rows, _format_rest(report["members"] - len(rows)))


def _format_directory(report: Mapping[str, Any]) -> Iterator[Section]:
    from streamloader.archive.ingest.progress import format_size
    from streamloader.datasets.directory.pack_summary import describe_compression

    facts = {
        "directory": report["directory"],
        "subdirectories": f"{report['subdirectories']:,}",
        "packs": f"{report['packs']:,}",
        **_list_facts(report),
        "state": ", ".join(f"{count:,} {state}" for state, count in report["states"].items()),
    }
    if report["vdd_files"]:
        facts["vdd files"] = f"{report['vdd_files']:,}, which are not used: see streamloader convert-vdd"
    yield Section("", facts=facts)
    columns: Sequence[str] = ("subdirectory", "members", "size", "stored", "compression", "state", "note")
    rows: list[Sequence[str]] = [
        (
            each["name"],
            *(
                ("", "", "")
                if each["members"] is None
                else (f"{each['members']:,}", format_size(each["bytes"]), format_size(each["stored_bytes"]))
            ),
            describe_compression(each["compression"]), each["state"], each["note"],
        )
        for each in report["listed"]
    ]  # fmt: skip
    yield Section("packs", columns, rows, _format_rest(sum(report["states"].values()) - len(rows)))


def _list_facts(report: Mapping[str, Any]) -> dict[str, str]:
    from streamloader.archive.ingest.progress import format_size
    from streamloader.datasets.directory.pack_summary import describe_compression

    return {
        "members": f"{report['members']:,}",
        "size": f"{format_size(report['bytes'])} in the members, {format_size(report['pack_bytes'])} on disk",
        "compression": describe_compression(report["compression"]),
    }


def _format_rest(count: int) -> str:
    return f"and {count:,} more: raise --limit to list them" if count else ""


def _format_date(timestamp: float | None) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):  # not a time that this machine can represent
        if timestamp is not None:
            return dt.datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return "unknown"
