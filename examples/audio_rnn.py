"""How do I train a recurrent model on sound, and does it help to carry its state from batch to batch?

It needs the extra "demo", for the plot. Each sound here is two notes in turn, each held for six blocks. The model
predicts the note of the next block. When a note ends, only a model that remembers the note before it knows which one
comes. The windows have eight blocks, so a model whose state is cleared before each of them has rarely heard that note.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import streamloader as sl

FILE_RATE, RATE, BLOCK = 16_000, 8000, 512  # samples per second in the files, and as they are streamed; per step
NOTES = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)  # frequencies in Hz
NOTE_STEPS, NOTES_PER_SOUND, LANES, WINDOW, EPOCHS = 6, 20, 14, 8, 12


def write_sounds(folder: Path) -> None:
    """Write a sound for each pair of notes, in either order."""
    rng = np.random.default_rng(0)
    seconds = np.arange(NOTE_STEPS * BLOCK * FILE_RATE // RATE) / FILE_RATE
    for number, pair in enumerate(itertools.permutations(NOTES, 2)):
        tones = [np.sin(2 * np.pi * frequency * seconds) * np.minimum(1, 40 * seconds) for frequency in pair]
        sound = np.concatenate(tones * (NOTES_PER_SOUND // 2)) + rng.normal(0, 0.1, len(seconds) * NOTES_PER_SOUND)
        with wave.open(str(folder / f"{number:03}.wav"), "wb") as file:
            file.setparams((1, 2, FILE_RATE, 0, "NONE", ""))
            file.writeframes((8000 * sound.clip(-4, 4)).astype("<i2").tobytes())


class Listener(torch.nn.Module):
    """Predicts the next note from the spectrum of each block."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = torch.nn.Linear(BLOCK // 2 + 1, 64)
        self.rnn = torch.nn.GRU(64, 96)
        self.head = torch.nn.Linear(96, len(NOTES))

    def forward(self, spectrum: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the next notes, and the new state, given spectra (T, B, frequencies)."""
        output, hidden = self.rnn(torch.relu(self.encode(spectrum.log1p())), hidden)
        return self.head(output), hidden


def find_notes(spectrum: torch.Tensor) -> torch.Tensor:
    """Return the number of the note that each block has, by its strongest frequency."""
    frequency = spectrum.argmax(-1) * (RATE / BLOCK)
    return (frequency[..., None] - torch.from_numpy(NOTES)).abs().argmin(-1)


def train(folder: Path, *, carries_state: bool) -> tuple[list[float], float]:
    """Return the loss of each batch, and the share of right predictions where the note changes, in the last epoch."""
    torch.manual_seed(0)
    model = Listener()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, EPOCHS - 1)
    losses: list[float] = []
    right = changes = 0
    dataset = sl.AudioStreams(folder, sample_rate=RATE, block=BLOCK)
    with sl.MultiStreamer(dataset, LANES, WINDOW, num_workers=1, switch="align", layout="TBCHW") as loader:
        hidden = torch.zeros(1, LANES, 96)
        for epoch in range(EPOCHS):
            for batch in loader:
                spectrum = torch.fft.rfft(batch.data[..., 0]).abs()
                notes = find_notes(spectrum)
                state = hidden * batch.keep[0][None, :, None] if carries_state else torch.zeros_like(hidden)
                scores, hidden = model(spectrum, state.detach())
                scored = batch.valid[1:]
                loss = functional.cross_entropy(scores[:-1][scored], notes[1:][scored])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                is_change = scored & (notes[1:] != notes[:-1])
                if epoch == EPOCHS - 1:
                    right += int((scores[:-1].argmax(-1) == notes[1:])[is_change].sum())
                    changes += int(is_change.sum())
            schedule.step()
    return losses, right / changes


def save_plot(curves: dict[str, list[float]], path: str) -> None:
    """Save the losses, smoothed over half an epoch."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, losses in curves.items():
        smooth = np.convolve(losses, np.ones(30) / 30, "valid")
        axes.plot(np.arange(len(smooth)) + 30, smooth, label=label)
    axes.set(xlabel="batch", ylabel="loss (cross entropy)", title="The next note of a sound", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_sounds(Path(name))
        carried, right = train(Path(name), carries_state=True)
        cleared, wrong = train(Path(name), carries_state=False)
    target = sys.argv[1] if len(sys.argv) > 1 else "audio_rnn.png"
    save_plot({"state carried from batch to batch": carried, "state cleared before each batch": cleared}, target)
    print(f"right where the note changes: {right:.0%} with the state carried, {wrong:.0%} without; saved {target}")
    print(f"better: {right > 2 * wrong}")
