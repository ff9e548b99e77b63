"""How a job reaches the workers: its arrays are mapped, not copied."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import streamloader as sl

SMAPS = Path("/proc/self/smaps")
FIELDS = {name: sl.Field((), "int64") for name in ("kib", "own_kib", "aligned", "writeable", "frozen", "value")}


def mapping_kib(figure):
    """A figure of the job's mapping in this process."""
    (part,) = re.findall(r"memfd:streamloader-job.*?(?=\n[0-9a-f]+-[0-9a-f]+ |\Z)", SMAPS.read_text(), re.DOTALL)
    return int(re.search(rf"^{figure}: +(\d+) kB", part, re.MULTILINE)[1])


@pytest.mark.skipif(not SMAPS.exists(), reason="needs /proc")
def test_workers_share_the_arrays_of_a_job_and_may_write_to_them():
    array, odd, frozen = np.arange(1 << 20), np.arange(3001, dtype=np.uint8), np.arange(1000)
    frozen.flags.writeable = False
    twice = array[:]

    def look(item):
        if item == 3:
            array[:512] = 77  # one page
        yield {
            "kib": mapping_kib("Size"),
            "own_kib": mapping_kib("Anonymous"),
            "aligned": sum(it.ctypes.data % 64 for it in (array, odd, frozen)),
            "writeable": array.flags.writeable + odd.flags.writeable,
            "frozen": not frozen.flags.writeable and odd.sum() == np.arange(3001).astype(np.uint8).sum(),
            "value": array[0] + twice[-1],
        }

    streams = sl.IterStreams(range(4), look, fields=FIELDS, lengths=[1] * 4)
    with sl.MultiStreamer(streams, 2, 2, num_workers=2, shuffle=False, timeout=60.0) as loader:
        (batch,) = (batch.numpy() for batch in loader)  # streams 0 and 2 in the first worker, 1 and 3 in the other
    last = (1 << 20) - 1
    assert batch["stream"].tolist() == [[0, 2], [1, 3]]
    assert batch["value"].tolist() == [[last, last], [last, last + 77]]
    assert batch["aligned"].tolist() == [[0, 0], [0, 0]]
    assert batch["writeable"].tolist() == [[2, 2], [2, 2]]
    assert batch["frozen"].tolist() == [[1, 1], [1, 1]]
    assert (batch["kib"] >= 8 << 10).all()
    assert (batch["kib"] < 9 << 10).all()  # the array is in it once
    assert batch["own_kib"].ravel()[:3].tolist() == [0, 0, 0]
    assert 4 <= batch["own_kib"][1, 1] <= 64
    assert array[0] == 0
