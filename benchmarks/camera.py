"""How fast are virtual cameras, compared to the bare function of OpenCV that warps their images?

``python -m benchmarks.camera [--quick] [--rounds N] [--json FILE]``
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.harness import Column
from benchmarks.own import OwnQuestion, OwnTable, Row, main

_LANES, _WINDOW, _LENGTH = 4, 16, 100
_IMAGES, _IMAGE_SIZE = 8, (768, 1024)


def write_images(folder: Path) -> None:
    """Write images of noise in several scales, which compress as photos do, as JPEGs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = _IMAGE_SIZE
    for number in range(_IMAGES):
        pixels = np.zeros((height, width, 3))
        for cell in (4, 16, 64, 256):
            noise = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) * cell**0.25
        pixels *= 255 / pixels.max()
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def _record_calls(dataset: Any) -> list[tuple[Any, Any]]:
    """Return image and matrix of each call of OpenCV's function for one stream."""
    import cv2

    from streamloader.testing import describe_streams, read_stream

    calls: list[tuple[Any, Any]] = []
    warp = cv2.warpPerspective

    def record(image: Any, matrix: Any, *arguments: Any, **options: Any) -> Any:
        calls.append((image, matrix))
        return warp(image, matrix, *arguments, **options)

    with mock.patch.object(cv2, "warpPerspective", record):
        read_stream(dataset, describe_streams(dataset)[0])
    return calls


def _warp(calls: list[tuple[Any, Any]], size: tuple[int, int], flags: int, steps: int) -> tuple[float, float]:
    """Repeat recorded calls. Return frames/s, and seconds of processor time a frame.

    One buffer is written again and again, so it stays in the processor's cache.
    """
    import cv2
    import numpy as np

    out = np.empty((*size, 3), np.uint8)
    start, cpu = time.perf_counter(), time.process_time()
    for image, matrix in itertools.islice(itertools.cycle(calls), steps):
        cv2.warpPerspective(image, matrix, size[::-1], dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return steps / (time.perf_counter() - start), (time.process_time() - cpu) / steps


def measure(size: list[int], interpolation: str, truth: list[str], batches: int, passes: int) -> dict[str, float]:
    """Measure the bare function and a loader with one worker, alternately, and return rates and ratios."""
    import cv2
    import psutil

    import streamloader as sl

    cv2.setNumThreads(1)
    flags = getattr(cv2, f"INTER_{interpolation.upper()}") | cv2.WARP_INVERSE_MAP
    height, width = size
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name))
        steps = batches * _LANES * _WINDOW
        dataset = sl.CameraStreams(
            name, (height, width), _LENGTH, views=1 + _LANES * passes * (steps + _LENGTH) // _LENGTH // _IMAGES,
            ground_truth=truth, interpolation=interpolation,
        )  # fmt: skip
        calls = _record_calls(dataset)
        rates: dict[str, list[tuple[float, float]]] = {"opencv": [], "loader": []}
        with sl.MultiStreamer(dataset, _LANES, _WINDOW, num_workers=1) as loader:
            iterator = iter(loader)
            for _ in itertools.islice(iterator, 4):
                pass
            (worker,) = psutil.Process().children()
            for _ in range(passes):
                time.sleep(0.2)  # the worker fills its slots, and rests then
                rates["opencv"].append(_warp(calls, (height, width), flags, steps))
                for _ in itertools.islice(iterator, 4):  # those that were ready
                    pass
                cpu, start = worker.cpu_times(), time.perf_counter()
                count = sum(1 for _ in itertools.islice(iterator, batches))
                seconds, end = time.perf_counter() - start, worker.cpu_times()
                used = end.user + end.system - cpu.user - cpu.system
                rates["loader"].append((count * _LANES * _WINDOW / seconds, used / count / _LANES / _WINDOW))
    pairs = list(zip(rates["loader"], rates["opencv"], strict=True))
    return {
        "opencv": statistics.median(rate for rate, _ in rates["opencv"]),
        "fps": statistics.median(rate for rate, _ in rates["loader"]),
        "ratio": statistics.median(ours[0] / bare[0] for ours, bare in pairs),
        "cpu_ratio": statistics.median(bare[1] / ours[1] for ours, bare in pairs),
    }


def question(quick: bool) -> OwnQuestion:
    """Return the question with its table."""
    cases = [
        ((240, 320), "linear", []),
        ((240, 320), "linear", ["homography"]),
        ((240, 320), "linear", ["homography", "flow"]),
        ((480, 640), "linear", []),
        ((480, 640), "linear", ["homography", "flow"]),
        ((240, 320), "cubic", []),
        ((240, 320), "nearest", []),
    ]
    rows = [
        Row(
            f"{width}x{height}, {interpolation}{', with ' if truth else ''}{' and '.join(truth)}",
            {
                "size": [height, width],
                "interpolation": interpolation,
                "truth": truth,
                "batches": 4 if quick else 320 * 240 * 12 // width // height,
                "passes": 1 if quick else 3,
            },
        )
        for (height, width), interpolation, truth in cases
    ]
    table = OwnTable(
        "camera",
        "Frames of virtual cameras",
        f"RGB frames of {_IMAGES} JPEGs of {_IMAGE_SIZE[1]}x{_IMAGE_SIZE[0]}, {_LENGTH} steps of each view, in "
        f"{_LANES} lanes and windows of {_WINDOW}, from one worker; decoding is included. The bare function of OpenCV "
        "(warpPerspective, one thread) warps the same image by the same matrices into one buffer. The ratios compare "
        "passes that follow each other: frames/s, and processor time a frame of the function and of the worker.",
        rows,
        (
            Column("opencv", "OpenCV, frames/s", 0),
            Column("fps", "streamloader, frames/s", 0),
            Column("ratio", "of OpenCV's rate", 2),
            Column("cpu_ratio", "by processor time", 2),
        ),
    )
    return OwnQuestion("camera", "Virtual cameras", "benchmarks.camera", (table,))


if __name__ == "__main__":
    main(question)
