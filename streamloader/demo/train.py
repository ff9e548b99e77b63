"""The demo's training loop: state carried from batch to batch, cleared where the loader says that a stream begins."""

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
from streamloader.errors import MissingExtra
from streamloader.loader.multistreamer import MultiStreamer
from streamloader.streams.video import VideoStreams
from streamloader.viz.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from typing import Self

    from streamloader.loader.batch import Batch

__all__ = ["Result", "Settings", "run"]

_FEWEST, _MOST = 10, 50  # batches of which the mean loss is shown
_SHEET_COLUMNS = 16
_MOST_THREADS = 4  # a model this small gains nothing from more


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo is to do."""

    videos: Sequence[str]
    out: Path
    lanes: int = 4
    window: int = 16
    workers: int = 2
    size: tuple[int, int] = (96, 128)
    stride: int = 3
    seconds: float = 60.0
    batches: int | None = None  # if given, the training ends after this many batches, whatever time they take
    seed: int = 0


@dataclass(slots=True)
class Result:
    """What came of it.

    Attributes:
        losses: mean squared error of each batch's predictions; copying: that of repeating the frame before.
        frames: predicted; seconds: they took; waited: of these for data.
        look_back: batches of which means are shown: whole epochs where these are short, since some videos are harder.
        interrupted: it was ended by Ctrl-C.
    """

    losses: list[float] = field(default_factory=list)
    copying: list[float] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    look_back: int = _FEWEST
    interrupted: bool = False
    saved: list[Path] = field(default_factory=list)

    def mean(self, losses: Sequence[float], *, first: bool = False) -> float:
        """Return the mean over the first or last batches."""
        some = losses[: self.look_back] if first else losses[-self.look_back :]
        return sum(some) / max(1, len(some))

    def smooth(self, losses: Sequence[float]) -> list[float]:
        """Return, for each batch, the mean up to it."""
        return [self.mean(losses[max(0, end - self.look_back) : end]) for end in range(1, len(losses) + 1)]


def run(settings: Settings) -> Result:
    """Train for a while, show how it goes, and save pictures of what was streamed and learnt.

    Raises:
        MissingExtra: a package that draws is not installed.
        OSError: the folder for the pictures cannot be made.
        StreamloaderError: the videos cannot be streamed.
    """
    _need_to_draw()
    settings.out.mkdir(parents=True, exist_ok=True)  # what cannot work shows now, not after the training
    with _interrupted_once():
        result, shown, names = _train(settings)
        if result.losses:
            every = -(-len(shown) * settings.window // _SHEET_COLUMNS)
            sheet = settings.out / "contact_sheet.png"
            contact_sheet(shown, names=names, every=every).save(sheet)
            result.saved = [sheet, _plot(result, settings.out / "loss.png")]
    return result


def _train(settings: Settings) -> tuple[Result, list[Batch], list[str]]:
    """Train; return how it went, the first batches, and the names of the streams."""
    torch.manual_seed(settings.seed)
    # With more threads than free cores they wait for each other, busily: measured on a busy machine, five times slower.
    torch.set_num_threads(min(_MOST_THREADS, max(1, _cores() - settings.workers)))
    model = NextFrame(settings.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    result = Result()
    shown: list[Batch] = []
    videos = VideoStreams(list(settings.videos), size=settings.size, stride=settings.stride)
    with MultiStreamer(
        videos, settings.lanes, settings.window, num_workers=settings.workers, seed=settings.seed, tail="cycle"
    ) as loader:
        epoch = max(1, len(loader))
        result.look_back = min(_MOST, -(-_FEWEST // epoch) * epoch)
        state = model.start(settings.lanes)
        started = time.perf_counter()
        try:
            with _Progress(settings) as progress:
                for batch in _epochs(loader):
                    if len(shown) * settings.window < 4 * _SHEET_COLUMNS:
                        shown.append(batch.clone())
                    loss, copying, state = _learn(model, optimizer, batch, state)
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
        return result, shown, [Path(info.key).stem for info in loader.streams]


def _is_done(result: Result, settings: Settings) -> bool:
    if settings.batches is not None:
        return len(result.losses) >= settings.batches
    return result.seconds >= settings.seconds


def _epochs(loader: MultiStreamer) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other, for as long as there are any."""
    some = True
    while some:
        some = False
        for batch in loader:
            some = True
            yield batch


def _learn(
    model: NextFrame, optimizer: torch.optim.Optimizer, batch: Batch, state: State
) -> tuple[float, float, State]:
    """Take one step of truncated back-propagation; return the loss, that of copying, and the state to carry on."""
    frames = batch.data.float().div(255)
    predicted, before, state = model(frames, batch.keep, state)
    # Nothing tells what the first frame of a stream will be: it is seen, but not scored.
    scored = (batch.keep * batch.valid)[:, :, None, None, None]
    pixels = scored.sum().clamp(min=1) * frames[0, 0].numel()
    loss = ((predicted - frames) ** 2 * scored).sum() / pixels
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02)  # a cut in a video is a surprise, not a lesson
    optimizer.step()
    with torch.no_grad():
        copying = ((before - frames) ** 2 * scored).sum() / pixels
    return loss.item(), copying.item(), state


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C end the training, and no further one the drawing: tox, for one, sends several."""

    def interrupt(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _need_to_draw() -> None:
    try:
        for package in ("matplotlib", "PIL", "rich"):
            importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra("the demo needs rich, matplotlib and Pillow: pip install streamloader[demo]") from error


class _Progress:
    """A progress bar on a terminal; elsewhere a line every ten seconds."""

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


def _plot(result: Result, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = range(1, len(result.losses) + 1)
    axes.plot(numbers, result.losses, color="tab:blue", alpha=0.25, linewidth=1, label="model, each batch")
    mean = f"mean of {result.look_back} batches"
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
