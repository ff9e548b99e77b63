"""Loader of batches from environments of Gymnasium."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from streamloader.arguments import check_callable, check_flag, check_integer, check_seconds
from streamloader.distributed import resolve_rank
from streamloader.engine.plan import MAX_LANES
from streamloader.engine.ring import SlotLayout
from streamloader.errors import ConfigError, LoaderTimeout, MissingDependency, StreamFailed, StreamloaderError
from streamloader.loader.base import SPARE_SLOTS, EndlessLoader, split_lanes
from streamloader.loader.batch import Batch, BatchSpec
from streamloader.loader.gym.makers import EnvMaker
from streamloader.loader.gym.modes import AutoresetName, keeps_final_row, parse_mode, resolve_mode
from streamloader.loader.gym.policy import check_policy
from streamloader.loader.gym.rollout import BatchFields
from streamloader.loader.gym.spaces import FlatSpace
from streamloader.loader.gym.workload import GymWorkload, derive_lane_seeds, env_name
from streamloader.values import Field

if TYPE_CHECKING:
    from streamloader.engine.workload import Grant

__all__ = ["GymStreamer"]

_REWARD_DTYPES: Final = ("float32", "float64")
_PROBE_CLOSE_TIMEOUT_S: Final = 1.0


class GymStreamer(EndlessLoader):
    """Streams windows of steps of Gymnasium environments. Created by :meth:`MultiStreamer.from_gym`.

    Each lane plays one environment, episode after episode, without end. A row of a batch holds what happened at one
    step, all of it at the same index t:

    - ``observation``: the observation on which the action was chosen,
    - ``action``: the action,
    - ``reward``, ``terminated``, ``truncated``: what ``step(action)`` returned,

    while the observation that it returned is that of the next row, which may be in the next batch: row i of batch k + 1
    continues row i of batch k. The marks of a :class:`Batch` have this meaning here:

    - ``reset``: True on the first row of an episode, where hidden state must be cleared;
    - ``valid``: False on a *final row*, which holds the last observation of an episode, and no transition: the
      environment ignored its action. Run a recurrent model over it (its value bootstraps a truncated episode), and
      leave it out of the loss. ``reset`` is False on it;
    - ``step``: position of the row in its episode (``time`` is the same number);
    - ``stream``: number of the episode. Episode k of lane l has number ``k * lanes + l``, with the lanes of all ranks;
    - ``repeat``: False.

    The autoreset mode decides what follows the row that ends an episode. An episode of n actions has these rows:

    ============ ===== =========================================== ==========================================
    mode         rows  after the row with terminated or truncated  the last observation
    ============ ===== =========================================== ==========================================
    next_step    n + 1 a final row: ``valid`` False, reward 0,     ``observation`` of the final row
                       then the next episode, ``reset`` True
    same_step    n     the next episode, ``reset`` True            ``final_observation`` of the row that ended
    disabled     n     the next episode, ``reset`` True            ``final_observation`` of the row that ended
    ============ ===== =========================================== ==========================================

    A final row has the action that was ignored, and the reward that a vector returned for it, which is 0 for
    Gymnasium's. ``final_observation`` is a field of the same shape, which is zero in all other rows. The mode that a
    vector environment states is compared with what it does: ``same_step`` delivers ``infos["final_obs"]`` and the
    others do not, and in ``next_step`` no episode ends in a final row. With ``disabled``, the loader resets the
    environments whose episodes ended, by ``reset(options={"reset_mask": ...})``.

    Parts of Dict and Tuple spaces are fields of their own: ``observation.camera``, ``observation.0``, ``action.move``,
    ``final_observation.camera``, at any depth. Discrete, MultiDiscrete, MultiBinary and Box have the space's shape and
    dtype. A value may differ from that dtype only where it is kept, except for the precision of floats.

    With one environment a lane, equal arguments give equal batches, bit for bit, for any number of workers and ranks
    with the same global lanes, if the environments and the policy are deterministic, and the policy treats each lane by
    itself. Vector environments get one seed for each worker, so that depends on how they use it: those that seed their
    environments with consecutive numbers, as Gymnasium's SyncVectorEnv and AsyncVectorEnv, have it too.

    The iteration is endless and has no ``len()``, and cannot be resumed from a state. After ``break``, the next
    iteration continues with the next batch. If an environment or the policy fails, the batches before are delivered,
    and then the error is raised, in every further iteration too.

    Args:
        make_env: Maker of the environments. An id, such as ``"CartPole-v1"`` or ``"ALE/Pong-v5"``: one environment by
            ``gymnasium.make`` for each lane. A function that returns a ``gymnasium.Env``: it is called for each lane,
            with the global number of the lane if it has an argument ``lane``. A function with an argument ``num_envs``
            that returns a ``gymnasium.vector.VectorEnv``, such as ``functools.partial(gymnasium.make_vec, id)``: it is
            called once in each worker, for all its lanes, with their global numbers if it has an argument ``lanes``.
            One more environment is created in this process, to read its spaces, and closed.
        batchsize: Number of lanes B, the rows of a batch, which are split over the workers.
        window: Number of steps T in a batch.
        num_workers: Number of worker processes. 0 runs the environments in a thread of this process.
        policy: Source of the actions. None draws them from the action space, with a generator for each lane. A function
            is called in the workers, once a step, as ``policy(observations, resets) -> actions`` for all lanes of a
            worker: `observations` is a read-only array (n, ...), or a dict of arrays by field where there are several,
            valid during the call; `resets` is bool (n,), True where an episode begins; `actions` is an array (n, ...),
            or a dict of arrays by field. An object with state is copied to each worker. A class is instantiated in each
            worker, with those of the arguments `lanes` (range), `rngs` (a generator for each lane),
            `observation_space` and `action_space` (of one environment) that it names.
        max_q_size: Maximum number of batches prepared ahead of the last one that was yielded.
        autoreset_mode: Autoreset mode: ``"next_step"``, ``"same_step"`` or ``"disabled"``, or the member of
            ``gymnasium.vector.AutoresetMode``. Single environments are reset by the loader, in ``"next_step"`` by
            default. Vectors have a mode of their own, which they state; pass it only for those that do not.
        final_observation: Whether the batch has the fields ``final_observation``. Defaults to True where the last
            observation of an episode would be lost otherwise. It takes as much memory as the observations.
        env_kwargs: Keyword arguments for ``gymnasium.make``, if `make_env` is an id.
        reward_dtype: Data type of the rewards, ``"float32"`` or ``"float64"``.
        seed: Seed from which the seeds of all lanes and of random actions are derived. An environment is seeded at its
            first reset; :attr:`lane_seeds` has the numbers.
        layout: Axes of the arrays: None for (B, T, ...), or ``"TB"`` for time first.
        collate_fn: Function called in this process with each complete :class:`Batch`. The iteration yields its return
            value. Defaults to the batch itself.
        pin_memory: Whether to page-lock the ring, see :class:`MultiStreamer`.
        device: Device of the batches, see :class:`MultiStreamer`.
        timeout: Maximum seconds to wait for a batch, and for the spaces, before :class:`LoaderTimeout`, which names the
            lane, what its environment does, and the step. 0 or None disables the limit.
        rank: Rank of this process, which hosts the lanes ``[rank * B, (rank + 1) * B)``. Detected by default.
        world_size: Number of ranks. Detected by default.

    Attributes:
        batch_size: Number of lanes B.
        window: Number of steps T in a batch.
        autoreset_mode: Name of the autoreset mode.
        lane_seeds: Seed of the first reset of each lane of this process.

    Raises:
        ConfigError: If an argument is invalid, a space has no fixed shape, or a vector states no autoreset mode.
        MissingDependency: If Gymnasium, or the package of the environment, is not installed.
        StreamFailed: If the environment cannot be created. Its error is the cause.
        LoaderTimeout: If creating it takes longer than `timeout`.
        RingTooLarge: If the ring does not fit into free memory.
    """

    def __init__(
        self,
        make_env: str | Callable[..., Any],
        batchsize: int,
        window: int,
        num_workers: int = 0,
        policy: Any = None,
        *,
        max_q_size: int = 2,
        autoreset_mode: Any = None,
        final_observation: bool | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        reward_dtype: str = "float32",
        seed: int = 0,
        layout: str | None = None,
        collate_fn: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
        device: Any = None,
        timeout: float | None = 120.0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank, world_size = resolve_rank(rank, world_size)
        batchsize, window, max_q_size = (
            check_integer(name, number, 1)
            for name, number in (("batchsize", batchsize), ("window", window), ("max_q_size", max_q_size))
        )
        num_workers, seed = check_integer("num_workers", num_workers, 0), check_integer("seed", seed)
        check_integer("batchsize x world_size", batchsize * world_size, maximum=MAX_LANES)
        pin_memory = check_flag("pin_memory", pin_memory)
        keeps_final = check_flag("final_observation", final_observation)
        check_callable("collate_fn", collate_fn)
        timeout = check_seconds("timeout", timeout)
        reward = Field((), reward_dtype)
        if reward.dtype.name not in _REWARD_DTYPES:
            raise ConfigError(f"reward_dtype must be one of {_REWARD_DTYPES}, got {reward_dtype!r}")
        maker = EnvMaker.create(make_env, env_kwargs)
        check_policy(policy)
        requested_mode = None if autoreset_mode is None else parse_mode(autoreset_mode)
        first_lane = rank * batchsize
        observation, action, mode = _probe_env(maker, first_lane, requested_mode, timeout)
        has_final = not keeps_final_row(mode) if final_observation is None else keeps_final
        fields = BatchFields(observation, action, reward, mode, has_final)
        self.batch_size, self.window = batchsize, window
        self.autoreset_mode: AutoresetName = mode
        self.lane_seeds = derive_lane_seeds(seed, range(first_lane, first_lane + batchsize))
        self._collate_fn = collate_fn
        worker_rows = split_lanes(batchsize, max(1, num_workers))
        slots = SlotLayout(fields.fields, batchsize, window)
        super().__init__(
            GymWorkload.create(
                maker,
                policy,
                fields,
                requested_mode,
                worker_rows=worker_rows,
                first_lane=first_lane,
                world_lanes=batchsize * world_size,
                window=window,
                seed=seed,
            ),
            slots,
            BatchSpec(slots, layout),
            worker_rows=worker_rows,
            num_workers=num_workers,
            ahead=max_q_size,
            spare=SPARE_SLOTS,
            exact=True,
            first_lane=first_lane,
            pin_memory=pin_memory,
            device=device,
            timeout=timeout,
        )

    @override
    def _make_batch(self, grant: Grant, memory: Any) -> Batch:
        return Batch(self._spec, memory, grant.epoch, grant.batch)

    @override
    def _collate_batch(self, batch: Any) -> Any:
        return batch if self._collate_fn is None else self._collate_fn(batch)

    def __repr__(self) -> str:
        """Return the fields and the settings."""
        names = ", ".join(f"{name}: {field.dtype}{field.shape}" for name, field in self._slot_layout.fields.items())
        return (
            f"GymStreamer({{{names}}}, batchsize={self.batch_size}, window={self.window}, "
            f"autoreset_mode={self.autoreset_mode!r}, num_workers={self.num_workers})"
        )


_Probed = tuple[FlatSpace, FlatSpace, AutoresetName]


def _probe_env(maker: EnvMaker, lane: int, requested_mode: AutoresetName | None, timeout: float | None) -> _Probed:
    """Create one environment, and return its flattened observation and action spaces and its autoreset mode.

    This is done in a thread, because nothing else could end the wait for an environment that hangs.

    Raises:
        StreamloaderError: If that is not possible.
    """
    try:
        import gymnasium  # noqa: F401
    except ImportError as error:
        raise MissingDependency("from_gym needs Gymnasium: pip install streamloader[gym]") from error
    results: queue.SimpleQueue[_Probed | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            env, probed = _open_probe(maker, lane, requested_mode)
        except Exception as error:  # noqa: BLE001 - raised in the waiting thread
            results.put(error)
            return
        results.put(probed)
        with contextlib.suppress(Exception):  # the workers' own environments show it too
            env.close()

    name = env_name(range(lane, lane + 1))
    thread = threading.Thread(target=run, name="streamloader-probe", daemon=True)
    thread.start()
    try:
        result = results.get(timeout=timeout)
    except queue.Empty:
        raise LoaderTimeout(
            f"waited {timeout:.1f} s for {name} to be created, to read its spaces: raise timeout=, or find out why it "
            "is slow",
            stream=name, lane=lane, stage="opening", waited=timeout,
        ) from None  # fmt: skip
    thread.join(_PROBE_CLOSE_TIMEOUT_S)
    if isinstance(result, StreamloaderError):
        raise result
    if isinstance(result, Exception):
        raise StreamFailed(
            f"{name}, opening to read its spaces: {type(result).__name__}: {result}",
            stream=name, cause=type(result).__name__, lane=lane, stage="opening",
        ) from result  # fmt: skip
    return result


def _open_probe(maker: EnvMaker, lane: int, requested_mode: AutoresetName | None) -> tuple[Any, _Probed]:
    if maker.is_vector:
        vector = maker.make_vector(range(lane, lane + 1))
        spaces, env = (vector.single_observation_space, vector.single_action_space), vector
    else:
        single = maker.make_single(lane)
        spaces, env = (single.observation_space, single.action_space), single  # type: ignore[assignment]
    try:
        mode = resolve_mode(env, requested_mode) if maker.is_vector else requested_mode or "next_step"
        return env, (FlatSpace.flatten(spaces[0], "observation"), FlatSpace.flatten(spaces[1], "action"), mode)
    except BaseException:
        env.close()
        raise
