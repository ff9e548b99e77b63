"""The ring: shared memory without a name that holds the next few whole batches."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from streamloader.engine.free_memory import free_memory
from streamloader.engine.slot_release import Returned, Returns
from streamloader.errors import RingTooLarge
from streamloader.values import Array, Field

__all__ = [
    "CURSOR_COLUMNS",
    "META",
    "Lease",
    "Ring",
    "Row",
    "SlotArray",
    "SlotLayout",
    "Status",
    "nameless_memory",
]

META: dict[str, Field] = {
    "reset": Field((), "bool"),
    "valid": Field((), "bool"),
    "repeat": Field((), "bool"),
    "step": Field((), "int64", fill=-1),
    "time": Field((), "float64", fill=-1.0),
    "stream": Field((), "int64", fill=-1),
}
CURSOR_COLUMNS = 3  # position, step, ended: see engine/workload.py
_CURSOR = "cursor"
_ALIGN = 64


class Status:
    """Columns of the table in which each lane writes where it stands: for people, and to tell what a worker died of.

    ``BUSY`` is 1 while the lane fills its row of grant ``SEQ``; only then can its stream be the cause of a death.
    """

    SEQ, STAGE, STREAM, STEP, EPOCH, POSITION, BUSY = range(7)
    COLUMNS = 8
    STAGES = ("idle", "opening", "reading", "closing", "seeking")
    IDLE, OPENING, READING, CLOSING, SEEKING = range(5)


@dataclass(frozen=True, slots=True)
class SlotArray:
    """One array of a slot: where it starts in the slot, its shape (B, T, ...), dtype and step axes."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    axes: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class SlotLayout:
    """Where each array of a batch lies in its slot.

    Args:
        window: steps T of a batch; None for arrays (B, ...) as they are, without marks.

    Attributes:
        arrays: user's fields and the loader's own, by name.
        nbytes: bytes of a slot; data_bytes: those of the user's fields.
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
            for name, field in META.items():
                self._add(name, rows, field)
            self._add(_CURSOR, (lanes, CURSOR_COLUMNS), Field((), "int64"))
        self.nbytes = max(self._end, _ALIGN)

    def _add(self, name: str, shape: tuple[int, ...], field: Field) -> None:
        array = SlotArray(self._end, shape, np.dtype(field.dtype), field.axes)
        self.arrays[name] = array
        self._end = -(-(self._end + array.nbytes) // _ALIGN) * _ALIGN


class Row:
    """One lane's row of one slot: arrays (T, ...) that alias the ring."""

    __slots__ = ("_counter", "_declared", "cursor", "fields", "repeat", "reset", "step", "stream", "time", "valid")

    def __init__(self, arrays: Mapping[str, Array], fields: Mapping[str, Field], lane: int) -> None:
        self._declared = fields
        self.fields: dict[str, Array] = {name: arrays[name][lane] for name in fields}
        self.reset: Array = arrays["reset"][lane]
        self.valid: Array = arrays["valid"][lane]
        self.repeat: Array = arrays["repeat"][lane]
        self.step: Array = arrays["step"][lane]
        self.time: Array = arrays["time"][lane]
        self.stream: Array = arrays["stream"][lane]
        self.cursor = memoryview(arrays[_CURSOR][lane])  # of the lane behind this row
        self._counter = _counter(len(self.step))

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
        """Write the marks of `count` consecutive steps of one stream, which lie at `offset` in this row.

        All marks are written each time: the user may have written into the batch that had this slot before.

        Args:
            offset: Index in the row of the first of these steps.
            count: Number of steps.
            first_step: Position in the stream of the first of these steps.
            stream: Ordinal of the stream.
            times: Function that writes the times of steps, of :meth:`Stream.times`. None for one second a step.
            repeat: Whether these steps were delivered before in this epoch.
        """
        end = offset + count
        whole = count == len(self._counter)
        step, time, counter = self.step, self.time, self._counter
        if not whole:
            step, time, counter = step[offset:end], time[offset:end], counter[:count]
        step.fill(first_step)  # twice as fast as adding the number, which NumPy would make an array of
        np.add(step, counter, step)
        if times is None:
            time[:] = step
        else:
            times(first_step, time)
        if whole:
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
            array[offset:] = self._declared[name].fill
        for name, field in META.items():
            getattr(self, name)[offset:] = field.fill


@functools.cache
def _counter(window: int) -> Array:
    """Return the numbers of the steps of a window, shared by all its rows."""
    return np.arange(window, dtype=np.int64)


class Lease(ctypes.Array):  # type: ignore[type-arg]
    """The memory of one slot in the user's hands: it exports the buffer protocol, and everything made from it keeps it.

    When the last tensor or array over it goes, the slot is free. ctypes wants a class for each size.
    """

    _type_ = ctypes.c_char
    _length_ = 0
    mapping: mmap.mmap


@functools.cache
def _lease_class(nbytes: int) -> type[Lease]:
    return type("Lease", (Lease,), {"_length_": nbytes})


class Ring:
    """`slots` slots of one layout, and the lanes' status table, in one mapping of one descriptor."""

    def __init__(self, fd: int, layout: SlotLayout, slots: int) -> None:
        self.fd, self.layout, self.slots = fd, layout, slots
        self._status_bytes = -(-layout.lanes * Status.COLUMNS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        self.nbytes = self.size(layout, slots)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        self._mapping = mmap.mmap(fd, self.nbytes, flags=flags)
        self.status: Array = np.frombuffer(self._mapping, np.int64, layout.lanes * Status.COLUMNS).reshape(
            layout.lanes, Status.COLUMNS
        )
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.returns: Returns[Returned] = Returns()  # the slots that nothing refers to any more
        self._leased: dict[int, Returned] = {}
        cursor = layout.arrays.get(_CURSOR)
        self._cursor_offset, self._cursor_bytes = (0, 0) if cursor is None else (cursor.offset, cursor.nbytes)
        self._lease = _lease_class(layout.nbytes)

    @staticmethod
    def size(layout: SlotLayout, slots: int) -> int:
        """Bytes of a ring."""
        status = -(-layout.lanes * Status.COLUMNS * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        return status + -(-layout.nbytes * slots // mmap.PAGESIZE) * mmap.PAGESIZE

    @classmethod
    def check(cls, layout: SlotLayout, slots: int) -> None:
        """Refuse a ring for which there is no room.

        Raises:
            RingTooLarge: with needed and free bytes.
        """
        needed, free = cls.size(layout, slots), free_memory()
        if free is not None and needed > free:
            raise _too_large(needed, free, layout, slots)

    @classmethod
    def create(cls, layout: SlotLayout, slots: int) -> Ring:
        """Allocate a ring, all of it, now: later writes cannot fail.

        Raises:
            RingTooLarge: with needed and free bytes.
        """
        cls.check(layout, slots)
        size = cls.size(layout, slots)
        fd = nameless_memory("streamloader-ring")
        try:
            _allocate(fd, size)
            return cls(fd, layout, slots)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _too_large(size, free_memory() or 0, layout, slots) from error
            raise

    def arrays(self, slot: int) -> dict[str, Array]:
        """All arrays of a slot, (B, T, ...), aliasing the ring."""
        return {
            name: np.frombuffer(
                self._mapping, array.dtype, int(np.prod(array.shape)), self._start(slot) + array.offset
            ).reshape(array.shape)
            for name, array in self.layout.arrays.items()
        }

    def lease(self, slot: int) -> Lease:
        """Hand out a slot's memory; the slot is in `returns` once nothing refers to it any more."""
        lease = self._lease.from_address(self.address + self._start(slot))
        lease.mapping = self._mapping
        self._leased[slot] = Returned(lease, self.returns, slot)
        return lease

    def cursors(self, slot: int) -> bytes:
        """Copy the cursors of all lanes behind the batch in `slot`: int64 (lanes, 3)."""
        return ctypes.string_at(self.address + self._start(slot) + self._cursor_offset, self._cursor_bytes)

    @property
    def span(self) -> tuple[int, int]:
        """Address and size of the mapping."""
        return self.address, self.nbytes

    def close(self) -> None:
        """Close the descriptor. The memory goes when the last array or lease over it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _start(self, slot: int) -> int:
        return self._status_bytes + slot * self.layout.nbytes


def nameless_memory(label: str) -> int:
    """Return a descriptor of new, empty shared memory that has no name anywhere; `label` is for people only."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(label, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix=label) as file:  # without memfd: a file that never has a name
        return os.dup(file.fileno())


def _allocate(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


def _too_large(needed: int, free: int, layout: SlotLayout, slots: int) -> RingTooLarge:
    mib = 1 << 20
    return RingTooLarge(
        f"the ring of {slots} batches needs {needed / mib:,.1f} MiB and {free / mib:,.1f} MiB are free "
        f"(one batch has {layout.nbytes / mib:,.1f} MiB): choose a smaller batch_size, window, "
        "frame size or prefetch_factor",
        needed=needed,
        free=free,
    )
