"""Tables (Markdown) and plots of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Question, Table, best, ratios, series, spread

_OURS = "streamloader"


def render(question: Question, found: dict[str, Any]) -> str:
    """Return all tables of a question that were measured, as Markdown."""
    measured = found["tables"]
    return "\n\n".join(_table(table, measured[table.name]) for table in question.tables if table.name in measured)


def machine_text(machine: dict[str, Any]) -> str:
    """Describe the machine in one paragraph."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"{machine['libc']}, Python {machine['python']}; {versions}. Measured on {machine['date']}, with a load of "
        f"{machine['load_before']} before the run."
    )


def _table(table: Table, found: dict[str, Any]) -> str:
    main = table.columns[0]
    word = "of theirs" if main.less_is_better else "x theirs"
    header = ["", "hands out", *(column.title for column in table.columns), f"streamloader, {word}"]
    lines = [f"### {table.title}", "", table.note, "", _row(header), _row(["---"] * 2 + ["---:"] * (len(header) - 2))]
    for contender in table.contenders:
        cells = [_figure(found, contender, column.metric, column.digits) for column in table.columns]
        lines.append(_row([_label(contender), contender.hands_out, *cells, _against(table, found, contender)]))
    lines += _failures(table, found)
    if table.bars:
        lines += ["", _row(["to reach", "needed", "measured", ""]), _row(["---", "---:", "---:", "---"])]
        lines += [_bar(table, found, bar) for bar in table.bars]
    return "\n".join(lines)


def _label(contender: Contender) -> str:
    return f"**{contender.label}**" if contender.name.startswith(_OURS) else contender.label


def _figure(found: dict[str, Any], contender: Contender, metric: str, digits: int) -> str:
    values = [value for value in series(found, contender.name, metric) if value is not None]
    return spread(values, digits)


def _counterpart(table: Table, contender: Contender) -> str:
    """Return who of ours is compared with a contender: clones with clones and with own memory, views with views."""
    names = [c.name for c in table.contenders if c.name.startswith(_OURS)]
    clones = f"{_OURS} (clones)"
    return clones if contender.clone and clones in names else _OURS


def _against(table: Table, found: dict[str, Any], contender: Contender) -> str:
    ours = _counterpart(table, contender)
    if contender.name.startswith(_OURS) or ours not in found:
        return ""
    metric = table.columns[0].metric
    return spread(ratios(series(found, ours, metric), series(found, contender.name, metric)), 2)


def _failures(table: Table, found: dict[str, Any]) -> list[str]:
    lines = []
    for contender in table.contenders:
        if errors := found[contender.name]["errors"]:
            lines += ["", f"{contender.label}: {len(errors)} run(s) failed: `{errors[-1]}`"]
    return lines


def _bar(table: Table, found: dict[str, Any], bar: Bar) -> str:
    ours = series(found, bar.ours, bar.metric)
    if bar.theirs:
        values = ratios(ours, best(table, found, bar.theirs, bar.metric, least=bar.at_most))
    else:
        values = [value for value in ours if value is not None]
    sign = "<=" if bar.at_most else ">="
    if not values:
        return _row([bar.text, f"{sign} {bar.factor:g}", "not measured", ""])
    middle = statistics.median(values)
    reached = middle <= bar.factor if bar.at_most else middle >= bar.factor
    return _row([bar.text, f"{sign} {bar.factor:g}", spread(values, 2), "reached" if reached else "**missed**"])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(panels: Sequence[tuple[Table, dict[str, Any]]], title: str, path: Path, *, log: bool = False) -> None:
    """Draw the main column of each table as bars: median, and a line from the smallest to the largest value."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    heights = [max(2.2, 0.34 * len(table.contenders) + 1.1) for table, _ in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9.5, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, (table, found) in zip(axes[:, 0], panels, strict=True):
        column, names = table.columns[0], []
        for place, contender in enumerate(table.contenders):
            values = [v for v in series(found, contender.name, column.metric) if v is not None]
            names.append(contender.name)
            if not values:
                axis.text(0.01, place, "not measured", va="center", fontsize=8, transform=axis.get_yaxis_transform())
                continue
            middle, low, high = statistics.median(values), min(values), max(values)
            if log:  # a bar has no honest beginning on such an axis
                axis.plot(middle, place, "o", color=_colour(contender), markersize=9)
            else:
                axis.barh(place, middle, color=_colour(contender), height=0.72)
            axis.plot([low, high], [place, place], color="black", linewidth=1.2)
            axis.annotate(
                f" {middle:,.{column.digits}f}", (high, place), va="center", fontsize=8, xytext=(5, 0),
                textcoords="offset points",
            )  # fmt: skip
        axis.set_yticks(range(len(names)), names, fontsize=8)
        if log:
            axis.set_xscale("log")
            axis.grid(axis="x", color="#dddddd", linewidth=0.6)
            axis.set_axisbelow(True)
        axis.margins(x=0.12)
        axis.set_ylim(len(names) - 0.4, -0.6)
        direction = "less is better" if column.less_is_better else "more is better"
        axis.set_title(f"{table.title}: {column.title}, {direction}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}\nred: streamloader; blue: peers; grey: ceilings, no loaders", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(contender: Contender) -> str:
    if contender.name.startswith((_OURS, "read-ahead")):
        return "#d1495b"
    ceiling = contender.module in {"", "ring"} or contender.name == "local"
    return "#b8b8b8" if ceiling else "#30638e"
