"""Group envs: envs with epochs, each of which is created for the streams of one worker.

Their contract is that of a public loader of coherent batches, whose users move here: `make_env` is called with
`worker_id`, `num_workers`, `num_streams` and `epoch`, once for each worker and epoch. The env has `num_batches`, and
returns lists by name, which the consumer joins over the workers.
"""

from __future__ import annotations

import functools
import inspect
import operator
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from typing_extensions import override

from streamloader.common.worker_messages import InvalidMessage
from streamloader.engine.infos_codec import decode_infos, encode_infos
from streamloader.engine.plan import make_plan
from streamloader.engine.vector_env import ENV_SEED_DOMAIN, EnvWorkload, name_env
from streamloader.errors import ConfigError, StreamFailed
from streamloader.streams.base import stream_rng
from streamloader.values import Array, StreamInfo

if TYPE_CHECKING:
    from typing import Self

__all__ = ["GroupWorkload", "find_group_arguments"]

_GROUP_ARGUMENTS: Final = ("worker_id", "num_workers", "num_streams", "epoch")
_EPOCH_SHIFT_BITS: Final = 20  # in the key of a generator, above the number of a lane


def find_group_arguments(make_env: Callable[..., Any]) -> tuple[str, ...]:
    """Return the arguments with which `make_env` is called, if it creates group envs. Otherwise, return ().

    It does if it has a parameter `worker_id`, `num_workers` or `num_streams`. Where a class takes ``**kwargs``, the
    parameters of its base classes count too.

    Raises:
        ConfigError: If `make_env` also has a parameter `lanes` or `rng`, which belong to other envs.
    """
    names, takes_all = _find_parameters(make_env)
    if names.isdisjoint(_GROUP_ARGUMENTS[:3]):
        return ()
    if mixed := names & {"lanes", "rng"}:
        raise ConfigError(
            f"make_env has the parameters {sorted(mixed | names.intersection(_GROUP_ARGUMENTS))}: it is called either "
            "as make_env(lanes, rng), or as make_env(worker_id=, num_workers=, num_streams=, epoch=)"
        )
    return tuple(name for name in _GROUP_ARGUMENTS if takes_all or name in names)


def _find_parameters(make_env: Any) -> tuple[set[str], bool]:
    """Return the names of the parameters of a function or class, and whether it takes any keyword."""
    while isinstance(make_env, functools.partial):
        make_env = make_env.func
    functions = (
        [vars(base)["__init__"] for base in make_env.__mro__ if "__init__" in vars(base)]
        if inspect.isclass(make_env)
        else [make_env]
    )
    names: set[str] = set()
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # no function, or a built-in one without a signature
            return names, False
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        names |= {parameter.name for parameter in parameters if parameter.kind in kinds}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return names, False
    return names, True


@dataclass(frozen=True, slots=True)
class GroupWorkload(EnvWorkload):
    """Workload of a loader whose rows are filled by group envs. Each run is an epoch, with envs of its own.

    Attributes:
        group_workers: Number of workers over all ranks.
        num_batches: Number of batches of an epoch, or None if envs end it by StopIteration.
        seeds_globals: Whether the global generators of a worker are seeded before its env is created.
    """

    group_workers: int = 1
    num_batches: int | None = None
    seeds_globals: bool = False

    @classmethod
    def create_groups(
        cls,
        make_env: Callable[..., Any],
        worker_rows: Sequence[range],
        first_lane: int,
        lanes: int,
        *,
        epoch: int,
        seed: int,
        seeds_globals: bool,
    ) -> Self:
        """Create the workload of workers that host `worker_rows`, all of the same size.

        To learn `num_batches`, this calls `make_env` once, for no streams (``num_streams=0``).

        Args:
            make_env: Function that creates the env of a worker, see :func:`find_group_arguments`.
            worker_rows: Rows of each worker.
            first_lane: Global number of row 0.
            lanes: Number of lanes over all ranks.
            epoch: First epoch.
            seed: Seed of the global generators.
            seeds_globals: Whether to seed them.

        Raises:
            ConfigError: If `make_env` fails, or if what it returns cannot be called or has an invalid `num_batches`.
        """
        workers = lanes // len(worker_rows[0])
        arguments = find_group_arguments(make_env)
        probe = {"worker_id": 0, "num_workers": workers, "num_streams": 0, "epoch": epoch}
        call = ", ".join(f"{name}={probe[name]}" for name in arguments)
        try:
            env = make_env(**{name: probe[name] for name in arguments})
        except Exception as error:
            raise ConfigError(
                f"make_env({call}) failed: {type(error).__name__}: {error}. It is called once for no streams, for its "
                "num_batches"
            ) from error
        num_batches = _read_num_batches(env)
        plan = make_plan([num_batches] * lanes, lanes=lanes, window=1, seed=seed, shuffle=False, tail="drop")
        streams = [StreamInfo(name_env(first_lane + rows.start, first_lane + rows.stop)) for rows in worker_rows]
        return cls(
            make_env, ((), arguments), plan, streams, worker_rows, workers, num_batches, seeds_globals=seeds_globals
        )

    @override
    def encode_infos(self, infos: Any) -> bytes:
        return encode_infos(infos)

    @override
    def decode_infos(self, data: bytes) -> Any:
        infos = decode_infos(data)
        if type(infos) is not dict or not all(type(k) is str and type(v) is list for k, v in infos.items()):
            raise InvalidMessage("its infos are no dict of lists")
        return infos

    @override
    def open_env(self, lanes: range, epoch: int) -> Callable[[Mapping[str, Array]], Any]:
        if self.seeds_globals:
            _seed_globals(stream_rng(self.plan.seed, ENV_SEED_DOMAIN, (epoch << _EPOCH_SHIFT_BITS) ^ lanes.start))
        number = lanes.start // len(lanes)
        offered = {
            "worker_id": number, "num_workers": self.group_workers, "num_streams": len(lanes), "epoch": epoch,
        }  # fmt: skip
        env = self.make_env(**{name: offered[name] for name in self.env_arguments[1]})
        num_batches = _read_num_batches(env)
        if num_batches != self.num_batches:
            raise ConfigError(
                f"the env of worker {number} has num_batches={num_batches}, but make_env returned one with num_batches="
                f"{self.num_batches} when the loader was created: it has to be equal for all workers and epochs"
            )
        return _GroupRunner(env, num_batches)


class _GroupRunner:
    """Calls a group env for one batch after the other, and checks its infos.

    Arrays are cleared before each call, because an env may leave parts of them as they are: otherwise, these would keep
    data of some earlier batch, and which one would depend on the time at which the consumer released it.
    """

    def __init__(self, env: Callable[[Mapping[str, Array]], Any], num_batches: int | None) -> None:
        self._env, self._num_batches = env, num_batches
        self._calls = 0

    def __call__(self, arrays: Mapping[str, Array]) -> Any:
        for array in arrays.values():
            array[...] = 0
        try:
            infos = self._env(arrays)
        except StopIteration:
            if self._num_batches is None:
                raise
            raise StreamFailed(
                f"the env raised StopIteration after {self._calls} of {self._num_batches} batches (its num_batches)"
            ) from None
        self._calls += 1
        if infos is None:
            return None
        if not isinstance(infos, Mapping):
            raise ConfigError(f"an env must return a dict of lists, got {type(infos).__name__}")
        for name, values in infos.items():
            if not isinstance(name, str) or not isinstance(values, (list, tuple)):
                kind = type(values).__name__
                raise ConfigError(f"an env must return a dict of lists by name, got {kind} for {name!r}")
            if name in arrays:
                raise ConfigError(f"an env returned a list named {name!r}, which is the name of an array")
        return {name: list(values) for name, values in infos.items()}

    def close(self) -> None:
        """Close the env, if it has a method ``close``."""
        close = getattr(self._env, "close", None)
        if callable(close):
            close()


def _read_num_batches(env: Any) -> int | None:
    """Return the number of batches of an env, or None if it does not have one.

    Raises:
        ConfigError: If the env cannot be called, or its number of batches is invalid.
    """
    if not callable(env):
        raise ConfigError(f"make_env must return an env that is called as env(arrays), got {type(env).__name__}")
    num_batches = getattr(env, "num_batches", None)
    if num_batches is None:
        return None
    try:
        count = operator.index(num_batches)
    except TypeError:
        count = -1
    if count < 0:
        raise ConfigError(f"num_batches of an env must be a whole number of 0 or more, got {num_batches!r}")
    return count


def _seed_globals(rng: np.random.Generator) -> None:
    """Seed the generators of random, NumPy and, if it is imported, torch, from which the code of users draws."""
    random.seed(int(rng.integers(1 << 63)))
    np.random.seed(int(rng.integers(1 << 32)))  # noqa: NPY002 - users draw from it
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int(rng.integers(1 << 63)))
