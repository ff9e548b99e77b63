"""Accumulates gradients with Accelerate over loaders of every kind: `accumulation_program.py OUT`.

Writes for each of them after which batches the optimizer took a step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from resume_data import Seekable

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4, 6]
LANES, WINDOW, SEED, EPOCHS = 2, 4, 5, 2


def loader_of(declared=LENGTHS, lengths=LENGTHS, **more):
    return sl.MultiStreamer(Seekable(lengths, declared), LANES, WINDOW, seed=SEED, timeout=60.0, **more)


class Training:
    def __init__(self, accelerator):
        self.accelerator = accelerator
        parameter = torch.nn.Parameter(torch.zeros(()))
        model = torch.nn.ParameterList([parameter])
        self.model, self.optimizer = accelerator.prepare(model, torch.optim.SGD([parameter], lr=0.1))
        self.parameter = parameter

    def step(self):
        """Play one batch; return whether the optimizer took a step."""
        before = self.parameter.item()
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(self.parameter * 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self.parameter.item() != before


def play(accelerator, loader, validate=None):
    training, steps = Training(accelerator), []
    for _ in range(EPOCHS):
        for _ in loader:
            steps.append(training.step())
            if validate is not None:
                list(validate)
    return steps


def main(out):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    seen = {}
    with loader_of() as loader:
        batches = len(loader)
        plain = torch.utils.data.DataLoader(list(range(batches)), batch_size=1)
        seen["DataLoader"] = play(accelerator, accelerator.prepare(plain))
        seen["known"] = play(accelerator, loader)
    with loader_of([None] * len(LENGTHS)) as loader:
        seen["unknown"] = play(accelerator, loader)
    with loader_of(num_workers=1) as loader, loader_of() as validation:
        seen["worker"] = play(accelerator, loader)
        seen["with validation"] = play(accelerator, loader, validation)
    with loader_of() as loader:
        training = Training(accelerator)
        for _ in loader:
            seen["after a break"] = [training.step()]
            break
        accelerator.step = 0
        seen["after a break"] += play(accelerator, loader)
    accelerator.step = 0
    with loader_of() as loader:  # the failed batch is not delivered, so the last step is taken by hand

        def fail(batch):
            if batch.index == 1:
                raise LookupError
            return batch

        loader._collate_fn = fail
        training, iterator = Training(accelerator), iter(loader)
        next(iterator)
        seen["failed"] = [training.step()]
        try:
            next(iterator)
        except LookupError:
            del iterator
        seen["failed"].append(not accelerator.gradient_state.in_dataloader)
        try:
            skip_first_batches(loader, 2)
        except sl.NoSampler as error:
            seen["skip_first_batches"] = type(error).__name__
    out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
