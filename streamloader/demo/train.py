"""Training loop of the demo: the state is carried from batch to batch, and cleared where a stream starts."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from streamloader.demo.model import NextFrame, State
from streamloader.errors import MissingDependency
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.streams.video import VideoStreams
from streamloader.viz.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from typing import Self

    from streamloader.loader.batch import Batch

__all__ = ["Result", "Settings", "run"]

_MIN_MEAN_BATCHES, _MAX_MEAN_BATCHES = 10, 50
_SHEET_COLUMNS = 16
_MAX_THREADS = 4  # a model this small gains nothing from more


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the demo.

    Attributes:
        videos: Files, patterns or directories.
        out: Folder for the pictures.
        lanes: Number of lanes.
        window: Steps per batch.
        workers: Number of worker processes. 0 uses a thread.
        size: Height and width of the frames in pixels, multiples of 8.
        stride: Distance between the used frames.
        max_pixels: Maximum number of pixels of a frame, before it is scaled.
        seconds: Duration of the training in seconds.
        batches: Number of batches to train on, regardless of `seconds`. None trains for `seconds`.
        seed: Seed of the stream order and of the model.
    """

    videos: Sequence[str]
    out: Path
    lanes: int = 4
    window: int = 16
    workers: int = 2
    size: tuple[int, int] = (96, 128)
    stride: int = 3
    max_pixels: int = DEFAULT_MAX_PIXELS
    seconds: float = 60.0
    batches: int | None = None
    seed: int = 0


@dataclass(slots=True)
class Result:
    """Result of the training.

    Attributes:
        losses: Mean squared error of the predictions of each batch.
        copying: Mean squared error of repeating the previous frame, for each batch.
        frames: Number of predicted frames.
        seconds: Duration of the training in seconds.
        waited: Seconds spent waiting for data.
        mean_batches: Number of batches that means are taken over: whole epochs if these are short, because some videos
            are harder than others.
        interrupted: Whether Ctrl-C ended the training.
        saved: Paths of the saved pictures.
    """

    losses: list[float] = field(default_factory=list)
    copying: list[float] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    mean_batches: int = _MIN_MEAN_BATCHES
    interrupted: bool = False
    saved: list[Path] = field(default_factory=list)

    def mean(self, losses: Sequence[float], *, first: bool = False) -> float:
        """Return the mean of the first or last `mean_batches` losses."""
        selected = losses[: self.mean_batches] if first else losses[-self.mean_batches :]
        return sum(selected) / max(1, len(selected))

    def smooth(self, losses: Sequence[float]) -> list[float]:
        """Return the running mean of `losses`."""
        return [self.mean(losses[max(0, end - self.mean_batches) : end]) for end in range(1, len(losses) + 1)]


def run(settings: Settings) -> Result:
    """Train for the given time, show the progress, and save pictures of the streamed batches and of the loss.

    Raises:
        MissingDependency: If a package for drawing is not installed.
        OSError: If the folder for the pictures cannot be created.
        StreamloaderError: If the videos cannot be streamed.
    """
    _check_dependencies()
    settings.out.mkdir(parents=True, exist_ok=True)  # fails before the training, not after it
    with _single_interrupt():
        result, first_batches, names = _train(settings)
        if result.losses:
            every = -(-len(first_batches) * settings.window // _SHEET_COLUMNS)
            sheet = settings.out / "contact_sheet.png"
            contact_sheet(first_batches, names=names, every=every).save(sheet)
            result.saved = [sheet, _plot_losses(result, settings.out / "loss.png")]
    return result


def _train(settings: Settings) -> tuple[Result, list[Batch], list[str]]:
    """Train. Return the result, the first batches, and the names of the streams."""
    torch.manual_seed(settings.seed)
    # More threads than free cores wait for each other in busy loops. Measured on a busy machine: five times slower.
    torch.set_num_threads(min(_MAX_THREADS, max(1, _available_cores() - settings.workers)))
    result = Result()
    first_batches: list[Batch] = []
    videos = VideoStreams(
        list(settings.videos), size=settings.size, stride=settings.stride, max_pixels=settings.max_pixels
    )
    with MultiStreamer(
        videos, settings.lanes, settings.window, num_workers=settings.workers, seed=settings.seed, tail="cycle"
    ) as loader:
        model = NextFrame(settings.size)  # only now, because importing torch's optimizers takes seconds
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        epoch = max(1, len(loader))
        result.mean_batches = min(_MAX_MEAN_BATCHES, -(-_MIN_MEAN_BATCHES // epoch) * epoch)
        state = model.initial_state(settings.lanes)
        started = time.perf_counter()
        try:
            with _TrainingProgress(settings) as progress:
                for batch in _iterate_epochs(loader):
                    if len(first_batches) * settings.window < 4 * _SHEET_COLUMNS:
                        first_batches.append(batch.clone())
                    loss, copying, state = _training_step(model, optimizer, batch, state)
                    result.losses.append(loss)
                    result.copying.append(copying)
                    result.frames += int(batch.valid.sum())
                    result.seconds = time.perf_counter() - started
                    result.waited = loader.stats().wait_seconds
                    progress.show(result)
                    if _is_done(result, settings):
                        break
        except KeyboardInterrupt:
            result.interrupted = True
        return result, first_batches, [Path(info.key).stem for info in loader.streams]


def _is_done(result: Result, settings: Settings) -> bool:
    if settings.batches is not None:
        return len(result.losses) >= settings.batches
    return result.seconds >= settings.seconds


def _iterate_epochs(loader: MultiStreamer) -> Iterator[Batch]:
    """Yield the batches of consecutive epochs, until an epoch is empty."""
    empty = False
    while not empty:
        empty = True
        for batch in loader:
            empty = False
            yield batch


def _training_step(
    model: NextFrame, optimizer: torch.optim.Optimizer, batch: Batch, state: State
) -> tuple[float, float, State]:
    """Take one step of truncated back-propagation. Return the model's loss, the loss of copying, and the new state."""
    frames = batch.data.float().div(255)
    predicted, before, state = model(frames, batch.keep, state)
    # The first frame of a stream cannot be predicted, so it is not part of the loss.
    scored = (batch.keep * batch.valid)[:, :, None, None, None]
    pixels = scored.sum().clamp(min=1) * frames[0, 0].numel()
    loss = ((predicted - frames) ** 2 * scored).sum() / pixels
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)  # a scene cut should not dominate the gradient
    optimizer.step()
    with torch.no_grad():
        copying = ((before - frames) ** 2 * scored).sum() / pixels
    return loss.item(), copying.item(), state


@contextlib.contextmanager
def _single_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for the first Ctrl-C only. Some programs, such as tox, send several."""

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_dependencies() -> None:
    try:
        for package in ("matplotlib", "PIL", "rich"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingDependency("the demo needs rich, matplotlib and Pillow: pip install streamloader[demo]") from error


class _TrainingProgress:
    """A progress bar on a terminal, or a line every ten seconds elsewhere."""

    def __init__(self, settings: Settings) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.fields[text]}")
        self._bar = Progress(TextColumn("training"), BarColumn(), TimeRemainingColumn(), text)
        self._counts_batches = settings.batches is not None
        self._task = self._bar.add_task("", total=settings.batches or settings.seconds, text="starting workers")
        self._next_line = 2.0

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def show(self, result: Result) -> None:
        text = (
            f"loss {result.mean(result.losses):.5f}   {result.frames / result.seconds:5.0f} frames/s   "
            f"waiting for data {result.waited / result.seconds:5.1%}"
        )
        if self._bar.console.is_terminal:
            completed = len(result.losses) if self._counts_batches else result.seconds
            self._bar.update(self._task, completed=completed, text=text)
        elif result.seconds >= self._next_line:
            self._next_line += 10.0
            print(f"{result.seconds:4.0f} s   {text}", flush=True)


def _plot_losses(result: Result, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = range(1, len(result.losses) + 1)
    axes.plot(numbers, result.losses, color="tab:blue", alpha=0.25, linewidth=1, label="model, each batch")
    mean = f"mean of {result.mean_batches} batches"
    axes.plot(numbers, result.smooth(result.losses), color="tab:blue", linewidth=2, label=f"model, {mean}")
    axes.plot(
        numbers,
        result.smooth(result.copying),
        color="tab:orange",
        linewidth=2,
        linestyle="--",
        label=f"copying the last frame, {mean}",
    )
    axes.set(
        xlabel="batch",
        ylabel="mean squared error of the next frame",
        title="A recurrent model learns from streamed video",
    )
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=110)
    return path
