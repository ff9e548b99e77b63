"""A store that passes everything on to another one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

from streamloader.stores.base import Body, Data, OnBegin, Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Wrapper"]


class Wrapper(Store):
    """Base of what is put around a store: it does what `inner` does, and closes it.

    Kinds of wrapper override what they change among the public methods.
    """

    def __init__(self, inner: Store) -> None:
        super().__init__(inner.url, timeouts=inner.timeouts, limits=inner.limits)
        self.inner = inner
        self.realm = inner.realm

    @property
    def writes(self) -> bool:  # type: ignore[override]
        """Whether objects can be written and deleted."""
        return self.inner.writes

    @property
    def lists(self) -> bool:  # type: ignore[override]
        """Whether there are listings."""
        return self.inner.lists

    def address(self, path: str) -> str:
        """Return the whole address of `path`, for messages."""
        return self.inner.address(path)

    async def head(self, path: str) -> ObjectInfo:
        """See :meth:`Store.head`."""
        return await self.inner.head(path)

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`."""
        return await self.inner.read(path, span, version=version)

    def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`Store.stream`."""
        return self.inner.stream(path, span, version=version, on_begin=on_begin)

    def list(self, prefix: str = "", *, recursive: bool = True) -> AsyncGenerator[ObjectInfo, None]:
        """See :meth:`Store.list`."""
        return self.inner.list(prefix, recursive=recursive)

    async def write(self, path: str, data: Data) -> None:
        """See :meth:`Store.write`."""
        await self.inner.write(path, data)

    async def delete(self, path: str) -> None:
        """See :meth:`Store.delete`."""
        await self.inner.delete(path)

    async def free(self, path: str = "") -> int | None:
        """See :meth:`Store.free`."""
        return await self.inner.free(path)

    def leftovers(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        """See :meth:`Store.leftovers`."""
        return self.inner.leftovers(prefix)

    async def aclose(self) -> None:
        """Close `inner`."""
        self._closed = True
        await self.inner.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r}>"

    async def _head(self, path: str) -> ObjectInfo:
        raise NotImplementedError  # the public method never comes here

    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        raise NotImplementedError
