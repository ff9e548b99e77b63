"""Units of work as tasks of a Ray cluster.

The nodes of the cluster need this package, in the same version, and have to reach sources and places by the same
addresses: local paths are for clusters that share a file system. What units tell goes through an actor that lives as
long as the driver does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from streamloader.archive.ingest.executors.base import Event
from streamloader.archive.ingest.temp_dir import Scratch
from streamloader.archive.ingest.unit import Unit, perform
from streamloader.errors import ConfigError, MissingExtra, StreamloaderError, to_wire
from streamloader.redaction import redact

try:
    import ray
except ImportError as error:
    raise MissingExtra("engine='ray' needs Ray: pip install streamloader[ray]") from error

__all__ = ["Cluster", "RayTasks", "connected"]

_DEADLINE: Final = 60.0  # seconds for the actor to answer
_VERSION: Final = version("streamloader")
_CONNECT_WITHIN: Final = 15.0  # seconds
_STILL_QUEUED: Final = 5.0  # seconds between two words about a task that waits for its turn


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        cpus: of all its nodes.
        ours: whether the connection was made here, and is to be closed again.
    """

    cpus: int
    ours: bool


def connected(address: str | None = None) -> Cluster:
    """Connect to a cluster, unless this process is connected already.

    Args:
        address: of its head (``host:port``, or ``ray://host:port``); by default what ``RAY_ADDRESS`` says, or the
            cluster that this machine is part of. None is ever started.

    Raises:
        ConfigError: there is no such cluster, or this process is connected to another one.
    """
    ours = not ray.is_initialized()
    if ours:
        try:
            _require_somebody(address)
            ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = (
                f"at {redact(address)}" if address else "here: start one with `ray start --head`, or say ray_address="
            )
            raise ConfigError(
                f"no Ray cluster can be reached {where} ({type(error).__name__}: {error}). Where it asks for a token, "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
    elif address not in (None, "auto", ray.get_runtime_context().gcs_address):
        raise ConfigError(f"this process is connected to another Ray cluster than {address}: call ray.shutdown() first")
    resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Cluster(max(1, int(resources.get("CPU", 1))), ours)


def _require_somebody(address: str | None) -> None:
    """Raise OSError if nobody listens at `host:port`: Ray itself would try again for minutes."""
    host, sign, port = (address or "").removeprefix("ray://").rpartition(":")
    if sign and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_WITHIN).close()


class RayTasks:
    """Does units as tasks, each with as many CPUs as it has threads.

    Args:
        cluster: that they are done on; the connection is closed at the end if it was made for this.
        at_once: tasks that are handed in; how many run is the cluster's business.
        threads: of each.
    """

    def __init__(self, cluster: Cluster, at_once: int, threads: int) -> None:
        self._cluster = cluster
        self._at_once = at_once
        cpus = min(threads, cluster.cpus)
        # Ray does not try again by itself: the driver knows which chunks are there, and how often to try.
        self._task = ray.remote(_perform).options(num_cpus=cpus, max_retries=0, name="streamloader-ingest")
        self._mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0).remote()
        self._running: dict[int, _Running] = {}
        self._attempts = 0

    def room(self) -> int:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        return self._at_once - len(self._running)

    def start(self, unit: Unit) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`.

        Raises:
            ConfigError: the options of a store cannot be sent to another process.
        """
        self._attempts += 1
        try:
            result = self._task.remote(unit, self._mailbox, self._attempts, _VERSION)
        except (TypeError, ray.exceptions.RayError) as error:
            raise ConfigError(f"storage_options cannot be sent to a Ray cluster: {error}") from error
        self._running[unit.number] = _Running(self._attempts, result, time.monotonic())

    def answer(self, number: int, answer: Mapping[str, Any]) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        if number in self._running:
            self._mailbox.answer.remote(self._running[number].attempt, dict(answer))

    def events(self, seconds: float) -> list[Event]:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`.

        Raises:
            StreamloaderError: the cluster is gone.
        """
        found = self._told(seconds)
        tasks = {running.result: number for number, running in self._running.items()}
        if tasks:
            ended, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
            if ended:
                found += self._told(0)  # all that these told before they ended
                found += [self._last(tasks[result]) for result in ended]
        return [*found, *self._queued()]

    def kill(self, number: int, why: str) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        self._running[number].why = why
        ray.cancel(self._running[number].result, force=True)

    def close(self) -> None:
        """See :class:`streamloader.archive.ingest.executors.base.Engine`."""
        with contextlib.suppress(ray.exceptions.RayError):
            for running in self._running.values():
                ray.cancel(running.result, force=True)
            ray.kill(self._mailbox)
        self._running = {}
        if self._cluster.ours:
            ray.shutdown()

    def _told(self, seconds: float) -> list[Event]:
        try:
            messages = ray.get(self._mailbox.take.remote(seconds), timeout=seconds + _DEADLINE)
        except ray.exceptions.RayError as error:
            raise StreamloaderError(
                f"the Ray cluster is gone ({type(error).__name__}): the same call again goes on where it was"
            ) from error
        attempts = {running.attempt: number for number, running in self._running.items()}
        found = []
        for attempt, message in messages:
            number = attempts.get(attempt)
            if number is not None:  # else it died, and another one does its work
                self._running[number].begun = True
                found.append(Event(number, message))
        return found

    def _last(self, number: int) -> Event:
        running = self._running.pop(number)
        try:
            return Event(number, ray.get(running.result, timeout=_DEADLINE))
        except ray.exceptions.RayError as error:
            why = running.why or f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            return Event(number, {"kind": "died", "why": redact(why), "details": {}})

    def _queued(self) -> Iterator[Event]:
        """Speak for tasks that have not begun: the cluster is busy, and they are not stuck."""
        now = time.monotonic()
        for number, running in self._running.items():
            if not running.begun and now > running.spoken + _STILL_QUEUED:
                running.spoken = now
                yield Event(number, {"kind": "tick", "stage": "queued", "done": 0})


@dataclass(slots=True, eq=False)
class _Running:
    """A task that was handed in."""

    attempt: int
    result: Any
    spoken: float
    begun: bool = False
    why: str = ""


class _Mailbox:
    """The actor between driver and tasks."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[tuple[int, Mapping[str, Any]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}

    async def tell(self, attempt: int, message: Mapping[str, Any]) -> None:
        """Take a message of a task."""
        self._told.put_nowait((attempt, message))

    async def ask(self, attempt: int, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take a message of a task, and return the answer once it is there."""
        future = self._answers.setdefault(attempt, asyncio.get_running_loop().create_future())
        self._told.put_nowait((attempt, message))
        return await future

    async def answer(self, attempt: int, answer: Mapping[str, Any]) -> None:
        """Take the driver's answer."""
        future = self._answers.setdefault(attempt, asyncio.get_running_loop().create_future())
        if not future.done():
            future.set_result(answer)

    async def take(self, seconds: float) -> list[tuple[int, Mapping[str, Any]]]:
        """Return what was told, waiting up to so many seconds for it."""
        found = []
        with contextlib.suppress(TimeoutError):
            if seconds > 0:
                found.append(await asyncio.wait_for(self._told.get(), seconds))
        while not self._told.empty():
            found.append(self._told.get_nowait())
        return found


class _Port:
    """The port of a unit in a Ray task."""

    def __init__(self, mailbox: Any, attempt: int) -> None:
        self._mailbox = mailbox
        self._attempt = attempt

    def tell(self, message: Mapping[str, Any]) -> None:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        ray.get(self._mailbox.tell.remote(self._attempt, dict(message)))

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        answer: Mapping[str, Any] = ray.get(self._mailbox.ask.remote(self._attempt, dict(message)))
        return answer

    def cancelled(self) -> bool:
        """See :class:`streamloader.archive.ingest.unit.Port`."""
        return False  # Ray ends the whole process


def _perform(unit: Unit, mailbox: Any, attempt: int, wanted: str) -> dict[str, Any]:
    """Be a task."""
    if wanted != _VERSION:
        error = ConfigError(f"the cluster has streamloader {_VERSION}, and {wanted} is needed: install the same")
        return {"kind": "failed", "error": to_wire(error), "worthless": False}
    with Scratch() as scratch:
        return perform(unit, _Port(mailbox, attempt), scratch.folder)
