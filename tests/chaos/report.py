"""Results as tables of Markdown, put between the markers of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from chaos.data import CLOSING, DECODING, HALFWAY, MARKING, OPENING, UNPUBLISHED, WRITTEN
from chaos.killer import IDLE, IMPORTING, RESTARTING, SHUTDOWN
from chaos.programs import Ended
from chaos.rounds import BLAMED, Result

# Moments and their descriptions, in the order of a worker's life.
_MOMENTS = {
    IMPORTING: "importing, just after it was started",
    OPENING: "opening a stream",
    DECODING: "decoding",
    HALFWAY: "half way through a row",
    WRITTEN: "after the data of a row, before its marks",
    MARKING: "marks of a row half written",
    UNPUBLISHED: "between data and publication",
    "between streams": "between two streams",
    CLOSING: "closing a stream",
    IDLE: "idle",
    RESTARTING: "starting as a replacement",
    SHUTDOWN: "during shutdown",
    BLAMED: "at the step of a stream that always crashes it (quarantined the second time)",
}


def format_workers(result: Result) -> str:
    """Format how often workers died at each moment, and the results of the comparison."""
    unknown = set(result.kills) - set(_MOMENTS)
    assert not unknown, unknown
    total = sum(result.kills.values())
    moments = [(words, f"{result.kills[moment]:,}") for moment, words in _MOMENTS.items()]
    rows = [
        ("batches compared by SHA-256, in order", f"{result.batches:,}"),
        (
            "**batches that differ, are missing or too many; streams wrongly quarantined**",
            f"**{len(result.mismatches)}**",
        ),
        ("restarts", f"{result.restarts:,}"),
        ("deaths by number of workers", _counted(result.workers)),
        ("deaths by cause", _counted(result.causes)),
        ("kills omitted, because a stream would have been quarantined", f"{result.given_up:,}"),
        ("from death to notice", _spread(result.latencies)),
        ("from notice to another process", _spread(result.replaced)),
    ]
    return "\n".join(
        [
            *_table(("worker died while", "times"), [*moments, ("**in total**", f"**{total:,}**")]),
            "",
            *_table(("in all rounds", f"{result.rounds:,}"), rows),
        ]
    )


def format_programs(ended: Sequence[Ended], within: float) -> str:
    """Format how programs ended, by the kind of attack."""
    rows = []
    for how in sorted({one.how for one in ended}):
        some = [one for one in ended if one.how == how]
        starting = sum(not one.played for one in some)
        rows.append(
            (
                how,
                f"{len(some):,}",
                _counted(Counter(one.workers for one in some)),
                f"{starting:,}",
                _spread([one.seconds for one in some]),
                f"{sum(one.seconds <= within for one in some):,}",
                f"**{sum(bool(one.faults) for one in some)}**",
            )
        )
    heads = (
        "signal",
        "times",
        "by number of workers",
        "while workers started",
        "until no process was left",
        f"within {within:.0f} s",
        "**faults**",
    )
    return "\n".join(_table(heads, rows))


def put(file: Path, part: str, text: str) -> None:
    """Replace what is between the markers of `part`.

    Raises:
        ValueError: If the file has no such markers.
    """
    begin, end = f"<!-- chaos {part}: begin -->", f"<!-- chaos {part}: end -->"
    whole = file.read_text(encoding="utf-8")
    new, found = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{text}\n\n{end}", whole, flags=re.DOTALL
    )
    if found != 1:
        raise ValueError(f"{file} has no pair of markers {begin} and {end}")
    file.write_text(new, encoding="utf-8")


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    p50, p99, most = (1000 * value for value in (quantile(seconds, 0.5), quantile(seconds, 0.99), max(seconds)))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {most:.1f} ms"


def _counted(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{key}: {count:,}" for key, count in sorted(counts.items()))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
