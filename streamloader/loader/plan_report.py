"""Report of what an epoch of a loader will be like, and its text for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamloader.archive.ingest.progress import format_size
from streamloader.common.printable import make_printable
from streamloader.common.text_table import TextTable, align_cells
from streamloader.engine.plan import Switch, Tail

__all__ = [
    "MAX_KEY_CHARACTERS",
    "LaneLoads",
    "PlanReport",
    "PlannedEpoch",
    "RankShare",
    "RingMemory",
    "StreamLengths",
]

MAX_KEY_CHARACTERS: Final = 48  # of a stream in the text
_MAX_RANKS_LISTED: Final = 16
_TEXT_COLUMNS: Final = frozenset({"switch", "tail"})  # all others have numbers


@dataclass(frozen=True, slots=True)
class StreamLengths:
    """Lengths of the streams of a dataset, in steps.

    Attributes:
        count: Number of streams.
        unknown: Number of streams that declare no length. The other attributes leave them out.
        steps: Sum of the lengths.
        empty: Number of streams without steps.
        short: Number of streams that are shorter than a window, empty ones included.
        shortest: Length of the shortest stream. 0 if no length is known, as for the following two.
        median: Median of the lengths.
        longest: Length of the longest stream.
        longest_key: Key of the first stream of that length, or None.
    """

    count: int
    unknown: int
    steps: int
    empty: int
    short: int
    shortest: int
    median: float
    longest: int
    longest_key: str | None


@dataclass(frozen=True, slots=True)
class PlannedEpoch:
    """An epoch with one combination of `switch` and `tail`, over all ranks. None stands for an unknown value.

    Attributes:
        switch: Setting of ``switch=``.
        tail: Setting of ``tail=``.
        chosen: Whether these are the settings of the loader.
        batches: Number of batches of each rank.
        delivered: Number of steps that are delivered for the first time.
        padded: Number of padded steps.
        padded_share: Share of padding in all steps of all batches, from 0 to 1.
        repeated: Number of steps that are delivered again (``tail="cycle"``).
        dropped: Number of steps that are not delivered (``tail="drop"``).
        local_bytes: Number of bytes to be read from local files, as far as their sizes are known.
        remote_bytes: Number of bytes to be fetched from stores, as far as their sizes are known.
        unknown_sources: Number of times that a stream is read whose size in bytes is unknown.
    """

    switch: Switch
    tail: Tail
    chosen: bool
    batches: int | None
    delivered: int | None
    padded: int | None
    padded_share: float | None
    repeated: int | None
    dropped: int | None
    local_bytes: int | None
    remote_bytes: int | None
    unknown_sources: int | None


@dataclass(frozen=True, slots=True)
class LaneLoads:
    """Loads of lanes: the number of steps of a lane's own streams, with the padding that ``switch="align"`` adds.

    Attributes:
        lanes: Number of lanes.
        lowest: Lowest load.
        median: Median of the loads.
        mean: Mean of the loads.
        highest: Highest load. It determines the length of an epoch, except with ``tail="drop"``.
        imbalance: Share by which the highest load exceeds the mean. 0 if all loads are equal.
    """

    lanes: int
    lowest: int
    median: float
    mean: float
    highest: int
    imbalance: float


@dataclass(frozen=True, slots=True)
class RankShare:
    """Share of one rank in an epoch with the settings of the loader.

    Attributes:
        rank: Number of the rank.
        loads: Loads of the lanes of this rank.
        delivered: Number of steps that are delivered for the first time.
        padded: Number of padded steps.
        repeated: Number of steps that are delivered again.
        local_bytes: Number of bytes to be read from local files, as far as their sizes are known.
        remote_bytes: Number of bytes to be fetched from stores, as far as their sizes are known.
        unknown_sources: Number of times that a stream is read whose size in bytes is unknown.
    """

    rank: int
    loads: LaneLoads
    delivered: int
    padded: int
    repeated: int
    local_bytes: int
    remote_bytes: int
    unknown_sources: int


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Shared memory for the batches of one rank.

    Attributes:
        nbytes: Size of the ring in bytes.
        slots: Number of batches that it has room for.
        ahead: Number of batches that workers prepare ahead of the consumer (`prefetch_factor`). The other slots are
            for batches that the user holds.
        slot_bytes: Size of one slot in bytes.
        fields: Size in bytes of each field in one slot.
        marks_bytes: Size in bytes of the marks (reset, valid, repeat, step, time, stream) and cursors in one slot, and
            of the gaps between arrays.
    """

    nbytes: int
    slots: int
    ahead: int
    slot_bytes: int
    fields: Mapping[str, int]
    marks_bytes: int


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What an epoch of a loader will be like, computed from its plan and the lengths of its streams alone.

    All figures hold if the streams have the lengths that they declare and none is skipped. ``str(report)`` shows them
    as tables. Bytes are those of whole files where a reader needs about all of them (videos, archives, tokenized
    texts), and those of the delivered steps for other texts; caches and requests that are repeated are not considered.

    Attributes:
        batch_size: Number of lanes of a rank.
        window: Number of steps of a batch.
        world_size: Number of ranks.
        seed: Seed of the shuffle.
        shuffle: Whether streams are shuffled in each epoch.
        epoch: Number of the epoch. The shares of the ranks are those in this epoch, and so are the steps and bytes
            with ``switch="align"`` and ``tail="drop"`` or ``"cycle"``. All other figures are the same in each epoch.
        streams: Lengths of the streams.
        epochs: Epoch with each combination of `switch` and `tail`. One is marked as that of the loader.
        loads: Loads of all lanes, with the loader's `switch`. None if a length is unknown.
        ranks: Share of each rank. Empty if a length is unknown.
        ring: Memory for the batches of one rank.
        hints: Advice on settings that would help, one sentence each.
    """

    batch_size: int
    window: int
    world_size: int
    seed: int
    shuffle: bool
    epoch: int
    streams: StreamLengths
    epochs: tuple[PlannedEpoch, ...]
    loads: LaneLoads | None
    ranks: tuple[RankShare, ...]
    ring: RingMemory
    hints: tuple[str, ...]

    @property
    def chosen(self) -> PlannedEpoch:
        """The epoch with the settings of the loader."""
        return next(planned for planned in self.epochs if planned.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return document

    def to_tables(self) -> Iterator[TextTable]:
        """Yield the report as tables for people."""
        yield TextTable("", (), list(self._collect_facts().items()))
        yield self._tabulate_epochs()
        if len(self.ranks) > 1:
            yield self._tabulate_ranks()
        if self.hints:
            yield TextTable("hints", (), [("-", hint) for hint in self.hints])

    def __str__(self) -> str:
        """Return the report as text of several lines."""
        return "\n\n".join(map(_format_table, self.to_tables()))

    def _collect_facts(self) -> dict[str, str]:
        ranks = f" on each of {self.world_size:,} ranks" if self.world_size > 1 else ""
        batches = _format_integer(self.chosen.batches)
        facts = {
            "streams": _describe_count(self.streams),
            "lengths": _describe_lengths(self.streams),
            "longest": make_printable(self.streams.longest_key or "", MAX_KEY_CHARACTERS),
            "batches": f"{batches} per epoch, {self.batch_size:,} x {self.window:,} steps{ranks}",
            "steps": _describe_steps(self.chosen),
            "lanes": _describe_loads(self.loads),
            "reads": _describe_bytes(self.chosen),
            "ring": _describe_ring(self.ring, " on each rank" if ranks else ""),
            "slot": _describe_slot(self.ring),
        }
        return {name: text for name, text in facts.items() if text}

    def _tabulate_epochs(self) -> TextTable:
        columns = ("", "switch", "tail", "batches", "padded", "share", "repeated", "dropped", "bytes")
        rows = [
            (
                "*" if planned.chosen else "",
                planned.switch,
                planned.tail,
                _format_integer(planned.batches),
                _format_integer(planned.padded),
                "?" if planned.padded_share is None else f"{planned.padded_share:.1%}",
                _format_integer(planned.repeated),
                _format_integer(planned.dropped),
                _format_bytes(planned),
            )
            for planned in self.epochs
        ]
        return TextTable("an epoch with each switch and tail, over all ranks", columns, rows, "* this plan")

    def _tabulate_ranks(self) -> TextTable:
        columns = ("rank", "lowest", "highest", "imbalance", "delivered", "padded", "repeated", "bytes")
        rows = [
            (
                str(share.rank),
                f"{share.loads.lowest:,}",
                f"{share.loads.highest:,}",
                f"{share.loads.imbalance:.1%}",
                f"{share.delivered:,}",
                f"{share.padded:,}",
                f"{share.repeated:,}",
                _format_bytes(share),
            )
            for share in self.ranks[:_MAX_RANKS_LISTED]
        ]
        remaining = len(self.ranks) - len(rows)
        title = f"loads of the lanes, and steps, of each rank in epoch {self.epoch}"
        return TextTable(title, columns, rows, f"and {remaining:,} more" if remaining else "")


def _format_table(table: TextTable) -> str:
    rows = [table.columns, *table.rows] if table.columns else table.rows
    right = [name not in _TEXT_COLUMNS for name in table.columns] or [False] * len(rows[0])
    return "\n".join(filter(None, [table.title, *align_cells(rows, right), table.footer]))


def _describe_count(streams: StreamLengths) -> str:
    text = f"{streams.count:,} with {streams.steps:,} steps"
    if streams.unknown:
        text = f"{streams.count:,}, of which {streams.unknown:,} declare no length"
    return text + (f"; {streams.empty:,} are empty" if streams.empty else "")


def _describe_lengths(streams: StreamLengths) -> str:
    known = streams.count - streams.unknown
    if not known:
        return ""
    return (
        f"{streams.shortest:,} to {streams.longest:,} steps, median {_format_number(streams.median)}; "
        f"{streams.short:,} ({streams.short / known:.1%}) shorter than a window"
    )


def _describe_steps(planned: PlannedEpoch) -> str:
    if planned.delivered is None:
        return ""
    parts = [f"{planned.delivered:,} delivered"]
    if planned.padded:
        parts.append(f"{planned.padded:,} padded ({planned.padded_share:.1%} of the batches)")
    if planned.repeated:
        parts.append(f"{planned.repeated:,} repeated")
    if planned.dropped:
        parts.append(f"{planned.dropped:,} dropped")
    return ", ".join(parts)


def _describe_loads(loads: LaneLoads | None) -> str:
    if loads is None:
        return ""
    return (
        f"{loads.lanes:,} with {loads.lowest:,} to {loads.highest:,} steps, median {_format_number(loads.median)}, "
        f"imbalance {loads.imbalance:.1%}"
    )


def _describe_bytes(planned: PlannedEpoch) -> str:
    if planned.local_bytes is None:
        return "unknown"
    sources = {"local files": planned.local_bytes, "stores": planned.remote_bytes or 0}
    parts = [f"{format_size(nbytes)} from {name}" for name, nbytes in sources.items() if nbytes]
    if planned.unknown_sources:
        parts.append(f"{planned.unknown_sources:,} streams of unknown size")
    return ", ".join(parts) or "nothing from files or stores"


def _describe_ring(ring: RingMemory, ranks: str) -> str:
    return (
        f"{format_size(ring.nbytes)}{ranks}: {ring.slots:,} slots of {format_size(ring.slot_bytes)}, "
        f"{ring.ahead:,} prepared ahead"
    )


def _describe_slot(ring: RingMemory) -> str:
    parts = {**ring.fields, "marks": ring.marks_bytes}
    return ", ".join(f"{make_printable(name)} {format_size(nbytes)}" for name, nbytes in parts.items())


def _format_bytes(planned: PlannedEpoch | RankShare) -> str:
    if planned.local_bytes is None or planned.remote_bytes is None:
        return "?"
    nbytes = planned.local_bytes + planned.remote_bytes
    if planned.unknown_sources:
        return f"{format_size(nbytes)} + ?" if nbytes else "?"
    return format_size(nbytes)


def _format_integer(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.1f}"
