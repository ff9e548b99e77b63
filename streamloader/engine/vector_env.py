"""Vectorised producers: one in each worker, which fills the rows of all the lanes that the worker hosts at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import anyio
import numpy as np

from streamloader.engine.messages import Kind, pack
from streamloader.engine.plan import Plan, make_plan
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, Orders, failed_at
from streamloader.errors import ConfigError, StreamloaderError
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import Array, StreamInfo

if TYPE_CHECKING:
    from typing import Self

__all__ = ["EnvScript", "Producer", "call_of", "plain"]

_WORKER_DOMAIN = (1 << 24) - 1  # in place of an epoch: a worker's generator is not that of its first lane
_OVER: Final = object()
_OFFERED = ("lanes", "rng")

Call = tuple[tuple[str, ...], tuple[str, ...]]


def call_of(make_env: Callable[..., Any]) -> Call:
    """Say which of `lanes` and `rng` `make_env` takes: (by position, by name).

    What it names ``lanes`` or ``rng`` it gets by name; if it must have other arguments, then (lanes), or (lanes, rng).

    Raises:
        ConfigError: it is no function, or cannot be called like this.
    """
    if not callable(make_env):
        raise ConfigError(f"make_env must be a function that returns an env, got {type(make_env).__name__}")
    try:
        signature = inspect.signature(make_env)
    except (TypeError, ValueError):  # built-in, and it does not tell
        return _OFFERED, ()
    named = tuple(
        name
        for name in _OFFERED
        if (parameter := signature.parameters.get(name)) is not None
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    )
    calls: list[Call] = [((), named), ((), ()), (_OFFERED[:1], ()), (_OFFERED, ())]
    for positional, keywords in calls:
        try:
            signature.bind(*positional, **dict.fromkeys(keywords))
        except TypeError:
            continue
        return positional, keywords
    raise ConfigError(f"make_env is called as make_env(lanes, rng), make_env(lanes) or make_env(); it is {signature}")


@dataclass(frozen=True, slots=True)
class EnvScript:
    """What producers play: each lane has one stream, that of its worker's env, and it is endless.

    Attributes:
        make_env: makes the env of a worker.
        call: how `make_env` is called, of :func:`call_of`.
        plan: of no known end; it ends when the first env does.
        streams: one a worker.
        hosted: rows of each worker.
    """

    make_env: Callable[..., Any]
    call: Call
    plan: Plan
    streams: Sequence[StreamInfo]
    hosted: Sequence[range]

    plays_again = False
    resumes = False  # what an env remembers dies with its process
    on_error: ClassVar[Literal["raise", "skip"]] = "raise"
    fixed = False

    @classmethod
    def of(cls, make_env: Callable[..., Any], hosted: Sequence[range], first_lane: int, lanes: int, seed: int) -> Self:
        """Make the script of workers that host these rows."""
        plan = make_plan([None] * lanes, lanes=lanes, window=1, seed=seed, shuffle=False, tail="drop")
        streams = [StreamInfo(_name(first_lane + rows.start, first_lane + rows.stop)) for rows in hosted]
        return cls(make_env, call_of(make_env), plan, streams, hosted)

    def players(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, report: Callable[[bytes], None]
    ) -> Sequence[Producer]:
        """Make the one player of a worker."""
        return [Producer(self, ring, range(lanes[0], lanes[-1] + 1), first_lane, report)]

    def make(self, lanes: range) -> Callable[[Mapping[str, Array]], Any]:
        """Make the env of the lanes with these global numbers."""
        offered = {"lanes": lanes, "rng": stream_rng(self.plan.seed, _WORKER_DOMAIN, lanes.start)}
        positional, named = self.call
        env = self.make_env(*(offered[name] for name in positional), **{name: offered[name] for name in named})
        if not callable(env):
            raise ConfigError(
                f"make_env must return an env that is called as env(arrays) -> infos, got {type(env).__name__}"
            )
        return env  # type: ignore[no-any-return]


class Producer:
    """The player of an env: calls it once for each batch. Env and all calls of it stay in one thread.

    Args:
        rows: of the ring, to be filled by this env.
        first_lane: global number of the ring's row 0.
        report: sends an encoded record to the supervisor.
    """

    def __init__(
        self, script: EnvScript, ring: Ring, rows: range, first_lane: int, report: Callable[[bytes], None]
    ) -> None:
        self.number, self.global_number = rows.start, first_lane + rows.start
        self.done = 0
        self.held: int | None = None
        self.status = ring.status[rows.start : rows.stop].T  # status[column] is that of all its lanes
        self._script, self._report = script, report
        self._lanes = range(first_lane + rows.start, first_lane + rows.stop)
        self._ordinal = script.hosted.index(rows)
        # Read-only mappings: arrays["data"] = frame would fill no slot, and so it is refused.
        self._arrays = [
            MappingProxyType({name: array[rows.start : rows.stop] for name, array in ring.arrays(slot).items()})
            for slot in range(ring.slots)
        ]
        self._begun = False
        # Made, used and let go of in the producer's thread alone, where everything comes in its turn: also after a call
        # that nobody awaits any more, because the loader was closed meanwhile.
        self._env: Callable[[Mapping[str, Array]], Any] | None = None

    async def fill(self, grant: Grant) -> None:
        """Have the env fill its rows of the granted slot; never return once it has said that it is over.

        Raises:
            StreamloaderError: the env failed; the error names its lanes, the stage and the batch.
        """
        step = grant.batch
        if self._env is None:
            self.status[Status.STREAM] = self._ordinal
            self._begun = True
            await self._at("opening", step, self._make)
        infos = await self._at("reading", step, self._call, self._arrays[grant.slot])
        if infos is _OVER:
            await self.reset()
            self._report(pack(Kind.ENDED, a=grant.play, b=step, c=step, lane=self.number))
            await anyio.sleep_forever()
        self.status[Status.STEP] = step + 1
        if infos is not None:
            self._report(pack(Kind.INFO, a=grant.seq, lane=self.number, payload={"infos": infos}))

    def place(self, orders: Orders) -> None:
        """Heed nothing: an env goes on from where it is."""

    async def reset(self) -> None:
        """Close the env, if it has a way to be closed."""
        if self._begun:
            await self._at("closing", int(self.status[Status.STEP][0]), self._close)
        self.status[Status.STAGE] = Status.IDLE

    def _make(self) -> None:
        self._env = self._script.make(self._lanes)

    def _close(self) -> None:
        env, self._env = self._env, None
        close = getattr(env, "close", None)
        if callable(close):
            close()

    def _call(self, arrays: Mapping[str, Array]) -> Any:
        assert self._env is not None
        try:
            infos = self._env(arrays)
        except StopIteration:  # which no coroutine can raise
            return _OVER
        return None if infos is None else plain(infos)

    async def _at(self, stage: str, step: int, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in the producer's thread; what it raises is named."""
        self.status[Status.STAGE] = Status.STAGES.index(stage)
        self.status[Status.STEP] = step
        try:
            return await in_lane_thread(function, *args)
        except Exception as error:
            raise self._named(error, stage, step) from error

    def _named(self, error: Exception, stage: str, step: int) -> StreamloaderError:
        name = self._script.streams[self._ordinal].key
        named = failed_at(error, name, stream=name, lane=self.global_number, stage=stage, step=step)
        named.details["lanes"] = list(self._lanes)
        return named


def plain(value: Any, where: str = "infos") -> Any:
    """Return `value` as values that JSON holds and gives back: arrays and NumPy's numbers become Python's.

    Raises:
        ConfigError: something in it is of another kind; the message says what and where.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{where} has the key {key!r}: only text can be a key of what an env returns")
        return {str(key): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufU":
        return value.tolist()
    raise ConfigError(
        f"{where} is of type {type(value).__name__}: an env returns None, numbers, text, and lists and dicts of these "
        "(NumPy arrays are made lists); what is large belongs in the arrays"
    )


def _name(start: int, stop: int) -> str:
    return f"env of lane {start}" if stop - start == 1 else f"env of lanes {start}-{stop - 1}"
