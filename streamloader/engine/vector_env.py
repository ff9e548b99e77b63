"""Vectorised environments: one in each worker, which fills the rows of all the worker's lanes at once."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np

from streamloader.common.worker_messages import InvalidMessage, check_nesting, parse_json
from streamloader.engine.messages import MAX_INFO_BYTES, MessageKind, encode_message
from streamloader.engine.plan import Plan, make_plan
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, LaneDirectives, locate_error
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import Array, StreamInfo

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ENV_SEED_DOMAIN", "EnvFiller", "EnvWorkload", "find_env_arguments", "name_env", "to_json_value"]

ENV_SEED_DOMAIN: Final = (1 << 24) - 1  # replaces the epoch, so that a generator differs from that of a stream
_ENV_FINISHED: Final = object()
_OFFERED_ARGUMENTS: Final = ("lanes", "rng")

EnvArguments = tuple[tuple[str, ...], tuple[str, ...]]


def find_env_arguments(make_env: Callable[..., Any]) -> EnvArguments:
    """Return which of `lanes` and `rng` `make_env` takes, as (names passed by position, names passed by keyword).

    Parameters named ``lanes`` or ``rng`` are passed by keyword. If `make_env` requires other arguments, (lanes) or
    (lanes, rng) are passed by position.

    Raises:
        ConfigError: If `make_env` is no function, or cannot be called like this.
    """
    if not callable(make_env):
        raise ConfigError(f"make_env must be a function that returns an env, got {type(make_env).__name__}")
    try:
        signature = inspect.signature(make_env)
    except (TypeError, ValueError):  # a built-in function without a signature
        return _OFFERED_ARGUMENTS, ()
    accepted = tuple(
        name
        for name in _OFFERED_ARGUMENTS
        if (parameter := signature.parameters.get(name)) is not None
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    )
    candidates: list[EnvArguments] = [
        ((), accepted),
        ((), ()),
        (_OFFERED_ARGUMENTS[:1], ()),
        (_OFFERED_ARGUMENTS, ()),
    ]
    for positional, keywords in candidates:
        try:
            signature.bind(*positional, **dict.fromkeys(keywords))
        except TypeError:
            continue
        return positional, keywords
    raise ConfigError(f"make_env is called as make_env(lanes, rng), make_env(lanes) or make_env(); it is {signature}")


@dataclass(frozen=True, slots=True)
class EnvWorkload:
    """Workload of a loader whose rows are filled by envs. Each worker's env is one endless stream.

    Attributes:
        make_env: Function that creates the env of a worker.
        env_arguments: Arguments of `make_env`, from :func:`find_env_arguments`.
        plan: Plan of unknown length, which ends with the first env that finishes.
        streams: One stream for each worker.
        worker_rows: Rows of each worker.
    """

    make_env: Callable[..., Any]
    env_arguments: EnvArguments
    plan: Plan
    streams: Sequence[StreamInfo]
    worker_rows: Sequence[range]

    has_next_epoch = False
    can_resume = False  # the state of an env is lost with its process
    has_single_filler = True
    on_error: ClassVar[Literal["raise", "skip"]] = "raise"
    fixed_length = False

    @classmethod
    def create(
        cls, make_env: Callable[..., Any], worker_rows: Sequence[range], first_lane: int, lanes: int, seed: int
    ) -> Self:
        """Create the workload of workers that host `worker_rows`.

        Args:
            make_env: Function that creates the env of a worker.
            worker_rows: Rows of each worker.
            first_lane: Global number of row 0.
            lanes: Number of lanes over all ranks.
            seed: Seed of the envs' generators.

        Raises:
            ConfigError: If `make_env` is no function, or takes other arguments.
        """
        plan = make_plan([None] * lanes, lanes=lanes, window=1, seed=seed, shuffle=False, tail="drop")
        streams = [StreamInfo(name_env(first_lane + rows.start, first_lane + rows.stop)) for rows in worker_rows]
        return cls(make_env, find_env_arguments(make_env), plan, streams, worker_rows)

    def make_fillers(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, send: Callable[[bytes], None]
    ) -> Sequence[EnvFiller]:
        """Create the one filler of a worker."""
        return [EnvFiller(self, ring, range(lanes[0], lanes[-1] + 1), first_lane, send)]

    def encode_infos(self, infos: Any) -> bytes:
        """Return what an env returned for a batch, as :meth:`decode_infos` decodes it. Here, it is JSON.

        Raises:
            ConfigError: If it contains a value that cannot be sent, or is nested too deeply.
        """
        value = to_json_value(infos)
        try:
            check_nesting(value)
        except InvalidMessage as error:
            raise ConfigError(f"infos of an env: {error}") from error
        return json.dumps(value).encode()

    def decode_infos(self, data: bytes) -> Any:
        """Return what an env returned for a batch.

        Raises:
            InvalidMessage: If these are no bytes that :meth:`encode_infos` returns.
        """
        return parse_json(data)

    def open_env(self, lanes: range, epoch: int) -> Callable[[Mapping[str, Array]], Any]:
        """Create the env of the lanes with these global numbers.

        Args:
            lanes: Global numbers of the lanes.
            epoch: Epoch that the env fills. Envs of this workload have no epochs, so it is 0.

        Raises:
            ConfigError: If `make_env` returns an object that cannot be called.
        """
        offered = {"lanes": lanes, "rng": stream_rng(self.plan.seed, ENV_SEED_DOMAIN, lanes.start)}
        positional, keywords = self.env_arguments
        env = self.make_env(*(offered[name] for name in positional), **{name: offered[name] for name in keywords})
        if not callable(env):
            raise ConfigError(
                f"make_env must return an env that is called as env(arrays) -> infos, got {type(env).__name__}"
            )
        return env  # type: ignore[no-any-return]


class EnvFiller:
    """Row filler of one env: calls the env once for each batch. The env is only used in one thread.

    Args:
        workload: Workload of the loader.
        ring: Ring whose slots are filled.
        rows: Rows of the ring that this env fills.
        first_lane: Global number of the ring's row 0.
        send: Function that sends an encoded message to the supervisor.
    """

    def __init__(
        self, workload: EnvWorkload, ring: Ring, rows: range, first_lane: int, send: Callable[[bytes], None]
    ) -> None:
        self.row, self.rows, self.global_lane = rows.start, rows, first_lane + rows.start
        self.grants_filled = 0
        self.only_run: int | None = None
        self.status = ring.status[rows.start : rows.stop].T  # status[column] is the column of all its lanes
        # fill() of a column takes a tenth of the time of an assignment to it.
        self._stage, self._step = self.status[Status.STAGE], self.status[Status.STEP]
        self._workload, self._send = workload, send
        self._lanes = range(first_lane + rows.start, first_lane + rows.stop)
        self._ordinal = workload.worker_rows.index(rows)
        # Read-only mappings: arrays["data"] = frame would not write into the slot, so it raises.
        self._arrays = [
            MappingProxyType({name: array[rows.start : rows.stop] for name, array in ring.arrays(slot).items()})
            for slot in range(ring.slots)
        ]
        self._run = -1
        self._run_finished = False
        self._started = False
        # Only accessed in the env's thread, which runs calls in order. So it is closed after its last call has
        # returned, even if the loader was closed during that call and nothing awaits it any more.
        self._env: Callable[[Mapping[str, Array]], Any] | None = None

    async def fill(self, grant: Grant) -> None:
        """Call the env of the run to fill its rows of the granted slot.

        Once the env has finished, the rows are left as they are: the supervisor makes these grants void.

        Raises:
            StreamloaderError: If the env failed. The error names its lanes, the stage and the batch.
        """
        step = grant.batch
        if grant.run != self._run:
            await self.reset()
            self._run, self._run_finished = grant.run, False
        if self._run_finished:
            return
        if self._env is None:
            self.status[Status.STREAM] = self._ordinal
            self._started = True
            await self._call_in_thread("opening", step, self._open_env, grant.epoch)
        infos = await self._call_in_thread("reading", step, self._call_env, self._arrays[grant.slot])
        if infos is _ENV_FINISHED:
            self._run_finished = True
            await self.reset()
            self._send(encode_message(MessageKind.ENDED, a=grant.run, b=step, c=step, lane=self.row))
            return
        self._step.fill(step + 1)
        if infos is not None:
            self._send(self._encode_infos(infos, grant))

    def apply_directives(self, directives: LaneDirectives) -> None:
        """Do nothing: an env can only continue from its current state."""

    async def reset(self) -> None:
        """Close the env, if it has a method ``close``."""
        if self._started:
            await self._call_in_thread("closing", int(self.status[Status.STEP][0]), self._close_env)
        self.status[Status.STAGE] = Status.IDLE

    def _encode_infos(self, infos: bytes, grant: Grant) -> bytes:
        """Encode an INFO message.

        Raises:
            ConfigError: If the supervisor would not accept it.
        """
        message = encode_message(MessageKind.INFO, a=grant.seq, b=grant.run, lane=self.row, payload=infos)
        if len(message) > MAX_INFO_BYTES:
            text = (
                f"the infos of an env have {len(message):,} bytes, and may have {MAX_INFO_BYTES:,} a batch: "
                "large data belongs in the arrays"
            )
            raise self._locate(ConfigError(text), "reading", grant.batch)
        return message

    def _open_env(self, epoch: int) -> None:
        self._env = self._workload.open_env(self._lanes, epoch)

    def _close_env(self) -> None:
        env, self._env = self._env, None
        close = getattr(env, "close", None)
        if callable(close):
            close()

    def _call_env(self, arrays: Mapping[str, Array]) -> Any:
        assert self._env is not None
        try:
            infos = self._env(arrays)
        except StopIteration:  # cannot be raised through a coroutine
            return _ENV_FINISHED
        return None if infos is None else self._workload.encode_infos(infos)

    async def _call_in_thread(self, stage: str, step: int, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in the env's thread, and add the location to its errors."""
        self._stage.fill(Status.STAGES.index(stage))
        self._step.fill(step)
        try:
            return await in_lane_thread(function, *args)
        except Exception as error:
            raise self._locate(error, stage, step) from error

    def _locate(self, error: Exception, stage: str, step: int) -> StreamloaderError:
        name = self._workload.streams[self._ordinal].key
        located = locate_error(error, name, stream=name, lane=self.global_lane, stage=stage, step=step)
        located.details["lanes"] = list(self._lanes)
        return located


def to_json_value(value: Any, path: str = "infos") -> Any:
    """Convert `value` to JSON values. NumPy's arrays and scalars become Python's lists and scalars.

    Args:
        value: Value that an env returned.
        path: Path of the value in what the env returned, for messages.

    Raises:
        ConfigError: If it contains a value of another type. The message has the path of that value and its type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{path} has the key {key!r}: keys in the infos of an env must be strings")
        return {str(key): to_json_value(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufU":
        return value.tolist()
    raise ConfigError(
        f"{path} is of type {type(value).__name__}: an env returns None, numbers, strings, and lists and dicts of "
        "these (NumPy arrays become lists); large data belongs in the arrays"
    )


def name_env(start: int, end: int) -> str:
    """Return the name of the env that fills the lanes from `start` up to `end`."""
    return f"env of lane {start}" if end - start == 1 else f"env of lanes {start}-{end - 1}"
