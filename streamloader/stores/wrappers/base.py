"""Provide the base class of stores that wrap another store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any

from typing_extensions import override

from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, Data, OnStart, Store
from streamloader.stores.search import TreeSearch
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["StoreWrapper"]


class StoreWrapper(Store):
    """Base class of wrappers. It forwards every call to `inner`, and closes it.

    Subclasses override the public methods that they change.

    Args:
        inner: Store to wrap.
    """

    def __init__(self, inner: Store) -> None:
        super().__init__(inner.url, timeouts=inner.timeouts, limits=inner.limits)
        self.inner = inner
        self.identity = inner.identity

    @property
    def supports_writes(self) -> bool:  # type: ignore[override]
        """Whether objects can be written and deleted."""
        return self.inner.supports_writes

    @property
    def supports_listing(self) -> bool:  # type: ignore[override]
        """Whether objects can be listed."""
        return self.inner.supports_listing

    @property
    def has_directories(self) -> bool:  # type: ignore[override]
        """Whether directories exist besides their objects, and have permissions of their own."""
        return self.inner.has_directories

    @property
    def has_url_paths(self) -> bool:  # type: ignore[override]
        """Whether paths are those of URLs."""
        return self.inner.has_url_paths

    @property
    def supports_ranges(self) -> bool:  # type: ignore[override]
        """Whether a part of an object is transferred without the rest."""
        return self.inner.supports_ranges

    @property
    def paths_are_keys(self) -> bool:  # type: ignore[override]
        """Whether paths are any texts, which are taken literally."""
        return self.inner.paths_are_keys

    @override
    def names_version(self, path: str) -> bool:
        return self.inner.names_version(path)

    @override
    def describe_access(self) -> StoreAccess:
        return self.inner.describe_access()

    @override
    async def describe_login(self) -> dict[str, Any] | None:
        return await self.inner.describe_login()

    @override
    def address(self, path: str) -> str:
        return self.inner.address(path)

    @override
    def normalize_pattern(self, part: str) -> str:
        return self.inner.normalize_pattern(part)

    @override
    async def head(self, path: str) -> ObjectInfo:
        return await self.inner.head(path)

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        return await self.inner.read(path, span, version=version, size=size)

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
        return self.inner.stream(path, span, version=version, size=size, on_start=on_start)

    @override
    def list(
        self, prefix: str = "", *, recursive: bool = True, search: TreeSearch | None = None
    ) -> AsyncGenerator[ObjectInfo, None]:
        return self.inner.list(prefix, recursive=recursive, search=search)

    @override
    async def write(self, path: str, data: Data) -> None:
        await self.inner.write(path, data)

    @override
    async def delete(self, path: str) -> None:
        await self.inner.delete(path)

    @override
    async def free_bytes(self, path: str = "") -> int | None:
        return await self.inner.free_bytes(path)

    @override
    def list_unfinished(self, prefix: str = "") -> AsyncGenerator[ObjectInfo, None]:
        return self.inner.list_unfinished(prefix)

    @override
    async def aclose(self) -> None:
        """Close `inner`."""
        self._closed = True
        await self.inner.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.inner!r}>"

    @override
    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        self.inner._check_path(path, allow_empty=allow_empty)  # noqa: SLF001 - of the same class

    @override
    async def _head(self, path: str) -> ObjectInfo:
        raise NotImplementedError  # the public methods do not call it

    @override
    def _get(self, path: str, span: ByteRange | None, version: str | None) -> AbstractAsyncContextManager[Body]:
        raise NotImplementedError
