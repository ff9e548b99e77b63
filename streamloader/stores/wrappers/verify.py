"""Verify objects against expected digests."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol

from typing_extensions import override

from streamloader.errors import ConfigError, IntegrityError, MissingDependency
from streamloader.stores.base import OnStart, Store
from streamloader.stores.wrappers.base import StoreWrapper
from streamloader.stores.wrappers.cache import CachingStore
from streamloader.stores.wrappers.single_flight import SingleFlight
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["VerifyingStore"]

_PREFIXED_DIGEST: Final = re.compile(r"(?i)([a-z0-9_]+):([0-9a-f]+)")
_SRI_DIGEST: Final = re.compile(r"(sha256|sha384|sha512)-([A-Za-z0-9+/]+={0,2})")
_HASHLIB_ALGORITHMS: Final = frozenset(
    {"blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3_256", "sha3_384", "sha3_512", "sha512"}
)


class _Hasher(Protocol):
    def update(self, data: bytes, /) -> Any: ...

    def digest(self) -> bytes: ...


class VerifyingStore(StoreWrapper):
    """Verifies the objects whose digests are given. All other objects, and all writes, are forwarded unchanged.

    - ``read`` of a whole object returns bytes only if all of them are correct.
    - ``stream`` of a whole object holds back the last piece until all bytes are verified. Pieces before it may be
      wrong; IntegrityError is then raised in place of the last piece.
    - A span cannot be verified alone. Before the first span of an object is read, the whole object is read and
      verified, once for each version; spans are then read with that version pinned. If the store reports no versions,
      each span reads the whole object. With a cache (``cache_dir``) all of this is fetched once; objects that fail the
      verification are removed from the cache.

    A digest is ``"sha256:<hex>"`` (or md5, sha1, sha224, sha384, sha512, sha3_256, sha3_384, sha3_512, blake2b,
    blake2s, and blake3, which needs the extra ``ipfs``), or W3C Subresource Integrity's ``"sha256-<base64>"`` (or
    sha384, sha512). Digests of paths that do not exist are ignored.

    Args:
        inner: Store to wrap.
        digests: Expected digest of each path.

    Raises:
        ConfigError: If a digest is malformed.
        MissingDependency: If a digest uses blake3, which is not installed.
    """

    def __init__(self, inner: Store, digests: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._digests = {path: _parse_digest(digest, path) for path, digest in digests.items()}
        self._verified: dict[str, str] = {}  # path -> version that was verified as a whole
        self._single_flight: SingleFlight[None] = SingleFlight()

    @override
    async def read(
        self, path: str, span: ByteRange | None = None, *, version: str | None = None, size: int | None = None
    ) -> bytes:
        """Return exactly the bytes of `span`, or of the whole object, as :meth:`Store.read` does.

        Raises:
            IntegrityError: If the object does not match its digest.
        """
        if path not in self._digests:
            return await self.inner.read(path, span, version=version, size=size)
        return await Store.read(self, path, span, version=version, size=size)

    @override
    async def stream(
        self,
        path: str,
        span: ByteRange | None = None,
        *,
        version: str | None = None,
        size: int | None = None,
        on_start: OnStart | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield exactly the bytes of `span`, or of the whole object, as :meth:`Store.stream` does.

        Raises:
            IntegrityError: If the object does not match its digest.
        """
        self._prepare_call(path)
        if path not in self._digests or (span is not None and span.start == span.end):
            pieces = self.inner.stream(path, span, version=version, size=size, on_start=on_start)
        elif span is None or span == ByteRange():
            pieces = self._stream_whole(path, version, size, on_start)
        else:
            pieces = self._stream_span(path, span, version, size, on_start)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _stream_whole(
        self, path: str, version: str | None, size: int | None, on_start: OnStart | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield an object; its last piece only after all of it was verified."""
        infos: list[ObjectInfo] = []

        def handle_start(info: ObjectInfo, start: int) -> None:
            infos.append(info)
            if on_start is not None:
                on_start(info, start)

        algorithm, expected = self._digests[path]
        hasher = _make_hasher(algorithm)
        last_piece, count = b"", 0
        inner = self.inner.stream(path, version=version, size=size, on_start=handle_start)
        async with contextlib.aclosing(inner) as pieces:
            async for piece in pieces:
                if last_piece:
                    yield last_piece
                last_piece = piece
                count += len(piece)
                hasher.update(piece)
        if hasher.digest() != expected:
            if isinstance(self.inner, CachingStore) and infos and infos[-1].version is not None:
                await self.inner.forget(path, infos[-1].version)
            address = self.address(path)
            raise IntegrityError(
                f"{address} does not match its digest: the {algorithm} of its {count} bytes is not the expected one. "
                "Fetch or write the object again, or correct the digest",
                address=address,
                offset=0,
                size=count,
            )
        if infos and infos[-1].version is not None:
            self._verified[path] = infos[-1].version
        if last_piece:
            yield last_piece

    async def _stream_span(
        self, path: str, span: ByteRange, version: str | None, size: int | None, on_start: OnStart | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield a span of an object that was verified as a whole."""
        if version is None:
            version = (await self.inner.head(path)).version
        if version is None:
            if data := await self._read_span_of_whole(path, span, size, on_start):
                yield data
            return
        if self._verified.get(path) != version:
            await self._single_flight.do((path, version), lambda: self._verify_whole(path, version, size))
        inner = self.inner.stream(path, span, version=version, size=size, on_start=on_start)
        async with contextlib.aclosing(inner) as pieces:
            async for piece in pieces:
                yield piece

    async def _verify_whole(self, path: str, version: str, size: int | None) -> None:
        if self._verified.get(path) != version:
            async with contextlib.aclosing(self._stream_whole(path, version, size, None)) as pieces:
                async for _ in pieces:
                    pass

    async def _read_span_of_whole(
        self, path: str, span: ByteRange, size: int | None, on_start: OnStart | None
    ) -> bytes:
        """Return a span of an object without a version, from a single read: a second one might see another object."""
        infos: list[ObjectInfo] = []
        data, offset = bytearray(), 0
        whole = self._stream_whole(path, None, size, lambda info, _: infos.append(info))
        async with contextlib.aclosing(whole) as pieces:
            async for piece in pieces:
                if span.start < 0:
                    data += piece
                    del data[: span.start]
                else:
                    end = len(piece) if span.end is None else max(0, span.end - offset)
                    data += piece[max(0, span.start - offset) : end]
                offset += len(piece)
        start, _ = span.within(offset, self.address(path))
        if on_start is not None:
            on_start(infos[-1], start)
        return bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out verified versions: the copy verifies for itself."""
        return {**super().__getstate__(), "_verified": {}}


def _parse_digest(digest: str, path: str) -> tuple[str, bytes]:
    """Return algorithm and value of a digest."""
    problem = f"{digest!r}, given for {path}, is not a digest: write 'sha256:<hex>' or 'sha256-<base64>'"
    if prefixed := _PREFIXED_DIGEST.fullmatch(digest):
        algorithm = prefixed[1].lower()
        try:
            value = bytes.fromhex(prefixed[2])
        except ValueError as error:
            raise ConfigError(problem) from error
    elif integrity := _SRI_DIGEST.fullmatch(digest):
        algorithm = integrity[1]
        try:
            value = base64.b64decode(integrity[2], validate=True)
        except binascii.Error as error:
            raise ConfigError(problem) from error
    else:
        raise ConfigError(problem)
    if algorithm not in _HASHLIB_ALGORITHMS and algorithm != "blake3":
        raise ConfigError(f"{problem}; supported algorithms: blake3, {', '.join(sorted(_HASHLIB_ALGORITHMS))}")
    length = len(_make_hasher(algorithm).digest())
    if len(value) != length:
        raise ConfigError(f"{problem}: {algorithm} has {length} bytes, but this digest has {len(value)}")
    return algorithm, value


def _make_hasher(algorithm: str) -> _Hasher:
    if algorithm != "blake3":
        return hashlib.new(algorithm, usedforsecurity=False)
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingDependency("digests with blake3 need a package: pip install streamloader[ipfs]") from error
    hasher: _Hasher = blake3()
    return hasher
