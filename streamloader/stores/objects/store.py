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
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from typing_extensions import override

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolError,
    StoreError,
)
from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, Data, Store
from streamloader.stores.http.responses import ErrorContext
from streamloader.stores.listing_budget import ListingBudget
from streamloader.stores.objects.access import describe_access
from streamloader.stores.objects.config import ObjectStoreConfig
from streamloader.stores.objects.connection import ObjectConnection, Unexplained
from streamloader.stores.objects.errors import (
    RangeOutsideObject,
    obstore_errors,
)
from streamloader.stores.objects.fork_safety import get_obstore
from streamloader.stores.objects.listing import KeyPage
from streamloader.stores.objects.s3_client import (
    ObjectResponse,
    can_upload,
)
from streamloader.stores.objects.s3_upload import PartRequest, UploadResponse, upload_parts
from streamloader.stores.objects.upload import (
    MAX_PARTS_IN_FLIGHT,
    PART_BYTES,
    run_with_deadline,
    split_data,
    upload_in_parts,
)
from streamloader.stores.wrappers.retry import call_with_retries
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["ObjectStore"]

_log: Final = logging.getLogger("streamloader")

_ENTRIES_PER_PAGE: Final = 1000  # of a listing, fetched in one request
# Ends of paths that name one version of an object. Such ids are texts of digits, letters and a few other characters.
_VERSIONS: Final = {
    "s3": re.compile(r"\?versionId=([A-Za-z0-9._/+=%-]{1,1024})\Z"),
    "gs": re.compile(r"\?generation=([0-9]{1,20})\Z"),
}
# Keys that obstore changes or refuses.
_UNUSUAL_KEY: Final = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|\Z)|[\x00-\x1f\x7f\ud800-\udfff]")
_MAX_PIECE_BYTES: Final = 1 << 20
_MAX_VERSION_CHARACTERS: Final = 1024  # of an ETag that is kept as it is
_ETAG: Final = re.compile(r"[\x21\x23-\x7e\x80-\xff]*")  # RFC 9110; in a listing, servers can send anything
# Pause before a listing is dropped. Dropping it while its last request is ending would lose a connection.
_LISTING_GRACE_S: Final = 0.005


class ObjectStore(Store):
    """Objects in ``s3://bucket``, ``gs://bucket`` or ``az://container``. Paths are keys, taken literally.

    Versions are ETags. A read with a version makes the server check that version. ``key?versionId=...`` (s3) and
    ``key?generation=...`` (gs) are the paths of one version of an object, which can be read and never changes.

    Large objects are written in parts and appear when the last part has arrived. In s3, each part is repeated by itself
    after a transient error, and with new credentials if those of the first part have expired. An upload that fails or
    is cancelled is aborted. A process that is killed leaves parts on the server, which are invisible but cost storage;
    a lifecycle rule for incomplete uploads removes them.

    Keys of s3 are listed and read exactly as they are, whatever characters they have: with empty names (``/a``,
    ``a//b``), with "." or ".." as a name, with control characters, or with "/" at the end. Objects are not written
    under such keys, which many programs change. In gs and az, such keys are not supported. Empty objects whose key ends
    in "/", which consoles create for empty directories, are not listed. In s3, each page of a listing is repeated by
    itself after a transient error. A non-recursive listing of gs and az is fetched completely before its first entry is
    yielded.

    Listings, unusual keys, uploads in parts and requests to a server that was busy are sent without obstore
    (:mod:`streamloader.stores.objects.s3_client`), all others by obstore. Settings in `client_options` that change
    requests, and directory buckets (S3 Express), leave all of them to obstore, with its limits.

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
    limits_listing_waits: ClassVar[bool] = True

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
        checked = ObjectStoreConfig(
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
        self.identity = checked.identity
        self.paths_are_keys = checked.scheme == "s3"
        self._connection = ObjectConnection(checked, self.url, self.timeouts, self.limits, {})

    @override
    def names_version(self, path: str) -> bool:
        return split_version(self._connection.config.scheme, path)[1] is not None

    @override
    def describe_access(self) -> StoreAccess:
        return describe_access(self._connection.config)

    async def _head(self, path: str) -> ObjectInfo:
        key, version_id = split_version(self._connection.config.scheme, path)
        if await self._needs_own_request(path):
            return await self._head_by_own_request(path, key, version_id)
        options = {"head": True} if version_id is None else {"head": True, "version": version_id}

        async def send(obstore: Any, client: Any) -> Any:
            if version_id is None:
                return await obstore.head_async(client, key)
            return (await obstore.get_async(client, key, options=options)).meta

        try:
            return _make_info(path, await self._connection.request(self.address(path), 0, send, explains_later=True))
        except Unexplained:
            return await self._head_by_own_request(path, key, version_id)

    async def _head_by_own_request(self, path: str, key: str, version_id: str | None) -> ObjectInfo:
        context = ErrorContext(self.address(path), 0)

        def send(*_: Any) -> Awaitable[dict[str, Any]]:
            return self._connection.make_s3_client().head_object(key, version_id, context)

        meta = await self._connection.request(self.address(path), 0, send)
        self._connection.was_busy = False
        return _make_info(path, meta)

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        if span is not None and span.start < 0 and self._connection.config.scheme == "az":  # Azure has no suffix ranges
            info = await self._head(path)
            start, end = span.within(info.size or 0, self.address(path))
            if start == end:
                yield _empty_body(info, start)
                return
            span, version = ByteRange(start, end), version or info.version
        try:
            if await self._needs_own_request(path):
                body, release = await self._open_by_own_request(path, span, version)
            else:
                body, release = await self._open_by_obstore(path, span, version), None
        except RangeOutsideObject:
            body, release = await self._resolve_outside_range(path, span or ByteRange()), None
        try:
            yield body
        finally:
            if release is not None:
                release()

    async def _open_by_obstore(self, path: str, span: ByteRange | None, version: str | None) -> Body:
        key, version_id = split_version(self._connection.config.scheme, path)
        options: dict[str, Any] = {} if version_id is None else {"version": version_id}
        if span is not None and span.start < 0:
            options["range"] = {"suffix": -span.start}
        elif span is not None and (span.start or span.end is not None):
            options["range"] = {"offset": span.start} if span.end is None else (span.start, span.end)
        if (etag := _strong_etag(version)) is not None:
            options["if_match"] = etag
        offset = max(0, span.start) if span is not None else 0
        result = await self._connection.request(
            self.address(path),
            offset,
            lambda obstore, client: obstore.get_async(client, key, options=options),
            is_read=True,
        )
        try:
            info, (start, end) = _make_info(path, result.meta), result.range
        except (ValueError, OverflowError) as error:  # its date is outside Python's range
            self._connection.raise_translated(error, self.address(path), offset)
        return Body(info, start, end, self._receive(result, path, start))

    async def _open_by_own_request(
        self, path: str, span: ByteRange | None, version: str | None
    ) -> tuple[Body, Callable[[], None]]:
        key, version_id = split_version(self._connection.config.scheme, path)
        offset = max(0, span.start) if span is not None else 0
        context = ErrorContext(self.address(path), offset)

        def send(*_: Any) -> Awaitable[ObjectResponse]:
            return self._connection.make_s3_client().open_object(key, span, _strong_etag(version), version_id, context)

        opened = await self._connection.request(self.address(path), offset, send, is_read=True)
        self._connection.was_busy = False
        return Body(_make_info(path, opened.meta), opened.start, opened.end, opened.pieces), opened.release

    async def _needs_own_request(self, path: str) -> bool:
        """Return whether a read is sent without obstore.

        It is for a key that obstore changes or refuses; and after a response of a busy server, because obstore does not
        show for how long the server wants to be left alone.

        Raises:
            NotSupported: If only obstore can send requests, and not for this key.
        """
        if self._connection.config.scheme != "s3":
            return False
        is_unusual = _UNUSUAL_KEY.search(split_version("s3", path)[0]) is not None
        if not is_unusual and not self._connection.was_busy:
            return False
        await self._connection.get_client()
        if self._connection.reason_for_obstore is None:
            return True
        if is_unusual:
            raise NotSupported(
                f"{self.address(path)}: keys with empty names, with '.' or '..', or with control characters are not "
                f"supported for this bucket, because {self._connection.reason_for_obstore}",
                address=self.address(path),
            )
        return False

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
                    piece: bytes = await self._connection.await_obstore(anext(stream))
                except StopAsyncIteration:
                    return
                except obstore_errors() as error:
                    self._connection.raise_translated(error, self.address(path), offset, body=True)
                yield piece
                offset += len(piece)
        finally:
            del stream, result  # a traceback may keep this frame, and would keep the connection with it

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        if self.names_version(prefix):
            raise ConfigError(f"{self.address(prefix)}: a directory has no versions; name a version of an object")
        deadline = self._make_deadline(prefix)
        with deadline.limit_response("listing"):
            await self._connection.get_client()
        if self._connection.reason_for_obstore is None:
            async with contextlib.aclosing(self._list_keys(prefix, recursive=recursive)) as entries:
                async for info in entries:
                    yield info
            return
        async with contextlib.aclosing(self._list_by_obstore(prefix, recursive=recursive)) as entries:
            while True:
                with deadline.limit_response("listing"):
                    following = await anext(entries, None)
                if following is None:
                    return
                yield following

    async def _list_keys(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        """List a bucket of S3 with every key exactly as it is."""
        key_prefix = f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
        left_out: list[str] = []
        passed_over = ListingBudget(self.limits, self.address(prefix))
        last_directory = key_prefix  # the mark of the listed directory itself is none of its entries
        async with contextlib.aclosing(self._list_pages(key_prefix, recursive=recursive)) as pages:
            async for page in pages:
                for path in page.prefixes:
                    if path.startswith(key_prefix) and path != last_directory:  # a listing may go on within it
                        yield ObjectInfo(path)
                        last_directory = path
                for meta in page.objects:
                    key = meta["path"]
                    if not key.startswith(key_prefix) or (key.endswith("/") and not meta["size"]):
                        passed_over.count_entry(key)  # the mark of a directory
                        continue
                    if "\0" in key or split_version("s3", key)[1] is not None:
                        left_out.append(key)
                    else:
                        yield _make_info(key, meta)
        if left_out:
            _log.warning(
                "%s: left out %d keys that have no address here (a zero byte, or the end of an address of a version), "
                "such as %s: rename them",
                self.url,
                len(left_out),
                make_printable(repr(left_out[0])),
            )

    async def _list_pages(self, key_prefix: str, *, recursive: bool) -> AsyncGenerator[KeyPage, None]:
        """Yield the pages of a listing. Each of them is requested again by itself after a transient error."""
        context = ErrorContext(self.address(key_prefix))
        deadline = self._make_deadline(key_prefix)
        token: str | None = None

        def send(*_: Any) -> Awaitable[KeyPage]:
            client = self._connection.make_s3_client()
            return client.fetch_page(key_prefix, recursive=recursive, token=token, context=context)

        async def fetch() -> KeyPage:
            with deadline.limit_response("listing"):
                return await self._connection.request(context.address, None, send)

        while True:
            page = await (fetch() if self.part_retry is None else call_with_retries(self.part_retry, fetch))
            yield page
            if page.token is None:
                return
            token = page.token

    async def _list_by_obstore(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        key_prefix = f"{prefix}/" if prefix else ""
        if not recursive:
            result = await self._connection.request(
                self.address(prefix),
                None,
                lambda obstore, client: obstore.list_with_delimiter_async(client, prefix or None),
            )
            for directory in result["common_prefixes"]:
                yield ObjectInfo(f"{directory}/")
            for meta in result["objects"]:
                if meta["path"].startswith(key_prefix) and (meta["size"] or await self._object_exists(meta["path"])):
                    yield _make_info(meta["path"], meta)
            return
        async with contextlib.aclosing(self._list_obstore_pages(prefix)) as pages:
            async for page in pages:
                for meta in page:
                    # An empty object may stand for a directory: obstore drops the "/" at the end of its key.
                    is_listed = meta["path"].startswith(key_prefix)
                    if is_listed and (meta["size"] or await self._object_exists(meta["path"])):
                        yield _make_info(meta["path"], meta)

    async def _list_obstore_pages(self, prefix: str) -> AsyncGenerator[list[Any], None]:
        last = ""  # keys are listed in their order
        renewed_after: str | None = None
        while True:
            renewals = self._connection.renewals
            client = await self._connection.get_client()
            stream = get_obstore().list(client, prefix or None, chunk_size=_ENTRIES_PER_PAGE)
            self._connection.needs_grace = True
            try:
                while True:
                    try:
                        page: list[Any] = await self._connection.await_obstore(anext(stream))
                    except StopAsyncIteration:
                        return
                    except obstore_errors() as error:
                        if last == renewed_after or not await self._connection.renew_client(error, renewals):
                            self._connection.raise_translated(error, self.address(prefix), None)
                        renewed_after = last
                        break
                    if page := [meta for meta in page if meta["path"] > last]:
                        yield page
                        last = page[-1]["path"]
            finally:
                await asyncio.sleep(_LISTING_GRACE_S)
                del stream, client

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
        self._check_written_path(path)
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

            is_whole = len(first) <= PART_BYTES and (size is None or size <= PART_BYTES)  # nothing of `rest` is sent
            if not is_whole and await self._can_upload():
                request = self._make_part_request(path)
                await upload_parts(request, first, rest, size=size, timeouts=self.timeouts, address=address)
                return

            def send(obstore: Any, client: Any) -> Awaitable[Any]:
                if is_whole:
                    sending = obstore.put_async(client, path, first, use_multipart=False)
                    return run_with_deadline(sending, seconds, address, "uploading")
                return upload_in_parts(
                    obstore, client, path, first, rest, size=size, timeouts=self.timeouts, address=address
                )

            async def put() -> None:
                await self._connection.request(address, None, send, repeatable=is_whole)

            if is_whole and self.part_retry is not None and isinstance(data, AsyncIterator):
                await call_with_retries(self.part_retry, put)  # the caller cannot, because it no longer has the pieces
            else:
                await put()

    async def _can_upload(self) -> bool:
        """Return whether parts are sent without obstore, which cannot repeat one of them with other credentials."""
        await self._connection.get_client()
        return self._connection.reason_for_obstore is None and can_upload(self._connection.config)

    def _make_part_request(self, path: str) -> PartRequest:
        context = ErrorContext(self.address(path))
        seconds = self.timeouts.connect + self.timeouts.response + self.timeouts.window * MAX_PARTS_IN_FLIGHT

        async def send_once(method: str, query: Mapping[str, str], body: bytes | memoryview) -> UploadResponse:
            def send(*_: Any) -> Awaitable[UploadResponse]:
                sending = self._connection.make_s3_client().send_part(method, path, query, context, body)
                return run_with_deadline(sending, seconds, context.address, "uploading")

            return await self._connection.request(self.address(path), None, send)

        async def send_part(method: str, query: Mapping[str, str], body: bytes | memoryview = b"") -> UploadResponse:
            if self.part_retry is None or method == "DELETE":  # what cannot be aborted now is left to the lifecycle
                return await send_once(method, query, body)
            return await call_with_retries(self.part_retry, lambda: send_once(method, query, body))

        return send_part

    async def _delete(self, path: str) -> None:
        self._check_written_path(path)
        try:
            await self._connection.request(
                self.address(path), None, lambda obstore, client: obstore.delete_async(client, path)
            )
        except NotFound as error:
            if str(error.details.get("code")) in ("NoSuchBucket", "ContainerNotFound"):
                raise

    async def _disconnect(self) -> None:
        await self._connection.aclose()

    def _drop_connections(self) -> None:
        self._connection = self._connection.make_successor()

    def _check_path(self, path: str, *, allow_empty: bool) -> None:
        key = split_version(self._connection.config.scheme, path)[0] if isinstance(path, str) else path
        if self._connection.config.scheme == "s3" and isinstance(path, str):
            if (not key and not (allow_empty and not path)) or "\0" in path:
                raise ConfigError(f"{self.address(path)!r} is no key of S3: it is empty, or has a zero byte")
            return
        super()._check_path(key, allow_empty=allow_empty)
        if key.endswith("/") or "//" in key:
            raise ConfigError(f"{path!r} is not a supported key: it has an empty part")

    def _check_written_path(self, path: str) -> None:
        """Check the path of an object that is to be written or deleted.

        Raises:
            ConfigError: If it is that of a version, or other programs are likely to take it for another one.
        """
        if split_version(self._connection.config.scheme, path)[1] is not None:
            raise ConfigError(f"{self.address(path)} is one version of an object, which can only be read")
        if _UNUSUAL_KEY.search(path) is not None:
            raise ConfigError(
                f"{self.address(path)!r}: objects are not written under keys with empty names, with '.' or '..', or "
                "with control characters, which many programs change"
            )


def split_version(scheme: str, path: str) -> tuple[str, str | None]:
    """Return the key and the id of the version of a path: ``key?versionId=...``, or ``?generation=...`` for gs."""
    pattern = _VERSIONS.get(scheme)
    match = pattern.search(path) if pattern is not None and "?" in path else None
    return (path, None) if match is None else (path[: match.start()], unquote(match[1]))


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
