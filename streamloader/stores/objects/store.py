"""Object storage: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, NoReturn, TypeVar

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolFault,
    StreamloaderError,
)
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.objects.config import Access, Credentials
from streamloader.stores.objects.errors import OutsideObject, foreign, translated
from streamloader.stores.objects.fork_safety import SETTLING, library, never_free
from streamloader.stores.objects.upload import PART, pieces_of, upload, within
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["ObjectStore"]

T = TypeVar("T")

_PAGE: Final = 1000  # entries of a listing that are fetched in one request
_LET_GO: Final = 0.005  # seconds
_CHUNK: Final = 1 << 20  # bytes that are handed over at once, at most by our choice


class ObjectStore(Store):
    """``s3://bucket``, ``gs://bucket`` or ``az://container``. Paths are keys, taken literally.

    Versions are ETags: every read that names one asks the server for just this one. Large objects are written in
    parts, and appear when the last one has arrived; an upload that fails or is cancelled is taken back. (A process
    that is killed leaves parts that nobody sees but the bill: a lifecycle rule for incomplete uploads removes them.)

    Keys with empty parts (``a//b``, ``a/``), with "." or ".." as a part, or with control characters cannot be named,
    and a directory that has one cannot be listed. Objects whose key ends in "/", which consoles make for empty
    directories, are left out where anything lies in them. A listing that is not recursive is taken in one go.

    In a forked child a copy of the library is loaded (Linux; elsewhere that is an error), as its threads do not
    survive a fork.

    Args:
        url: scheme and bucket.
        endpoint_url: another server than the provider's own. Plain ``http://`` is used if and only if it is written
            here (or in the variable). s3: else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or the profile's;
            gs: STORAGE_EMULATOR_HOST; az: AZURE_STORAGE_ENDPOINT.
        anonymous: send no credentials: for what is public.
        region: s3; else AWS_REGION, AWS_DEFAULT_REGION, the profile's, or us-east-1.
        profile: s3; of ``~/.aws/config`` and ``~/.aws/credentials``. Keys and ``credential_process`` are read anew
            before they run out; roles and single sign-on need boto3. Without any option credentials are looked for
            in AWS_ACCESS_KEY_ID and so on, a web identity or container, AWS_PROFILE or the default profile, and the
            machine's metadata service.
        access_key_id: s3, with `secret_access_key` and perhaps `session_token`.
        secret_access_key: s3.
        session_token: s3.
        token: gs and az; a bearer token (OAuth).
        service_account: gs; path of a JSON key file. Else GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or the
            metadata service.
        account_name: az; else AZURE_STORAGE_ACCOUNT_NAME.
        account_key: az; else AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_KEY.
        sas_token: az; a shared access signature.
        connection_string: az; else AZURE_STORAGE_CONNECTION_STRING.
        credential_provider: a function or coroutine function (one that can be pickled, for worker processes) that
            returns a dict with ``expires_at`` (a datetime with time zone, or None) and: s3 ``access_key_id``,
            ``secret_access_key``, ``token``; gs ``token``; az one of ``access_key``, ``sas_token``, ``token``. It is
            asked again before they run out.
        config: further settings of obstore's S3Config, GCSConfig or AzureConfig (requester pays, encryption, ...).
        client_options: further settings of obstore's ClientConfig (proxy, own root certificate, ...).
        timeouts: see :class:`streamloader.config.Timeouts`.
        limits: see :class:`streamloader.config.Limits`. A request takes a connection, so the lower one of both counts.

    Raises:
        ConfigError: options that make no sense.
        MissingExtra: the package obstore is not installed.
    """

    schemes: ClassVar[tuple[str, ...]] = ("s3", "gs", "az")

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        anonymous: bool = False,
        region: str | None = None,
        profile: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        token: str | None = None,
        service_account: str | None = None,
        account_name: str | None = None,
        account_key: str | None = None,
        sas_token: str | None = None,
        connection_string: str | None = None,
        credential_provider: Callable[[], Any] | None = None,
        config: Mapping[str, Any] | None = None,
        client_options: Mapping[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        limits = replace(limits, requests=min(limits.requests, limits.connections))
        super().__init__(url, timeouts=timeouts, limits=limits)
        scheme, _, bucket = url.partition("://")
        if not bucket or set(bucket) & set("/@:?#"):
            raise ConfigError(f"{self.url} names no bucket: write {scheme}://bucket/path; credentials are options")
        self._access = Access(
            scheme=scheme.lower(),
            bucket=bucket,
            endpoint_url=endpoint_url,
            anonymous=anonymous,
            region=region,
            profile=profile,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            session_token=session_token,
            token=token,
            service_account=service_account,
            account_name=account_name,
            account_key=account_key,
            sas_token=sas_token,
            connection_string=connection_string,
            credential_provider=credential_provider,
            config=dict(config or {}),
            client_options=dict(client_options or {}),
        )
        self.realm = self._access.realm
        self._client: Any = None
        self._credentials: Credentials | None = None
        self._pid = 0  # of the process in which they were made
        self._restless = False  # a request was cancelled, or a listing taken

    async def _head(self, path: str) -> ObjectInfo:
        return _info(path, await self._ask(path, 0, lambda it, client: it.head_async(client, path)))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        if span is not None and span.start < 0 and self._access.scheme == "az":  # which has no suffix ranges
            info = await self._head(path)
            start, end = span.within(info.size or 0, self.address(path))
            if start == end:
                yield _empty(info, start)
                return
            span, version = ByteRange(start, end), version or info.version
        options: dict[str, Any] = {}
        if span is not None and span.start < 0:
            options["range"] = {"suffix": -span.start}
        elif span is not None and (span.start or span.end is not None):
            options["range"] = {"offset": span.start} if span.end is None else (span.start, span.end)
        if (tag := _tag(version)) is not None:
            options["if_match"] = tag
        offset = max(0, span.start) if span is not None else 0
        try:
            result = await self._ask(path, offset, lambda it, client: it.get_async(client, path, options=options))
        except OutsideObject:
            result = None
        if result is None:
            yield await self._outside(path, span or ByteRange())
            return
        info, (start, end) = _info(path, result.meta), result.range
        yield Body(info, start, end, self._chunks(result, path, start))

    async def _outside(self, path: str, span: ByteRange) -> Body:
        """Say what it means that there are no such bytes: asked for is the very end, or what lies behind it."""
        info = await self._head(path)
        start, end = span.within(info.size or 0, self.address(path))
        if start == end:
            return _empty(info, start)
        raise ProtocolFault(
            f"{self.address(path)}: the server has bytes {span} and says that it has not (416)",
            address=self.address(path),
            offset=start,
        )

    async def _chunks(self, result: Any, path: str, at: int) -> AsyncGenerator[bytes, None]:
        # Larger pieces would hide for longer than a window that bytes come, if slowly.
        least = int(min(_CHUNK, max(1.0, self.timeouts.min_rate * self.timeouts.window)))
        stream = result.stream(least)
        while True:
            try:
                chunk: bytes = await self._asked(anext(stream))
            except StopAsyncIteration:
                return
            except foreign() as error:
                del stream, result
                self._raise(error, path, at, body=True)
            yield chunk
            at += len(chunk)

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        under = f"{prefix}/" if prefix else ""
        if not recursive:
            found = await self._ask(
                prefix, None, lambda it, client: it.list_with_delimiter_async(client, prefix or None)
            )
            for folder in found["common_prefixes"]:
                yield ObjectInfo(f"{folder}/")
            for meta in found["objects"]:
                if meta["path"].startswith(under):
                    yield _info(meta["path"], meta)
            return
        held: ObjectInfo | None = None
        async with contextlib.aclosing(self._pages(prefix)) as pages:
            async for page in pages:
                for meta in page:
                    info = _info(meta["path"], meta)
                    if held is not None:
                        if not info.path.startswith(f"{held.path}/") or await self._is_object(held.path):
                            yield held
                        held = None
                    if not info.path.startswith(under):
                        continue
                    if info.size:
                        yield info
                    else:
                        held = info  # an object, or the mark of a directory: what comes next tells
        if held is not None:
            yield held

    async def _pages(self, prefix: str) -> AsyncGenerator[list[Any], None]:
        stream = library().list(self._connected(), prefix or None, chunk_size=_PAGE)
        self._restless = True
        try:
            while True:
                try:
                    page: list[Any] = await self._asked(anext(stream))
                except StopAsyncIteration:
                    return
                except foreign() as error:
                    self._raise(error, prefix, None)
                yield page
        finally:
            await asyncio.sleep(_LET_GO)  # dropped while its last request still ends, it would lose a connection
            del stream

    async def _is_object(self, path: str) -> bool:
        try:
            await self._head(path)
        except NotFound:
            return False
        return True

    async def _write(self, path: str, data: Data) -> None:
        rest = pieces_of(data)
        size = memoryview(data).nbytes if isinstance(data, (bytes, bytearray, memoryview)) else None
        parts: list[memoryview | bytes] = []
        async with contextlib.aclosing(rest):  # type: ignore[type-var]
            held = 0
            async for piece in rest:
                parts.append(piece)
                held += len(piece)
                if held > PART or (size is not None and size > PART):
                    break
            first = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            seconds = self.timeouts.connect + self.timeouts.response + self.timeouts.window
            address = self.address(path)

            def send(it: Any, client: Any) -> Awaitable[Any]:
                if len(first) <= PART and (size is None or size <= PART):
                    sending = it.put_async(client, path, first, use_multipart=False)
                    return within(sending, seconds, address, "uploading")
                return upload(it, client, path, first, rest, size=size, timeouts=self.timeouts, address=address)

            await self._ask(path, None, send)

    async def _delete(self, path: str) -> None:
        try:
            await self._ask(path, None, lambda it, client: it.delete_async(client, path))
        except NotFound as error:
            if str(error.details.get("code")) in ("NoSuchBucket", "ContainerNotFound"):
                raise

    async def _disconnect(self) -> None:
        if self._restless:
            await asyncio.sleep(SETTLING)  # what was cancelled still wants to tell this loop that it has ended
        self._client = None
        self._credentials = None

    def _forget(self) -> None:
        if self._client is not None and self._pid != os.getpid():
            never_free((self._client, self._credentials))
        self._client = None
        self._credentials = None
        self._restless = False

    def _check_path(self, path: str, *, empty: bool) -> None:
        super()._check_path(path, empty=empty)
        if path.endswith("/") or "//" in path:
            raise ConfigError(f"{path!r} is no key that can be named: it has an empty part")

    def _connected(self) -> Any:
        """Return obstore's store, made in this process."""
        if self._client is None:
            self._client, self._credentials = self._access.connect(self.timeouts)
            self._pid = os.getpid()
        return self._client

    async def _ask(self, path: str, offset: int | None, request: Callable[[Any, Any], Awaitable[T]]) -> T:
        """Make a request and turn its errors into ours."""
        try:
            # Kept in no variable: an error that somebody holds, with its traceback, would hold connections.
            return await self._asked(request(library(), self._connected()))
        except StreamloaderError:
            raise
        except foreign() as error:
            self._raise(error, path, offset)

    async def _asked(self, request: Awaitable[T]) -> T:
        try:
            return await request
        except asyncio.CancelledError:
            self._restless = True
            raise

    def _raise(self, error: BaseException, path: str, offset: int | None, *, body: bool = False) -> NoReturn:
        """Raise the error of ours; not from the foreign one, whose text tells more than it should."""
        given = self._credentials
        secrets = (*self._access.secrets, *(given.secrets if given else ()))
        if given is not None and given.problem is not None:
            problem, given.problem = given.problem, None
            if isinstance(problem, StreamloaderError):
                raise problem
            raise AccessDenied(
                f"no credentials for {self.address(path)}: what should give them raised {type(problem).__name__}",
                address=self.address(path),
            ) from None
        if isinstance(error, library().exceptions.InvalidPathError):
            raise NotSupported(
                f"{self.address(path)} has keys with control characters or empty parts ('//'), so that it cannot be "
                "listed: list directories that have none, or rename those",
                address=self.address(path),
            ) from None
        raise translated(error, self.address(path), secrets, offset=offset, body=body) from None


def _empty(info: ObjectInfo, at: int) -> Body:
    return Body(info, at, at, _nothing())


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


def _info(path: str, meta: Any) -> ObjectInfo:
    changed = meta["last_modified"].timestamp()
    tag = meta["e_tag"]
    if tag and not tag.startswith("W/"):
        version = tag.strip('"')  # servers differ in whether they quote it in listings
    else:
        version = tag or f"~{meta['size']:x}-{int(changed * 1e6):x}"
    return ObjectInfo(path, meta["size"], version, changed)


def _tag(version: str | None) -> str | None:
    """Return what to ask a server for that has ETags which it compares: not weak ones."""
    if version is None or version.startswith(("W/", "~")):
        return None
    return f'"{version}"'
