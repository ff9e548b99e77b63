"""Which rank of how many this process is."""

from __future__ import annotations

import os
import sys

from streamloader.errors import ConfigError

__all__ = ["rank_and_world"]


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return both as they were given, else as torch.distributed, or else the variables RANK and WORLD_SIZE have them.

    Raises:
        ConfigError: one of them alone was given, or they do not go together.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("give both rank= and world_size=, or neither")
    if rank is None or world_size is None:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"rank must be in 0 .. world_size - 1, got rank {rank} of {world_size}")
    return rank, world_size
