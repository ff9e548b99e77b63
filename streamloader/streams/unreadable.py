"""Files that cannot be used: leave them out of a dataset, or raise one error that lists all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from streamloader.common.printable import make_printable
from streamloader.errors import ClosedError, ConfigError, MissingDependency, StoreError, StreamloaderError
from streamloader.stores.search import UnreadableReport

__all__ = [
    "SkippedVideo",
    "combine_errors",
    "describe_skipped",
    "ends_indexing",
    "finish_report",
    "join_errors",
    "settle_errors",
]

_MAX_LISTED: Final = 20  # files in a message
_MAX_DETAILS: Final = 1000  # files in the details of an error
_ADVICE: Final = 'Repair or remove them, or pass unreadable="skip" to leave them out'
_MAX_REASON_CHARACTERS: Final = 300
_log: Final = logging.getLogger("streamloader")


@dataclass(frozen=True, slots=True)
class SkippedVideo:
    """A video, or another file, that was left out of a dataset because it cannot be used.

    Attributes:
        key: Key that its stream would have.
        address: Path, or address without secrets.
        error: Name of the class of the error, such as ``"CorruptStream"``.
        message: Message of the error.
    """

    key: str
    address: str
    error: str
    message: str

    @classmethod
    def from_error(cls, key: str, address: str, error: StreamloaderError) -> Self:
        """Return the record of one file and the error that it caused."""
        return cls(key, address, type(error).__name__, error.message)


def ends_indexing(error: BaseException) -> bool:
    """Return whether an error does not come from one file, so that no file is left out because of it.

    Errors that may be gone a moment later, such as that of a server that does not answer, would leave out other files
    in every run.
    """
    if isinstance(error, StoreError):
        return error.transient
    return not isinstance(error, StreamloaderError) or isinstance(error, (ConfigError, ClosedError, MissingDependency))


def combine_errors(
    errors: Mapping[int, StreamloaderError], names: Sequence[str], noun: str = "videos"
) -> StreamloaderError:
    """Return an error that lists the errors of several files, in their order. It has the class of the first.

    Args:
        errors: Errors by number of the file, at least one.
        names: Path of each file of the dataset, or address without secrets.
        noun: Word for the files. Defaults to "videos".
    """
    numbers = sorted(errors)
    first = errors[numbers[0]]
    if len(numbers) == 1:
        return first
    lines = [f"{len(numbers):,} of {len(names):,} {noun} cannot be used:"]
    lines += [f"- {_describe(names[number], errors[number].message)}" for number in numbers[:_MAX_LISTED]]
    if len(numbers) > _MAX_LISTED:
        lines.append(f"- and {len(numbers) - _MAX_LISTED:,} more")
    failed = [[names[number], type(errors[number]).__name__, errors[number].message] for number in numbers]
    combined = type(first)(
        "\n".join([*lines, _ADVICE]), stream=first.stream, address=first.address, offset=first.offset
    )
    combined.details = first.details | {"failed": failed[:_MAX_DETAILS], "failed_count": len(failed)}
    return combined


def join_errors(found: UnreadableReport, errors: Sequence[StreamloaderError]) -> StreamloaderError:
    """Return one error with the messages of all, and with all files that they list. It has the class of the first.

    Args:
        found: Report of the search. What it lists comes first; or last, if it would be left out, were there others.
        errors: Errors of the files that were found, at least one.
    """
    order = [*errors, found.make_file_error()] if found.handling == "skip" else [found.make_error(), *errors]
    present = [error for error in order if error is not None]
    first = present[0]
    if len(present) == 1:
        return first
    failed = []
    for error in present:
        alone = [[error.address or error.stream or "", type(error).__name__, error.message]]
        failed += error.details.get("failed", alone)
    message = "\n".join(error.message for error in present)
    joined = type(first)(message, stream=first.stream, address=first.address, offset=first.offset)
    count = sum(error.details.get("failed_count", 1) for error in present)
    joined.details = first.details | {"failed": failed[:_MAX_DETAILS], "failed_count": count}
    return joined


def settle_errors(
    found: UnreadableReport,
    errors: Mapping[int, StreamloaderError],
    names: Sequence[str],
    keys: Sequence[str],
    noun: str = "videos",
) -> tuple[SkippedVideo, ...]:
    """Handle all files that cannot be used, after the search for them and after a look into each of them.

    Args:
        found: Report of the search, with the handling.
        errors: Errors by number of the file.
        names: Path of each file that was found, or address without secrets.
        keys: Key of the stream of each file.
        noun: Word for the files. Defaults to "videos".

    Returns:
        The files that are left out. Warnings name them.

    Raises:
        StreamloaderError: If files cannot be used, unless they are left out; or if none can be used. It lists all.
    """
    if errors and (found.handling != "skip" or len(errors) == len(names)):
        raise join_errors(found, [combine_errors(errors, names, noun)])
    left_out = finish_report(found)
    skipped = tuple(SkippedVideo.from_error(keys[number], names[number], errors[number]) for number in sorted(errors))
    if skipped:
        _log.warning("%s", describe_skipped(skipped, len(names), noun))
    return left_out + skipped


def finish_report(found: UnreadableReport) -> tuple[SkippedVideo, ...]:
    """Finish a report of what may not be read, and return the files that are left out because of it."""
    found.finish()
    return tuple(SkippedVideo.from_error(name, name, error) for name, error in sorted(found.files.items()))


def describe_skipped(skipped: Sequence[SkippedVideo], total: int, noun: str = "videos") -> str:
    """Return one text about all files that were left out, for the log."""
    lines = [f"left out {len(skipped):,} of {total:,} {noun} that cannot be used:"]
    lines += [f"- {_describe(video.address, video.message)}" for video in skipped[:_MAX_LISTED]]
    if len(skipped) > _MAX_LISTED:
        lines.append(f"- and {len(skipped) - _MAX_LISTED:,} more; the dataset's `skipped` lists all")
    return "\n".join(lines)


def _describe(name: str, message: str) -> str:
    shown = make_printable(name, None)
    text = make_printable(message, _MAX_REASON_CHARACTERS + len(shown))
    return text if shown in text else f"{shown}: {text}"
