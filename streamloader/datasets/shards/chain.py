"""Describe what a data set of shards plays: its sources, and the stages that their samples pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from streamloader.datasets.shards.order import EpochOrder, OrderSettings
from streamloader.datasets.shards.reader import SHARD_SAMPLES
from streamloader.datasets.shards.sample_set import SampleKind, SampleSet
from streamloader.datasets.shards.stages import MapStage, SelectStage, Stage, collate
from streamloader.distributed import resolve_rank

__all__ = ["ChainSource", "OnError", "SampleChain"]

OnError: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class ChainSource:
    """One data set with the stages that its samples pass before they are mixed with others.

    Attributes:
        shards: Data set.
        stages: Functions that its samples pass.
        settings: Settings of its order. Batch size and rank are those of the chain.
        verify: Whether contents are compared with their checksums.
        prefetch_bytes: Maximum number of bytes that a process fetches in advance.
        kind: Kind of the data set.
    """

    shards: SampleSet
    stages: tuple[Stage, ...]
    settings: OrderSettings
    verify: bool
    prefetch_bytes: int
    kind: SampleKind = SHARD_SAMPLES


@dataclass(frozen=True)
class SampleChain:
    """The samples of one or several data sets, and what is done with them.

    Attributes:
        sources: Data sets.
        weights: Weight of each data set when the next sample is chosen.
        stages: Functions that all samples pass.
        batch_size: Number of samples of a batch. None if they are not batched.
        collate: Function that makes a batch of a list of samples.
        partial: Whether the last batch of a lane may be smaller.
        batch_stages: Functions that each batch passes.
        epochs: Number of epochs of an iteration. None for an endless one.
        rank: Number of this rank. None to detect it.
        world_size: Number of ranks. None to detect it.
        on_error: Whether bad samples are left out ("skip").
    """

    sources: tuple[ChainSource, ...]
    weights: tuple[float, ...] = (1.0,)
    stages: tuple[Stage, ...] = ()
    batch_size: int | None = None
    collate: Callable[[list[Any]], Any] = collate
    partial: bool = True
    batch_stages: tuple[MapStage | SelectStage, ...] = ()
    epochs: int | None = 1
    rank: int | None = None
    world_size: int | None = None
    on_error: OnError = "raise"

    def count_batches(self, orders: Sequence[EpochOrder]) -> int:
        """Return the number of batches of an epoch, as long as no sample is left out."""
        size = self.batch_size or 1
        batches = 0
        for lane in range(orders[0].settings.lanes):
            samples = sum(order.lane_samples(lane) for order in orders)
            batches += -(-samples // size) if self.partial else samples // size
        return batches

    @property
    def leaves_out(self) -> bool:
        """Whether the number of batches does not say which samples were played."""
        return len(self.sources) > 1 or self.on_error == "skip" or self.has_select

    @property
    def has_select(self) -> bool:
        """Whether samples or batches are selected."""
        stages = [*(stage for source in self.sources for stage in source.stages), *self.stages, *self.batch_stages]
        return any(isinstance(stage, SelectStage) for stage in stages)

    def resolve_rank(self) -> tuple[int, int]:
        """Return the rank of this process and the number of ranks."""
        return resolve_rank(self.rank, self.world_size)

    def identify(self) -> dict[str, Any]:
        """Return everything besides the epoch that decides the order."""
        _, world_size = self.resolve_rank()
        identity: dict[str, Any] = {"batch_size": self.batch_size, "world_size": world_size}
        for number, source in enumerate(self.sources):
            settings = dataclasses.asdict(source.settings)
            for name in ("rank", "world_size", "batch_size"):
                del settings[name]
            prefix = f"{number}." if len(self.sources) > 1 else ""
            identity |= {f"{prefix}{name}": value for name, value in settings.items()}
            identity[f"{prefix}data"] = source.shards.digest
        if len(self.sources) > 1:
            identity["weights"] = list(self.weights)
        return identity

    def make_orders(self, epoch: int, lanes: int | None) -> list[EpochOrder]:
        """Return the order of each data set in an epoch."""
        rank, world_size = self.resolve_rank()
        return [
            EpochOrder(
                source.shards.counts,
                source.shards.total_bytes,
                dataclasses.replace(
                    source.settings,
                    batch_size=self.batch_size or 1,
                    lanes=lanes or source.settings.lanes,
                    rank=rank,
                    world_size=world_size,
                ),
                epoch,
            )
            for source in self.sources
        ]
