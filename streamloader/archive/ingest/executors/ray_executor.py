"""An executor that runs work units as tasks of a Ray cluster.

The nodes of the cluster need the same version of this package, and must reach sources and places by the same addresses.
Local paths require a shared file system. All messages of the units pass through an actor that lives as long as the
driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from typing_extensions import override

from streamloader.archive.ingest.executors.base import FINAL_KINDS, Executor, UnitEvent
from streamloader.archive.ingest.executors.unit_protocol import UnitProtocol
from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.archive.ingest.unit import Channel, WorkUnit, run_unit
from streamloader.common.worker_messages import InvalidMessage, parse_json
from streamloader.errors import ConfigError, StreamloaderError, to_wire
from streamloader.redaction import clean
from streamloader.streams.ray_cluster import RayCluster, ray

__all__ = ["RayExecutor"]

_VERSION: Final = version("streamloader")
_RESPONSE_TIMEOUT_S: Final = 60.0
_QUEUED_TICK_INTERVAL_S: Final = 5.0
_MAX_REASON_CHARS: Final = 1000


class RayExecutor(Executor):
    """Runs units as Ray tasks. Each task requests as many CPUs as its unit has threads.

    Args:
        cluster: Cluster to run on. The connection is closed at the end if :func:`connect_cluster` made it.
        max_units: Number of submitted tasks. The cluster decides how many of them run.
        threads: Number of threads of each unit.
    """

    def __init__(self, cluster: RayCluster, max_units: int, threads: int) -> None:
        self._cluster = cluster
        self._max_units = max_units
        cpus = min(threads, cluster.cpus)
        # Ray must not retry: the driver knows which chunks exist, and how often to retry.
        self._task = ray.remote(_run_unit_in_task).options(num_cpus=cpus, max_retries=0, name="streamloader-ingest")
        self._mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0).remote()
        self._submitted: dict[int, _SubmittedTask] = {}
        self._attempts = 0

    @override
    def count_free_slots(self) -> int:
        return self._max_units - len(self._submitted)

    @override
    def start_unit(self, unit: WorkUnit) -> None:
        self._attempts += 1
        try:
            result = self._task.remote(unit, self._mailbox, self._attempts, _VERSION)
        except (TypeError, ray.exceptions.RayError) as error:
            raise ConfigError(f"storage_options cannot be sent to a Ray cluster: {error}") from error
        self._submitted[unit.number] = _SubmittedTask(self._attempts, result, time.monotonic(), UnitProtocol(unit))

    @override
    def send_answer(self, number: int, answer: Mapping[str, Any]) -> None:
        if number in self._submitted:
            self._submitted[number].protocol.record_answer(answer)
            self._mailbox.answer.remote(self._submitted[number].attempt, dict(answer))

    @override
    def wait_for_events(self, timeout_s: float) -> list[UnitEvent]:
        events = self._take_messages(timeout_s)
        numbers = {task.result: number for number, task in self._submitted.items()}
        if numbers:
            ended, _ = ray.wait(list(numbers), num_returns=len(numbers), timeout=0)
            if ended:
                events += self._take_messages(0)  # the messages that these tasks sent before they ended
                events += [self._take_last_event(numbers[result]) for result in ended]
        return [*events, *self._make_queued_ticks()]

    @override
    def kill_unit(self, number: int, reason: str) -> None:
        self._submitted[number].kill_reason = reason
        ray.cancel(self._submitted[number].result, force=True)

    @override
    def close(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            for task in self._submitted.values():
                ray.cancel(task.result, force=True)
            ray.kill(self._mailbox)
        self._submitted = {}
        if self._cluster.owns_connection:
            ray.shutdown()

    def _take_messages(self, timeout_s: float) -> list[UnitEvent]:
        """Return new messages, waiting up to `timeout_s` seconds for them.

        Raises:
            StreamloaderError: If the cluster is gone.
        """
        try:
            messages = ray.get(self._mailbox.take.remote(timeout_s), timeout=timeout_s + _RESPONSE_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            raise StreamloaderError(
                f"the Ray cluster is gone ({type(error).__name__}): the same call again resumes the work"
            ) from error
        numbers = {task.attempt: number for number, task in self._submitted.items()}
        events = []
        for attempt, message in messages:
            number = numbers.get(attempt)
            if number is None or self._submitted[number].kill_reason:
                continue  # the task died or is being killed, and another attempt does its work
            task = self._submitted[number]
            task.started = True
            try:
                events.append(UnitEvent(number, task.check(message)))
            except InvalidMessage as error:
                self.kill_unit(number, f"it sent an invalid message ({error}), and was killed")
        return events

    def _take_last_event(self, number: int) -> UnitEvent:
        task = self._submitted.pop(number)
        reason = task.kill_reason
        try:
            message = ray.get(task.result, timeout=_RESPONSE_TIMEOUT_S)
            if not reason:
                event = UnitEvent(number, task.check(message))
                if event.kind in FINAL_KINDS:
                    return event
                reason = "its result is not a last message"
        except InvalidMessage as error:
            reason = f"it sent an invalid message ({error})"
        except ray.exceptions.RayError as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            reason = reason or clean(text, _MAX_REASON_CHARS)
        return UnitEvent(number, {"kind": "died", "why": reason, "details": {}})

    def _make_queued_ticks(self) -> Iterator[UnitEvent]:
        """Yield ticks for tasks that wait for a free CPU, so that the driver does not count them as stalled."""
        now = time.monotonic()
        for number, task in self._submitted.items():
            if not task.started and now > task.last_tick_at + _QUEUED_TICK_INTERVAL_S:
                task.last_tick_at = now
                yield UnitEvent(number, {"kind": "tick", "stage": "queued", "done": 0})


@dataclass(slots=True, eq=False)
class _SubmittedTask:
    """A submitted Ray task.

    Attributes:
        attempt: Number of the attempt, unique for its executor.
        result: Ray's reference to the result.
        last_tick_at: Time of the last tick while the task is queued, by the monotonic clock.
        protocol: Checks of the messages.
        started: Whether the task has sent a message.
        kill_reason: Reason why it was killed. Empty if it was not.
    """

    attempt: int
    result: Any
    last_tick_at: float
    protocol: UnitProtocol
    started: bool = False
    kill_reason: str = ""

    def check(self, message: Any) -> dict[str, Any]:
        """Check a message, and return it as plain JSON values.

        Raises:
            InvalidMessage: If it is invalid.
        """
        try:
            encoded = json.dumps(message).encode()
        except (TypeError, ValueError, RecursionError):
            raise InvalidMessage("it is not made of plain JSON values") from None
        if len(encoded) > self.protocol.max_message_bytes:
            raise InvalidMessage(f"it has {len(encoded)} bytes")
        return self.protocol.check(parse_json(encoded))


class _Mailbox:
    """The actor that carries messages between the driver and the tasks."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[int, Mapping[str, Any]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}

    async def send(self, attempt: int, message: Mapping[str, Any]) -> None:
        """Put a message of a task into the queue."""
        self._messages.put_nowait((attempt, message))

    async def request(self, attempt: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put a message of a task into the queue, wait for the answer and return it."""
        future = self._get_answer_future(attempt)
        self._messages.put_nowait((attempt, message))
        return await future

    async def answer(self, attempt: int, answer: Mapping[str, Any]) -> None:
        """Pass the driver's answer to a task."""
        future = self._get_answer_future(attempt)
        if not future.done():
            future.set_result(answer)

    async def take(self, timeout_s: float) -> list[tuple[int, Mapping[str, Any]]]:
        """Return all queued messages, waiting up to `timeout_s` seconds for the first one."""
        messages = []
        with contextlib.suppress(TimeoutError):
            if timeout_s > 0:
                messages.append(await asyncio.wait_for(self._messages.get(), timeout_s))
        while not self._messages.empty():
            messages.append(self._messages.get_nowait())
        return messages

    def _get_answer_future(self, attempt: int) -> asyncio.Future[Mapping[str, Any]]:
        return self._answers.setdefault(attempt, asyncio.get_running_loop().create_future())


class _RayChannel(Channel):
    """The channel of a unit that runs in a Ray task."""

    def __init__(self, mailbox: Any, attempt: int) -> None:
        self._mailbox = mailbox
        self._attempt = attempt

    @override
    def send(self, message: Mapping[str, Any]) -> None:
        ray.get(self._mailbox.send.remote(self._attempt, dict(message)))

    @override
    def request(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = ray.get(self._mailbox.request.remote(self._attempt, dict(message)))
        return answer

    @override
    def is_cancelled(self) -> bool:
        return False  # Ray kills the whole process instead


def _run_unit_in_task(unit: WorkUnit, mailbox: Any, attempt: int, driver_version: str) -> dict[str, Any]:
    """Run a unit in a Ray task, and return its last message."""
    try:
        if driver_version != _VERSION:
            raise ConfigError(
                f"the cluster has streamloader {_VERSION}, but the driver has {driver_version}: install the same "
                "version"
            )
        temp_dir = TempDir()
    except ConfigError as error:
        return {"kind": "failed", "error": to_wire(error), "worthless": False}
    with temp_dir:
        return run_unit(unit, _RayChannel(mailbox, attempt), temp_dir.folder)
