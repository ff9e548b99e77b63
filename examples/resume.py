"""How do I continue after a crash as if it had never happened? Save `loader.state_dict()` with the model.

This program runs three trainings. The first one is not interrupted. The second one saves a checkpoint after batch 10
and is killed after batch 13. The third one continues from this checkpoint, in a new process and with another number of
workers. The losses are compared bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile

import torch
from torch.nn import functional

import streamloader as sl

EPOCHS, SAVED_AFTER, KILLED_AFTER = 2, 10, 13
verses = [f"{count} little boats went out to sea; {count - 1} came back. " * (count % 5 + 1) for count in range(2, 34)]


def train(checkpoint: str, workers: int, *, resume: bool = False, killed: bool = False) -> None:
    """Train for the remaining batches of all epochs, and print each loss as JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums over threads may differ in the last bit
    model = torch.nn.ModuleDict({"rnn": torch.nn.GRUCell(256, 32), "head": torch.nn.Linear(32, 256)})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    hidden = torch.zeros(4, 32)
    with sl.MultiStreamer(sl.TextStreams.from_texts(verses), 4, 64, num_workers=workers) as loader:
        if resume:
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            hidden = saved["hidden"]
            loader.load_state_dict(saved["loader"])
        for _epoch in range(loader.state_dict()["epoch"], EPOCHS):
            for batch in loader:
                text = batch.data.long()
                hidden, loss = hidden.detach(), torch.zeros(())
                for step in range(64):  # predict each letter of a text, except the first, from those before
                    missed = functional.cross_entropy(model["head"](hidden), text[:, step], reduction="none")
                    loss = loss + (missed * batch.valid[:, step] * batch.keep[:, step]).mean() / 64
                    letter = functional.one_hot(text[:, step], 256).float()
                    hidden = model["rnn"](letter, hidden * batch.keep[:, step, None])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(json.dumps([batch.epoch, batch.index + 1, loss.item()]), flush=True)
                if killed and (batch.epoch, batch.index + 1) == (0, SAVED_AFTER):
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "hidden": hidden}
                    torch.save(state | {"loader": loader.state_dict()}, checkpoint)
                if killed and (batch.epoch, batch.index + 1) == (0, KILLED_AFTER):
                    os.kill(os.getpid(), signal.SIGKILL)


def start(checkpoint: str, workers: int, **options: bool) -> list[list[float]]:
    """Train in a separate process. Return [epoch, batch, loss] for each batch."""
    command = [sys.executable, __file__, checkpoint, str(workers), json.dumps(options)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=not options.get("killed")).stdout
    return [json.loads(line) for line in output.splitlines()]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], int(sys.argv[2]), **json.loads(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "checkpoint.pt")
            whole = start(file, workers=1)
            before = start(file, workers=2, killed=True)
            after = start(file, workers=0, resume=True)
        for name, losses in (
            ("uninterrupted, 1 worker", whole),
            ("killed, 2 workers", before),
            ("resumed, no worker", after),
        ):
            first, last = ("epoch {}, batch {}".format(*losses[end]) for end in (0, -1))
            print(f"{name:22} {first:18} to {last:18} last loss {losses[-1][-1]:.6f}")
        same = before == whole[:KILLED_AFTER] and after == whole[SAVED_AFTER:]
        print(f"the same losses, bit for bit: {same}")
