"""Objects whose digests are known are checked against them."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol

from streamloader.errors import ConfigError, MissingExtra, WrongContent
from streamloader.stores.base import OnBegin, Store
from streamloader.stores.wrappers.base import Wrapper
from streamloader.stores.wrappers.cache import Cache
from streamloader.stores.wrappers.single_flight import Flights
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["Verify"]

_PREFIXED: Final = re.compile(r"(?i)([a-z0-9_]+):([0-9a-f]+)")
_SRI: Final = re.compile(r"(sha256|sha384|sha512)-([A-Za-z0-9+/]+={0,2})")
_KINDS: Final = frozenset(
    {"blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3_256", "sha3_384", "sha3_512", "sha512"}
)


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> Any: ...

    def digest(self) -> bytes: ...


class Verify(Wrapper):
    """Checks the objects whose digests are given; others, and all writes, pass as they are.

    - ``read`` of a whole object returns nothing unless all of it is right.
    - ``stream`` of a whole object holds its last piece back until all of it was checked: pieces before that may be
      wrong, and then WrongContent follows instead of the end.
    - A span cannot be checked alone. Before the first one of an object it is read and checked as a whole, once for
      each version; spans are then read with that version pinned. Of a store that tells no versions each span costs a
      reading of the whole. Give it a cache (``cache_dir``), and all of that is fetched once; what
      turns out to be wrong is not kept there.

    A digest is ``"sha256:<hex>"`` (or md5, sha1, sha224, sha384, sha512, sha3_256, sha3_384, sha3_512, blake2b,
    blake2s, and blake3, which needs the extra ``ipfs``), or as in W3C Subresource Integrity ``"sha256-<base64>"`` (or
    sha384, sha512). One of a path that does not exist does no harm.

    Args:
        inner: the store.
        digests: path -> digest.

    Raises:
        ConfigError: that is no digest.
        MissingExtra: blake3 is not installed.
    """

    def __init__(self, inner: Store, digests: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._digests = {path: _parsed(digest, path) for path, digest in digests.items()}
        self._right: dict[str, str] = {}  # path -> version that was checked as a whole
        self._flights: Flights[None] = Flights()

    async def read(self, path: str, span: ByteRange | None = None, *, version: str | None = None) -> bytes:
        """See :meth:`Store.read`.

        Raises:
            WrongContent: the object is not what its digest says.
        """
        if path not in self._digests:
            return await self.inner.read(path, span, version=version)
        return await Store.read(self, path, span, version=version)

    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        on_begin: OnBegin | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """See :meth:`Store.stream`.

        Raises:
            WrongContent: the object is not what its digest says.
        """
        self._enter(path)
        if path not in self._digests or (span is not None and span.start == span.end):
            chunks = self.inner.stream(path, span, version=version, on_begin=on_begin)
        elif span is None or span == ByteRange():
            chunks = self._whole(path, version, on_begin)
        else:
            chunks = self._part(path, span, version, on_begin)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def _whole(self, path: str, version: str | None, on_begin: OnBegin | None) -> AsyncGenerator[bytes, None]:
        """Yield an object; its last piece when all is known to be right."""
        told: list[ObjectInfo] = []

        def begin(info: ObjectInfo, start: int) -> None:
            told.append(info)
            if on_begin is not None:
                on_begin(info, start)

        kind, wanted = self._digests[path]
        hasher = _hasher(kind)
        held, size = b"", 0
        inner = self.inner.stream(path, version=version, on_begin=begin)
        async with contextlib.aclosing(inner) as chunks:
            async for chunk in chunks:
                if held:
                    yield held
                held = chunk
                size += len(chunk)
                hasher.update(chunk)
        if hasher.digest() != wanted:
            if isinstance(self.inner, Cache) and told and told[-1].version is not None:
                await self.inner.forget(path, told[-1].version)
            address = self.address(path)
            raise WrongContent(
                f"{address} is not what it should be: its {size} bytes have another {kind} than was given for it. "
                "Fetch or write it anew, or correct the digest",
                address=address,
                offset=0,
                size=size,
            )
        if told and told[-1].version is not None:
            self._right[path] = told[-1].version
        if held:
            yield held

    async def _part(
        self, path: str, span: ByteRange, version: str | None, on_begin: OnBegin | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a span of an object that was checked as a whole."""
        if version is None:
            version = (await self.inner.head(path)).version
        if version is None:
            if cut := await self._cut(path, span, on_begin):
                yield cut
            return
        if self._right.get(path) != version:
            await self._flights.once((path, version), lambda: self._check(path, version))
        inner = self.inner.stream(path, span, version=version, on_begin=on_begin)
        async with contextlib.aclosing(inner) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _check(self, path: str, version: str) -> None:
        if self._right.get(path) != version:
            async with contextlib.aclosing(self._whole(path, version, None)) as chunks:
                async for _ in chunks:
                    pass

    async def _cut(self, path: str, span: ByteRange, on_begin: OnBegin | None) -> bytes:
        """Return a span out of one reading of the whole: nothing tells that another reading is of the same object."""
        told: list[ObjectInfo] = []
        kept, at = bytearray(), 0
        async with contextlib.aclosing(self._whole(path, None, lambda info, _: told.append(info))) as chunks:
            async for chunk in chunks:
                if span.start < 0:
                    kept += chunk
                    del kept[: span.start]
                else:
                    end = len(chunk) if span.end is None else max(0, span.end - at)
                    kept += chunk[max(0, span.start - at) : end]
                at += len(chunk)
        start, _ = span.within(at, self.address(path))
        if on_begin is not None:
            on_begin(told[-1], start)
        return bytes(kept)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was checked: the twin checks for itself."""
        return {**super().__getstate__(), "_right": {}}


def _parsed(digest: str, path: str) -> tuple[str, bytes]:
    """Return kind and value of a digest."""
    problem = f"{digest!r}, given for {path}, is no digest: write 'sha256:<hex>' or 'sha256-<base64>'"
    if prefixed := _PREFIXED.fullmatch(digest):
        kind = prefixed[1].lower()
        try:
            value = bytes.fromhex(prefixed[2])
        except ValueError as error:
            raise ConfigError(problem) from error
    elif integrity := _SRI.fullmatch(digest):
        kind = integrity[1]
        try:
            value = base64.b64decode(integrity[2], validate=True)
        except binascii.Error as error:
            raise ConfigError(problem) from error
    else:
        raise ConfigError(problem)
    if kind not in _KINDS and kind != "blake3":
        raise ConfigError(f"{problem}; of the kinds blake3, {', '.join(sorted(_KINDS))}")
    wanted = len(_hasher(kind).digest())
    if len(value) != wanted:
        raise ConfigError(f"{problem}: {kind} has {wanted} bytes, this has {len(value)}")
    return kind, value


def _hasher(kind: str) -> _Hasher:
    if kind != "blake3":
        return hashlib.new(kind, usedforsecurity=False)
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingExtra("digests of the kind blake3 need a package: pip install streamloader[ipfs]") from error
    hasher: _Hasher = blake3()
    return hasher
