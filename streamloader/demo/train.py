"""The demo's training loop: state carried from batch to batch, cleared where the loader says that a stream begins."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from streamloader.demo.model import NextFrame
from streamloader.errors import MissingExtra
from streamloader.multistreamer import MultiStreamer
from streamloader.streams.video import VideoStreams
from streamloader.view import contact_sheet

if TYPE_CHECKING:
    from typing import Self

    from streamloader.batch import Batch

__all__ = ["Result", "Settings", "run"]

_LOOK_BACK = 20  # batches of which the mean loss is shown
_SHEET_STEPS = 192


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demo is to do."""

    videos: Sequence[str]
    out: Path
    lanes: int = 4
    window: int = 16
    workers: int = 2
    size: tuple[int, int] = (96, 128)
    seconds: float = 60.0
    seed: int = 0


@dataclass(slots=True)
class Result:
    """What came of it.

    Attributes:
        losses: mean squared error of each batch's predictions; copying: that of repeating the frame before.
        frames: predicted; seconds: they took; waited: of these for data.
        interrupted: it was ended by Ctrl-C.
    """

    losses: list[float] = field(default_factory=list)
    copying: list[float] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    interrupted: bool = False
    saved: list[Path] = field(default_factory=list)

    def mean(self, losses: Sequence[float], *, first: bool = False) -> float:
        """Return the mean over the first or last batches."""
        some = losses[:_LOOK_BACK] if first else losses[-_LOOK_BACK:]
        return sum(some) / max(1, len(some))


def run(settings: Settings) -> Result:
    """Train for a while, show how it goes, and save pictures of what was streamed and learnt."""
    torch.manual_seed(settings.seed)
    # More threads than cores that the workers leave free would wait for each other, busily.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - settings.workers))
    model = NextFrame(settings.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    result = Result()
    shown: list[Batch] = []
    videos = VideoStreams(list(settings.videos), size=settings.size)
    with MultiStreamer(
        videos, settings.lanes, settings.window, num_workers=settings.workers, seed=settings.seed, tail="cycle"
    ) as loader:
        state = model.start(settings.lanes)
        started = time.perf_counter()
        try:
            with _Progress(settings) as progress:
                while result.seconds < settings.seconds:
                    for batch in loader:
                        if len(shown) * settings.window < _SHEET_STEPS:
                            shown.append(batch.clone())
                        loss, copying, state = _learn(model, optimizer, batch, state)
                        result.losses.append(loss)
                        result.copying.append(copying)
                        result.frames += int(batch.valid.sum())
                        result.seconds = time.perf_counter() - started
                        result.waited = loader.stats().wait_seconds
                        progress.show(result)
                        if result.seconds >= settings.seconds:
                            break
        except KeyboardInterrupt:
            result.interrupted = True
        names = [Path(info.key).stem for info in loader.streams]
    if result.losses:
        settings.out.mkdir(parents=True, exist_ok=True)
        sheet = settings.out / "contact_sheet.png"
        contact_sheet(shown, names=names, every=_SHEET_STEPS // 16).save(sheet)
        result.saved = [sheet, _plot(result, settings.out / "loss.png")]
    return result


def _learn(model: NextFrame, optimizer: Any, batch: Any, state: Any) -> tuple[float, float, Any]:
    """Take one step of truncated back-propagation; return the loss, that of copying, and the state to carry on."""
    frames = batch.data.float().div(255)
    predicted, before, state = model(frames, batch.keep, state)
    # Nothing tells what the first frame of a stream will be: it is seen, but not scored.
    scored = (batch.keep * batch.valid)[:, :, None, None, None]
    pixels = scored.sum().clamp(min=1) * frames[0, 0].numel()
    loss = ((predicted - frames) ** 2 * scored).sum() / pixels
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        copying = ((before - frames) ** 2 * scored).sum() / pixels
    return loss.item(), copying.item(), state


class _Progress:
    """A progress bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, settings: Settings) -> None:
        try:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise MissingExtra("the demo needs rich, matplotlib and Pillow: pip install streamloader[demo]") from error
        text = TextColumn("{task.fields[text]}")
        self._bar = Progress(TextColumn("training"), BarColumn(), TimeRemainingColumn(), text)
        self._task = self._bar.add_task("", total=settings.seconds, text="starting workers")
        self._next_line = 2.0

    def __enter__(self) -> Self:
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, result: Result) -> None:
        text = (
            f"loss {result.mean(result.losses):.5f}   {result.frames / result.seconds:5.0f} frames/s   "
            f"waiting for data {result.waited / result.seconds:5.1%}"
        )
        if self._bar.console.is_terminal:
            self._bar.update(self._task, completed=result.seconds, text=text)
        elif result.seconds >= self._next_line:
            self._next_line += 10.0
            print(f"{result.seconds:4.0f} s   {text}", flush=True)


def _plot(result: Result, path: Path) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("the demo needs matplotlib: pip install streamloader[demo]") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = range(1, len(result.losses) + 1)
    axes.plot(numbers, result.losses, color="tab:blue", alpha=0.25, linewidth=1, label="each batch")
    axes.plot(numbers, _smooth(result.losses), color="tab:blue", linewidth=2, label="model, mean of 20 batches")
    axes.plot(
        numbers,
        _smooth(result.copying),
        color="tab:orange",
        linewidth=2,
        linestyle="--",
        label="copying the last frame",
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


def _smooth(values: Sequence[float]) -> list[float]:
    return [sum(values[max(0, end - _LOOK_BACK) : end]) / min(end, _LOOK_BACK) for end in range(1, len(values) + 1)]
