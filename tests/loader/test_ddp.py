"""Trainings on several real ranks: torchrun, gloo, DDP, torch.distributed.checkpoint."""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import ddp_program
import pytest
import torch.distributed.checkpoint as dcp
from batch_files import read_batches
from ddp_program import EPOCHS, KINDS, LANES, LENGTHS, SAVED, SEED, WINDOW
from engine_data import assert_same_batches, copies, model_epoch
from polling import is_running
from resume_data import Seekable, rows_of_ranks
from tiers import fast_first
from torchrun import Hung, run, torchrun

import streamloader as sl

PROGRAM = Path(ddp_program.__file__)


def expected(epoch, **mode):
    return model_epoch(LENGTHS, LENGTHS, epoch, lanes=LANES, window=WINDOW, seed=SEED, **mode)


def check_file(out, name, world, wanted):
    """Check that the ranks received the expected batches, and that all of them ended after the same batch."""
    parts = [read_batches(out / f"{name}-{rank}-of-{world}.npz") for rank in range(world)]
    assert {len(part) for part in parts} == {len(wanted)}
    assert_same_batches(rows_of_ranks(parts), wanted)
    return parts


def steps_of(parts):
    """Count how often each (stream, step) was delivered over all ranks, without repeats."""
    return collections.Counter(
        pair
        for part in parts
        for batch in part
        for pair in zip(
            *(batch[name][batch["valid"] & ~batch["repeat"]].tolist() for name in ("stream", "step")), strict=True
        )
    )


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed")  # that it runs in a single process
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.distributed")
@pytest.mark.parametrize("resumed_by", fast_first([0, 3]), ids=["one", "three and one"])
def test_a_training_on_two_ranks_goes_on_with_other_ranks(resumed_by, tmp_path):
    torchrun(2, PROGRAM, tmp_path, "fresh", scratch=tmp_path)
    if resumed_by:
        torchrun(resumed_by, PROGRAM, tmp_path, "resume", scratch=tmp_path)
    once = {(stream, step): 1 for stream, length in enumerate(LENGTHS) for step in range(length)}
    for world in filter(None, (2, resumed_by)):
        check_file(tmp_path, "early", world, expected(0))
        for switch, tail in KINDS:
            parts = check_file(tmp_path, f"{switch}-{tail}", world, expected(0, switch=switch, tail=tail))
            if tail != "drop":
                assert steps_of(parts) == once
    for epoch in range(EPOCHS):
        check_file(tmp_path, f"fresh-{epoch}", 2, expected(epoch))
    if resumed_by:
        check_file(tmp_path, "resume-1", resumed_by, expected(1)[SAVED:])
        check_file(tmp_path, "resume-2", resumed_by, expected(2))
    states = [json.loads((tmp_path / f"state-{rank}.json").read_text()) for rank in range(2)]
    for load in (
        lambda loader: dcp.load({"loader": loader}, checkpoint_id=tmp_path / "checkpoint"),
        lambda loader: loader.load_state_dict(states),
    ):
        with sl.MultiStreamer(Seekable(LENGTHS), LANES, WINDOW, seed=SEED, timeout=60.0) as loader:
            load(loader)
            assert_same_batches(copies(loader), expected(1)[SAVED:])
            assert_same_batches(copies(loader), expected(2))


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = (
        f"import subprocess; child = subprocess.Popen({child}, start_new_session=True); print(child.pid); child.wait()"
    )
    for deadline in (1.0, 10.0, 100.0):  # until it is enough for two interpreters to start
        with pytest.raises(Hung) as caught:
            run([sys.executable, "-c", program], deadline=deadline, scratch=tmp_path)
        if caught.value.output:
            break
    pid = int(caught.value.output)
    assert not is_running(pid)
