"""Store for S3 and compatible services, Google Cloud Storage and Azure Blob Storage."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar

from typing_extensions import override

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolError,
    StoreError,
    StreamloaderError,
    Unreachable,
)
from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.objects.access import describe_access
from streamloader.stores.objects.config import ObjectStoreConfig
from streamloader.stores.objects.credentials import CredentialSource, StaticCredentials
from streamloader.stores.objects.errors import (
    RangeOutsideObject,
    may_be_expired,
    may_be_other_region,
    obstore_errors,
    translate_error,
)
from streamloader.stores.objects.fork_safety import SHUTDOWN_GRACE_S, get_obstore, leak_on_purpose
from streamloader.stores.objects.network import find_server_address
from streamloader.stores.objects.upload import PART_BYTES, run_with_deadline, split_data, upload_in_parts
from streamloader.values import ByteRange, ObjectInfo

if TYPE_CHECKING:
    from streamloader.stores.http.address_scope import PinnedHosts

__all__ = ["ObjectStore"]

_log: Final = logging.getLogger("streamloader")

T = TypeVar("T")

_ENTRIES_PER_PAGE: Final = 1000  # of a listing, fetched in one request
_INVALID_KEY: Final = "InvalidKey"
_MAX_REGION_BYTES: Final = 1 << 10  # of a response of which only the headers are used
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
_MAX_PIECE_BYTES: Final = 1 << 20
_MAX_VERSION_CHARACTERS: Final = 1024  # of an ETag that is kept as it is
_ETAG: Final = re.compile(r"[\x21\x23-\x7e\x80-\xff]*")  # RFC 9110; in a listing, servers can send anything
# Pause before a listing is dropped. Dropping it while its last request is ending would lose a connection.
_LISTING_GRACE_S: Final = 0.005


class ObjectStore(Store):
    """Objects in ``s3://bucket``, ``gs://bucket`` or ``az://container``. Paths are keys, taken literally.

    Versions are ETags. A read with a version makes the server check that version. Large objects are written in parts
    and appear when the last part has arrived. An upload that fails or is cancelled is aborted. A process that is killed
    leaves parts on the server, which are invisible but cost storage; a lifecycle rule for incomplete uploads removes
    them.

    Keys with empty parts (``a//b``, ``a/``), with "." or ".." as a part, or with control characters are not supported;
    listings leave them out, with a warning that names one of them. Objects whose key ends in "/", which consoles
    create for empty directories, are not listed. A non-recursive listing is fetched completely before its first entry
    is yielded.

    Redirects to another server are refused. The store connects to the server of the bucket only, and to those that give
    it credentials (:mod:`streamloader.stores.objects.network`). A plain ``http://`` server by name is used under the
    address that the name had at first.

    A forked child loads its own copy of obstore, because obstore's threads do not survive a fork. This works on Linux
    only; on other systems it is an error.

    Args:
        url: Scheme and bucket.
        endpoint_url: Address of the server, if it is not the provider's own. Plain ``http://`` is used only if it is
            written here or in the environment variable. Defaults to: s3: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or the
            profile's endpoint; gs: STORAGE_EMULATOR_HOST; az: AZURE_STORAGE_ENDPOINT.
        anonymous: Whether requests are sent without credentials, for public data. Defaults to False.
        region: Region (s3). Defaults to AWS_REGION, AWS_DEFAULT_REGION, the profile's region, or us-east-1.
        profile: Profile (s3) of ``~/.aws/config`` and ``~/.aws/credentials``. Keys and the output of
            ``credential_process`` are refreshed before they expire. Roles and single sign-on need boto3. Without any
            option, the credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity or container,
            AWS_PROFILE or the default profile, or the machine's metadata service, in this order. The last one is used
            for Amazon's own servers, and for others only if AWS_EC2_METADATA_SERVICE_ENDPOINT names it, or with
            AWS_EC2_METADATA_DISABLED=false.
        access_key_id: Access key (s3). Needs `secret_access_key`.
        secret_access_key: Secret key (s3) of `access_key_id`.
        session_token: Session token (s3) of `access_key_id`, for temporary credentials.
        token: Bearer token (gs, az; OAuth).
        service_account: Path of a JSON key file (gs). Defaults to GOOGLE_APPLICATION_CREDENTIALS, the login of gcloud,
            or the metadata service (for a server other than Google's only if GCE_METADATA_HOST names it).
        account_name: Storage account (az). Defaults to AZURE_STORAGE_ACCOUNT_NAME.
        account_key: Key of the account (az). Defaults to AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_KEY.
        sas_token: Shared access signature (az).
        connection_string: Connection string (az). Defaults to AZURE_STORAGE_CONNECTION_STRING.
        credential_provider: Function or coroutine function that returns a dict with ``expires_at`` (a datetime with
            time zone, or None) and: s3 ``access_key_id``, ``secret_access_key``, ``token``; gs ``token``; az one of
            ``access_key``, ``sas_token``, ``token``. It is called again before the credentials expire, and must be
            picklable if worker processes use the store.
        ca_file: PEM file of certificate authorities that are trusted besides those of the system. Defaults to that of
            AWS_CA_BUNDLE (s3), SSL_CERT_FILE, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE.
        config: Further settings for obstore's S3Config, GCSConfig or AzureConfig (requester pays, encryption, ...).
        client_options: Further settings for obstore's ClientConfig (own root certificate, ...). With a ``proxy_url`` of
            your own, that proxy decides about redirects. A plain ``http://`` server that refuses requests with its full
            address (the form for proxies) needs ``{"proxy_url": "http://127.0.0.1:0", "proxy_excludes": "its.host"}``.
        timeouts: Time limits; see :class:`streamloader.config.Timeouts`.
        limits: Size limits; see :class:`streamloader.config.Limits`. Each request uses one connection, so the lower one
            of `requests` and `connections` applies.

    Raises:
        ConfigError: If options are missing, unknown, or exclude each other.
        MissingDependency: If the package obstore is not installed.
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
        ca_file: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
        client_options: Mapping[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        limits = replace(limits, requests=min(limits.requests, limits.connections))
        super().__init__(url, timeouts=timeouts, limits=limits)
        scheme, _, bucket = url.partition("://")
        if not bucket or set(bucket) & set("/@:?#"):  # the configuration checks the rest
            raise ConfigError(f"{self.url} names no bucket: write {scheme}://bucket/path; credentials are options")
        self._config = ObjectStoreConfig(
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
            ca_file=None if ca_file is None else os.fspath(ca_file),
            config=dict(config or {}),
            client_options=dict(client_options or {}),
        )
        self.identity = self._config.identity
        self._pinned_hosts: PinnedHosts = {}  # outlives the client
        self._client: Any = None
        self._credentials: CredentialSource | None = None
        self._provider: Any = None
        self._client_pid = 0  # process that made the client
        self._needs_grace = False  # whether a request was cancelled or a listing fetched

    @override
    def describe_access(self) -> StoreAccess:
        return describe_access(self._config)

    async def _head(self, path: str) -> ObjectInfo:
        return _make_info(path, await self._request(path, 0, lambda obstore, client: obstore.head_async(client, path)))

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        if span is not None and span.start < 0 and self._config.scheme == "az":  # Azure has no suffix ranges
            info = await self._head(path)
            start, end = span.within(info.size or 0, self.address(path))
            if start == end:
                yield _empty_body(info, start)
                return
            span, version = ByteRange(start, end), version or info.version
        options: dict[str, Any] = {}
        if span is not None and span.start < 0:
            options["range"] = {"suffix": -span.start}
        elif span is not None and (span.start or span.end is not None):
            options["range"] = {"offset": span.start} if span.end is None else (span.start, span.end)
        if (etag := _strong_etag(version)) is not None:
            options["if_match"] = etag
        offset = max(0, span.start) if span is not None else 0
        try:
            result = await self._request(
                path, offset, lambda obstore, client: obstore.get_async(client, path, options=options), is_read=True
            )
        except RangeOutsideObject:
            result = None
        if result is None:
            yield await self._resolve_outside_range(path, span or ByteRange())
            return
        try:
            info, (start, end) = _make_info(path, result.meta), result.range
        except (ValueError, OverflowError) as error:  # its date is outside Python's range
            self._raise_translated(error, path, offset)
        yield Body(info, start, end, self._receive(result, path, start))

    async def _resolve_outside_range(self, path: str, span: ByteRange) -> Body:
        """Return an empty body if the range is at the very end of the object; otherwise raise the error for it."""
        info = await self._head(path)
        start, end = span.within(info.size or 0, self.address(path))
        if start == end:
            return _empty_body(info, start)
        raise ProtocolError(
            f"{self.address(path)}: the server has bytes {span}, but answered that it does not (status 416)",
            address=self.address(path),
            offset=start,
        )

    async def _receive(self, result: Any, path: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a response from `offset` on."""
        # On a slow line, larger pieces would arrive less often than once per window and look like a stalled transfer.
        min_piece_bytes = int(min(_MAX_PIECE_BYTES, max(1.0, self.timeouts.min_rate * self.timeouts.window)))
        stream = result.stream(min_piece_bytes)
        try:
            while True:
                try:
                    piece: bytes = await self._await_obstore(anext(stream))
                except StopAsyncIteration:
                    return
                except obstore_errors() as error:
                    self._raise_translated(error, path, offset, body=True)
                yield piece
                offset += len(piece)
        finally:
            del stream, result  # a traceback may keep this frame, and would keep the connection with it

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        key_prefix = f"{prefix}/" if prefix else ""
        if not recursive:
            try:
                result = await self._request(
                    prefix, None, lambda obstore, client: obstore.list_with_delimiter_async(client, prefix or None)
                )
            except NotSupported as error:
                if error.details.get("code") != _INVALID_KEY or not self._can_list_raw():
                    raise
                result = {"common_prefixes": [], "objects": []}
                async with contextlib.aclosing(self._list_raw(prefix, recursive=False)) as pages:
                    async for metas, directories in pages:
                        result["objects"] += metas
                        result["common_prefixes"] += directories
            for directory in result["common_prefixes"]:
                yield ObjectInfo(f"{directory}/")
            for meta in result["objects"]:
                if meta["path"].startswith(key_prefix) and (meta["size"] or await self._object_exists(meta["path"])):
                    yield _make_info(meta["path"], meta)
            return
        async with contextlib.aclosing(self._list_pages(prefix)) as pages:
            async for page in pages:
                for meta in page:
                    # An empty object may stand for a directory: obstore drops the "/" at the end of its key.
                    is_listed = meta["path"].startswith(key_prefix)
                    if is_listed and (meta["size"] or await self._object_exists(meta["path"])):
                        yield _make_info(meta["path"], meta)

    async def _list_pages(self, prefix: str) -> AsyncGenerator[list[Any], None]:
        last = ""  # keys are listed in their order
        renewed_after: str | None = None
        while True:
            client = await self._get_client()
            client_id = id(client)
            stream = get_obstore().list(client, prefix or None, chunk_size=_ENTRIES_PER_PAGE)
            self._needs_grace = True
            try:
                while True:
                    try:
                        page: list[Any] = await self._await_obstore(anext(stream))
                    except StopAsyncIteration:
                        return
                    except obstore_errors() as error:
                        if isinstance(error, get_obstore().exceptions.InvalidPathError) and self._can_list_raw():
                            async with contextlib.aclosing(self._list_raw(prefix, recursive=True)) as pages:
                                async for metas, _ in pages:
                                    yield [meta for meta in metas if meta["path"] > last]
                            return
                        if last == renewed_after or not await self._renew_client(error, client_id):
                            self._raise_translated(error, prefix, None)
                        renewed_after = last
                        break
                    if page := [meta for meta in page if meta["path"] > last]:
                        yield page
                        last = page[-1]["path"]
            finally:
                await asyncio.sleep(_LISTING_GRACE_S)
                del stream, client

    def _can_list_raw(self) -> bool:
        return self._config.scheme == "s3" and (self._config.anonymous or self._credentials is not None)

    async def _list_raw(
        self, prefix: str, *, recursive: bool
    ) -> AsyncGenerator[tuple[list[dict[str, Any]], list[str]], None]:
        """List a bucket with keys that obstore cannot represent."""
        from streamloader.stores.http.store import HttpStore
        from streamloader.stores.objects.raw_listing import list_raw

        settings = self._config.find_settings()
        region = str(self._config.config.get("region") or settings.config.get("region") or "us-east-1")
        credentials = None if self._credentials is None or self._config.anonymous else await self._credentials()
        async with HttpStore(
            settings.endpoint, anonymous=True, ca_file=self._config.ca_file, timeouts=self.timeouts
        ) as server:
            pages = list_raw(
                server,
                self._config.bucket,
                region,
                credentials,
                f"{prefix}/" if prefix else "",
                recursive=recursive,
                max_seconds=self.timeouts.response + self.timeouts.window,
            )
            async with contextlib.aclosing(pages):
                async for page in pages:
                    yield page

    async def _object_exists(self, path: str) -> bool:
        """Return whether there is an object of this key, as far as the server says so."""
        try:
            await self._head(path)
        except NotFound:
            return False
        except StoreError as error:
            if error.transient:
                raise
        return True

    async def _write(self, path: str, data: Data) -> None:
        rest = split_data(data)
        size = memoryview(data).nbytes if isinstance(data, (bytes, bytearray, memoryview)) else None
        pieces: list[memoryview | bytes] = []
        async with contextlib.aclosing(rest):  # type: ignore[type-var]
            first_bytes = 0
            async for piece in rest:
                pieces.append(piece)
                first_bytes += len(piece)
                if first_bytes > PART_BYTES or (size is not None and size > PART_BYTES):
                    break
            first = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            seconds = self.timeouts.connect + self.timeouts.response + self.timeouts.window
            address = self.address(path)

            def send(obstore: Any, client: Any) -> Awaitable[Any]:
                if len(first) <= PART_BYTES and (size is None or size <= PART_BYTES):
                    sending = obstore.put_async(client, path, first, use_multipart=False)
                    return run_with_deadline(sending, seconds, address, "uploading")
                return upload_in_parts(
                    obstore, client, path, first, rest, size=size, timeouts=self.timeouts, address=address
                )

            is_whole = len(first) <= PART_BYTES and (size is None or size <= PART_BYTES)  # nothing of `rest` is sent
            await self._request(path, None, send, repeatable=is_whole)

    async def _delete(self, path: str) -> None:
        try:
            await self._request(path, None, lambda obstore, client: obstore.delete_async(client, path))
        except NotFound as error:
            if str(error.details.get("code")) in ("NoSuchBucket", "ContainerNotFound"):
                raise

    async def _disconnect(self) -> None:
        if self._needs_grace:
            await asyncio.sleep(SHUTDOWN_GRACE_S)  # cancelled requests still notify this loop when they end
        self._client = None
        self._credentials = None

    def _drop_connections(self) -> None:
        if self._client is not None and self._client_pid != os.getpid():
            leak_on_purpose((self._client, self._credentials))
        self._client = None
        self._credentials = None
        self._needs_grace = False

    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        super()._check_path(path, allow_empty=allow_empty)
        if path.endswith("/") or "//" in path:
            raise ConfigError(f"{path!r} is not a supported key: it has an empty part")

    async def _get_client(self) -> Any:
        """Return obstore's store object, creating it in this process if necessary."""
        if self._client is None:
            settings = self._config.find_settings()
            server_address = await find_server_address(settings.endpoint, self._pinned_hosts, self.url)
            if self._client is None:  # unless another task has created it
                self._provider = settings.provider
                self._client, self._credentials = self._config.create_client(settings, server_address, self.timeouts)
                self._client_pid = os.getpid()
        return self._client

    async def _request(
        self,
        path: str,
        offset: int | None,
        send: Callable[[Any, Any], Awaitable[T]],
        *,
        is_read: bool = False,
        repeatable: bool = True,
    ) -> T:
        """Send a request and translate its errors.

        Args:
            path: Path of the object for messages.
            offset: Offset of the first requested byte for messages, or None.
            send: Function that sends the request, given the package obstore and the client.
            is_read: Whether RangeOutsideObject is an answer that the caller expects. Defaults to False.
            repeatable: Whether `send` may be called twice. Defaults to True.
        """
        client_id = 0
        try:
            client_id = id(await self._get_client())
            # Kept in no variable, because the traceback of an error that the caller keeps would hold the connection.
            return await self._await_obstore(send(get_obstore(), await self._get_client()))
        except StreamloaderError:
            raise
        except obstore_errors() as error:
            if not await self._renew_client(error, client_id) or not repeatable:
                self._raise_translated(error, path, offset, is_read=is_read)
        try:
            return await self._await_obstore(send(get_obstore(), await self._get_client()))
        except StreamloaderError:
            raise
        except obstore_errors() as error:
            self._raise_translated(error, path, offset, is_read=is_read)

    async def _renew_client(self, error: BaseException, client_id: int) -> bool:
        """Replace the client if the error shows that its region or its credentials are not the right ones any more.

        Args:
            error: Exception of obstore.
            client_id: Identity of the client that sent the request. Another one has been renewed already.

        Returns:
            Whether the request may be repeated.
        """
        if self._config.scheme != "s3" or (not may_be_expired(error) and not may_be_other_region(error)):
            return False
        if id(self._client) == client_id:
            region = await self._find_region() if may_be_other_region(error) else None
            if id(self._client) == client_id:  # no other task has renewed it
                if region is not None and region != self._config.region:
                    _log.warning("%s is in the region %s, which is used from now on: pass region=", self.url, region)
                    self._config = replace(self._config, region=region)
                elif not may_be_expired(error) or isinstance(self._provider, StaticCredentials):
                    return False
                self._client = None  # the next one calls the provider of credentials again
        return True

    async def _find_region(self) -> str | None:
        """Return the region of the bucket as its server states it to anybody, or None."""
        from streamloader.stores.http.document import DocumentRequest
        from streamloader.stores.http.store import HttpStore

        endpoint = self._config.find_settings().endpoint
        request = DocumentRequest({}, _MAX_REGION_BYTES, self.timeouts.response, tuple(range(200, 600)), truncates=True)
        async with HttpStore(
            endpoint,
            anonymous=True,
            ca_file=self._config.ca_file,
            timeouts=self.timeouts,
            limits=Limits(redirects=0),
        ) as server:
            try:
                document = await server.fetch_document(self._config.bucket, request)
            except StoreError:
                return None
        region = document.headers.get("x-amz-bucket-region", "").strip()
        return region if _REGION.fullmatch(region) else None

    async def _await_obstore(self, request: Awaitable[T]) -> T:
        """Await `request`, and record whether it was cancelled."""
        try:
            return await request
        except asyncio.CancelledError:
            self._needs_grace = True
            raise

    def _raise_translated(
        self, error: BaseException, path: str, offset: int | None, *, body: bool = False, is_read: bool = False
    ) -> NoReturn:
        """Raise the error of this package. The original is not chained, because its text contains secrets."""
        credentials = self._credentials
        secrets = (*self._config.secrets, *(credentials.secrets if credentials else ()))
        if credentials is not None and credentials.error is not None:
            cause, credentials.error = credentials.error, None
            if isinstance(cause, StreamloaderError):
                raise cause
            raise AccessDenied(
                f"no credentials for {self.address(path)}: the credential provider raised {type(cause).__name__}",
                address=self.address(path),
            ) from None
        if isinstance(error, get_obstore().exceptions.InvalidPathError):
            raise NotSupported(
                f"{self.address(path)} cannot be listed, because it has keys with control characters or empty parts "
                "('//'): list directories without such keys, or rename them",
                address=self.address(path),
                code=_INVALID_KEY,
            ) from None
        translated = translate_error(error, self.address(path), secrets, offset=offset, body=body)
        if isinstance(translated, Unreachable) and self._pinned_hosts:
            self._client = None  # the next request resolves the server's name again
        if isinstance(translated, RangeOutsideObject) and not is_read:
            raise ProtocolError(
                f"{self.address(path)}: the server refused a range (status 416), but none was requested",
                address=self.address(path),
            ) from None
        raise translated from None


def _empty_body(info: ObjectInfo, offset: int) -> Body:
    return Body(info, offset, offset, _no_bytes())


async def _no_bytes() -> AsyncGenerator[bytes, None]:
    return
    yield b""


def _make_info(path: str, meta: Any) -> ObjectInfo:
    modified = meta["last_modified"].timestamp()
    etag = meta["e_tag"]
    if etag and len(etag) > _MAX_VERSION_CHARACTERS:
        version = "~" + hashlib.sha256(etag.encode("utf-8", "surrogatepass")).hexdigest()
    elif etag and not etag.startswith("W/"):
        version = etag.strip('"')  # some servers do not quote it in listings
    else:
        version = etag or f"~{meta['size']:x}-{int(modified * 1e6):x}"
    return ObjectInfo(path, meta["size"], version, modified)


def _strong_etag(version: str | None) -> str | None:
    """Return the ETag for If-Match, or None if the version is not an ETag that servers compare exactly."""
    if version is None or version.startswith(("W/", "~")) or _ETAG.fullmatch(version) is None:
        return None
    return f'"{version}"'
