"""Tables (Markdown) and plots of results."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.harness import Bar, Question, Table, best, format_spread, metric_series, ratios

_SUBJECT = "streamloader"


def render(question: Question, results: dict[str, Any]) -> str:
    """Return all measured tables of a question as Markdown."""
    measured = results["tables"]
    return "\n\n".join(_table(table, measured[table.name]) for table in question.tables if table.name in measured)


def format_machine(machine: dict[str, Any]) -> str:
    """Return the description of the machine as one paragraph."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"{machine['libc']}, Python {machine['python']}; {versions}. Measured on {machine['date']}, with a load of "
        f"{machine['load_before']} before the run."
    )


def _table(table: Table, results: dict[str, Any]) -> str:
    header = ["", "returns", *(column.title for column in table.columns), "streamloader / contender"]
    lines = [
        f"### {table.title}",
        "",
        table.note,
        "",
        _markdown_row(header),
        _markdown_row(["---"] * 2 + ["---:"] * (len(header) - 2)),
    ]
    for contender in table.contenders:
        cells = [_figure_cell(results, contender, column.metric, column.digits) for column in table.columns]
        lines.append(
            _markdown_row([_label(contender), contender.hands_out, *cells, _ratio_cell(table, results, contender)])
        )
    lines += _failure_lines(table, results)
    if table.bars:
        lines += [
            "",
            _markdown_row(["target", "required", "measured", ""]),
            _markdown_row(["---", "---:", "---:", "---"]),
        ]
        lines += [_bar_row(table, results, bar) for bar in table.bars]
    return "\n".join(lines)


def _label(contender: Contender) -> str:
    return f"**{contender.label}**" if contender.name.startswith(_SUBJECT) else contender.label


def _figure_cell(results: dict[str, Any], contender: Contender, metric: str, digits: int) -> str:
    values = [value for value in metric_series(results, contender.name, metric) if value is not None]
    return format_spread(values, digits)


def _reference_variant(table: Table, contender: Contender) -> str:
    """Return the variant of streamloader to compare with: clones for clones and for own memory, views for views."""
    names = [c.name for c in table.contenders if c.name.startswith(_SUBJECT)]
    clones = f"{_SUBJECT} (clones)"
    return clones if contender.clone and clones in names else _SUBJECT


def _ratio_cell(table: Table, results: dict[str, Any], contender: Contender) -> str:
    reference = _reference_variant(table, contender)
    if contender.name.startswith(_SUBJECT) or reference not in results:
        return ""
    metric = table.columns[0].metric
    return format_spread(
        ratios(metric_series(results, reference, metric), metric_series(results, contender.name, metric)), 2
    )


def _failure_lines(table: Table, results: dict[str, Any]) -> list[str]:
    lines = []
    for contender in table.contenders:
        if errors := results[contender.name]["errors"]:
            lines += ["", f"{contender.label}: {len(errors)} run(s) failed: `{errors[-1]}`"]
    return lines


def _bar_row(table: Table, results: dict[str, Any], bar: Bar) -> str:
    figures = metric_series(results, bar.contender, bar.metric)
    if bar.baselines:
        values = ratios(figures, best(table, results, bar.baselines, bar.metric, lowest=bar.at_most))
    else:
        values = [value for value in figures if value is not None]
    sign = "<=" if bar.at_most else ">="
    if not values:
        return _markdown_row([bar.text, f"{sign} {bar.factor:g}", "not measured", ""])
    middle = statistics.median(values)
    reached = middle <= bar.factor if bar.at_most else middle >= bar.factor
    return _markdown_row(
        [bar.text, f"{sign} {bar.factor:g}", format_spread(values, 2), "reached" if reached else "**missed**"]
    )


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(panels: Sequence[tuple[Table, dict[str, Any]]], title: str, path: Path, *, log: bool = False) -> None:
    """Draw the main column of each table as bars for the medians, with lines from the smallest to the largest value."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    heights = [max(2.2, 0.34 * len(table.contenders) + 1.1) for table, _ in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9.5, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axis, (table, results) in zip(axes[:, 0], panels, strict=True):
        column, names = table.columns[0], []
        for row, contender in enumerate(table.contenders):
            values = [v for v in metric_series(results, contender.name, column.metric) if v is not None]
            names.append(contender.name)
            if not values:
                axis.text(0.01, row, "not measured", va="center", fontsize=8, transform=axis.get_yaxis_transform())
                continue
            middle, low, high = statistics.median(values), min(values), max(values)
            if log:  # bars would be misleading, because a logarithmic axis has no zero
                axis.plot(middle, row, "o", color=_bar_color(contender), markersize=9)
            else:
                axis.barh(row, middle, color=_bar_color(contender), height=0.72)
            axis.plot([low, high], [row, row], color="black", linewidth=1.2)
            axis.annotate(
                f" {middle:,.{column.digits}f}", (high, row), va="center", fontsize=8, xytext=(5, 0),
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


def _bar_color(contender: Contender) -> str:
    if contender.name.startswith((_SUBJECT, "read-ahead")):
        return "#d1495b"
    ceiling = contender.module in {"", "ring"} or contender.name == "local"
    return "#b8b8b8" if ceiling else "#30638e"
