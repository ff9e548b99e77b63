"""Trains a small model with DDP on the ranks that torchrun has started, and records every batch.

`torchrun ... ddp_program.py OUT fresh` runs an epoch of each kind, and then `EPOCHS` of one loader. It saves a
checkpoint after `SAVED` batches of epoch 1. `... OUT resume` does the same, but continues after that checkpoint, on any
number of ranks. OUT is a folder that all ranks share.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from batch_files import write_batches
from resume_data import Seekable, arrays

import streamloader as sl

LENGTHS = [3, 90, 5, 0, 41, 1, 7, 2, 16]  # very uneven: more than half of it is a single stream
LANES, WINDOW, SEED = 6, 4, 11
EPOCHS, SAVED = 3, 5
KINDS = [(switch, tail) for switch in ("pack", "align") for tail in ("pad", "drop", "cycle")]


class Training:
    """A model under DDP: no rank finishes a step before all ranks have computed it."""

    def __init__(self, rank, world, out):
        self.rank, self.world, self.out = rank, world, out
        torch.manual_seed(0)
        self.model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)

    def loader(self, **more):
        return sl.MultiStreamer(Seekable(LENGTHS), LANES // self.world, WINDOW, seed=SEED, timeout=60.0, **more)

    def train(self, loader, save_after=None):
        """Train on one iteration, and return its batches."""
        batches = []
        for batch in loader:
            loss = self.model(batch.data.float()).squeeze(-1)[batch.valid].sum()  # 0 where all steps are padding
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            batches.append(arrays(batch))
            if len(batches) == save_after:
                self.save(loader)
        return batches

    def save(self, loader):
        dcp.save({"loader": loader, "model": self.model.module}, checkpoint_id=self.out / "checkpoint")
        (self.out / f"state-{self.rank}.json").write_text(json.dumps(loader.state_dict()))

    def write(self, name, batches):
        write_batches(self.out / f"{name}-{self.rank}-of-{self.world}.npz", batches)


def main(out, what):
    with sl.MultiStreamer(Seekable(LENGTHS), LANES // int(os.environ["WORLD_SIZE"]), WINDOW, seed=SEED) as loader:
        assert not dist.is_initialized()  # so its rank comes from the environment
        early = [arrays(batch) for batch in loader]
    dist.init_process_group("gloo")
    for name in ("RANK", "WORLD_SIZE"):
        del os.environ[name]  # from here on, ranks come from the process group
    training = Training(dist.get_rank(), dist.get_world_size(), out)
    training.write("early", early)
    for switch, tail in KINDS:
        with training.loader(switch=switch, tail=tail) as loader:
            batches = training.train(loader)
            assert len(batches) == len(loader)
            training.write(f"{switch}-{tail}", batches)
    with training.loader(num_workers=1) as loader:
        first = 0
        if what == "resume":
            dcp.load({"loader": loader, "model": training.model.module}, checkpoint_id=out / "checkpoint")
            first = loader.state_dict()["epoch"]
        for epoch in range(first, EPOCHS):
            save_after = SAVED if what == "fresh" and epoch == 1 else None
            training.write(f"{what}-{epoch}", training.train(loader, save_after))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
