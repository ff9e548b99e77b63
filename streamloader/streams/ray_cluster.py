"""Connect to a Ray cluster, and parse videos in its tasks.

The nodes of the cluster need the same version of this package, and must reach videos by the same addresses. Local paths
require a shared file system.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from streamloader.common.worker_messages import InvalidMessage, parse_json
from streamloader.errors import (
    ClosedError,
    ConfigError,
    CorruptStream,
    MissingDependency,
    StreamloaderError,
    to_wire,
)
from streamloader.media.parser_pool import MAX_REPLY_BYTES, Parsers, read_result
from streamloader.redaction import clean, redact_address

try:
    import ray
except ImportError as error:
    raise MissingDependency("executor='ray' needs Ray: pip install streamloader[ray]") from error

__all__ = ["RayCluster", "RayParsers", "connect_cluster", "ray"]

_VERSION: Final = version("streamloader")
_CONNECT_TIMEOUT_S: Final = 15.0
_MAX_REASON_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster that this process is connected to.

    Attributes:
        cpus: Number of CPUs of all nodes.
        owns_connection: Whether :func:`connect_cluster` made the connection, so that it has to be closed.
    """

    cpus: int
    owns_connection: bool


def connect_cluster(address: str | None = None) -> RayCluster:
    """Connect to a cluster, unless this process is connected already. No cluster is ever started.

    Args:
        address: Address of the head node (``host:port``, or ``ray://host:port``). Defaults to ``RAY_ADDRESS``, or to
            the cluster of this machine.

    Raises:
        ConfigError: If there is no such cluster, or this process is connected to another one.
    """
    owns_connection = not ray.is_initialized()
    if owns_connection:
        try:
            _require_listener(address)
            ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = "here: start one with `ray start --head`, or pass ray_address="
            where = f"at {redact_address(address)}" if address else where
            raise ConfigError(
                f"no Ray cluster can be reached {where} ({type(error).__name__}: {error}). If the cluster requires a "
                "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
    elif address not in (None, "auto", ray.get_runtime_context().gcs_address):
        raise ConfigError(
            f"this process is connected to another Ray cluster than {redact_address(str(address))}: call "
            "ray.shutdown() first"
        )
    resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return RayCluster(max(1, int(resources.get("CPU", 1))), owns_connection)


def _require_listener(address: str | None) -> None:
    """Raise OSError if no process listens at `host:port`. Ray itself would retry for minutes."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()


class RayParsers(Parsers):
    """Calls functions that parse videos in Ray tasks, with the methods of :class:`ParserPool`.

    Args:
        cluster: Cluster to run on. The connection is closed at the end if :func:`connect_cluster` made it.

    Attributes:
        parallel: Number of concurrent calls.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.parallel = cluster.cpus
        self._task = ray.remote(_call_in_task).options(num_cpus=1, max_retries=0, name="streamloader-index")
        self._lock = threading.Lock()
        self._pending: set[Any] = set()
        self._closed = False

    def call(self, name: str, function: Callable[..., Any], *args: Any, shared_by: int = 1) -> Any:
        """Call ``function(*args)`` in a task, and return its result, which must be a JSON value.

        Raises:
            StreamloaderError: If the function has raised one, or the cluster is gone.
            CorruptStream: If the file has ended its task.
            ClosedError: If :meth:`close` was called.
        """
        del shared_by
        (result,) = self.call_many([name], function, [args])
        if isinstance(result, StreamloaderError):
            raise result
        return result

    def call_many(
        self, names: Sequence[str], function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Call a function several times in one task. If that ends, repeat each call alone.

        Returns:
            Result of each call, or the StreamloaderError that it raises.

        Raises:
            ConfigError: If the arguments cannot be sent to a cluster, or it has another version of this package.
            StreamloaderError: If the cluster is gone.
            ClosedError: If :meth:`close` was called.
        """
        try:
            return self._run_task(function, arguments)
        except _TaskDied as reason:
            if len(names) > 1:
                pairs = zip(names, arguments, strict=True)
                return [self.call_many([name], function, [args])[0] for name, args in pairs]
            text = (
                f"{names[0]} ends the Ray task that parses it ({reason}): the file is damaged or malicious. Remove it"
            )
            return [CorruptStream(text, stream=names[0], address=names[0])]

    def close(self) -> None:
        """End all tasks, and the connection if it is ours. Calls in other threads fail."""
        with self._lock:
            was_closed, self._closed = self._closed, True
            pending = list(self._pending)
        if was_closed:
            return
        for reference in pending:
            ray.cancel(reference, force=True)
        if self._cluster.owns_connection:
            ray.shutdown()

    def _run_task(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        with self._lock:
            if self._closed:
                raise ClosedError("parsing was cancelled")
            try:
                reference = self._task.remote(function, list(arguments), _VERSION)
            except (TypeError, ray.exceptions.RayError) as error:
                raise ConfigError(f"storage_options cannot be sent to a Ray cluster: {error}") from error
            self._pending.add(reference)
        try:
            reply = ray.get(reference)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise _TaskDied(type(error).__name__) from None
        except ray.exceptions.RayError as error:
            if self._closed:
                raise ClosedError("parsing was cancelled") from None
            text = clean(f"{type(error).__name__}: {' '.join(str(error).split())}", _MAX_REASON_CHARS)
            raise StreamloaderError(f"a task of the Ray cluster failed, the same call continues: {text}") from error
        finally:
            with self._lock:
                self._pending.discard(reference)
        return _read_reply(reply, len(arguments))


class _TaskDied(Exception):
    pass


def _read_reply(reply: Any, count: int) -> list[Any]:
    """Check what a task has sent."""
    try:
        if type(reply) is not bytes or len(reply) > MAX_REPLY_BYTES:
            raise InvalidMessage("it is too large, or of another type")
        results = parse_json(reply)
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise InvalidMessage("it is no list of results")
        values = [read_result(result) for result in results]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _TaskDied(f"it sent a malformed message: {type(error).__name__}") from None
    if len(values) == 1 and isinstance(values[0], ConfigError):
        raise values[0]
    if len(values) != count:
        raise _TaskDied("it sent a malformed message")
    return values


def _call_in_task(function: Callable[..., Any], arguments: list[tuple[Any, ...]], driver_version: str) -> bytes:
    """Call a function in a Ray task. Return the results as JSON."""
    if driver_version != _VERSION:
        text = f"the cluster has streamloader {_VERSION}, but the driver has {driver_version}: install the same version"
        return json.dumps([{"error": to_wire(ConfigError(text))}]).encode()
    results: list[Mapping[str, Any]] = []
    for args in arguments:
        try:
            results.append({"value": function(*args)})
        except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
            results.append({"error": to_wire(error)})
    return json.dumps(results).encode()
