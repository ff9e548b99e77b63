"""Read the samples of one window of a lane: slice their fields out of files and fetched spans."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from streamloader.datasets.shards.order import ShuffleWindow
from streamloader.datasets.shards.sample_set import SampleBlock
from streamloader.datasets.shards.source import SampleSource
from streamloader.datasets.shards.window_plan import NO_PIECE, plan_window
from streamloader.errors import CorruptSample, DatasetError, StreamloaderError
from streamloader.values import Array

__all__ = ["KEY", "URL", "RawSample", "WindowReader"]

RawSample: TypeAlias = dict[str, Any]

KEY: Final = "__key__"  # WebDataset's names
URL: Final = "__url__"
_MAX_BLOCK_SAMPLES: Final = 512  # that are made at once
_MAX_BLOCK_BYTES: Final = 1 << 20
_MAX_BLOCK_SHARDS: Final = 32  # whose files are open at once


class WindowReader:
    """The samples of one window of a lane.

    Args:
        source: Bytes of the samples.
        window: Samples in the order in which they are played.

    Attributes:
        plan: Plan for these samples and those of other lanes that are read together with them.
    """

    def __init__(self, source: SampleSource, window: ShuffleWindow) -> None:
        self._source = source
        self.plan = plan = plan_window(source, window)
        taken = plan.take_lane(window.lane)
        self._names = plan.names
        self._columns = range(len(self._names))
        self._shards, self._samples, self._is_verified = taken.shards, taken.samples, taken.is_verified
        self._starts, self._sizes, self._checksums = taken.starts, taken.sizes, taken.checksums
        self._pieces, self._keys, self._key_bounds = taken.pieces, taken.keys, taken.key_bounds
        self._ends = np.cumsum(self._sizes.sum(axis=1, dtype=np.int64))
        self._position = 0
        # After which sample this lane does not need the bytes of a span any more.
        self._last_uses: Array = np.zeros(len(plan.span_starts), np.int64)
        positions, columns = np.nonzero(self._pieces >= len(plan.mapped))
        np.maximum.at(self._last_uses, self._pieces[positions, columns] - len(plan.mapped), positions)

    @property
    def is_played(self) -> bool:
        """Whether all samples were returned."""
        return self._position == len(self._shards)

    def cancel(self) -> None:
        """Cancel all transfers."""
        self.plan.cancel()
        self._position = len(self._shards)

    # --- samples -----------------------------------------------------------------------------------------------------

    def read_block(self) -> SampleBlock:
        """Return the next samples."""
        start = self._position
        end = self._find_block_end(start)
        rows = slice(start, end)
        shards, numbers = self._shards[rows].tolist(), self._samples[rows]
        columns = self._read_columns(rows) if self._read_pieces(rows) else None
        if columns is not None:
            samples: list[Any] = _make_samples(
                self._names, self._read_keys(rows, shards), self.plan.urls, shards, columns
            )
        else:
            samples = [
                self._make_sample(position, shard, number)
                for position, shard, number in zip(range(start, end), shards, numbers.tolist(), strict=True)
            ]
        self._free_spans(rows)
        self._position = end  # only now: a wait that is interrupted loses nothing
        return SampleBlock(samples, shards, numbers, columns is not None)

    def _find_block_end(self, start: int) -> int:
        """Return the position after a block of samples of moderate size."""
        before = int(self._ends[start - 1]) if start else 0
        end = int(np.searchsorted(self._ends, before + _MAX_BLOCK_BYTES))
        end = min(max(start + 1, end), start + _MAX_BLOCK_SAMPLES, len(self._shards))
        if len(self.plan.mapped) <= _MAX_BLOCK_SHARDS:
            return end
        seen: set[int] = set()
        for position, shard in enumerate(self._shards[start:end].tolist(), start):
            seen.add(shard)
            if len(seen) > _MAX_BLOCK_SHARDS:
                return position
        return end

    def _read_pieces(self, rows: slice) -> bool:
        """Have the bytes of some samples ready. Return whether that succeeded, and all of them have all fields."""
        plan = self.plan
        if plan.check_mappings():
            return True
        needed = np.unique(self._pieces[rows]).tolist()
        is_whole = not plan.failures and NO_PIECE not in needed
        for number in needed:
            if number != NO_PIECE:
                plan.read_piece(number)
                is_whole &= not isinstance(plan.data[number], StreamloaderError)
        return is_whole

    def _read_columns(self, rows: slice) -> list[list[bytes]] | None:
        """Return the fields of some samples that all have them. None if a checksum is wrong."""
        data = self.plan.data
        is_verified = bool(self._is_verified[rows].all())
        columns: list[list[bytes]] = []
        for column in self._columns:
            starts, sizes = self._starts[rows, column], self._sizes[rows, column]
            bounds = zip(self._pieces[rows, column].tolist(), starts.tolist(), (starts + sizes).tolist(), strict=True)
            values = [data[piece][start:end] for piece, start, end in bounds]
            if is_verified and [*map(zlib.crc32, values)] != self._checksums[rows, column].tolist():
                return None
            columns.append(values)
        return columns if is_verified or not self._is_verified[rows].any() else None

    def _read_keys(self, rows: slice, shards: list[int]) -> list[str]:
        if self._keys is not None:
            names: list[str] = self._keys[rows].astype(np.str_).tolist()  # several times faster
            return names
        bounds = zip(shards, *self._key_bounds[rows].T.tolist(), strict=True)
        return [self._read_key(shard, start, end) for shard, start, end in bounds]

    def _read_key(self, shard: int, start: int, end: int) -> str:
        keys = self.plan.tables[shard].keys
        if isinstance(keys, np.ndarray):
            return str(keys[start // keys.itemsize], "ascii")
        key = keys[start:end]
        return key if isinstance(key, str) else str(key, "utf-8", "surrogatepass")

    def _make_sample(self, position: int, shard: int, number: int) -> RawSample | StreamloaderError:
        """Return a sample that may lack fields, or whose bytes may be bad."""
        failure = self.plan.failures.get(shard)
        if failure is not None:
            return failure
        key = self._read_keys(slice(position, position + 1), [shard])[0]
        sample: RawSample = {KEY: key, URL: self._source.find_url(shard)}
        for column in self._columns:
            piece = int(self._pieces[position, column])
            if piece == NO_PIECE:
                continue
            data, name = self.plan.data[piece], self._names[column]
            if isinstance(data, StreamloaderError):
                return data
            start = int(self._starts[position, column])
            value = data[start : start + int(self._sizes[position, column])]
            if self._is_verified[position] and int(self._checksums[position, column]) != zlib.crc32(value):
                return self._make_checksum_error(shard, number, name)
            sample[name] = value
        return sample

    def _make_checksum_error(self, shard: int, number: int, name: str) -> DatasetError:
        place = self._source.describe(shard, number, name)
        return CorruptSample(
            f"{place['address']}, byte {place['offset']}: the member {place['member']} has another checksum than its "
            f"index declares (data set {place['dataset']}). Write the shard again, or leave the sample out with "
            "on_error='skip'",
            **place,
        )

    def _free_spans(self, rows: slice) -> None:
        """Drop the bytes that no later sample needs, and mapped files that many others may need."""
        plan = self.plan
        if plan.is_kept:
            return
        for number in np.unique(self._pieces[rows]).tolist():
            if number != NO_PIECE:
                span = number - len(plan.mapped)
                plan.release_piece(number, is_last=span >= 0 and self._last_uses[span] < rows.stop)


def _make_samples(
    names: Sequence[str], keys: list[str], urls: dict[int, str], shards: list[int], columns: list[list[bytes]]
) -> list[RawSample]:
    """Return samples that all have the same fields. One or two fields, the usual case, take half the time."""
    rows = zip(keys, shards, *columns, strict=True)
    if len(names) == 1:
        (one,) = names
        return [{KEY: key, URL: urls[shard], one: first} for key, shard, first in rows]
    if len(names) == 2:  # noqa: PLR2004
        one, two = names
        return [{KEY: key, URL: urls[shard], one: first, two: second} for key, shard, first, second in rows]
    names = (KEY, URL, *names)
    return [dict(zip(names, (key, urls[shard], *row), strict=True)) for key, shard, *row in rows]
