"""How do I train on images that are stored on IPFS, without a copy on this machine?

LeNet is trained twice: through the API of a node, and through a gateway. It needs the extras "ipfs" and "demo", and a
running node, such as Kubo (``ipfs daemon``):

    python examples/ipfs_train.py --api /ip4/127.0.0.1/tcp/5001 --gateway http://127.0.0.1:8080

The training images are the members of a zip file. The test images are an exported data set. Nothing is written to disk
but the plot. By default, 5,000 images of digits are drawn; ``--images FOLDER`` takes your own, one subfolder for each
class.
"""

import argparse
import asyncio
import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch.nn import functional
from torch.utils.data import DataLoader

import streamloader as sl
from streamloader.stores.ipfs.store import IpfsStore

SIDE, EPOCHS, BATCH_SIZE, REQUIRED_ACCURACY = 32, 8, 64, 0.95


def draw_digits(count: int) -> list[tuple[Image.Image, str]]:
    """Draw digits in many fonts, at random places, sizes and angles, with noise."""
    rng = np.random.default_rng(0)
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    fonts = [
        folder / f"{name}.ttf"
        for name in ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneral", "cmr10")
    ]
    drawn = []
    for digit in rng.integers(0, 10, count):
        image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 60)))
        font = ImageFont.truetype(str(rng.choice(fonts)), int(rng.integers(18, 28)))
        center = tuple(SIDE / 2 + rng.uniform(-3, 3, 2))
        ImageDraw.Draw(image).text(center, str(digit), int(rng.integers(150, 256)), font, anchor="mm")
        image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(0.5))
        noisy = np.asarray(image) + rng.normal(0, 15, (SIDE, SIDE))
        drawn.append((Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), str(digit)))
    return drawn


def load_folder(folder: str) -> list[tuple[Image.Image, str]]:
    """Load images from one subfolder for each class, in random order."""
    paths = sorted(path for path in Path(folder).glob("*/*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    order = np.random.default_rng(0).permutation(len(paths))
    return [
        (Image.open(paths[n]).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), paths[n].parent.name)
        for n in order
    ]


async def add_zip(api: str, images: list[tuple[Image.Image, str]]) -> str:
    """Store the images on the node as one zip file, named CLASS/NUMBER.png, and return its CID."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number, (image, label) in enumerate(images):
            content = io.BytesIO()
            image.save(content, "png")
            archive.writestr(f"{label}/{number:05}.png", content.getvalue())
    async with IpfsStore(rpc=api) as store:
        return await store.add(data.getvalue())


class Images(sl.IPFSIterableDataset):
    """The members of the zip file as (pixels, number of the class)."""

    def __init__(self, objects: list[sl.IPFSObject], api: str | None, classes: list[str]) -> None:
        super().__init__(objects, api)
        self.classes = classes

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        for name, content in super().__iter__():
            yield as_tensor(Image.open(io.BytesIO(content))), self.classes.index(name.split("/")[0])


def as_tensor(image: Image.Image) -> torch.Tensor:
    """Return the pixels between -1 and 1, (1, H, W)."""
    return torch.from_numpy(np.array(image, np.float32))[None] / 127.5 - 1


class LeNet(torch.nn.Module):
    """LeNet-5 for images of 32 x 32 pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, 6, 5), torch.nn.Conv2d(6, 16, 5)
        self.linears = torch.nn.ModuleList(
            [torch.nn.Linear(400, 120), torch.nn.Linear(120, 84), torch.nn.Linear(84, classes)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores of the classes."""
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        x = x.flatten(1)
        for linear in self.linears[:-1]:
            x = functional.relu(linear(x))
        return self.linears[-1](x)


def train(name: str, train_url: str, test_url: str, api: str | None, classes: list[str]) -> tuple[Any, ...]:
    """Train and test. Return the loss of each batch, the accuracy, the test images, and the predictions."""
    torch.manual_seed(0)
    data = Images([sl.IPFSObject(train_url, sl.RemoteFileType.ZIP)], api, classes)
    loader = DataLoader(sl.ShuffleDataset(data, buffer_size=1000), batch_size=BATCH_SIZE)
    model = LeNet(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses, started = [], time.perf_counter()
    for _ in range(EPOCHS):
        for images, labels in loader:
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - started
    tests = list(sl.IPFSDatasetExporter(api).import_from_ipfs(test_url))
    with torch.no_grad():
        predicted = model(torch.stack([as_tensor(image) for image, _ in tests])).argmax(1)
    accuracy = (predicted == torch.tensor([label for _, label in tests])).float().mean().item()
    print(f"through the {name}: loss {losses[0]:.2f} -> {losses[-1]:.2f} in {seconds:.1f} s, accuracy {accuracy:.1%}")
    return losses, accuracy, tests, predicted.tolist()


def plot(runs: dict[str, tuple[Any, ...]], classes: list[str], path: str) -> None:
    """Save the losses, and some test images with their predictions."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    axes = left.subplots()
    for (name, (losses, accuracy, *_)), style in zip(runs.items(), ("-", "--"), strict=True):
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes.plot(np.arange(len(smooth)) + 5, smooth, style, label=f"through the {name}: {accuracy:.1%} accuracy")
    axes.set(xlabel="batch", ylabel="loss (mean of 10 batches)", yscale="log", title="LeNet on images from IPFS")
    axes.legend()
    _, _, tests, predicted = next(iter(runs.values()))
    right.suptitle("Test images and predictions (errors in red)")
    for axis, (image, label), guess in zip(right.subplots(4, 6).flat, tests, predicted, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(classes[guess], fontsize=9, color="black" if guess == label else "red")
        axis.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Store the images, train both ways, and save the plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--api", default="/ip4/127.0.0.1/tcp/5001", help="RPC API of the node, as multiaddr or URL")
    parser.add_argument("--gateway", default="http://127.0.0.1:8080", help="URL of a trustless gateway, such as Kubo's")
    parser.add_argument("--images", help="folder with a subfolder of images for each class")
    parser.add_argument("--plot", default="ipfs_train.png", help="file for the plot")
    arguments = parser.parse_args()

    images = load_folder(arguments.images) if arguments.images else draw_digits(5000)
    classes = sorted({label for _, label in images})
    split = len(images) * 4 // 5
    train_cid = asyncio.run(add_zip(arguments.api, images[:split]))
    tests = [(image, classes.index(label)) for image, label in images[split:]]
    test_cid = sl.IPFSDatasetExporter(arguments.api).export_to_ipfs(tests)
    print(f"{split:,} training images: ipfs://{train_cid}\n{len(tests):,} test images: ipfs://{test_cid}")

    gateway = f"{arguments.gateway.rstrip('/')}/ipfs"
    runs = {
        "API": train("API", f"ipfs://{train_cid}", f"ipfs://{test_cid}", arguments.api, classes),
        "gateway": train("gateway", f"{gateway}/{train_cid}", f"{gateway}/{test_cid}", None, classes),
    }
    plot(runs, classes, arguments.plot)
    good = all(accuracy >= REQUIRED_ACCURACY for _, accuracy, *_ in runs.values())
    print(f"accuracy of at least {REQUIRED_ACCURACY:.0%} both ways: {good}; plot: {arguments.plot}")


if __name__ == "__main__":
    main()
