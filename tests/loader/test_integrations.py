"""Checkpoints of Lightning and Accelerate, used without changes, resume exactly.

``torch.distributed.checkpoint`` is in test_ddp.py, ``torch.save`` in test_resume.py.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import ddp_program
import pytest
from batch_files import read_batches
from engine_data import assert_same_batches, model_epoch
from resume_data import rows_of_ranks
from tiers import fast_first
from torchrun import run, torchrun

HERE = Path(__file__).parents[1]
LENGTHS = [5, 9, 3, 7, 4, 6]


def program(name, *arguments, scratch):
    run([sys.executable, str(HERE / f"{name}.py"), *map(str, arguments)], scratch=scratch, deadline=200.0)


def expected(epochs, declared=None):
    return [
        batch
        for epoch in range(epochs)
        for batch in model_epoch(LENGTHS, declared or LENGTHS, epoch, lanes=2, window=4, seed=5)
    ]


@pytest.mark.parametrize("stride", fast_first([4, 1]), ids=["some", "every"])
def test_lightning_goes_on_behind_any_checkpoint(stride, tmp_path):
    program("lightning_program", tmp_path, "save", f"resume:{stride}", scratch=tmp_path)
    for name, declared in (("known", None), ("unknown", [None] * 6)):
        wanted = expected(3, declared)
        whole = json.loads((tmp_path / f"{name}.json").read_text())
        assert_same_batches(read_batches(tmp_path / f"{name}.npz"), wanted)
        assert all([epoch, batch] == loaders for epoch, batch, *loaders in whole["batches"])
        checkpoints = [path.stem for path in (tmp_path / f"checkpoints-{name}").iterdir()]
        per_epoch = len(expected(1, declared))
        assert sorted(checkpoints) == sorted(
            [f"step={step}-in" for step in range(1, len(wanted) + 1)]
            + [f"step={step}-end" for step in range(per_epoch, len(wanted) + 1, per_epoch)]
        )
        resumed = sorted(checkpoints)[::stride]
        assert {checkpoint.rpartition("-")[2] for checkpoint in resumed} == {"in", "end"}
        for checkpoint in resumed:
            done = int(checkpoint.split("=")[1].split("-")[0])
            resumed = json.loads((tmp_path / f"{name}-{checkpoint}.json").read_text())
            assert_same_batches(read_batches(tmp_path / f"{name}-{checkpoint}.npz"), wanted[done:])
            assert resumed == {"batches": whole["batches"][done:], "weights": whole["weights"]}, checkpoint
    every = [[epoch, batch] * 2 for epoch in range(3) for batch in range(len(expected(1)))]
    seen = json.loads((tmp_path / "validated.json").read_text())
    probed = [[0, batch] * 2 for batch in range(2)]  # before it trains, Lightning validates two batches
    assert seen["all"] == {"batches": every, "validated": probed + every}
    firsts = [[epoch, 0] * 2 for epoch in range(3)]
    assert seen["overfit"] == {"batches": firsts, "validated": firsts[:1] + firsts}


def test_accelerate_goes_on_behind_every_checkpoint(tmp_path):
    program("accelerate_program", tmp_path, "save", "resume", scratch=tmp_path)
    wanted = expected(2)
    losses = ast.literal_eval((tmp_path / "all.losses").read_text())
    assert_same_batches(read_batches(tmp_path / "all.npz"), wanted)
    for done in range(1, len(wanted) + 1):
        assert_same_batches(read_batches(tmp_path / f"{done:03}.npz"), wanted[done:])
        assert ast.literal_eval((tmp_path / f"{done:03}.losses").read_text()) == losses[done:]


def test_accelerate_accumulates_gradients_as_with_a_dataloader(tmp_path):
    program("accumulation_program", tmp_path / "seen.json", scratch=tmp_path)
    seen = json.loads((tmp_path / "seen.json").read_text())
    wanted, wanted_unknown = (
        [index % 3 == 2 or index == batches - 1 for index in range(batches)] * 2
        for batches in (len(expected(1)), len(expected(1, [None] * 6)))
    )
    assert wanted.count(True) > 2 * (len(expected(1)) // 3)  # the last batch of an epoch counts
    assert seen["DataLoader"] == wanted
    assert seen["known"] == wanted
    assert seen["unknown"] == wanted_unknown
    assert seen["worker"] == wanted
    assert seen["with validation"] == wanted
    assert seen["after a break"] == [False, *wanted]
    assert seen["failed"] == [False, True]
    assert seen["skip_first_batches"] == "NoSampler"


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["lightning", "accelerate"])
def test_a_training_on_two_ranks_goes_on_with_three(trainer, tmp_path):
    program = HERE / "trainer_ranks_program.py"
    for world, what in ((2, "save"), (3, "resume")):
        torchrun(world, program, tmp_path, trainer, what, scratch=tmp_path)
    mode = {"lanes": ddp_program.LANES, "window": ddp_program.WINDOW, "seed": ddp_program.SEED}
    lengths = ddp_program.LENGTHS
    declared = [length + 9 if length in (16, 41) else length for length in lengths]
    epochs = [model_epoch(lengths, declared, epoch, **mode) for epoch in range(ddp_program.EPOCHS)]
    wanted = [batch for epoch in epochs for batch in epoch]
    for world, what, first in ((2, "save", 0), (3, "resume", len(epochs[0]) + ddp_program.SAVED)):
        parts = [read_batches(tmp_path / f"{what}-{rank}-of-{world}.npz") for rank in range(world)]
        assert_same_batches(rows_of_ranks(parts), wanted[first:])
