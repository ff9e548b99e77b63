"""Plan of a round: its dataset, its loader, and when which workers die. One seed decides all of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from chaos.data import (
    CAUSES,
    CLOSING,
    DECODING,
    HALFWAY,
    KINDS,
    MARKING,
    OPENING,
    SEEKING,
    UNPUBLISHED,
    WRITTEN,
    Deadly,
    Fuse,
    make_dataset,
)
from chaos.killer import AIMS, DEADLINE_S, IDLE, IMPORTING, RESTARTING, SIGNALS, WHENEVER, Kill

import streamloader as sl

WORKERS = (1, 2, 4)
EPOCHS = 3
# Workers are killed from outside; or by streams, once each; or where they take streams up again; or by streams, always.
FROM_OUTSIDE, BY_FUSES, WHILE_SEEKING, ALWAYS = STYLES = ("from outside", "by fuses", "while seeking", "always")
FUSED = (OPENING, DECODING, HALFWAY, WRITTEN, MARKING, UNPUBLISHED, CLOSING)
FAILING = (OPENING, DECODING, HALFWAY, WRITTEN)  # where a stream could as well raise

Played = list[tuple[int, int, dict[str, np.ndarray]]]  # (epoch, batch, marks)


class Round:
    """One round: the loader, and when which workers die.

    Args:
        seed: Seed of all rounds.
        number: Number of the round. Together with the seed, it decides everything but the folder.
        folder: Folder for files.
    """

    def __init__(self, seed: int, number: int, folder: Path) -> None:
        self.name = f"seed {seed}, round {number}"
        self.rng = rng = np.random.default_rng([seed, number])
        self.workers = WORKERS[number % len(WORKERS)]
        self.style = STYLES[int(rng.choice(len(STYLES), p=[0.37, 0.45, 0.08, 0.1]))]
        self.kind = str(rng.choice(KINDS))
        self.folder = folder
        self.inner = make_dataset(self.kind, rng, folder)
        self.chunk = int(rng.integers(1, 5))
        self.pause = float(rng.uniform(0.0002, 0.001))
        self.fuses: list[Fuse] = []
        self.arguments: dict[str, Any] = {
            "batch_size": int(rng.integers(4, 7)),
            "window": int(rng.integers(2, 7)),
            "prefetch_factor": int(rng.integers(1, 4)),
            "seed": int(rng.integers(1 << 40)),
            "shuffle": bool(rng.integers(2)),
            "switch": str(rng.choice(["pack", "pack", "align"])),
            "tail": str(rng.choice(["pad", "pad", "drop", "cycle"])),
            "timeout": DEADLINE_S,
            "on_error": "skip" if self.style == ALWAYS else "raise",
        }
        self.leaves = [int(rng.integers(1, 9)) if not rng.integers(4) else 1 << 30 for _ in range(EPOCHS)]
        if self.style == ALWAYS:  # all is played, so that what is left does not depend on who is how far ahead
            self.arguments["tail"] = self.arguments["tail"].replace("drop", "pad")
            self.leaves = [1 << 30] * EPOCHS

    def loader(self) -> sl.MultiStreamer:
        """Make the loader whose workers die."""
        dataset = Deadly(self.inner, self.fuses, chunk=self.chunk, pause=self.pause)
        return sl.MultiStreamer(dataset, num_workers=self.workers, **self.arguments)

    def undisturbed(self) -> sl.MultiStreamer:
        """Make the one without workers to compare it with: streams fail where they would always kill their worker."""
        fuses = [replace(fuse, cause="fails") for fuse in self.fuses if not fuse.file]
        return sl.MultiStreamer(Deadly(self.inner, fuses, chunk=self.chunk), **self.arguments)

    def played(
        self, loader: sl.MultiStreamer, started: Callable[[], object] | None = None
    ) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        """Yield (epoch, batch, arrays), and break off the epochs in `leaves`; call `started` at the start of each."""
        for epoch, leave in enumerate(self.leaves):
            iterator = iter(loader)
            if started is not None:
                started()
            for index, batch in enumerate(iterator):
                yield epoch, index, batch.numpy()
                if index == leave:
                    break

    # --- who dies -----------------------------------------------------------------------------------------------

    def lay_fuses(self, played: Played, streams: Sequence[sl.StreamInfo], slots: int, most: int) -> None:
        """Choose the steps at which streams end their worker, `most` at most.

        Those that do it once are so far apart that a worker fills a batch between two, whichever lanes they are in.
        """
        self.streams = streams
        if self.style != FROM_OUTSIDE:
            self._lay_fuses(played, slots)
        del self.fuses[most:]

    def _lay_fuses(self, played: Played, slots: int) -> None:
        if self.style == WHILE_SEEKING:  # in one lane only: the first death makes the others seek too
            lane = int(self.rng.integers(self.arguments["batch_size"]))
            for epoch, _, arrays in played:
                for stream in set(arrays["stream"][lane].tolist()) - {-1}:
                    self._add_fuse(epoch, stream, 0, SEEKING)
            return
        moments = FAILING if self.style == ALWAYS else FUSED
        at, moment = int(self.rng.integers(slots)), str(self.rng.choice(moments))
        while at < len(played):
            epoch, _, arrays = played[at]
            cells = np.argwhere(self._fit_for(moment, arrays))
            if moment == UNPUBLISHED and (at + 1 == len(played) or played[at + 1][0] != epoch):
                cells = cells[:0]  # at the end of an epoch a lane looks whether there is more before it publishes
            if len(cells):
                lane, step = cells[int(self.rng.integers(len(cells)))]
                self._add_fuse(epoch, int(arrays["stream"][lane, step]), int(arrays["step"][lane, step]), moment)
                at += slots + 2 + int(self.rng.integers(3))
                moment = str(self.rng.choice(moments))
            else:  # perhaps in the next one
                at += 1

    def _fit_for(self, moment: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Say of each step of a batch whether its stream can end its worker at that moment there; bool (B, T)."""
        fit = arrays["valid"] & ~arrays["repeat"]
        if moment == OPENING:
            fit &= arrays["reset"]
        elif moment == CLOSING and self.arguments["switch"] == "pack":  # another stream follows in this row
            fit[:, :-1] &= arrays["reset"][:, 1:]
            fit[:, -1] = False
        elif moment == CLOSING:  # the rest is padding
            fit[:, :-1] &= ~arrays["valid"][:, 1:]
            fit[:, -1] = False
        elif moment == UNPUBLISHED:
            fit[:, :-1] = False
        return fit

    def _add_fuse(self, epoch: int, stream: int, step: int, moment: str) -> None:
        key = self.streams[stream].key
        if all((fuse.epoch, fuse.key) != (epoch, key) for fuse in self.fuses):
            cause = str(self.rng.choice(list(CAUSES)))
            file = "" if self.style == ALWAYS else str(self.folder / f"fuse-{len(self.fuses)}")
            self.fuses.append(Fuse(epoch, key, step, moment, cause, file))

    def kills(self) -> Iterator[list[Kill]]:
        """Yield, first for the very beginning and then for each batch, whom to kill from outside behind it."""
        if self.style == ALWAYS:
            yield from itertools.repeat([])
        yield [self._kill(IMPORTING, late=0.15) for _ in range(int(self.rng.integers(3)))]
        often = 0.5 if self.style == FROM_OUTSIDE else 0.04 if self.style == BY_FUSES else 0.3
        while True:
            due = []
            if self.rng.random() < often:
                due.append(self._kill(str(self.rng.choice(AIMS if self.style == FROM_OUTSIDE else [IDLE]))))
                if not self.rng.integers(3):  # and the one that takes its place
                    due.append(self._kill(RESTARTING, due[0].worker, late=0.15))
            yield due

    def _kill(self, aim: str, worker: int | None = None, late: float = 0.02) -> Kill:
        # Only a stopped worker surely does what it was seen doing; where there are fuses they alone may be at fault.
        stop = self.style != FROM_OUTSIDE or aim != WHENEVER or bool(self.rng.integers(2))
        worker = int(self.rng.integers(12)) if worker is None else worker
        delay = float(self.rng.uniform(0.0, late)) if self.rng.integers(3) else 0.0
        return Kill(aim, worker, delay, str(self.rng.choice(SIGNALS)), stop)
