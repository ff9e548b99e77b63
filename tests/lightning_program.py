"""Trains with Lightning, and records every batch of every training.

`lightning_program.py OUT save` trains undisturbed, with a checkpoint after every step and after every epoch.
`lightning_program.py OUT resume` goes on behind each of these checkpoints, with a new loader each time; and then
validates with a loader, too. `... OUT resume:4` goes on behind every fourth, in the order of their names.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from batch_files import write_batches
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.data import extract_batch_size
from resume_data import Seekable, arrays

import streamloader as sl

LENGTHS = [5, 9, 3, 7, 4, 6]
LANES, WINDOW, SEED, EPOCHS = 2, 4, 5, 3
CASES = {
    "known": (LENGTHS, {}),
    # Of a loader without a length Lightning would take a batch in advance, which the state then is behind.
    "unknown": ([None] * len(LENGTHS), {"limit_train_batches": 1 << 30}),
}


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []
        self.batches = []  # (Lightning's epoch and batch, the loader's)
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.seen.append(arrays(batch))
        self.batches.append([self.current_epoch, batch_idx, batch.epoch, batch.index])
        loss = self.layer(batch.data.float() / 2**31).mean()
        self.log("loss", loss, on_step=False, on_epoch=True)  # needs the batch size, which Lightning infers
        assert extract_batch_size(batch) == LANES
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated.append([self.current_epoch, batch_idx, batch.epoch, batch.index])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def trainer_of(out, **more):
    return pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=out,
        enable_checkpointing="callbacks" in more,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        **more,
    )


def loader_of(declared=LENGTHS, **more):
    return sl.MultiStreamer(Seekable(LENGTHS, declared), LANES, WINDOW, seed=SEED, timeout=60.0, **more)


def train(name, out, *, workers=0, checkpoint=None, **more):
    """Return the trained model, which has recorded all batches."""
    declared, limits = CASES[name]
    model = Model()
    with loader_of(declared, num_workers=workers) as loader:
        trainer_of(out, **limits, **more).fit(model, loader, ckpt_path=checkpoint, weights_only=True)
    return model


def validate(out, **more):
    """Return the batches of the training and the validation of a model."""
    model = Model()
    with loader_of() as loader, loader_of() as held_out:
        trainer_of(out, **more).fit(model, loader, held_out)
    return {"batches": model.batches, "validated": model.validated}


def report(out, name, model):
    write_batches(out / f"{name}.npz", model.seen)
    weights = [parameter.detach().flatten().tolist() for parameter in model.parameters()]
    (out / f"{name}.json").write_text(json.dumps({"batches": model.batches, "weights": weights}))


def main(out, what):
    what, _, stride = what.partition(":")
    for name in CASES:
        saved = out / f"checkpoints-{name}"
        if what == "save":
            each = [
                ModelCheckpoint(saved, filename="{step}-in", every_n_train_steps=1, save_top_k=-1),
                ModelCheckpoint(saved, filename="{step}-end", every_n_epochs=1, save_top_k=-1),
            ]
            report(out, name, train(name, out, callbacks=each))
            continue
        for number, path in enumerate(sorted(saved.iterdir())[:: int(stride or 1)]):
            report(out, f"{name}-{path.stem}", train(name, out, checkpoint=path, workers=number == 1))
    if what == "resume":
        seen = {"all": validate(out), "overfit": validate(out, overfit_batches=1)}
        (out / "validated.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for what in sys.argv[2:]:
        main(Path(sys.argv[1]), what)
