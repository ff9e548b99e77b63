"""All exceptions of the package.

Every error that streamloader raises deliberately is a :class:`StreamloaderError`. It carries the stream's key, its
address and the offset or step of the failure where they are known, and its message says how to fix the problem.
Where Python has a matching built-in exception (``FileNotFoundError``, ``TimeoutError``, ...), the error is also an
instance of it. All errors can be pickled. Between processes they travel as plain JSON, see :func:`to_wire` and
:func:`from_wire`, because nothing that a worker sends is ever unpickled.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from streamloader.common.printable import make_printable
from streamloader.common.worker_messages import (
    MAX_INT64,
    InvalidMessage,
    check_fields,
    check_flag,
    integer,
    optional,
    text,
)
from streamloader.redaction import clean, redact_address

__all__ = [
    "AccessDenied",
    "CannotCopy",
    "CatalogError",
    "CatalogExists",
    "CatalogNotFound",
    "CatalogTimeout",
    "CatalogTooNew",
    "ClosedError",
    "ConfigError",
    "CorruptContainer",
    "CorruptSample",
    "CorruptShard",
    "CorruptStream",
    "DatasetError",
    "DatasetExists",
    "DatasetIncomplete",
    "DatasetNotFound",
    "DirectoryLocked",
    "DuplicateName",
    "FrameIndexError",
    "FrameSizeError",
    "IngestFailed",
    "IntegrityError",
    "LengthUnknown",
    "LimitExceeded",
    "LoaderTimeout",
    "MediaLimitExceeded",
    "MissingDependency",
    "MissingField",
    "NameConflict",
    "NotEnoughMemory",
    "NotFound",
    "NotSupported",
    "ObjectChanged",
    "ProtocolError",
    "RangeNotSatisfiable",
    "RingTooLarge",
    "ServerBusy",
    "StateError",
    "StorageFull",
    "StoreError",
    "StoreTimeout",
    "StreamFailed",
    "StreamNotFound",
    "StreamloaderError",
    "TransferInterrupted",
    "Unreachable",
    "UnreadableStream",
    "UntrustedAddress",
    "UntrustedHost",
    "VideoNotFound",
    "WorkerDied",
    "check_wire",
    "from_wire",
    "to_wire",
]


_MAX_MESSAGE_CHARACTERS: Final = 20_000


class StreamloaderError(Exception):
    """Base class of all errors of this package.

    Message, address, texts among the details and traceback contain no secrets, and no characters that a terminal would
    obey: the constructor cleans them. A message has at most 20,000 characters.

    Attributes:
        stream: Key of the stream that failed, or None.
        address: Address of the stream's or object's bytes, with secrets removed, or None.
        offset: Byte offset or step of the failure (the message says which), or None.
        details: Additional plain values by name, such as lane, worker, signal or number of bytes needed.
        worker_traceback: Traceback from the worker process in which the error occurred, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        stream: str | None = None,
        address: str | None = None,
        offset: int | None = None,
        worker_traceback: str | None = None,
        **details: Any,
    ) -> None:
        # A name with a line feed would forge another line, and a password with a blank would end an address too early.
        for name in (address, stream):
            if name and (not name.isprintable() or redact_address(name) != name):
                message = message.replace(name, make_printable(redact_address(name), _MAX_MESSAGE_CHARACTERS))
        super().__init__(clean(message, _MAX_MESSAGE_CHARACTERS))
        self.stream = stream
        self.address = None if address is None else redact_address(address)
        self.offset = offset
        self.details: dict[str, Any] = {
            name: clean(value) if isinstance(value, str) else value for name, value in details.items()
        }
        self.worker_traceback = None if worker_traceback is None else clean(worker_traceback)

    @property
    def message(self) -> str:
        """The message alone, without the context and the worker's traceback that ``str()`` appends."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        """Return the message, followed by the context that it does not contain and by the worker's traceback."""
        message = self.message
        context = [
            f"{name}={value!r}"
            for name, value in (("stream", self.stream), ("address", self.address), ("offset", self.offset))
            if value is not None and make_printable(redact_address(str(value)), None) not in message
        ]
        text = f"{message} ({', '.join(context)})" if context else message
        if self.worker_traceback:
            text += "\n\n--- in the worker ---\n" + self.worker_traceback.rstrip()
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, so that subclasses need no code of their own."""
        state = {name: getattr(self, name) for name in _ATTRIBUTES}
        return _rebuild, (type(self), self.message, state)


_ATTRIBUTES: Final = ("stream", "address", "offset", "details", "worker_traceback")


def _rebuild(kind: type[StreamloaderError], message: str, state: dict[str, Any]) -> StreamloaderError:
    error = kind(message)
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ConfigError(StreamloaderError, ValueError):
    """An argument, or a combination of arguments, is invalid."""


class MissingDependency(StreamloaderError, ImportError):
    """An optional package is not installed. The message names the extra: ``pip install streamloader[extra]``."""


class RingTooLarge(StreamloaderError, MemoryError):
    """The ring of batches does not fit into free memory. ``details``: needed and free, in bytes."""


class LengthUnknown(StreamloaderError, TypeError):
    """The loader has no length, because some of its streams do not declare theirs."""


class StateError(StreamloaderError, ValueError):
    """A saved state is damaged, or was saved by a loader with other data, another seed or another shape."""


class ClosedError(StreamloaderError, RuntimeError):
    """The loader, store or archive was closed, or a newer iteration of the loader has ended this one."""


class IteratorBusy(StreamloaderError, RuntimeError):
    """Another thread or task is waiting for the next batch of this iteration. An iteration has one consumer."""


class CannotCopy(StreamloaderError, TypeError):
    """A loader that has started, or an iteration, was to be copied or pickled."""


class NoSampler(StreamloaderError, AttributeError):
    """A loader has no sampler or map-style data set, which ``skip_first_batches`` of Accelerate, for example, needs."""


class WrongProcess(StreamloaderError, RuntimeError):
    """The loader's workers belong to another process, from which this one was forked. ``details``: owner_pid."""


class SystemLimit(StreamloaderError, OSError):
    """The system refuses files, processes or memory, because a limit of this process or of the machine is reached.

    ``details``: errno. The message names the limit and how to raise it.
    """


class StreamNotFound(StreamloaderError, FileNotFoundError):
    """There is no stream at this address, or the pattern matches nothing."""


class UnreadableStream(StreamloaderError, OSError):
    """The object exists, but it cannot be opened as this kind of stream."""


class MediaLimitExceeded(UnreadableStream):
    """A media file exceeds a limit, such as ``max_pixels``. ``details``: limit (its name), found and allowed."""


class CorruptStream(StreamloaderError, OSError):
    """The stream is truncated or damaged, or differs from its index. ``offset``: step of the failure."""


class FrameSizeError(StreamloaderError, ValueError):
    """The videos of a dataset differ in frame size, and no ``size=`` was given."""


class StreamFailed(StreamloaderError, RuntimeError):
    """A stream raised an error of its own. The message contains its type and text. ``offset``: step of the failure."""


class LoaderTimeout(StreamloaderError, TimeoutError):
    """A batch was not ready in time. ``details``: lane, stage, and seconds waited."""


class WorkerDied(StreamloaderError, RuntimeError):
    """A worker process exited unexpectedly. ``details``: pid, worker, exit_status, signal, lanes."""


class StoreError(StreamloaderError, OSError):
    """Bytes could not be read from, written to or listed in a store. ``address`` names the object.

    Attributes:
        transient: Whether the same request may succeed shortly. Only transient errors are retried.
    """

    transient: ClassVar[bool] = False


class NotFound(StoreError, FileNotFoundError):
    """There is no object at this address."""


class AccessDenied(StoreError, PermissionError):
    """The server or file system denied access: credentials are missing or wrong, or do not permit it."""


class UntrustedHost(AccessDenied):
    """The server's identity cannot be verified: its host key is unknown or changed, or its certificate is invalid."""


class UntrustedAddress(AccessDenied):
    """A catalog, manifest or index names this address, and the user does not. The message says how to name it."""


class NotEnoughMemory(StoreError, MemoryError):
    """What is to be loaded into memory does not fit there. ``details``: needed and free, in bytes."""


class RangeNotSatisfiable(StoreError, ValueError):
    """The requested byte range exceeds the object. ``offset``: start of the range. ``details``: size of the object."""


class ObjectChanged(StoreError):
    """The object is not the requested version. It was replaced, possibly while it was being read."""


class IntegrityError(StoreError):
    """The received bytes do not match their digest, CID or checksum. ``offset``: start of these bytes."""


class CorruptContainer(StoreError):
    """A container, such as a tar or zip file, is truncated, damaged or malformed. ``offset``: byte of the container."""


class StorageFull(StoreError):
    """The disk or the bucket has no room left, or a quota is reached. Nothing of the object was kept."""


class LimitExceeded(StoreError):
    """A limit of :class:`streamloader.config.Limits` was exceeded. The message names it and how to raise it."""


class NotSupported(StoreError, ValueError):
    """The store does not support the operation. For example, many web servers do not list folders."""


class ProtocolError(StoreError):
    """The server violated its protocol, for example with a wrong range, an unrequested encoding or a redirect loop."""


class Unreachable(StoreError, ConnectionError):
    """The server cannot be reached: its name does not resolve, or it refused or closed the connection."""

    transient = True


class TransferInterrupted(StoreError, ConnectionError):
    """The transfer was interrupted. ``offset``: first byte that was not received."""

    transient = True


class ServerBusy(StoreError, BlockingIOError):
    """The server is overloaded or failing (429, 5xx). ``details``: status, and retry_after in seconds if sent."""

    transient = True


class StoreTimeout(StoreError, TimeoutError):
    """A store did not respond in time, or its transfer was too slow. ``details``: seconds waited, and stage."""

    transient = True


class CatalogError(StreamloaderError, OSError):
    """The catalog of an archive cannot be reached, read or written, or its contents are inconsistent."""


class CatalogNotFound(CatalogError, FileNotFoundError):
    """There is no archive catalog at this address."""


class CatalogExists(CatalogError, FileExistsError):
    """A catalog cannot be created, because one exists at this address."""


class CatalogTooNew(CatalogError):
    """The catalog was created by a newer version of streamloader. Update streamloader to use it."""


class CatalogTimeout(CatalogError, TimeoutError):
    """The catalog was locked or did not respond in time. ``details``: seconds waited."""


class NameConflict(CatalogError, ValueError):
    """The archive already has a video of this name, with different content."""


class IngestFailed(StreamloaderError, RuntimeError):
    """Some videos could not be added; all others were. ``details``: report, an IngestReport."""


class VideoNotFound(StreamloaderError, KeyError):
    """The archive has no video of this name."""

    __str__ = StreamloaderError.__str__


class FrameIndexError(StreamloaderError, IndexError):
    """The archive or the video has no frame with this number, or at this time."""


class DatasetError(StreamloaderError):
    """A data set of samples cannot be read or written. ``details``: dataset, shard and member, where they are known."""


class DatasetNotFound(DatasetError, FileNotFoundError):
    """There are no shards at this address."""


class DatasetExists(DatasetError, FileExistsError):
    """There is another data set at this address already."""


class DatasetIncomplete(DatasetError):
    """The data set has no manifest yet: it is still being written, or its writer was interrupted."""


class CorruptShard(DatasetError, OSError):
    """A shard is missing or cut, or is not the one that its index describes. ``offset``: byte of the shard."""


class CorruptSample(DatasetError, ValueError):
    """A member of a sample has a wrong checksum, or cannot be decoded. ``offset``: byte of the shard."""


class MissingField(DatasetError, LookupError):
    """A sample lacks a requested field. ``offset``: byte of the shard at which the sample starts."""


class DirectoryLocked(DatasetError, BlockingIOError):
    """Another process writes to the directory, or moves its files, or has it open while its files are to be moved."""


class DuplicateName(DatasetError, ValueError):
    """Two subdirectories of a directory have a file of the same name. ``details``: count, the number of such names."""


def _subclasses_by_name(root: type[StreamloaderError]) -> dict[str, type[StreamloaderError]]:
    kinds = {root.__name__: root}
    for kind in root.__subclasses__():
        kinds.update(_subclasses_by_name(kind))
    return kinds


_MAX_MESSAGE_CHARS: Final = 16_384
_MAX_TRACEBACK_CHARS: Final = 65_536
_MAX_NAME_CHARS: Final = 8192  # of a stream, an address or a type
_MAX_DETAILS: Final = 64
_MAX_DETAIL_BYTES: Final = 1 << 16  # as JSON
_MAX_DETAIL_DEPTH: Final = 4
_DETAIL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_LINE_ENDS: Final = re.compile(r"\r\n?")


def to_wire(error: BaseException) -> dict[str, Any]:
    """Return `error` and its traceback as plain JSON values of limited size."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    wire: dict[str, Any] = {
        "type": _cut(type(error).__name__, _MAX_NAME_CHARS),
        "message": _cut(clean(str(error)), _MAX_MESSAGE_CHARS),
        "worker_traceback": _cut(clean(lines), _MAX_TRACEBACK_CHARS),
    }
    if isinstance(error, StreamloaderError):
        wire["message"] = _cut(error.message, _MAX_MESSAGE_CHARS)
        for name in ("stream", "address"):
            value = getattr(error, name)
            wire[name] = None if value is None else _cut(str(value), _MAX_NAME_CHARS)
        offset = error.offset
        wire["offset"] = int(offset) if offset is not None and abs(offset) <= MAX_INT64 else None
        plain = [(key, value) for key, value in error.details.items() if _is_plain_detail(key, value)]
        wire["details"] = dict(plain[:_MAX_DETAILS])
        wire["ours"] = True
    return wire


def check_wire(wire: Any) -> None:
    """Check an error that a worker has sent.

    Raises:
        InvalidMessage: If :func:`to_wire` cannot have made it.
    """
    check_fields(wire, _WIRE_OF_OURS if isinstance(wire, dict) and "ours" in wire else _WIRE, "the error")


def from_wire(wire: Mapping[str, Any]) -> StreamloaderError:
    """Rebuild an error from :func:`to_wire`. An error of another package becomes a :class:`StreamFailed`.

    Only classes of this module are created. Texts keep their line ends; all else that is not printable is escaped.
    """
    kind_name, message = _printable(wire["type"]), _printable(wire["message"])
    context = {
        name: None if wire.get(name) is None else _printable(wire[name])
        for name in ("stream", "address", "worker_traceback")
    }
    kind: type[StreamloaderError] = StreamFailed
    if wire.get("ours"):
        kind = _subclasses_by_name(StreamloaderError).get(kind_name, StreamloaderError)
    else:
        message = f"{kind_name}: {message}"
    error = kind(message, offset=wire.get("offset"), **context)
    error.details = {name: _printable_detail(value) for name, value in (wire.get("details") or {}).items()}
    if not wire.get("ours"):
        error.details["cause"] = kind_name
    return error


def _cut(value: str, max_chars: int) -> str:
    """Return a text that UTF-8 can encode, without its middle if it is too long."""
    if len(value) > max_chars:
        half = (max_chars - 5) // 2
        value = f"{value[:half]}\n...\n{value[-half:]}"
    return value.encode(errors="backslashreplace").decode() if not value.isascii() else value


def _printable(value: str) -> str:
    return make_printable(_LINE_ENDS.sub("\n", value), 2 * _MAX_TRACEBACK_CHARS, keep_lines=True)


def _printable_detail(value: Any) -> Any:
    if isinstance(value, list):
        return [_printable_detail(item) for item in value]
    return _printable(value) if isinstance(value, str) else value


def _is_plain_detail(name: str, value: Any) -> bool:
    if not _DETAIL_NAME.fullmatch(name) or not _is_plain(value, 0):
        return False
    return len(json.dumps(value)) <= _MAX_DETAIL_BYTES


def _check_details(value: Any, name: str) -> Any:
    if type(value) is not dict or len(value) > _MAX_DETAILS:
        raise InvalidMessage(f"{name} is not an object of up to {_MAX_DETAILS} items")
    for key, item in value.items():
        if not _is_plain_detail(key, item):
            raise InvalidMessage(f"{name} has an item that is not valid")
    return value


def _is_plain(value: object, depth: int) -> bool:
    if isinstance(value, (list, tuple)):
        return depth < _MAX_DETAIL_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= MAX_INT64
    return value is None or isinstance(value, (bool, float, str))


_WIRE: Final = {
    "type": text(_MAX_NAME_CHARS),
    "message": text(_MAX_MESSAGE_CHARS),
    "worker_traceback": optional(text(2 * _MAX_TRACEBACK_CHARS)),  # a second error may have been appended
}
_WIRE_OF_OURS: Final = _WIRE | {
    "stream": optional(text(_MAX_NAME_CHARS)),
    "address": optional(text(_MAX_NAME_CHARS)),
    "offset": optional(integer(-MAX_INT64, MAX_INT64)),
    "details": _check_details,
    "ours": check_flag,
}
