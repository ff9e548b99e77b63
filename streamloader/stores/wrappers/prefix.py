"""A directory of a store as a store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace

from streamloader.stores.base import Data, OnBegin, Store
from streamloader.stores.wrappers.base import Wrapper
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Rooted"]


class Rooted(Wrapper):
    """What lies under the directory `root` of `inner`, with paths relative to it. Nothing outside can be reached."""

    def __init__(self, inner: Store, root: str) -> None:
        super().__init__(inner)
        self._root = root.strip("/")
        self._check_path(self._root, empty=False)
        self.url = inner.address(self._root)

    def address(self, path: str) -> str:
        """Return the whole address of `path`, for messages."""
        return self.inner.address(self._under(path) if path else self._root)

    async def head(self, path: str) -> ObjectInfo:
        """See :meth:`Store.head`."""
        return replace(await self.inner.head(self._under(path)), path=path)

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`."""
        return await self.inner.read(self._under(path), span, version=version)

    def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`Store.stream`."""

        def told(info: ObjectInfo, start: int) -> None:
            if on_begin is not None:
                on_begin(replace(info, path=path), start)

        return self.inner.stream(self._under(path), span, version=version, on_begin=told)

    async def list(self, prefix: str = "", *, recursive: bool = True) -> AsyncGenerator[ObjectInfo, None]:
        """See :meth:`Store.list`."""
        self._check_path(prefix.rstrip("/"), empty=True)
        under = f"{self._root}/{prefix}" if prefix else self._root
        async with contextlib.aclosing(self.inner.list(under, recursive=recursive)) as found:
            async for info in found:
                yield replace(info, path=info.path[len(self._root) + 1 :])

    async def write(self, path: str, data: Data) -> None:
        """See :meth:`Store.write`."""
        await self.inner.write(self._under(path), data)

    async def delete(self, path: str) -> None:
        """See :meth:`Store.delete`."""
        await self.inner.delete(self._under(path))

    async def free(self, path: str = "") -> int | None:
        """See :meth:`Store.free`."""
        self._check_path(path.rstrip("/"), empty=True)
        return await self.inner.free(f"{self._root}/{path}" if path else self._root)

    async def leftovers(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :meth:`Store.leftovers`."""
        self._check_path(prefix.rstrip("/"), empty=True)
        under = f"{self._root}/{prefix}" if prefix else self._root
        async with contextlib.aclosing(self.inner.leftovers(under)) as found:
            async for info in found:
                yield replace(info, path=info.path[len(self._root) + 1 :])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} of {self.inner!r}>"

    def _under(self, path: str) -> str:
        self._check_path(path, empty=False)
        return f"{self._root}/{path}"
