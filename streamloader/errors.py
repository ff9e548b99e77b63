"""The one error tree.

Every error that streamloader raises on purpose is a :class:`StreamloaderError`. It carries, where they are
known, the stream's key, its address and the offset or step at which things went wrong, and its message says
what to do. Where Python has a fitting built-in (``FileNotFoundError``, ``TimeoutError``, ...) the error is
also an instance of that. All errors survive pickling, and can be sent between processes as plain JSON with
:func:`to_wire` and :func:`from_wire`: nothing that comes from a worker is ever unpickled.
"""

from __future__ import annotations

import traceback
from typing import Any, ClassVar, Final

from streamloader.redaction import redact

__all__ = [
    "AccessDenied",
    "CatalogError",
    "CatalogExists",
    "CatalogNotFound",
    "CatalogTimeout",
    "CatalogTooNew",
    "ClosedError",
    "ConfigError",
    "CorruptStream",
    "FrameOutside",
    "FrameSizeError",
    "IngestFailed",
    "Interrupted",
    "LengthUnknown",
    "LimitExceeded",
    "LoaderTimeout",
    "MissingExtra",
    "NameTaken",
    "NotFound",
    "NotSupported",
    "ObjectChanged",
    "ProtocolFault",
    "RangeOutside",
    "RingTooLarge",
    "ServerBusy",
    "StateError",
    "StoreError",
    "StoreTimeout",
    "StreamFailed",
    "StreamNotFound",
    "StreamloaderError",
    "Unreachable",
    "UnreadableStream",
    "UntrustedHost",
    "VideoNotFound",
    "WorkerDied",
    "WrongContent",
    "from_wire",
    "to_wire",
]


class StreamloaderError(Exception):
    """Base of every error of this package.

    Attributes:
        stream: key of the stream concerned, or None.
        address: where its bytes live, with secrets removed, or None.
        offset: byte offset or step (the message says which), or None.
        details: further plain values by name (lane, worker, signal, needed bytes, ...).
        worker_traceback: the traceback of the worker process in which it arose, or None.
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
        super().__init__(redact(message))
        self.stream = stream
        self.address = None if address is None else redact(address)
        self.offset = offset
        self.details = details
        self.worker_traceback = worker_traceback

    @property
    def message(self) -> str:
        """The message alone, without the places and the worker's traceback that ``str()`` adds."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        """Message, then the places it names that the message does not, then the worker's traceback."""
        message = self.message
        places = [
            f"{name}={value!r}"
            for name, value in (("stream", self.stream), ("address", self.address), ("offset", self.offset))
            if value is not None and str(value) not in message
        ]
        text = f"{message} ({', '.join(places)})" if places else message
        if self.worker_traceback:
            text += "\n\n--- in the worker ---\n" + self.worker_traceback.rstrip()
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by message and attributes, so that subclasses need no special care."""
        state = {name: getattr(self, name) for name in _ATTRIBUTES}
        return _rebuild, (type(self), self.message, state)


_ATTRIBUTES: Final = ("stream", "address", "offset", "details", "worker_traceback")


def _rebuild(kind: type[StreamloaderError], message: str, state: dict[str, Any]) -> StreamloaderError:
    error = kind(message)
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ConfigError(StreamloaderError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class MissingExtra(StreamloaderError, ImportError):
    """An optional package is needed: the message says which ``pip install streamloader[extra]`` brings it."""


class RingTooLarge(StreamloaderError, MemoryError):
    """The ring of batches does not fit into free memory. ``details``: needed, free (bytes)."""


class LengthUnknown(StreamloaderError, TypeError):
    """``len()`` of a loader some of whose streams do not know their length."""


class StateError(StreamloaderError, ValueError):
    """A state that does not belong to this loader: of other data, another seed or shape, or no state at all."""


class ClosedError(StreamloaderError, RuntimeError):
    """The loader was closed, or another iteration of it was begun."""


class StreamNotFound(StreamloaderError, FileNotFoundError):
    """No stream at this address, or a pattern that matches nothing."""


class UnreadableStream(StreamloaderError, OSError):
    """The address exists but holds nothing that can be opened as this kind of stream."""


class CorruptStream(StreamloaderError, OSError):
    """The stream breaks off, is damaged, or does not hold what its index promised. ``offset``: the step."""


class FrameSizeError(StreamloaderError, ValueError):
    """Streams of one data set differ in frame size and no ``size=`` was given."""


class StreamFailed(StreamloaderError, RuntimeError):
    """A stream raised an error of its own (its type and traceback are in the message). ``offset``: the step."""


class LoaderTimeout(StreamloaderError, TimeoutError):
    """A wait passed its deadline. ``details``: lane, stage, waited (seconds)."""


class WorkerDied(StreamloaderError, RuntimeError):
    """A worker process ended while it still owed batches. ``details``: pid, worker, exit_status, signal, lanes."""


class StoreError(StreamloaderError, OSError):
    """Bytes could not be had from where they live, or not put there. ``address`` names the object.

    Attributes:
        transient: whether the same request may well succeed a moment later. Only such errors are tried again.
    """

    transient: ClassVar[bool] = False


class NotFound(StoreError, FileNotFoundError):
    """No object at this address."""


class AccessDenied(StoreError, PermissionError):
    """The server, or the file system, does not let us: missing or wrong credentials, or no right to this object."""


class UntrustedHost(AccessDenied):
    """A server is not the one it should be: unknown or changed host key, certificate that does not hold."""


class RangeOutside(StoreError, ValueError):
    """The asked bytes do not all lie within the object. ``offset``: the first asked one; ``details``: size."""


class ObjectChanged(StoreError):
    """The object is not the version that was asked for: it was replaced, perhaps while it was read."""


class WrongContent(StoreError):
    """The bytes that came are not those that the digest, CID or checksum promised. ``offset``: where they begin."""


class LimitExceeded(StoreError):
    """A cap of :class:`streamloader.config.Limits` was passed: the message says which one and how to raise it."""


class NotSupported(StoreError, ValueError):
    """This store cannot do that: HTTP has no listings, IPFS gateways take no files, ..."""


class ProtocolFault(StoreError):
    """The server broke the rules of its protocol: a wrong range, an unasked encoding, a redirect loop, no sense."""


class Unreachable(StoreError, ConnectionError):
    """No connection to the server: its name does not resolve, it refuses, or it hung up before it answered."""

    transient = True


class Interrupted(StoreError, ConnectionError):
    """The transfer broke off. ``offset``: of the first byte that did not come."""

    transient = True


class ServerBusy(StoreError, BlockingIOError):
    """The server is overloaded or failing (429, 5xx). ``details``: status, retry_after (seconds, where it said)."""

    transient = True


class StoreTimeout(StoreError, TimeoutError):
    """A wait for a store passed its deadline, or bytes came too slowly. ``details``: waited (seconds), stage."""

    transient = True


class CatalogError(StreamloaderError, OSError):
    """The catalog of an archive cannot be reached, read or written, or does not hold what it should."""


class CatalogNotFound(CatalogError, FileNotFoundError):
    """No archive has its catalog there."""


class CatalogExists(CatalogError, FileExistsError):
    """There is a catalog already, where one was to be made."""


class CatalogTooNew(CatalogError):
    """The catalog was made by a newer version of this package, which has to be installed to use it."""


class CatalogTimeout(CatalogError, TimeoutError):
    """The catalog was locked, or did not answer, for too long. ``details``: waited (seconds)."""


class NameTaken(CatalogError, ValueError):
    """The archive has a video of this name, with other content."""


class IngestFailed(StreamloaderError, RuntimeError):
    """Some of several videos could not be added; all others were. ``details``: report (an IngestReport)."""


class VideoNotFound(StreamloaderError, KeyError):
    """The archive has no video of this name."""

    __str__ = StreamloaderError.__str__


class FrameOutside(StreamloaderError, IndexError):
    """The archive, or the video, has no frame of this number, or at this time."""


def _tree(root: type[StreamloaderError]) -> dict[str, type[StreamloaderError]]:
    known = {root.__name__: root}
    for kind in root.__subclasses__():
        known.update(_tree(kind))
    return known


def to_wire(error: BaseException) -> dict[str, Any]:
    """Describe `error` as plain JSON values, with its traceback."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    wire: dict[str, Any] = {
        "type": type(error).__name__,
        "message": redact(str(error)),
        "worker_traceback": redact(text),
    }
    if isinstance(error, StreamloaderError):
        wire["message"] = error.message
        for name in ("stream", "address", "offset"):
            wire[name] = getattr(error, name)
        wire["details"] = {key: value for key, value in error.details.items() if _plain(value)}
        wire["ours"] = True
    return wire


def from_wire(wire: dict[str, Any]) -> StreamloaderError:
    """Rebuild an error from :func:`to_wire`; foreign ones become :class:`StreamFailed`."""
    places = {name: wire.get(name) for name in ("stream", "address", "offset", "worker_traceback")}
    details = dict(wire.get("details") or {})
    if wire.get("ours"):
        kind = _tree(StreamloaderError).get(wire["type"], StreamloaderError)
        return kind(wire["message"], **places, **details)
    details["cause"] = wire["type"]
    return StreamFailed(f"{wire['type']}: {wire['message']}", **places, **details)


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
