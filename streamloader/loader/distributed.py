"""Which rank of how many this process is."""

from __future__ import annotations

import operator
import os
import sys

from streamloader.errors import ConfigError

__all__ = ["rank_and_world"]


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Say which rank of how many this process is.

    Both as they were given; else as an initialised torch.distributed has them (torch is not imported for it: while it
    is not, nothing is initialised); else as the environment variables RANK and WORLD_SIZE, which torchrun sets, have
    them; else 0 of 1.

    Returns:
        (rank, world_size), with 0 <= rank < world_size.

    Raises:
        ConfigError: only one of the two was given or is set, they are no integers, or they do not go together.
    """
    if rank is not None and world_size is not None:
        told = "rank= and world_size="
    elif rank is not None or world_size is not None:
        given, lacking = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise ConfigError(f"{given}= was given without {lacking}=: give both, or neither to have them found out")
    else:
        told, (rank, world_size) = _found()
    try:
        rank, world_size = operator.index(rank), operator.index(world_size)
    except TypeError:
        raise ConfigError(f"rank and world_size are integers, got {rank!r} and {world_size!r}") from None
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be in 0 .. world_size - 1, got rank {rank} of {world_size} from {told}")
    return rank, world_size


def _found() -> tuple[str, tuple[int, int]]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return "torch.distributed", (distributed.get_rank(), distributed.get_world_size())
    names = ("RANK", "WORLD_SIZE")
    told = "the environment variables RANK and WORLD_SIZE"
    unset = [name for name in names if name not in os.environ]
    if len(unset) == len(names):
        return "the default", (0, 1)
    if unset:
        (other,) = set(names) - set(unset)
        raise ConfigError(
            f"the environment variable {other} is set, but {unset[0]} is not: "
            "set both (torchrun does), unset both, or give rank= and world_size="
        )
    rank, world_size = (_number(name) for name in names)
    return told, (rank, world_size)


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"the environment variable {name} is {text!r}, which is no number: "
            "set it to one, unset it, or give rank= and world_size="
        )
    return int(text)
