"""Trains with Accelerate, and records every batch.

`accelerate_program.py OUT save` trains without interruption, with a checkpoint after every batch.
`accelerate_program.py OUT resume` continues after each of these checkpoints, with a new loader each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from batch_files import write_batches
from resume_data import Seekable, arrays

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4, 6]
LANES, WINDOW, SEED, EPOCHS = 2, 4, 5, 2


class Training:
    def __init__(self, loader):
        torch.manual_seed(1)
        self.accelerator = Accelerator(cpu=True)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        assert self.loader is loader  # `prepare` returns other objects than DataLoaders unchanged
        self.accelerator.register_for_checkpointing(loader)
        self.seen, self.losses = [], []

    def epochs(self, save_to=None):
        """Train for the remaining batches of all epochs."""
        for epoch in range(self.loader.state_dict()["epoch"], EPOCHS):
            self.loader.set_epoch(epoch)
            for batch in self.loader:
                loss = self.model(batch.data.float() / 2**31).mean()
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.seen.append(arrays(batch))
                self.losses.append(loss.item())
                if save_to is not None:
                    self.accelerator.save_state(save_to / f"{len(self.seen):03}")


def loader_of(workers=0):
    return sl.MultiStreamer(Seekable(LENGTHS), LANES, WINDOW, seed=SEED, num_workers=workers, timeout=60.0)


def main(out, what):
    checkpoints = out / "checkpoints"
    for path in [None] if what == "save" else sorted(checkpoints.iterdir()):
        with loader_of(workers=path is not None and path.name == "003") as loader:
            training = Training(loader)
            if path is not None:
                training.accelerator.load_state(path)
            training.epochs(checkpoints if path is None else None)
        name = "all" if path is None else path.name
        write_batches(out / f"{name}.npz", training.seen)
        (out / f"{name}.losses").write_text(repr(training.losses))


if __name__ == "__main__":
    for what in sys.argv[2:]:
        main(Path(sys.argv[1]), what)
