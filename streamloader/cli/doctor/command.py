"""``streamloader doctor``: examine how an address is reached, or this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from streamloader.arguments import expand_path
from streamloader.cli.arguments import parse_positive_count, parse_seconds, read_storage_options
from streamloader.cli.examples import add_examples
from streamloader.redaction import clean, redact_address

if TYPE_CHECKING:
    from streamloader.errors import StreamloaderError
    from streamloader.values import ObjectInfo

__all__ = ["add_parser"]

DEFAULT_BYTES: Final = 8 << 20
_DEFAULT_TIMEOUT_S: Final = 10.0
_MAX_PLACES: Final = 8  # of an archive
_CATALOG_STEP: Final = "catalog"
_INDEXED_CONTAINERS: Final = (".pack", ".zip")  # a tar has to be read from its start


def add_parser(commands: Any) -> None:
    """Add this command's parser to the subparsers `commands`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="find out why data cannot be reached, or why it is slow",
        description="Examine how an address is reached: its server (name, connection, TLS), the login and the "
        "credentials that are used (never their secrets), whether ranges, listings and versions work, the latency, "
        "and the throughput of one read and of eight at the same time. The address may be that of a file, a directory, "
        "a member of a container, or an archive, in any store. Without an address, examine this machine. Exit status: "
        "0 if all is well, 1 if there are problems, 2 if the command cannot be carried out.",
    )
    add_examples(
        parser,
        "streamloader doctor",
        "streamloader doctor s3://bucket/videos/a.mp4",
        "streamloader doctor ssh://me@box/data/videos --json",
    )
    parser.add_argument("address", nargs="?", metavar="URL", help="path or address (default: examine this machine)")
    parser.add_argument(
        "--bytes", type=parse_positive_count, default=DEFAULT_BYTES, metavar="N", dest="max_bytes",
        help=f"number of bytes to read for measuring the throughput ({DEFAULT_BYTES})",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=parse_seconds, default=_DEFAULT_TIMEOUT_S, metavar="S",
        help=f"deadline of each step in seconds ({_DEFAULT_TIMEOUT_S:g})",
    )  # fmt: skip
    parser.add_argument("--storage-options", metavar="FILE", help="JSON file of store options")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from streamloader.cli.doctor.format import format_address, format_machine
    from streamloader.cli.doctor.machine import examine_machine
    from streamloader.cli.step_display import open_step_display
    from streamloader.cli.tables import open_printer

    with open_step_display("examining") as show:
        if arguments.address is None:
            report = examine_machine(arguments.timeout)
            sections = format_machine(report)
        else:
            options = read_storage_options(arguments.storage_options)
            report = examine_address(
                arguments.address, options, max_bytes=arguments.max_bytes, timeout_s=arguments.timeout, show=show
            )
            sections = format_address(report)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        open_printer(terminal=sys.stdout.isatty()).print(sections)
    return 0 if report["ok"] else 1


def examine_address(
    address: str,
    options: Mapping[str, Any] | None,
    *,
    max_bytes: int,
    timeout_s: float,
    show: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Examine how an address is reached, and return a report (docs/stores.md describes its keys).

    Args:
        address: Path or address of a file, a directory, a member of a container, or an archive.
        options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        max_bytes: Maximum number of bytes that are read of files.
        timeout_s: Deadline of each step in seconds.
        show: Function that is called with the name of each step when it starts. Defaults to none.

    Raises:
        ConfigError: If the address or an option is invalid.
    """
    from streamloader.archive.location import is_catalog_address
    from streamloader.stores.registry import spell_address

    address = spell_address(address)
    if is_catalog_address(address):
        return _examine_archive(address, options, max_bytes, timeout_s, show)
    return _examine_store(address, options, max_bytes, timeout_s, show)


def _examine_store(
    address: str,
    storage_options: Mapping[str, Any] | None,
    max_bytes: int,
    timeout_s: float,
    show: Callable[[str], None],
) -> dict[str, Any]:
    from streamloader.cli.doctor.advice import describe_failure
    from streamloader.cli.doctor.checks import Examination, make_report
    from streamloader.config import Timeouts
    from streamloader.errors import MissingDependency
    from streamloader.stores.container_addresses import split_container_address
    from streamloader.stores.io_thread import open_shared_store
    from streamloader.stores.local import local_path
    from streamloader.stores.registry import scheme_of, select_options
    from streamloader.stores.spelling_advice import explain_missing_path

    report = make_report(redact_address(address))
    container = split_container_address(address)
    target = address if container is None else container[0]
    if container is not None:
        report["notes"].append("the container is examined as a file: streamloader inspect shows its members")
    is_local, written = scheme_of(target) in ("", "file"), target
    if is_local:
        target = os.path.abspath(expand_path(local_path(target)))
    # Without retries, so that the steps show what happens.
    timeouts = Timeouts(connect=timeout_s, response=timeout_s, window=timeout_s)
    options = {"timeouts": timeouts, **select_options(target, storage_options), "retry": None}
    if options.pop("cache_dir", None) is not None:
        options.pop("cache_bytes", None)
        report["notes"].append("the cache is not used for the examination, so that the server is measured")
    try:
        shared, path = open_shared_store(target, options)
    except MissingDependency as error:
        problem, advice = describe_failure("open", error, target)
        report["problems"].append({"problem": clean(problem), "advice": advice})
        return report
    with shared:
        examination = Examination(shared.store, path, report, max_bytes=max_bytes, timeout_s=timeout_s, show=show)
        shared.call(examination.run())
    if is_local and report["problems"] and not os.path.lexists(target) and (advice := explain_missing_path(written)):
        report["problems"][0]["advice"] = clean(advice.removeprefix("; "))
    if container is not None and container[1] and not report["problems"]:
        _examine_member(address, {**options, "retry": None}, report, timeout_s, show)
    report["ok"] = not report["problems"]
    return report


def _examine_member(
    address: str, options: Mapping[str, Any], report: dict[str, Any], timeout_s: float, show: Callable[[str], None]
) -> None:
    """Look for the member of a container whose list of members lies at one place, and is therefore read at once."""
    from streamloader.cli.doctor.advice import describe_failure
    from streamloader.cli.doctor.steps import StepRecorder
    from streamloader.stores.container_addresses import split_container_address
    from streamloader.stores.io_thread import open_shared_store

    container = split_container_address(address)
    if container is None or not container[0].partition("?")[0].lower().endswith(_INDEXED_CONTAINERS):
        return
    steps = StepRecorder(timeout_s, show)
    with open_shared_store(address, options)[0] as shared:
        target = shared.store.address(container[1])
        find = steps.run("member", target, shared.store.head(container[1]), describe=_describe_size)
        shared.call(find)
    report["steps"] += steps.steps
    if steps.error is not None:
        _add_problem(report, *describe_failure("member", steps.error, target))


def _examine_archive(
    address: str,
    options: Mapping[str, Any] | None,
    max_bytes: int,
    timeout_s: float,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """Examine the catalog of an archive, and each of its places."""
    import time

    from streamloader.archive.catalog.registry import get_shared_catalog
    from streamloader.archive.location import catalog_url, resolve_places
    from streamloader.cli.doctor.advice import describe_failure
    from streamloader.cli.doctor.checks import make_report
    from streamloader.errors import ConfigError, StreamloaderError

    report = make_report(redact_address(address))
    url = catalog_url(address)
    step: dict[str, Any] = {
        "step": _CATALOG_STEP,
        "target": redact_address(url),
        "status": "ok",
        "seconds": None,
        "detail": "",
        "error": None,
    }
    report["steps"].append(step)
    show(_CATALOG_STEP)
    started_s = time.perf_counter()
    try:
        with get_shared_catalog(url, {"timeout": timeout_s}) as catalog:
            snapshot = catalog.call(catalog.resource.get_snapshot())
            header = catalog.call(catalog.resource.get_header())
            report["store"] = type(catalog.resource).__name__
    except StreamloaderError as error:
        step.update(status="failed", seconds=time.perf_counter() - started_s, error=_to_json(error))
        _add_problem(report, *describe_failure(_CATALOG_STEP, error, url))
        return report
    step.update(seconds=time.perf_counter() - started_s, detail=f"{snapshot.videos:,} videos")
    report["object"] = {"kind": "archive", "videos": snapshot.videos, "frames": snapshot.frames}
    places = resolve_places(header.places, {}, url, options)
    share = max(1, max_bytes // max(1, len(places)))
    for place in list(places.values())[:_MAX_PLACES]:
        try:
            place_options = place.select_options(options)
            found = _examine_store(place.url, place_options or None, share, timeout_s, show)
        except ConfigError:
            raise
        except StreamloaderError as error:  # the user has not named the place
            _add_problem(report, error.message, "pass options that are bound to its address (--storage-options)")
            continue
        report["places"].append(found)
        report["bytes_read"] += found["bytes_read"]
        report["problems"] += found["problems"]
    if len(places) > _MAX_PLACES:
        report["notes"].append(f"only {_MAX_PLACES} of {len(places)} places are examined")
    report["ok"] = not report["problems"]
    return report


def _describe_size(info: ObjectInfo) -> str:
    return f"{info.size or 0:,} bytes"


def _to_json(error: StreamloaderError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": clean(error.message)}


def _add_problem(report: dict[str, Any], problem: str, advice: str) -> None:
    report["problems"].append({"problem": clean(problem), "advice": advice})
