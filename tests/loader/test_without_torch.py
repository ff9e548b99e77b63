"""Without torch, everything but what is torch's own works, with NumPy arrays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_data import Numbered
from optional_torch import needs_torch, torch

import streamloader as sl
from streamloader import torch_support

PROGRAM = Path(__file__).parents[1] / "without_torch_program.py"
CHECKS = ["batches", "copies", "layout", "dlpack", "envs", "collation", "data_sets", "archives", "shards", "errors"]


@pytest.mark.parametrize("check", CHECKS)
def test_without_torch(check):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), check], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["passed"], done.stderr
    assert done.returncode == 0


def test_every_check_of_the_program_is_run():
    names = [line[10:].partition("(")[0] for line in PROGRAM.read_text().splitlines() if line.startswith("def check_")]
    assert names == CHECKS


@needs_torch
def test_tensors_and_arrays_of_a_batch_are_the_same_memory_for_other_libraries():
    with sl.MultiStreamer(Numbered([5, 4]), 2, 3) as loader:
        batch = next(iter(loader))
        arrays = batch.numpy()
        for name in batch:
            assert isinstance(batch[name], torch.Tensor)
            assert np.shares_memory(np.from_dlpack(arrays[name]), arrays[name])
            assert torch.from_dlpack(arrays[name]).data_ptr() == batch[name].data_ptr()
            if batch[name].dtype is not torch.bool:  # which torch exports only in newer versions
                assert np.shares_memory(np.from_dlpack(batch[name]), arrays[name])


def test_a_folder_named_torch_is_no_torch(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not torch_support.has_torch()
    with pytest.raises(sl.MissingDependency, match="this needs torch, which is not installed: pip install torch") as no:
        torch_support.require_torch("this needs")
    assert no.value.name == "torch"
    (tmp_path / "torch" / "__init__.py").touch()
    assert torch_support.has_torch()
