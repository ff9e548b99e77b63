"""The ring: anonymous shared memory that holds the next few whole batches."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import math
import mmap
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamloader.child_processes import keep_off_standard_streams
from streamloader.common.free_memory import free_memory
from streamloader.engine.slot_release import ReleaseQueue
from streamloader.errors import RingTooLarge
from streamloader.values import Array, Field

__all__ = [
    "CURSOR_COLUMNS",
    "MARKS",
    "LaneActivity",
    "Lease",
    "Ring",
    "Row",
    "SlotArray",
    "SlotLayout",
    "Status",
    "anonymous_memory",
    "seal_memory",
]

MARKS: dict[str, Field] = {
    "reset": Field((), "bool"),
    "valid": Field((), "bool"),
    "repeat": Field((), "bool"),
    "step": Field((), "int64", fill=-1),
    "time": Field((), "float64", fill=-1.0),
    "stream": Field((), "int64", fill=-1),
}
CURSOR_COLUMNS = 3  # position, step, ended: see engine/workload.py
_CURSOR = "cursor"
_ALIGNMENT_BYTES = 64
_MIB = 1 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14


class Status:
    """Columns and stages of the status table, in which each lane writes its progress.

    The table serves statistics and error messages, and shows which stream a worker was reading when it died. ``BUSY``
    is 1 while the lane fills its row of grant ``SEQ``; only then can its stream be the cause of a death. In the line of
    a filler's first row, ``WORKS_ON`` is the row, plus 1, on which it works while its other rows wait, or 0.
    """

    SEQ, STAGE, STREAM, STEP, EPOCH, POSITION, BUSY, WORKS_ON = range(8)
    COLUMNS = 8
    STAGES = ("idle", "opening", "reading", "closing", "seeking", "resetting", "stepping", "choosing actions")
    IDLE, OPENING, READING, CLOSING, SEEKING, RESETTING, STEPPING, CHOOSING = range(8)


class LaneActivity(NamedTuple):
    """What a lane is doing, according to its line of the status table.

    Attributes:
        stage: Name of the stage.
        stream: Ordinal of the stream, or None if the line names no stream of the dataset.
        step: Step of the stream.
    """

    stage: str
    stream: int | None
    step: int

    @classmethod
    def read(cls, line: Sequence[int], streams: int) -> LaneActivity:
        """Read a line, which a worker may have filled with any numbers.

        Args:
            line: Line of the status table.
            streams: Number of streams of the dataset.
        """
        stage, ordinal = line[Status.STAGE], line[Status.STREAM]
        return cls(
            Status.STAGES[stage] if 0 <= stage < len(Status.STAGES) else "unknown",
            ordinal if 0 <= ordinal < streams else None,
            line[Status.STEP],
        )


@dataclass(frozen=True, slots=True)
class SlotArray:
    """One array of a slot.

    Attributes:
        offset: Offset in the slot, in bytes.
        shape: Shape (B, T, ...), or (B, ...) without a window.
        dtype: Data type.
        axes: Names of the axes of one step. None for fields without named axes.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    axes: str | None = None

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class SlotLayout:
    """Layout of the arrays of a batch in its slot.

    Args:
        fields: Fields of the user, by name.
        lanes: Number of rows B of a batch.
        window: Number of steps T of a batch, or None for arrays (B, ...) without marks.

    Attributes:
        arrays: Arrays of the user's fields, then the marks and cursors, by name.
        nbytes: Size of a slot in bytes.
        data_bytes: Size of the user's fields in bytes.
    """

    def __init__(self, fields: Mapping[str, Field], lanes: int, window: int | None) -> None:
        self.fields = dict(fields)
        self.lanes, self.window = lanes, window
        self.arrays: dict[str, SlotArray] = {}
        self._end = 0
        rows = (lanes,) if window is None else (lanes, window)
        for name, field in self.fields.items():
            self._add(name, (*rows, *field.shape), field)
        self.data_bytes = sum(array.nbytes for array in self.arrays.values())
        if window is not None:
            for name, field in MARKS.items():
                self._add(name, rows, field)
            self._add(_CURSOR, (lanes, CURSOR_COLUMNS), Field((), "int64"))
        self.nbytes = max(self._end, _ALIGNMENT_BYTES)

    def _add(self, name: str, shape: tuple[int, ...], field: Field) -> None:
        array = SlotArray(self._end, shape, np.dtype(field.dtype), field.axes)
        self.arrays[name] = array
        self._end = -(-(self._end + array.nbytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


class Row:
    """One lane's row of one slot: arrays (T, ...) that alias the ring.

    Args:
        arrays: Arrays of the slot.
        fields: Fields of the user, by name.
        lane: Row of the ring.

    Attributes:
        fields: Row of each of the user's fields, by name.
        cursor: Cursor of the lane after this batch, as three writable integers.
    """

    __slots__ = (
        "_field_specs",
        "_step_indices",
        "cursor",
        "fields",
        "repeat",
        "reset",
        "step",
        "stream",
        "time",
        "valid",
    )

    def __init__(self, arrays: Mapping[str, Array], fields: Mapping[str, Field], lane: int) -> None:
        self._field_specs = fields
        self.fields: dict[str, Array] = {name: arrays[name][lane] for name in fields}
        self.reset: Array = arrays["reset"][lane]
        self.valid: Array = arrays["valid"][lane]
        self.repeat: Array = arrays["repeat"][lane]
        self.step: Array = arrays["step"][lane]
        self.time: Array = arrays["time"][lane]
        self.stream: Array = arrays["stream"][lane]
        self.cursor = memoryview(arrays[_CURSOR][lane])
        self._step_indices = _step_indices(len(self.step))

    def mark(
        self,
        offset: int,
        count: int,
        first_step: int,
        stream: int,
        times: Callable[[int, Array], None] | None,
        *,
        repeat: bool,
    ) -> None:
        """Write the marks of `count` consecutive steps of one stream, which start at index `offset` of this row.

        All marks are written each time, because the user may have modified the previous batch in this slot.

        Args:
            offset: Index in the row of the first of these steps.
            count: Number of steps.
            first_step: Position in the stream of the first of these steps.
            stream: Ordinal of the stream.
            times: Function that writes the times of steps, as :meth:`Stream.times` does. None for one second a step.
            repeat: Whether these steps were delivered before in this epoch.
        """
        end = offset + count
        fills_row = count == len(self._step_indices)
        step, time, indices = self.step, self.time, self._step_indices
        if not fills_row:
            step, time, indices = step[offset:end], time[offset:end], indices[:count]
        step.fill(first_step)  # twice as fast as adding the integer, which NumPy would convert to an array
        np.add(step, indices, step)
        if times is None:
            time[:] = step
        else:
            times(first_step, time)
        if fills_row:
            self.reset.fill(False)
            self.valid.fill(True)
            self.repeat.fill(repeat)
            self.stream.fill(stream)
        else:
            self.reset[offset:end] = False
            self.valid[offset:end] = True
            self.repeat[offset:end] = repeat
            self.stream[offset:end] = stream
        if not first_step:
            self.reset[offset] = True

    def pad(self, offset: int) -> None:
        """Write padding into all arrays of this row, from `offset` on."""
        for name, array in self.fields.items():
            array[offset:] = self._field_specs[name].fill
        for name, field in MARKS.items():
            getattr(self, name)[offset:] = field.fill


@functools.cache
def _step_indices(window: int) -> Array:
    """Return the indices of the steps of a window. All rows share one array."""
    return np.arange(window, dtype=np.int64)


class Lease(ctypes.Array):  # type: ignore[type-arg]
    """Memory of one slot that is lent to the user. It exports the buffer protocol.

    Tensors and arrays made from it keep it alive. When the last one is gone, the slot is free. ctypes requires a class
    for each size.
    """

    _type_ = ctypes.c_char
    _length_ = 0
    mapping: mmap.mmap


@functools.cache
def _lease_class(nbytes: int) -> type[Lease]:
    return type("Lease", (Lease,), {"_length_": nbytes})


class Ring:
    """Slots of one layout and the lanes' status table, in one mapping of one descriptor.

    Args:
        fd: Descriptor of the memory. The ring closes it.
        layout: Layout of a slot.
        slots: Number of slots.

    Attributes:
        nbytes: Size of the mapping in bytes.
        status: Status table, int64 (lanes, ``Status.COLUMNS``).
        address: Address of the mapping.
        released: Queue of the slots that the user holds no reference to any more.
    """

    def __init__(self, fd: int, layout: SlotLayout, slots: int) -> None:
        self.fd, self.layout, self.slots = fd, layout, slots
        self._status_bytes = -(-layout.lanes * Status.COLUMNS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self.nbytes = self.size(layout, slots)
        self._mapping = mmap.mmap(fd, self.nbytes, flags=mmap.MAP_SHARED)
        self.status: Array = np.frombuffer(self._mapping, np.int64, layout.lanes * Status.COLUMNS).reshape(
            layout.lanes, Status.COLUMNS
        )
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.released = ReleaseQueue()
        cursor = layout.arrays.get(_CURSOR)
        start, size = (0, 0) if cursor is None else (cursor.offset, cursor.nbytes)
        self._slot_offsets = [self._status_bytes + slot * layout.nbytes for slot in range(slots)]
        self._cursor_spans = [slice(offset + start, offset + start + size) for offset in self._slot_offsets]
        self._lease_type = _lease_class(layout.nbytes)

    @staticmethod
    def size(layout: SlotLayout, slots: int) -> int:
        """Return the size in bytes of a ring."""
        status = -(-layout.lanes * Status.COLUMNS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        return status + -(-layout.nbytes * slots // mmap.PAGESIZE) * mmap.PAGESIZE

    @classmethod
    def check_free_memory(cls, layout: SlotLayout, slots: int) -> None:
        """Check that a ring fits into free memory.

        Raises:
            RingTooLarge: If it does not. The error has the needed and the free bytes.
        """
        needed, free = cls.size(layout, slots), free_memory()
        if free is not None and needed > free:
            raise _ring_too_large_error(needed, free, layout, slots)

    @classmethod
    def create(cls, layout: SlotLayout, slots: int) -> Ring:
        """Create a ring, whose memory is not allocated yet: :meth:`allocate` has to be called before it is filled.

        Raises:
            RingTooLarge: If it does not fit into free memory. The error has the needed and the free bytes.
        """
        cls.check_free_memory(layout, slots)
        fd = anonymous_memory("streamloader-ring")
        try:
            os.ftruncate(fd, cls.size(layout, slots))
            seal_memory(fd, writable=True)
            return cls(fd, layout, slots)
        except OSError:
            os.close(fd)
            raise

    def allocate(self) -> None:
        """Allocate all memory, so that later writes cannot fail.

        Raises:
            RingTooLarge: If it does not fit into free memory. The error has the needed and the free bytes.
        """
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self.fd, 0, self.nbytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _ring_too_large_error(self.nbytes, free_memory() or 0, self.layout, self.slots) from error
            raise

    def map_rows(self, slot: int, lanes: Sequence[int]) -> None:
        """Map the pages of the fields of some rows at once, which takes a fifth of the time of one fault a page.

        Args:
            slot: Slot, whose memory is allocated.
            lanes: Consecutive rows.
        """
        if sys.platform != "linux":
            return
        for name in self.layout.fields:
            array = self.layout.arrays[name]
            start = self._slot_offsets[slot] + array.offset
            row_bytes = array.nbytes // self.layout.lanes
            if row_bytes < mmap.PAGESIZE:
                continue
            first = (start + lanes[0] * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # an older kernel: each page is mapped by its first access
                self._mapping.madvise(_MADV_POPULATE_READ, first, start + (lanes[-1] + 1) * row_bytes - first)

    def arrays(self, slot: int) -> dict[str, Array]:
        """Return all arrays of a slot, (B, T, ...), which alias the ring."""
        return {
            name: np.frombuffer(
                self._mapping, array.dtype, int(np.prod(array.shape)), self._slot_offsets[slot] + array.offset
            ).reshape(array.shape)
            for name, array in self.layout.arrays.items()
        }

    def lease(self, slot: int) -> Lease:
        """Lend a slot's memory. The slot is put into `released` once nothing refers to it any more."""
        lease = self._lease_type.from_address(self.address + self._slot_offsets[slot])
        lease.mapping = self._mapping
        self.released.watch(lease, slot)
        return lease

    def cursors(self, slot: int) -> bytes:
        """Return a copy of the cursors of all lanes after the batch in `slot`: int64 (lanes, 3)."""
        return self._mapping[self._cursor_spans[slot]]

    @property
    def span(self) -> tuple[int, int]:
        """Address and size of the mapping."""
        return self.address, self.nbytes

    def close(self) -> None:
        """Close the descriptor. The memory is freed with the last array or lease over it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def anonymous_memory(label: str) -> int:
    """Return a descriptor of new, empty shared memory. `label` only shows in /proc."""
    if hasattr(os, "memfd_create"):
        return keep_off_standard_streams(os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    import tempfile  # takes a worker 3 ms that has memfd

    with tempfile.TemporaryFile(prefix=label) as file:  # deleted at once; the descriptor keeps its content
        return keep_off_standard_streams(os.dup(file.fileno()))


def seal_memory(fd: int, *, writable: bool) -> None:
    """Fix the size of anonymous memory for good, so that no process can cut off pages that others have mapped.

    An access to such a page would end the process with SIGBUS. A process that may write can still punch holes: their
    pages read as zeros. Without memfd (macOS), files cannot be sealed.

    Args:
        fd: Descriptor of the memory, which has its final size.
        writable: Whether its contents may still change. If not, nobody can map it for writing any more.
    """
    if hasattr(os, "memfd_create"):
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals if writable else seals | fcntl.F_SEAL_WRITE)


def _ring_too_large_error(needed: int, free: int, layout: SlotLayout, slots: int) -> RingTooLarge:
    return RingTooLarge(
        f"the ring of {slots} batches needs {needed / _MIB:,.1f} MiB and {free / _MIB:,.1f} MiB are free "
        f"(one batch has {layout.nbytes / _MIB:,.1f} MiB): choose a smaller batch_size, window, "
        "frame size or prefetch_factor",
        needed=needed,
        free=free,
    )
