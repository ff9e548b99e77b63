"""Provide a directory of a store as a store of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

from typing_extensions import override

from streamloader.errors import ConfigError
from streamloader.stores.base import Data, OnStart, Store
from streamloader.stores.search import TreeSearch
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["PrefixStore"]


class PrefixStore(StoreWrapper):
    """The objects under one directory of another store. Paths outside the directory cannot be reached.

    Args:
        inner: Store to wrap.
        root: Directory of `inner` that paths are relative to.
    """

    def __init__(self, inner: Store, root: str) -> None:
        super().__init__(inner)
        self._root = inner.directory_path(root) if inner.paths_are_keys else root.strip("/")
        self._check_path(self._root, allow_empty=False)
        if inner.names_version(self._root):
            raise ConfigError(f"{inner.address(self._root)}: a directory has no versions; name a version of an object")
        self.url = inner.address(self._root)

    @override
    def address(self, path: str) -> str:
        return self.inner.address(self._to_inner_path(path) if path else self._root)

    @override
    async def head(self, path: str) -> ObjectInfo:
        return replace(await self.inner.head(self._to_inner_path(path)), path=path)

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        return await self.inner.read(self._to_inner_path(path), span, version=version, size=size)

    @override
    def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        def report_start(info: ObjectInfo, start: int) -> None:
            if on_start is not None:
                on_start(replace(info, path=path), start)

        return self.inner.stream(self._to_inner_path(path), span, version=version, size=size, on_start=report_start)

    @override
    async def list(
        self, prefix: str = "", *, recursive: bool = True, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        start = len(self._join(""))
        if search is not None:
            report = search.report
            search = replace(search, report=lambda found: report(replace(found, path=found.path[start:])))
        entries = self.inner.list(self._to_inner_prefix(prefix), recursive=recursive, search=search)
        async with contextlib.aclosing(entries):
            async for info in entries:
                yield replace(info, path=info.path[start:])

    @override
    async def write(self, path: str, data: Data) -> None:
        await self.inner.write(self._to_inner_path(path), data)

    @override
    async def delete(self, path: str) -> None:
        await self.inner.delete(self._to_inner_path(path))

    @override
    async def free_bytes(self, path: str = "") -> int | None:
        return await self.inner.free_bytes(self._to_inner_prefix(path))

    @override
    async def list_unfinished(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        async with contextlib.aclosing(self.inner.list_unfinished(self._to_inner_prefix(prefix))) as entries:
            async for info in entries:
                yield replace(info, path=info.path[len(self._join("")) :])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} of {self.inner!r}>"

    def _to_inner_path(self, path: str) -> str:
        self._check_path(path, allow_empty=False)
        return self._join(path)

    def _to_inner_prefix(self, prefix: str) -> str:
        self._check_path(self.directory_path(prefix), allow_empty=True)
        return self._join(prefix) if prefix else self._root

    def _join(self, path: str) -> str:
        return f"{self._root}{path}" if self._root.endswith("/") else f"{self._root}/{path}"
