"""How do I train a recurrent model on text, character by character, and does it learn to write?

It needs the extra "demo", for the plot. The texts are the topics of Python's own ``help()``. A GRU predicts the next
character of each, and its state is carried from batch to batch. In the end, it predicts topics that it has not seen,
once with its state carried and once with the state cleared before each window, and writes some lines by itself.
"""

from __future__ import annotations

import argparse
import itertools
import math
import textwrap
import zlib
from pydoc_data.topics import topics

import torch
from torch.nn import functional

import streamloader as sl

LANES, WINDOW, TEXT_LENGTH = 32, 64, 4000
BITS = 1 / math.log(2)  # losses are shown in bits per character: 8 say nothing, 0 say all


def read_texts() -> tuple[list[str], list[str]]:
    """Return the texts to learn from, and those that are held out.

    A batch has the same number of lanes until the longest text has ended, so long topics are divided.
    """
    texts: list[str] = []
    for name in sorted(topics):
        text = ""
        for paragraph in topics[name].encode("ascii", "ignore").decode().split("\n\n"):
            text += paragraph + "\n\n"
            if len(text) > TEXT_LENGTH:
                texts.append(text)
                text = ""
        if len(text) > WINDOW:
            texts.append(text)
    return [text for number, text in enumerate(texts) if number % 12], texts[::12]


class Writer(torch.nn.Module):
    """Predicts the next character."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(128, 48)
        self.rnn = torch.nn.GRU(48, width)
        self.head = torch.nn.Linear(width, 128)

    def forward(self, characters: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the next characters and the new state, given characters (T, B)."""
        output, hidden = self.rnn(self.embed(characters), hidden)
        return self.head(output), hidden

    def start(self, lanes: int) -> torch.Tensor:
        """Return the state before any text."""
        return torch.zeros(1, lanes, self.rnn.hidden_size)

    def write(self, length: int, temperature: float = 0.6, first: str = "\n") -> str:
        """Return `length` characters, each drawn from the prediction after those before it."""
        draw = torch.Generator().manual_seed(5)
        hidden, text = self.start(1), first
        with torch.no_grad():
            for _ in range(length):
                scores, hidden = self(torch.tensor([[ord(text[-1])]]), hidden)
                chances = (scores[0, 0] / temperature).softmax(0)
                text += chr(int(chances.multinomial(1, generator=draw)))
        return text


def find_loss(model: Writer, batch: sl.Batch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the mean loss over a batch, the new state, and the number of predictions."""
    scores, hidden = model(batch.data.long(), hidden)
    scored = batch.valid[1:]  # a window is within one text, and padding has nothing to predict
    return functional.cross_entropy(scores[:-1][scored], batch.data[1:][scored].long()), hidden, int(scored.sum())


def train(model: Writer, texts: list[str], epochs: int) -> list[float]:
    """Return the loss of each batch, in bits per character."""
    dataset = sl.TextStreams.from_texts(texts)
    losses: list[float] = []
    with sl.MultiStreamer(dataset, LANES, WINDOW, num_workers=1, switch="align", layout="TB") as loader:
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader), 2e-4)
        hidden = model.start(LANES)
        for epoch in range(epochs):
            for batch in loader:
                hidden = hidden.detach() * batch.keep[0][None, :, None]  # cleared where a text begins
                loss, hidden, _ = find_loss(model, batch, hidden)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item() * BITS)
            shown = sum(losses[-len(loader) :]) / len(loader)
            print(f"epoch {epoch + 1} of {epochs}: {shown:.2f} bits per character", flush=True)
    return losses


def test(model: Writer, texts: list[str], *, carries_state: bool) -> float:
    """Return the loss on other texts, in bits per character."""
    total, count = 0.0, 0
    with (
        torch.no_grad(),
        sl.MultiStreamer(
            sl.TextStreams.from_texts(texts), 4, WINDOW, switch="align", layout="TB", shuffle=False
        ) as loader,
    ):
        hidden = model.start(4)
        for batch in loader:
            hidden = hidden * batch.keep[0][None, :, None] if carries_state else torch.zeros_like(hidden)
            loss, hidden, predictions = find_loss(model, batch, hidden)
            total, count = total + loss.item() * predictions, count + predictions
    return total / count * BITS


def count_bits(texts: list[str]) -> tuple[float, float]:
    """Return the bits per character that the frequencies of characters need, and that zlib needs."""
    joined = "".join(texts).encode()
    counts = torch.bincount(torch.tensor(list(joined))).double()
    shares = counts[counts > 0] / len(joined)
    return float(-(shares * shares.log2()).sum()), 8 * len(zlib.compress(joined, 9)) / len(joined)


def save_plot(losses: list[float], levels: dict[str, float], texts: dict[str, str], path: str) -> None:
    """Save the losses, and what the model writes before and after them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (axes, left, right) = plt.subplots(
        1, 3, figsize=(15, 5), layout="constrained", width_ratios=(5, 4, 4)
    )  # fmt: skip
    smooth = torch.tensor(losses).unfold(0, 20, 1).mean(1)
    axes.plot(range(20, 20 + len(smooth)), smooth, label="loss in training")
    for (label, level), colour in zip(levels.items(), ("C7", "C2", "C3", "C1"), strict=True):
        axes.axhline(level, color=colour, linestyle="--", label=f"{label}: {level:.2f}")
    axes.set(xlabel="batch", ylabel="bits per character", title="The next character of a text", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    for panel, (title, text) in zip((left, right), texts.items(), strict=True):
        panel.set_title(title)
        panel.axis("off")
        lines = itertools.chain.from_iterable(textwrap.wrap(line, 46) or [""] for line in text.strip().splitlines())
        shown = "\n".join(itertools.islice(lines, 24))
        shown = "".join(letter if letter.isprintable() or letter == "\n" else "." for letter in shown)
        panel.text(0, 1, shown.replace("$", r"\$"), family="monospace", fontsize=8.5, va="top")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train, test and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--texts", type=int, help="number of texts to learn from (default: all)")
    parser.add_argument("--plot", default="char_rnn.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    torch.manual_seed(0)
    texts, held_out = read_texts()
    texts = texts[: arguments.texts]
    print(f"{len(texts)} texts of {sum(map(len, texts)):,} characters")
    model = Writer()
    before = model.write(600)
    losses = train(model, texts, arguments.epochs)
    after = model.write(1000)
    carried, cleared = (test(model, held_out, carries_state=carries) for carries in (True, False))
    frequencies, zipped = count_bits(held_out)
    levels = {
        "frequencies of characters": frequencies,
        "zlib, on other texts": zipped,
        "other texts, state cleared for each window": cleared,
        "other texts, state carried": carried,
    }
    save_plot(losses, levels, {"before training": before, "after training": after}, arguments.plot)
    print(after)
    print(f"bits per character of other texts: {carried:.2f} with the state carried, {cleared:.2f} without,", end=" ")
    print(f"{zipped:.2f} by zlib; saved {arguments.plot}")
    print(f"learned: {carried < 0.6 * frequencies and carried < cleared}")


if __name__ == "__main__":
    main()
