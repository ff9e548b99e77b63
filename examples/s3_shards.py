"""How do I train on images in S3, packed into shards, without a copy on this machine?

It needs the extras "objects" and "demo", and an S3 server with a bucket:

    python examples/s3_shards.py --endpoint http://127.0.0.1:9000 --access-key KEY --secret-key SECRET --bucket images

The images are uploaded once: if the upload is interrupted, or the example is run again, it goes on where it stopped.
LeNet is trained from the shards, through three workers. By default, 5,000 images of digits are drawn.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rich.progress import track
from torch.nn import functional
from torch.utils.data import DataLoader

import streamloader as sl

SIDE, IMAGES, EPOCHS, BATCH_SIZE, REQUIRED_ACCURACY = 32, 5000, 6, 64, 0.95
FONTS = ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneral", "cmr10")


class Digits(torch.utils.data.Dataset):
    """Digits in many fonts, at random places, sizes and angles, with noise: (image, label)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.folder = Path(mpl.get_data_path()) / "fonts" / "ttf"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        rng = np.random.default_rng((self.seed, number))
        digit = int(rng.integers(0, 10))
        image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 60)))
        font = ImageFont.truetype(str(self.folder / f"{rng.choice(FONTS)}.ttf"), int(rng.integers(18, 28)))
        center = tuple(SIDE / 2 + rng.uniform(-3, 3, 2))
        ImageDraw.Draw(image).text(center, str(digit), int(rng.integers(150, 256)), font, anchor="mm")
        image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(0.5))
        noisy = np.asarray(image) + rng.normal(0, 15, (SIDE, SIDE))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), digit


def preprocess(image: Image.Image) -> torch.Tensor:
    """Return the pixels between -1 and 1, (1, H, W)."""
    return torch.from_numpy(np.array(image.convert("L"), np.float32))[None] / 127.5 - 1


class LeNet(torch.nn.Module):
    """LeNet-5 for images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 6, 5), torch.nn.Conv2d(6, 16, 5)
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


def open_loader(client: Any, bucket: str, folder: str, workers: int) -> DataLoader:
    """Return a loader of batches (images, labels)."""
    dataset = (
        sl.RemoteDataset(client, bucket, folder)
        .decode("pil")
        .to_tuple("jpg;png", "cls")
        .map_tuple(preprocess, lambda x: x)
        .batched(BATCH_SIZE)
    )
    return DataLoader(dataset, num_workers=workers, batch_size=None)


def train(loader: DataLoader) -> tuple[LeNet, list[float]]:
    """Train for some epochs. Return the model and the loss of each batch."""
    torch.manual_seed(0)
    model = LeNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for epoch in range(EPOCHS):
        for images, labels in track(loader, f"epoch {epoch + 1}", total=len(loader), disable=not sys.stdout.isatty()):
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return model, losses


def plot(losses: list[float], accuracy: float, path: str) -> None:
    """Save the losses."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    axes.plot(np.arange(len(smooth)) + 5, smooth, label=f"{accuracy:.1%} accuracy on other images")
    axes.set(xlabel="batch", ylabel="loss (mean of 10 batches)", yscale="log", title="LeNet on shards in S3")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Upload the images, train on them, and save the plot."""
    parser = argparse.ArgumentParser(description="train LeNet on shards in S3")
    parser.add_argument("--endpoint", required=True, help="address of the S3 server")
    parser.add_argument("--access-key", required=True)
    parser.add_argument("--secret-key", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--workers", type=int, default=3, help="number of worker processes (3)")
    parser.add_argument("--plot", default="s3_shards.png", help="file for the plot")
    arguments = parser.parse_args()

    client = sl.make_client(arguments.endpoint, arguments.access_key, arguments.secret_key)
    for folder, count, seed in (("digits/train", IMAGES, 1), ("digits/test", IMAGES // 5, 2)):
        uploaded = sl.upload_cv_dataset(
            Digits(count, seed), client=client, bucket=arguments.bucket, base_folder=folder, maxsize=1e6, maxcount=500
        )
        print(f"{uploaded:,} images in s3://{arguments.bucket}/{folder}")
    started = time.perf_counter()
    model, losses = train(open_loader(client, arguments.bucket, "digits/train", arguments.workers))
    seconds = time.perf_counter() - started
    hits = [
        model(images).argmax(1) == labels for images, labels in open_loader(client, arguments.bucket, "digits/test", 0)
    ]
    accuracy = torch.cat(hits).float().mean().item()
    plot(losses, accuracy, arguments.plot)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {seconds:.1f} s, accuracy {accuracy:.1%}")
    print(f"accuracy of at least {REQUIRED_ACCURACY:.0%}: {accuracy >= REQUIRED_ACCURACY}; plot: {arguments.plot}")


if __name__ == "__main__":
    main()
