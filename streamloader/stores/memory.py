"""Objects in the memory of this process: for tests, and for data that is made on the spot."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from streamloader.errors import NotFound
from streamloader.stores.base import Body, Data, Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["MemoryStore"]

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    version: str  # of no other object, ever: what was deleted may be written again, in this process or another
    modified: float


_spaces: Final[dict[str, dict[str, _Object]]] = {}


class MemoryStore(Store):
    """``memory://name``: all stores of one name share their objects, which live as long as the process.

    A pickled store takes its objects along, as they are then, into a process that has none of that name. An address
    does not: data sets over ``memory://`` are played with ``num_workers=0``.
    """

    schemes: ClassVar[tuple[str, ...]] = ("memory",)

    @property
    def _objects(self) -> dict[str, _Object]:
        return _spaces.setdefault(self.url, {})

    async def _head(self, path: str) -> ObjectInfo:
        return self._info(path, self._find(path))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        found = self._find(path)
        start, end = (span or ByteRange()).within(len(found.data), self.address(path))
        yield Body(self._info(path, found), start, end, _pieces(found.data, start, end))

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        under = f"{prefix}/" if prefix else ""
        folders = set()
        for path, found in list(self._objects.items()):
            if path.startswith(under):
                name, slash, _ = path[len(under) :].partition("/")
                if recursive or not slash:
                    yield self._info(path, found)
                elif name not in folders:
                    folders.add(name)
                    yield ObjectInfo(f"{under}{name}/")

    async def _write(self, path: str, data: Data) -> None:
        whole = bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else b"".join([p async for p in data])
        self._objects[path] = _Object(whole, secrets.token_hex(8), time.time())

    async def _delete(self, path: str) -> None:
        self._objects.pop(path, None)

    def _find(self, path: str) -> _Object:
        try:
            return self._objects[path]
        except KeyError:
            hint = "" if self._objects else f"; this process has none at {self.url}, so read it where it was written"
            hint += " (num_workers=0)" if hint else ""
            raise NotFound(f"no such object: {self.address(path)}{hint}", address=self.address(path)) from None

    def _info(self, path: str, found: _Object) -> ObjectInfo:
        return ObjectInfo(path, len(found.data), found.version, found.modified)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_taken_along": dict(self._objects)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        along = state.pop("_taken_along")
        super().__setstate__(state)
        if not self._objects:
            self._objects.update(along)


async def _pieces(data: bytes, start: int, end: int) -> AsyncGenerator[bytes, None]:
    for at in range(start, end, _CHUNK):
        yield data[at : min(at + _CHUNK, end)]
