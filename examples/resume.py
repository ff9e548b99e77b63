"""How do I go on after a crash as if it had never happened? By saving `loader.state_dict()` with the model.

This program starts three trainings: one that nothing disturbs; one that saves a checkpoint after batch 10 and is killed
after batch 13; and one that goes on from this checkpoint, in a new process and with other workers. Losses are compared
to the last bit.
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
    """Train what is left of all epochs, and print each loss as JSON."""
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
                for step in range(64):  # each letter is predicted from those before it, the first of a text is not
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


def start(checkpoint: str, workers: int, **how: bool) -> list[list[float]]:
    """Train in a process of its own; return [epoch, batch, loss] of each batch."""
    command = [sys.executable, __file__, checkpoint, str(workers), json.dumps(how)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=not how.get("killed")).stdout
    return [json.loads(line) for line in said.splitlines()]


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
            ("undisturbed, 1 worker", whole),
            ("killed, 2 workers", before),
            ("resumed, no worker", after),
        ):
            first, last = ("epoch {}, batch {}".format(*losses[end]) for end in (0, -1))
            print(f"{name:22} {first:18} to {last:18} last loss {losses[-1][-1]:.6f}")
        same = before == whole[:KILLED_AFTER] and after == whole[SAVED_AFTER:]
        print(f"the same losses, to the last bit: {same}")
