"""Trains with Lightning or Accelerate on the ranks that torchrun has started, and records every batch.

`... trainer_ranks_program.py OUT lightning|accelerate save` saves a checkpoint after `SAVED` batches of epoch 1;
`... resume` goes on behind it, on any number of ranks.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from batch_files import write_batches
from ddp_program import EPOCHS, LANES, LENGTHS, SAVED, SEED, WINDOW
from resume_data import Seekable, arrays

import streamloader as sl

# Streams that are shorter than declared, so positions cannot be inferred from the lengths.
DECLARED = [length + 9 if length in (16, 41) else length for length in LENGTHS]
WORLD = int(os.environ["WORLD_SIZE"])


class AllRanksStreamer(sl.MultiStreamer):
    """A loader whose state is that of all ranks, because Lightning and Accelerate store only that of the first rank."""

    def state_dict(self):
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, super().state_dict())
        return sl.merge_states(states)


def loader_of():
    """Create a loader of this rank, which comes from the process group."""
    assert dist.is_initialized()
    environ = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    try:
        return AllRanksStreamer(Seekable(LENGTHS, DECLARED), LANES // WORLD, WINDOW, seed=SEED, timeout=60.0)
    finally:
        os.environ.update(environ)


def lightning(out, what):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)
            self.seen = []

        def train_dataloader(self):
            return loader_of()  # the process group is there by now

        def training_step(self, batch, batch_idx):
            assert (batch.epoch, batch.index) == (self.current_epoch, batch_idx)
            self.seen.append(arrays(batch))
            return self.layer(batch.data.float() / 2**31).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = Model()
    with sl.MultiStreamer(Seekable(LENGTHS, DECLARED), LANES, WINDOW, seed=SEED, rank=0, world_size=1) as all_lanes:
        at = len(all_lanes) + SAVED
    keep = ModelCheckpoint(out, filename="{step}", every_n_train_steps=at, save_top_k=-1) if what == "save" else None
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        strategy="ddp",
        devices=WORLD,
        callbacks=[keep] if keep else [],
        default_root_dir=out,
        enable_checkpointing=keep is not None,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer.fit(model, ckpt_path=None if keep else out / f"step={at}.ckpt", weights_only=True)
    trainer.train_dataloader.close()
    return model.seen


def accelerate(out, what):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader, model = loader_of(), torch.nn.Linear(3, 1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01), loader)
    accelerator.register_for_checkpointing(loader)
    if what == "resume":
        accelerator.load_state(out / "saved")
    seen = []
    with loader:
        for epoch in range(loader.state_dict()["epoch"], EPOCHS):  # on all ranks, as always
            loader.set_epoch(epoch)
            for batch in loader:
                loss = model(batch.data.float() / 2**31).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                seen.append(arrays(batch))
                if what == "save" and (batch.epoch, batch.index + 1) == (1, SAVED):
                    accelerator.save_state(out / "saved")
    accelerator.end_training()
    return seen


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    folder, trainer, stage = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    batches = {"lightning": lightning, "accelerate": accelerate}[trainer](folder, stage)
    write_batches(folder / f"{stage}-{os.environ['RANK']}-of-{WORLD}.npz", batches)
    if dist.is_initialized():
        dist.destroy_process_group()
