"""Rank and world size of this process."""

from __future__ import annotations

import operator
import os
import sys

from streamloader.errors import ConfigError

__all__ = ["resolve_rank"]


def resolve_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks.

    The first of these sources that exists decides: the arguments, an initialized torch.distributed, the environment
    variables RANK and WORLD_SIZE, which torchrun sets, and finally rank 0 of 1. torch is not imported for this, because
    torch.distributed cannot be initialized before torch is imported.

    Args:
        rank: Rank, or None to detect it.
        world_size: Number of ranks, or None to detect it.

    Returns:
        (rank, world_size), with 0 <= rank < world_size.

    Raises:
        ConfigError: If only one of the two is given or set, a value is not an integer, or the rank is out of range.
    """
    if rank is not None and world_size is not None:
        source = "rank= and world_size="
    elif rank is not None or world_size is not None:
        given, missing = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise ConfigError(f"{given}= was given without {missing}=: give both, or neither to detect them")
    else:
        source, (rank, world_size) = _detect_rank()
    try:
        rank, world_size = operator.index(rank), operator.index(world_size)
    except TypeError:
        raise ConfigError(f"rank and world_size must be integers, got {rank!r} and {world_size!r}") from None
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must be in 0 .. world_size - 1, got rank {rank} of {world_size} from {source}")
    return rank, world_size


def _detect_rank() -> tuple[str, tuple[int, int]]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return "torch.distributed", (distributed.get_rank(), distributed.get_world_size())
    names = ("RANK", "WORLD_SIZE")
    source = "the environment variables RANK and WORLD_SIZE"
    unset = [name for name in names if name not in os.environ]
    if len(unset) == len(names):
        return "the default", (0, 1)
    if unset:
        (other,) = set(names) - set(unset)
        raise ConfigError(
            f"the environment variable {other} is set, but {unset[0]} is not: "
            "set both (torchrun does), unset both, or give rank= and world_size="
        )
    rank, world_size = (_read_integer(name) for name in names)
    return source, (rank, world_size)


def _read_integer(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"the environment variable {name} is {text!r}, which is not a number: "
            "correct it, unset it, or give rank= and world_size="
        )
    return int(text)
