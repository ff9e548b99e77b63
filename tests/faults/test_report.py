"""The table of docs/reliability.md tells what happened, the bad things above all."""

from __future__ import annotations

import pytest
from faults import __main__ as report
from faults.cases import POSITIONS, Case, Outcome


async def _never() -> bytes:
    raise AssertionError


def _outcome(position: str, result: str, wrong: str = "") -> Outcome:
    return Outcome(Case("http", "truncated", position, _never, b"", ()), result, 0.25, wrong)


def test_a_fault_is_a_line_and_a_position_a_column():
    lines = report.table([_outcome(position, "right bytes") for position in POSITIONS[::-1]])
    assert lines == [
        "| kit | fault | at the start | in the middle | at the end |",
        "| --- | --- | --- | --- | --- |",
        "| http | truncated | right bytes, 0.2 s | right bytes, 0.2 s | right bytes, 0.2 s |",
    ]


def test_what_is_wrong_stands_out():
    bad = "SILENT WRONG BYTES: 3 of 4, first difference at 1"
    outcomes = [
        _outcome("start", "right bytes", bad),
        _outcome("middle", "TransferInterrupted"),
        _outcome("end", "hung", "hung"),
    ]
    assert f"**WRONG: {bad}**, 0.2 s | TransferInterrupted, 0.2 s | **WRONG: hung**" in report.table(outcomes)[2]
    summary = "\n".join(report.summary(outcomes))
    assert "| **silent wrong bytes** | **1** |" in summary
    assert "| one typed error that names address and offset | 1 |" in summary
    assert "one without address and offset | 1 |" in summary
    assert "| right bytes | 0 |" in summary


def test_replaces_what_is_between_the_markers(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.put(file, r"new \1")
    assert file.read_text() == f"before\n{report.BEGIN}\n\nnew \\1\n\n{report.END}\nafter\n"
    (tmp_path / "other.md").write_text("nothing")
    with pytest.raises(ValueError, match="no pair of markers"):
        report.put(tmp_path / "other.md", "new")
