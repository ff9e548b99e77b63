"""Workload of a loader whose rows are filled by environments of Gymnasium."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from streamloader.common.worker_messages import InvalidMessage
from streamloader.engine.plan import Plan, make_plan
from streamloader.engine.ring import Ring, Status
from streamloader.engine.workload import Grant, LaneDirectives
from streamloader.loader.gym.envs import EnvGroup, SingleEnvs, VectorOfEnvs, close_all
from streamloader.loader.gym.makers import EnvMaker
from streamloader.loader.gym.marks import EpisodeMarks
from streamloader.loader.gym.modes import AutoresetName, keeps_final_row
from streamloader.loader.gym.policy import Actor, PolicyActor, RandomActor, make_policy
from streamloader.loader.gym.progress import EnvProgress
from streamloader.loader.gym.rollout import BatchFields, Rollout
from streamloader.streams.base import stream_rng
from streamloader.streams.lane_thread import in_lane_thread
from streamloader.values import StreamInfo

__all__ = ["GymFiller", "GymWorkload", "derive_lane_seeds", "env_name"]

# These replace the epoch, so that the generators differ from those of streams and from each other.
_SEED_DOMAIN: Final = (1 << 24) - 2
_ACTION_DOMAIN: Final = (1 << 24) - 3
_POLICY_DOMAIN: Final = (1 << 24) - 4
_MAX_BASE_SEED: Final = 1 << 30  # with any number of lanes added, a seed fits into 32 bits


def derive_lane_seeds(seed: int, lanes: range) -> list[int]:
    """Return the seeds with which the environments of `lanes` are reset for the first time.

    They are consecutive, because a vector environment gets one seed, and counts it on for its further environments. So
    they are the same for one environment a lane, and for vectors of any size.

    Args:
        seed: Seed of the loader.
        lanes: Global numbers of the lanes.
    """
    base = int(stream_rng(seed, _SEED_DOMAIN, 0).integers(_MAX_BASE_SEED))
    return [base + lane for lane in lanes]


def env_name(lanes: range) -> str:
    """Return the name of the environment, or vector, of some lanes, for statistics and errors."""
    return f"env of lane {lanes.start}" if len(lanes) == 1 else f"env of lanes {lanes.start}-{lanes.stop - 1}"


@dataclass(frozen=True)
class GymWorkload:
    """Workload of a loader of environments. The environments of each lane are one endless stream.

    Attributes:
        maker: Maker of the environments.
        policy: Policy of the user, or None for random actions.
        fields: Fields of the batches.
        requested_mode: Autoreset mode that the user stated, or None.
        plan: Plan of unknown length.
        streams: Name of each environment or vector.
        worker_rows: Rows of each worker.
    """

    maker: EnvMaker
    policy: Any
    fields: BatchFields
    requested_mode: AutoresetName | None
    plan: Plan
    streams: Sequence[StreamInfo]
    worker_rows: Sequence[range]

    has_next_epoch = False
    can_resume = False  # the state of an environment is lost with its process
    has_single_filler = True
    on_error: ClassVar[Literal["raise", "skip"]] = "raise"
    fixed_length = False

    def decode_infos(self, data: bytes) -> Any:
        """Refuse infos: what an environment says besides is not delivered."""
        raise InvalidMessage("it sends infos, which are not delivered")

    @classmethod
    def create(
        cls,
        maker: EnvMaker,
        policy: Any,
        fields: BatchFields,
        requested_mode: AutoresetName | None,
        *,
        worker_rows: Sequence[range],
        first_lane: int,
        world_lanes: int,
        window: int,
        seed: int,
    ) -> GymWorkload:
        """Create the workload of workers that host `worker_rows`.

        Args:
            maker: Maker of the environments.
            policy: Policy of the user, or None.
            fields: Fields of the batches.
            requested_mode: Autoreset mode that the user stated, or None.
            worker_rows: Rows of each worker.
            first_lane: Global number of row 0.
            world_lanes: Number of lanes over all ranks.
            window: Number of steps of a batch.
            seed: Seed of the loader.
        """
        plan = make_plan([None] * world_lanes, lanes=world_lanes, window=window, seed=seed, shuffle=False, tail="drop")
        groups = worker_rows if maker.is_vector else [range(row, row + 1) for rows in worker_rows for row in rows]
        streams = [StreamInfo(env_name(range(first_lane + rows.start, first_lane + rows.stop))) for rows in groups]
        return cls(maker, policy, fields, requested_mode, plan, streams, worker_rows)

    def make_fillers(
        self, ring: Ring, lanes: Sequence[int], first_lane: int, send: Callable[[bytes], None]
    ) -> Sequence[GymFiller]:
        """Create the one filler of a worker."""
        return [GymFiller(self, ring, range(lanes[0], lanes[-1] + 1), first_lane)]

    def make_progress(self, ring: Ring, rows: range, first_lane: int) -> EnvProgress:
        """Create the record of where a worker's environments are."""
        number = self.worker_rows.index(rows)
        ordinals = [number] * len(rows) if self.maker.is_vector else list(rows)
        return EnvProgress(
            ring.status[rows.start : rows.stop],
            rows.start,
            range(first_lane + rows.start, first_lane + rows.stop),
            ordinals,
            [self.streams[ordinal].key for ordinal in ordinals],
        )

    def open_rollout(self, lanes: range, progress: EnvProgress) -> Rollout:
        """Create the environments of some lanes, and their policy.

        Args:
            lanes: Global numbers of the lanes.
            progress: Location of the work.

        Raises:
            ConfigError: If the environments differ from the first one.
        """
        fields, seeds = self.fields, derive_lane_seeds(self.plan.seed, lanes)
        observation, action, mode = fields.observation, fields.action, fields.mode
        envs: EnvGroup
        if self.maker.is_vector:
            envs = VectorOfEnvs(
                self.maker, lanes, seeds[0], fields.reward, observation, action, mode, self.requested_mode, progress
            )
        else:
            envs = SingleEnvs(self.maker, lanes, seeds, fields.reward, observation, action, mode, progress)
        progress.enter(0, Status.CHOOSING)
        try:
            actor = self._make_actor(lanes, envs)
        except BaseException:
            close_all([envs.close], hide_errors=True)
            progress.enter(0, Status.CHOOSING)  # where it failed
            raise
        marks = EpisodeMarks(lanes, self.plan.lanes, final_rows=keeps_final_row(mode))
        return Rollout(envs, actor, marks, fields, progress, len(lanes))

    def _make_actor(self, lanes: range, envs: EnvGroup) -> Actor:
        seed, fields = self.plan.seed, self.fields
        if self.policy is None:
            seeds = [int(stream_rng(seed, _ACTION_DOMAIN, lane).integers(1 << 31)) for lane in lanes]
            return RandomActor(fields.action, envs.action_spaces, seeds)

        def offer(name: str) -> Any:
            if name == "rngs":
                return [stream_rng(seed, _POLICY_DOMAIN, lane) for lane in lanes]
            if name == "lanes":
                return lanes
            return envs.observation_space if name == "observation_space" else envs.action_spaces[0]

        return PolicyActor(make_policy(self.policy, offer), fields.observation, fields.action, len(lanes))


class GymFiller:
    """Row filler of a worker's environments, which are only used in one thread.

    Args:
        workload: Workload of the loader.
        ring: Ring whose slots are filled.
        rows: Rows of the ring that it fills.
        first_lane: Global number of the ring's row 0.
    """

    def __init__(self, workload: GymWorkload, ring: Ring, rows: range, first_lane: int) -> None:
        self.row, self.rows, self.global_lane = rows.start, rows, first_lane + rows.start
        self.grants_filled = 0
        self.only_run: int | None = None
        self.status = ring.status[rows.start : rows.stop].T  # status[column] is the column of all its lanes
        self._workload, self._lanes = workload, range(first_lane + rows.start, first_lane + rows.stop)
        self._progress = workload.make_progress(ring, rows, first_lane)
        self._arrays = [
            {name: array[rows.start : rows.stop] for name, array in ring.arrays(slot).items()}
            for slot in range(ring.slots)
        ]
        self._started = False
        # Only accessed in the environments' thread, which runs calls in order.
        self._rollout: Rollout | None = None

    async def fill(self, grant: Grant) -> None:
        """Run the steps of one window.

        Raises:
            StreamloaderError: If an environment or the policy failed. The error names lane, stage and step.
        """
        if not self._started:
            self._started = True
            self._progress.start()
            await self._call_in_thread(self._open)
        await self._call_in_thread(self._fill_window, grant.slot)

    def apply_directives(self, directives: LaneDirectives) -> None:
        """Do nothing: an environment can only continue from its current state."""

    async def reset(self) -> None:
        """Close the environments."""
        if self._started:
            await self._call_in_thread(self._close)
        self.status[Status.STAGE] = Status.IDLE

    def _open(self) -> None:
        self._rollout = self._workload.open_rollout(self._lanes, self._progress)

    def _fill_window(self, slot: int) -> None:
        assert self._rollout is not None
        self._rollout.fill(self._arrays[slot])

    def _close(self) -> None:
        rollout, self._rollout = self._rollout, None
        if rollout is not None:
            rollout.close()

    async def _call_in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            await in_lane_thread(_call_without_stop_iteration, function, *args)
        except Exception as error:
            raise self._progress.locate(error) from error


def _call_without_stop_iteration(function: Callable[..., None], *args: Any) -> None:
    """Call a function of the user. A ``StopIteration`` becomes a ``RuntimeError``, as in a generator (PEP 479)."""
    try:
        function(*args)
    except StopIteration as error:
        raise RuntimeError("an environment or policy raised StopIteration, but its stream is endless") from error
