"""What ``streamloader doctor`` prints of its reports."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamloader.cli.tables import Section

__all__ = ["format_address", "format_machine"]


def format_address(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yield what is printed of the report of an address."""
    yield Section("", facts=_list_facts(report))
    yield _format_steps(report)
    for place in report["places"]:
        yield Section("", facts={"place": place["address"], **_list_facts(place)})
        yield _format_steps(place)
    yield from _format_verdict(report)


def format_machine(report: Mapping[str, Any]) -> Iterator[Section]:
    """Yield what is printed of the report of this machine."""
    from streamloader.archive.ingest.progress import format_size

    python, cores, memory, cache = report["python"], report["cores"], report["memory"], report["cache"]
    shared, descriptors = report["shared_memory"], report["descriptors"]
    facts = {
        "python": f"{python['implementation']} {python['version']} ({python['executable']})",
        "platform": report["platform"],
        "cores": f"{cores['usable']} of {cores['machine']} may be used",
        "memory": _join(
            ("total", memory["total_bytes"]), ("available", memory["available_bytes"]), ("limit", memory["limit_bytes"])
        ),
        "shared memory": "none"
        if shared is None
        else _join(("total", shared["total_bytes"]), ("free", shared["free_bytes"])),
        "descriptors": f"{_format_limit(descriptors['soft'])} (up to {_format_limit(descriptors['hard'])})",
        "cache": f"{cache['folder']}: {format_size(cache['bytes'])}, "
        f"{'writable' if cache['writable'] else 'not writable'}",
        "GPU": ", ".join(" ".join(filter(None, gpu.values())) for gpu in report["gpu"]["devices"]) or "none found",
        "torch": _describe_torch(report["gpu"]),
    }
    yield Section("", facts=facts)
    rows = [(name, version or "missing") for name, version in report["packages"].items()]
    yield Section("packages", ("package", "version"), rows)
    columns = ("extra", "state", "packages")
    extras: list[Sequence[str]] = [
        (
            name,
            "installed" if extra["installed"] else "missing",
            ", ".join(f"{package} {version or '(missing)'}" for package, version in extra["packages"].items()),
        )
        for name, extra in report["extras"].items()
    ]
    missing = [name for name, extra in report["extras"].items() if not extra["installed"]]
    yield Section("extras", columns, extras, f"pip install 'streamloader[{','.join(missing)}]'" if missing else "")
    yield from _format_verdict(report)


def _format_verdict(report: Mapping[str, Any]) -> Iterator[Section]:
    if report["notes"]:
        yield Section("notes", facts={f"{number}.": note for number, note in enumerate(report["notes"], 1)})
    problems = report["problems"]
    if not problems:
        yield Section("all is well")
        return
    facts = {}
    for number, each in enumerate(problems, 1):
        facts[f"{number}. wrong"] = each["problem"]
        facts[f"{number}. to do"] = each["advice"]
    yield Section("1 problem" if len(problems) == 1 else f"{len(problems)} problems", facts=facts)


def _list_facts(report: Mapping[str, Any]) -> dict[str, str]:
    facts = {"address": report["address"]}
    if report["store"]:
        facts["store"] = report["store"]
    facts |= report["access"]
    for name, value in (report["login"] or {}).items():
        if value is not None:
            facts[name.replace("_", " ")] = value
    found = report["object"]
    if found is not None:
        facts |= _describe_object(found)
    names = [name for name, value in report["capabilities"].items() if value]
    missing = [name for name, value in report["capabilities"].items() if value is False]
    if found is not None and (names or missing):
        facts["can"] = ", ".join([*names, *(f"no {name}" for name in missing)])
    if (latency := report["latency"]) is not None:
        facts["latency"] = (
            f"{_format_time(latency['median_seconds'])} (median of {latency['reads']}), "
            f"at least {_format_time(latency['min_seconds'])}"
        )
    facts |= _describe_throughput(report["throughput"])
    return facts


def _describe_object(found: Mapping[str, Any]) -> dict[str, str]:
    from streamloader.archive.ingest.progress import format_size

    if found["kind"] == "archive":
        return {"archive": f"{found['videos']:,} videos, {found['frames']:,} frames"}
    if found["kind"] == "directory":
        more = "" if found["files_complete"] else " or more"
        return {"directory": f"{found['files']:,}{more} {'file' if found['files'] == 1 else 'files'}"}
    facts = {"size": "unknown" if found["size"] is None else f"{format_size(found['size'])} ({found['size']:,} bytes)"}
    facts["version"] = found["version"] or "none"
    if found["modified"] is not None:
        facts["modified"] = _format_date(found["modified"])
    return facts


def _describe_throughput(throughput: Mapping[str, Any]) -> dict[str, str]:
    from streamloader.archive.ingest.progress import format_size

    facts = {}
    for name, label in (("one", "one read"), ("eight", "eight reads")):
        if (result := throughput[name]) is not None:
            facts[label] = (
                f"{format_size(result['bytes_per_second'])}/s ({format_size(result['bytes'])} in "
                f"{_format_time(result['seconds'])})"
            )
    return facts


def _format_steps(report: Mapping[str, Any]) -> Section:
    columns = ("step", "result", "time", "what")
    rows: list[Sequence[str]] = []
    for step in report["steps"]:
        if step["status"] == "skipped":
            continue
        error = step["error"]
        what = step["detail"] or step["target"] if error is None else f"{error['type']}, see below"
        time = "" if step["seconds"] is None else _format_time(step["seconds"])
        rows.append((step["step"], step["status"], time, what))
    skipped = [step["step"] for step in report["steps"] if step["status"] == "skipped"]
    return Section("steps", columns, rows, f"not tried: {', '.join(skipped)}" if skipped else "")


def _format_time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s"


def _format_date(timestamp: float) -> str:
    try:
        return dt.datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (ValueError, OverflowError, OSError):  # not a time that this machine can represent
        return "unknown"


def _format_limit(limit: int | None) -> str:
    return "no limit" if limit is None else f"{limit:,}"


def _join(*sizes: tuple[str, int | None]) -> str:
    from streamloader.archive.ingest.progress import format_size

    return ", ".join(f"{format_size(size)} {name}" for name, size in sizes if size is not None) or "unknown"


def _describe_torch(gpu: Mapping[str, Any]) -> str:
    if gpu["torch"] is None:
        return "not installed"
    return f"{gpu['torch']}, {'built for CUDA ' + gpu['torch_cuda'] if gpu['torch_cuda'] else 'built without CUDA'}"
