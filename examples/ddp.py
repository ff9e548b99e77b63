"""How do I train on several GPUs? With DDP and torchrun, as usual: the loader detects its rank.

    torchrun --nproc-per-node 2 examples/ddp.py

(`python examples/ddp.py` runs this command.) Each rank hosts `batch_size` of all lanes. The texts have very different
lengths, but all ranks end an epoch after the same number of batches, `len(loader)`. So no rank waits for one that has
finished.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch.nn import functional

import streamloader as sl

verses = [f"{count} little boats went out to sea; {count - 1} came back. " * (count**2 % 40) for count in range(2, 34)]


def main() -> None:
    """Train as one rank."""
    dist.init_process_group("gloo")  # "nccl" on GPUs, and device="cuda" for the loader
    torch.manual_seed(0)
    layers = {"embed": torch.nn.Embedding(256, 16), "rnn": torch.nn.GRU(16, 64), "head": torch.nn.Linear(64, 256)}
    model = torch.nn.parallel.DistributedDataParallel(Predictor(torch.nn.ModuleDict(layers)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    dataset = sl.TextStreams.from_texts(verses)
    with sl.MultiStreamer(dataset, 4, 32, switch="align", layout="TBCHW", num_workers=1) as loader:
        hidden = torch.zeros(1, 4, 64)
        for epoch in range(3):
            letters, batches, total = 0, 0, 0.0
            for batch in loader:
                loss, hidden = model(batch.data.long(), batch.valid, hidden.detach() * batch.keep[0][None, :, None])
                optimizer.zero_grad()
                loss.backward()  # waits for the gradients of all ranks
                optimizer.step()
                letters, batches, total = letters + int(batch.valid.sum()), batches + 1, total + loss.item()
            ranks: list[tuple[int, int, float]] = [(0, 0, 0.0)] * dist.get_world_size()
            dist.all_gather_object(ranks, (batches, letters, total / batches))
            if dist.get_rank() == 0:
                print(f"epoch {epoch}, len(loader) {len(loader)}")
                for rank, (batches, letters, mean) in enumerate(ranks):
                    print(f"  rank {rank}: {batches} batches, {letters:6,} letters, loss {mean:.3f}")
                print(f"  together {sum(rank[1] for rank in ranks):,} of {sum(map(len, verses)):,} letters")
    dist.destroy_process_group()


class Predictor(torch.nn.Module):
    """Predicts each letter of a window, except the first, from the letters before it."""

    def __init__(self, layers: torch.nn.ModuleDict) -> None:
        """Create the model from the layers embed, rnn and head."""
        super().__init__()
        self.layers = layers

    def forward(
        self, text: torch.Tensor, valid: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and the state after the window. For padding alone, the loss is 0, not 0 / 0."""
        output, hidden = self.layers["rnn"](self.layers["embed"](text), hidden)
        scored = valid[1:]
        loss = functional.cross_entropy(self.layers["head"](output[:-1])[scored], text[1:][scored], reduction="sum")
        return loss / scored.sum().clamp(min=1), hidden


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environ = {"OMP_NUM_THREADS": "1", **os.environ}
        sys.exit(subprocess.run([*torchrun, __file__], env=environ, check=False).returncode)
