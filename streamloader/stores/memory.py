"""Provide objects in the memory of this process, for tests and for generated data."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from typing_extensions import override

from streamloader.config import Limits, Timeouts
from streamloader.errors import NotFound
from streamloader.stores.base import Body, Data, Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["MemoryStore"]

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _MemoryObject:
    data: bytes
    version: str  # never reused, not even after a deletion or in another process
    modified: float


_spaces: Final[dict[str, dict[str, _MemoryObject]]] = {}


class MemoryStore(Store):
    """``memory://name``: all stores with one name share their objects, which live as long as the process.

    A pickled store takes a copy of its objects into a process that has none under that name. An address does not:
    datasets over ``memory://`` need ``num_workers=0``.
    """

    schemes: ClassVar[tuple[str, ...]] = ("memory",)

    def __init__(self, url: str, *, timeouts: Timeouts | None = None, limits: Limits | None = None) -> None:
        super().__init__(url, timeouts=timeouts, limits=limits)
        self._name = url

    @property
    def _objects(self) -> dict[str, _MemoryObject]:
        return _spaces.setdefault(self._name, {})

    @override
    async def _head(self, path: str) -> ObjectInfo:
        return self._make_info(path, self._find(path))

    @override
    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        item = self._find(path)
        start, end = (span or ByteRange()).within(len(item.data), self.address(path))
        yield Body(self._make_info(path, item), start, end, _split_into_pieces(item.data, start, end))

    @override
    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        directory = f"{prefix}/" if prefix else ""
        folders = set()
        for path, item in list(self._objects.items()):
            if path.startswith(directory):
                name, slash, _ = path[len(directory) :].partition("/")
                if recursive or not slash:
                    yield self._make_info(path, item)
                elif name not in folders:
                    folders.add(name)
                    yield ObjectInfo(f"{directory}{name}/")

    @override
    async def _write(self, path: str, data: Data) -> None:
        whole = bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else b"".join([p async for p in data])
        self._objects[path] = _MemoryObject(whole, secrets.token_hex(8), time.time())

    @override
    async def _delete(self, path: str) -> None:
        self._objects.pop(path, None)

    def _find(self, path: str) -> _MemoryObject:
        try:
            return self._objects[path]
        except KeyError:
            hint = ""
            if not self._objects:
                hint = f"; this process has no objects at {self.url}: read them in the process that wrote them "
                hint += "(num_workers=0)"
            raise NotFound(f"no such object: {self.address(path)}{hint}", address=self.address(path)) from None

    def _make_info(self, path: str, item: _MemoryObject) -> ObjectInfo:
        return ObjectInfo(path, len(item.data), item.version, item.modified)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_copied_objects": dict(self._objects)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        objects = state.pop("_copied_objects")
        super().__setstate__(state)
        if not self._objects:
            self._objects.update(objects)


async def _split_into_pieces(data: bytes, start: int, end: int) -> AsyncGenerator[bytes, None]:
    for offset in range(start, end, _PIECE_BYTES):
        yield data[offset : min(offset + _PIECE_BYTES, end)]
