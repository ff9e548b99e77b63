"""Uploading from a real Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from archive.ingest.executors.test_ray_executor import cluster, environment  # noqa: F401 - a fixture

PROGRAM = """
import os, sys
import numpy as np
from PIL import Image
import streamloader as sl

class Dataset:
    def __len__(self):
        return 300

    def __getitem__(self, number):
        return Image.fromarray(np.full((5, 5), number % 256, np.uint8)), number

for engine in ("processes", "ray"):
    print(sl.upload_cv_dataset(
        Dataset(), address=f"{sys.argv[1]}/{engine}", maxcount=70, engine=engine, ray_address=os.environ["RAY_HEAD"]
    ))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_shards_are_those_of_local_processes(cluster, tmp_path):  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path],
        env=environment(cluster[0]), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("300\n300\n"), done.stderr
    names = sorted(os.listdir(tmp_path / "ray"))
    assert len(names) == 11
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "processes" / name).read_bytes()
