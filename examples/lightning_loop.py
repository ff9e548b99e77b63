"""How do I use it with Lightning? Like any other loader: Lightning saves and restores its position in checkpoints.

Needs Lightning: `pip install pytorch-lightning`. A model is trained for two epochs, with a checkpoint every 20 steps.
Then a second model continues from the checkpoint after step 20, in the middle of an epoch, and receives exactly the
batches that the first model received after it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings

import torch
from torch.nn import functional

import streamloader as sl

try:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint
except ImportError:
    raise SystemExit("This example needs Lightning: pip install pytorch-lightning") from None

LANES, WINDOW = 4, 32
verses = [f"{count} little boats went out to sea; {count - 1} came back. " * (count % 5 + 1) for count in range(2, 34)]


class Letters(pl.LightningModule):
    """Predicts the next letter."""

    def __init__(self) -> None:
        """Create the model. The state of the lanes is a buffer, so that checkpoints contain it."""
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = torch.nn.Embedding(256, 16), torch.nn.GRU(16, 64, batch_first=True)
        self.head = torch.nn.Linear(64, 256)
        self.register_buffer("hidden", torch.zeros(1, LANES, 64))
        self.losses: dict[tuple[int, int], float] = {}

    def train_dataloader(self) -> sl.MultiStreamer:
        """Create the loader here: with several devices, every process knows its rank only now."""
        return sl.MultiStreamer(sl.TextStreams.from_texts(verses), LANES, WINDOW, switch="align", num_workers=1)

    def training_step(self, batch: sl.Batch, batch_idx: int) -> torch.Tensor:
        """Continue every lane where the previous batch stopped."""
        text = batch.data.long()
        output, hidden = self.rnn(self.embed(text), self.hidden * batch.keep[None, :, :1])
        self.hidden = hidden.detach()
        scored = batch.valid[:, 1:]
        loss = functional.cross_entropy(self.head(output[:, :-1])[scored], text[:, 1:][scored])
        self.losses[batch.epoch, batch.index] = loss.item()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def train(folder: str, checkpoint: str | None = None) -> Letters:
    """Train for two epochs, from the start or from a checkpoint."""
    model = Letters()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=20, save_top_k=-1)],
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    trainer.fit(model, ckpt_path=checkpoint)
    trainer.train_dataloader.close()
    return model


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it reports missing devices
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # caused by its own use of torch
    torch.set_num_threads(1)  # sums over threads may differ in the last bit
    with tempfile.TemporaryDirectory() as folder:
        first = train(folder)
        second = train(folder + "/second", f"{folder}/step=20.ckpt")
    for name, model in (("from the start", first), ("from the checkpoint", second)):
        (epoch, index), loss = next(iter(model.losses.items()))
        print(f"{name:20} first batch: epoch {epoch}, number {index:2}, loss {loss:.6f}; {len(model.losses)} batches")
    same = list(first.losses.items())[20:] == list(second.losses.items())
    print(f"the same {len(second.losses)} batches and losses after it: {same}")
