"""The job of a loader's workers, and its encoding in shared memory for worker processes."""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import struct
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from streamloader.child_processes import module_search_path
from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from streamloader.engine.ring import SlotLayout
    from streamloader.engine.workload import Workload

__all__ = ["WorkerJob", "read_job", "write_job"]

_NUMBER: Final = struct.Struct("<Q")  # each number of the header
_MIN_MAPPED_BYTES: Final = 1024  # smaller arrays stay in the pickle
_ALIGNMENT_BYTES: Final = 64


def _make_anew(kind: Callable[[], object]) -> Callable[[object], tuple[Callable[[], object], tuple[()]]]:
    return lambda _: (kind, ())


# Locks of code that is sent by value. A worker gets free ones of its own, as if it had imported the module.
_LOCKS: Final = {
    type(threading.Lock()): _make_anew(threading.Lock),
    type(threading.RLock()): _make_anew(threading.RLock),
    threading.local: _make_anew(threading.local),
}


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """Everything that a worker of a loader needs to know.

    Attributes:
        workload: Streams or envs that the workers read.
        layout: Layout of a slot of the ring.
        slots: Number of slots of the ring.
        first_lane: Global number of the ring's row 0.
        lanes: Rows of each worker.
        log_level: Effective level of the logger ``"streamloader"``.
        cores: Number of cores for each worker.
    """

    workload: Workload
    layout: SlotLayout
    slots: int
    first_lane: int
    lanes: Sequence[Sequence[int]]
    log_level: int
    cores: int


def write_job(job: WorkerJob) -> int:
    """Write the job into anonymous memory, once for all workers, and return its descriptor.

    The memory is sealed: a worker can neither change nor cut off what later workers read.

    Raises:
        ConfigError: If an object of the job cannot be pickled.
    """
    from streamloader.engine.ring import anonymous_memory, seal_memory

    pieces = _pack_job(job)
    fd = anonymous_memory("streamloader-job")
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.writelines(pieces)
        seal_memory(fd, writable=False)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _pack_job(job: WorkerJob) -> list[bytes | memoryview]:
    """Encode a job as pieces to be written one after the other.

    The header holds numbers (``<Q`` each): sizes of search path and pickle, number of arrays, offset and size of each
    array. The module search path (JSON), the pickled job and the arrays follow. Arrays lie outside the pickle, aligned
    to 64 bytes, so that workers map them.

    Raises:
        ConfigError: If an object of the job cannot be pickled.
    """
    import numpy as np

    from streamloader.engine.by_value import pickle_local_modules_by_value

    folders = module_search_path()
    search_path = json.dumps(folders).encode()
    arrays: list[memoryview] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _MIN_MAPPED_BYTES:
            arrays.append(raw)
        return raw.nbytes < _MIN_MAPPED_BYTES

    file = io.BytesIO()
    try:
        with pickle_local_modules_by_value(folders):
            _pickler_class()(file, protocol=5, buffer_callback=keep_in_pickle).dump(job)
    except Exception as error:
        raise ConfigError(
            f"the dataset, or make_env, cannot be sent to worker processes ({type(error).__name__}: {error}): open "
            "files and connections in make, open() or make_env, not before, or use num_workers=0"
        ) from error
    pickled = file.getvalue()
    end = _NUMBER.size * (3 + 2 * len(arrays)) + len(search_path) + len(pickled)
    pieces: list[bytes | memoryview] = [search_path, pickled]
    numbers = [len(search_path), len(pickled), len(arrays)]
    offsets: dict[tuple[int, int], int] = {}  # by address and size
    for array in arrays:
        memory = (np.frombuffer(array, np.uint8).ctypes.data, array.nbytes)
        if memory not in offsets:  # two arrays may be views of the same memory
            offsets[memory] = offset = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            pieces += (bytes(offset - end), array)
            end = offset + array.nbytes
        numbers += (offsets[memory], array.nbytes)
    return [b"".join(map(_NUMBER.pack, numbers)), *pieces]


def _pickler_class() -> Any:
    import cloudpickle

    class JobPickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar[Any] = ChainMap(_LOCKS, cloudpickle.Pickler.dispatch_table)

    return JobPickler


def read_job(fd: int) -> WorkerJob:
    """Read a job from its descriptor, close that, and set the module search path to the parent's.

    The job's arrays alias a copy-on-write mapping: only pages that this process writes to take memory of its own.
    """
    data = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    os.close(fd)

    def number(index: int) -> int:
        return int(_NUMBER.unpack_from(data, index * _NUMBER.size)[0])

    spans = [(number(index), number(index + 1)) for index in range(3, 3 + 2 * number(2), 2)]
    path_offset = _NUMBER.size * (3 + 2 * len(spans))
    pickle_offset = path_offset + number(0)
    sys.path[:] = json.loads(bytes(data[path_offset:pickle_offset]))
    arrays = [data[offset : offset + size] for offset, size in spans]
    pickled = data[pickle_offset : pickle_offset + number(1)]
    job: WorkerJob = pickle.loads(pickled, buffers=arrays)  # noqa: S301 - written by this process's own parent
    return job
