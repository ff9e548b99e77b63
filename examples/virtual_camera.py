"""How do I train on a moving camera with exact optical flow, if all I have is images?

It needs the extras "demo" and "images". The images here are single frames of videos, which are downloaded once, or of
your own: `python examples/virtual_camera.py VIDEO ...`. A camera moves in front of each image. The picture shows what
it sees, and the flow of each pixel to the next step as a colour: its direction as the hue, its length as the
saturation.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional

import streamloader as sl
from streamloader.demo.clips import fetch_clips

SIZE, STEPS, COLUMNS = (180, 240), 60, 8


def write_images(videos: list[str], folder: Path) -> None:
    """Write a frame of each video as an image of its own size."""
    for number, video in enumerate(videos):
        with sl.MultiStreamer(sl.VideoStreams(video, stride=100, max_frames=2), 1, 2, layout="BTHWC") as loader:
            Image.fromarray(next(iter(loader)).data[0, -1].numpy()).save(folder / f"{number}.png")


def warp(frames: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Return frames (N, C, H, W), each pixel from the place to which the flow (N, 2, H, W) leads."""
    height, width = frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = torch.stack([x, y]) + flow
    scale = torch.tensor([width - 1, height - 1]).reshape(2, 1, 1) / 2
    grid = (target / scale - 1).movedim(1, -1)  # grid_sample's coordinates are -1 to 1
    return functional.grid_sample(frames, grid, align_corners=True, padding_mode="border")


def measure_flow(batch: sl.Batch) -> tuple[float, float]:
    """Return the mean difference between a step and the next one, in levels, and after warping that by the flow."""
    frames = batch.data.float()
    same_stream = batch.valid[:, 1:] & ~batch.reset[:, 1:]
    here, following, flow = frames[:, :-1][same_stream], frames[:, 1:][same_stream], batch["flow"][:, :-1][same_stream]
    margin = (..., slice(8, -8), slice(8, -8))  # what leaves the frame cannot be compared
    plain = (following - here).abs()[margin].mean()
    warped = (warp(following, flow) - here).abs()[margin].mean()
    return plain.item(), warped.item()


def colour_flow(flow: np.ndarray, longest: float) -> np.ndarray:
    """Return flow (..., 2) as RGB: the direction as hue, the length as saturation, and no motion as white."""
    hue = np.arctan2(-flow[..., 1], -flow[..., 0]) / (2 * np.pi) + 0.5
    saturation = np.clip(np.linalg.norm(flow, axis=-1) / longest, 0, 1)
    return hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1))


def draw_wheel(radius: int) -> np.ndarray:
    """Return the key of the colours: each pixel has that of the flow which leads from the middle to it."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(float)
    return np.where(np.hypot(x, y)[..., None] <= radius, colour_flow(np.stack([x, y], axis=-1), radius), 1)


def save_picture(batch: sl.Batch, path: str) -> None:
    """Save frames and flow of each lane over time."""
    frames, flow = (batch[field].movedim(2, -1).numpy() for field in ("data", "flow"))
    lanes = len(frames)
    steps = np.linspace(0, STEPS - 1, COLUMNS).astype(int)
    longest = float(np.quantile(np.linalg.norm(flow, axis=-1), 0.99))
    figure = Figure(figsize=(1.75 * COLUMNS + 1.9, 1.45 * 2 * lanes), layout="constrained")
    pictures, key = figure.subfigures(1, 2, width_ratios=(1.75 * COLUMNS, 1.6))
    axes = pictures.subplots(2 * lanes, COLUMNS, squeeze=False)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    for lane in range(lanes):
        for column, step in enumerate(steps):
            axes[2 * lane, column].imshow(frames[lane, step])
            axes[2 * lane + 1, column].imshow(colour_flow(flow[lane, step], longest))
        axes[2 * lane, 0].set_ylabel(f"lane {lane}")
        axes[2 * lane + 1, 0].set_ylabel("flow")
    for column, step in enumerate(steps):
        axes[0, column].set_title(f"{float(batch.time[0, step]):.1f} s", fontsize=10)
    wheel = key.subplots()
    wheel.imshow(draw_wheel(100))
    wheel.set(xticks=[], yticks=[], frame_on=False)
    wheel.set_xlabel(f"outer edge:\n{longest:.1f} pixels\na step")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = ("bikes", "bigbuckbunny", "carphone_pristine")
    videos = sys.argv[1:] or [str(path) for name, path in fetch_clips().items() if name in names]
    with tempfile.TemporaryDirectory() as name:
        write_images(videos, Path(name))
        dataset = sl.CameraStreams(name, SIZE, STEPS, fps=15, ground_truth="flow")
        with sl.MultiStreamer(dataset, len(videos), STEPS, num_workers=1) as loader:
            batch = next(iter(loader))
            save_picture(batch, "virtual_camera.png")
            plain, warped = measure_flow(batch)
    print(f"one step and the next differ by {plain:.2f} levels, and by {warped:.2f} after warping by the flow")
    print(f"saved virtual_camera.png; the flow explains the motion: {warped < plain / 3}")
