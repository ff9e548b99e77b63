from __future__ import annotations

import contextlib
import fcntl
import gc
import itertools
import mmap
import os
import threading

import numpy as np
import pytest
from hostile_workers import punch_hole
from optional_torch import torch

import streamloader as sl
from streamloader.engine import ring
from streamloader.engine.ring import MARKS, LaneActivity, Ring, SlotLayout, anonymous_memory

FIELDS = {"data": sl.Field((3, 5), "uint8", axes="HW"), "x": sl.Field((), "float64"), "none": sl.Field((0,), "int16")}
LAYOUT = SlotLayout(FIELDS, lanes=2, window=7)


@contextlib.contextmanager
def small_ring():  # no fixture: pytest would hold it for longer than the leak check has patience
    made = Ring.create(LAYOUT, 3)
    try:
        yield made
    finally:
        made.close()


def test_a_slot_holds_fields_and_marks_apart_from_each_other():
    spans = sorted((array.offset, array.offset + array.nbytes) for array in LAYOUT.arrays.values())
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= LAYOUT.nbytes
    assert all(array.offset % 64 == 0 for array in LAYOUT.arrays.values())
    assert LAYOUT.nbytes % 64 == 0
    assert list(LAYOUT.arrays) == [*FIELDS, *MARKS, "cursor"]
    assert LAYOUT.arrays["data"].shape == (2, 7, 3, 5)
    assert LAYOUT.arrays["cursor"].shape == (2, 3)
    assert LAYOUT.data_bytes == 2 * 7 * (15 + 8)


def test_arrays_of_slots_alias_the_ring_and_not_each_other():
    with small_ring() as small:
        slots = [small.arrays(slot) for slot in range(3)]
        small.status[:] = 77
        for number, arrays in enumerate(slots):
            for array in arrays.values():
                array.fill(number + 1)
        for number in range(3):
            for name, array in small.arrays(number).items():
                assert (array == np.full_like(array, number + 1)).all(), (number, name)
        assert (small.status == 77).all()


def test_another_mapping_of_the_descriptor_sees_the_same_bytes():
    with small_ring() as small:
        other = Ring(os.dup(small.fd), LAYOUT, 3)
        other.arrays(2)["x"][:] = 4.5
        other.status[1, 3] = 9
        assert (small.arrays(2)["x"] == 4.5).all()
        assert small.status[1, 3] == 9
        other.close()


def test_the_memory_has_no_name_and_is_allocated_whole():
    with small_ring() as small:
        link = os.readlink(f"/proc/self/fd/{small.fd}")
        assert link == "/memfd:streamloader-ring (deleted)"
        stat = os.fstat(small.fd)
        assert stat.st_nlink == 0
        assert stat.st_size == Ring.size(LAYOUT, 3)
        small.allocate()
        stat = os.fstat(small.fd)
        assert stat.st_blocks * 512 >= stat.st_size
        assert not os.get_inheritable(small.fd)


def test_a_slot_is_released_when_the_last_array_over_its_lease_is_dropped():
    with small_ring() as small:
        lease = small.lease(1)
        small.arrays(1)["data"][:] = 3
        array = np.frombuffer(lease, np.uint8)
        tensor = np.frombuffer(lease, np.uint8) if torch is None else torch.frombuffer(lease, dtype=torch.uint8)
        part = tensor[5:9].reshape(2, 2)
        del lease, tensor
        assert not small.released
        del array
        assert not small.released
        assert part.tolist() == [[3, 3], [3, 3]]
        del part
        assert small.released.drain() == [1]


def test_leases_may_end_in_any_thread():
    with small_ring() as small:
        leases = [small.lease(slot) for slot in (2, 0, 1)]
        threads = [threading.Thread(target=leases.pop) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        del threads, thread
        assert sorted(small.released.drain()) == [0, 1, 2]


def test_leased_memory_outlives_the_ring():
    made = Ring.create(LAYOUT, 2)
    made.arrays(1)["x"][:] = 2.5
    offset = LAYOUT.arrays["x"].offset
    array = np.frombuffer(made.lease(1), np.float64, 14, offset)
    made.close()
    del made
    gc.collect()
    assert array.tolist() == [2.5] * 14


def test_closing_twice_closes_no_descriptor_of_others():
    with small_ring() as small:
        number = small.fd
        small.close()
        reader, writer = os.pipe()
        assert number in (reader, writer)  # the lowest free number is given out again
        small.close()
        os.write(writer, b"x")
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        os.close(writer)


def test_a_ring_without_room_says_how_much_is_needed_and_free(monkeypatch):
    monkeypatch.setattr(ring, "free_memory", lambda: 4096)
    needed = Ring.size(LAYOUT, 3)
    with pytest.raises(sl.RingTooLarge, match=r"the ring of 3 batches needs .* MiB and .* MiB are free") as caught:
        Ring.create(LAYOUT, 3)
    assert caught.value.details == {"needed": needed, "free": 4096}
    assert isinstance(caught.value, MemoryError)


def test_anonymous_memory_without_memfd_has_no_name_either(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fd = anonymous_memory("streamloader-ring")
    assert os.listdir(tmp_path) == []
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"kept")
    assert os.pread(fd, 4, 0) == b"kept"
    os.close(fd)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd")
def test_the_size_of_a_ring_is_sealed():
    with small_ring() as small:
        size = os.fstat(small.fd).st_size
        for change in (
            lambda: os.ftruncate(small.fd, 0),
            lambda: os.ftruncate(small.fd, size + 1),
            lambda: os.posix_fallocate(small.fd, size, 1),
            lambda: fcntl.fcntl(small.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        ):
            with pytest.raises(PermissionError):
                change()
        assert os.fstat(small.fd).st_size == size
        small.status[:] = 5


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd")
def test_a_hole_in_a_ring_reads_as_zeros_and_can_be_written():
    with small_ring() as small:
        small.arrays(1)["data"][:] = 7
        punch_hole(small.fd, os.fstat(small.fd).st_size)
        assert not small.arrays(1)["data"].any()
        small.arrays(1)["data"][:] = 9
        assert (small.arrays(1)["data"] == 9).all()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd")
def test_a_job_cannot_be_changed_by_its_readers():
    from streamloader.engine.job import read_job, write_job

    fd = write_job({"job": "any"})
    other = os.dup(fd)
    for change in (
        lambda: os.ftruncate(fd, 0),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: mmap.mmap(fd, 0),
        lambda: punch_hole(fd, 4096),
    ):
        with pytest.raises(PermissionError):
            change()
    assert read_job(fd) == {"job": "any"}
    assert read_job(other) == {"job": "any"}


def test_a_line_of_the_status_table_may_hold_anything():
    for line, expected in (
        ([0, 2, 1, 5, 0, 0, 1, 0], ("reading", 1, 5)),
        ([0, 99, 7, 5, 0, 0, 1, 0], ("unknown", None, 5)),
        ([0, -1, -1, -9, 0, 0, 1, 0], ("unknown", None, -9)),
    ):
        assert LaneActivity.read(line, 3) == expected
