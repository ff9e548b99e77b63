"""The clients of a bucket: obstore's, and that for requests which obstore does not make. They share credentials."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    AccessDenied,
    NotSupported,
    ProtocolError,
    ServerBusy,
    StoreError,
    StreamloaderError,
    Unreachable,
)
from streamloader.stores.environment import find_ca_path
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.http.client import HttpClient, HttpServerConfig
from streamloader.stores.http.responses import ErrorContext
from streamloader.stores.objects.config import ObjectStoreConfig, ObstoreSettings
from streamloader.stores.objects.credentials import CredentialSource, StaticCredentials
from streamloader.stores.objects.errors import (
    RangeOutsideObject,
    S3ResponseError,
    lacks_reason,
    may_be_expired,
    may_be_other_region,
    obstore_errors,
    translate_error,
)
from streamloader.stores.objects.fork_safety import SHUTDOWN_GRACE_S, get_obstore, leak_on_purpose
from streamloader.stores.objects.network import find_server_address
from streamloader.stores.objects.s3_client import BucketClient, S3Server, explain_unsupported, is_anonymous

if TYPE_CHECKING:
    from streamloader.stores.http.address_scope import PinnedHosts

__all__ = ["ObjectConnection", "Unexplained"]

T = TypeVar("T")

_REGION: Final = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
_log: Final = logging.getLogger("streamloader")


class ObjectConnection:
    """The clients of one bucket in one event loop. They are made with the first request.

    Args:
        config: Options of the store.
        url: URL of the store, for messages.
        timeouts: Time limits.
        limits: Limits of connections.
        pinned_hosts: Scopes of the first addresses of servers' names. They outlive the clients.

    Attributes:
        config: Options of the store, with the region that the server states.
        reason_for_obstore: Why only obstore can send requests, or None. It is known once there is a client.
        was_busy: Whether the last response to obstore was that of a busy server. Set it to False after another one.
        needs_grace: Whether a request was cancelled, or a listing fetched by obstore.
    """

    def __init__(
        self, config: ObjectStoreConfig, url: str, timeouts: Timeouts, limits: Limits, pinned_hosts: PinnedHosts
    ) -> None:
        self.config = config
        self.reason_for_obstore: str | None = "no client was made"
        self.was_busy = False
        self.needs_grace = False
        self._url = url
        self._timeouts = timeouts
        self._limits = limits
        self._pinned_hosts = pinned_hosts
        self._client: Any = None
        self._client_pid = 0  # process that made the client
        self._renewals = 0  # of the client; its id() would not do, because a new client may get that of a freed one
        self._settings: ObstoreSettings | None = None  # of the client
        self._credentials: CredentialSource | None = None
        self._s3: BucketClient | None = None
        self._http_clients: dict[str, HttpClient] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        if self.needs_grace:
            await asyncio.sleep(SHUTDOWN_GRACE_S)  # cancelled requests still notify this loop when they end
        self._client = self._credentials = self._s3 = None
        clients, self._http_clients = self._http_clients, {}
        for client in clients.values():
            await client.aclose()

    def make_successor(self) -> ObjectConnection:
        """Return a new one for another process or event loop. Clients that another process made are never freed."""
        if self._client is not None and self._client_pid != os.getpid():
            leak_on_purpose((self._client, self._credentials))
        _inherited.extend(client for client in self._http_clients.values() if client.pid != os.getpid())
        return ObjectConnection(self.config, self._url, self._timeouts, self._limits, self._pinned_hosts)

    @property
    def renewals(self) -> int:
        """How many times the client was renewed. Read it before a request, for :meth:`renew_client`."""
        return self._renewals

    async def get_client(self) -> Any:
        """Return obstore's store object, creating it in this process if necessary."""
        if self._client is None:
            settings = self.config.find_settings()
            server_address = await find_server_address(settings.endpoint, self._pinned_hosts, self._url)
            if self._client is None:  # unless another task has created it
                self._settings, self._s3 = settings, None
                self.reason_for_obstore = explain_unsupported(self.config, settings)
                self._client, self._credentials = self.config.create_client(settings, server_address, self._timeouts)
                self._client_pid = os.getpid()
        return self._client

    def make_s3_client(self) -> BucketClient:
        """Return the client for requests without obstore, for the server and the credentials of now."""
        if self._s3 is None:
            settings = self._settings
            assert settings is not None, "get_client comes before"
            credentials = None if is_anonymous(self.config, settings) else self._credentials
            server = S3Server.from_settings(self.config, settings)
            self._s3 = BucketClient(server, credentials, self._connect_http, self._timeouts)
        return self._s3

    async def _connect_http(self, root: str) -> HttpClient:
        client = self._http_clients.get(root)
        if client is None:
            ca_file = find_ca_path(self.config.ca_file, first="AWS_CA_BUNDLE")
            server = HttpServerConfig(root, {}, AddressScope.SPECIAL, ca_file, self._pinned_hosts)
            client = HttpClient(server, self._timeouts, replace(self._limits, redirects=0))
            self._http_clients[root] = client  # before the next await, so that no other task creates another one
            await client.open()
        return client

    async def request(
        self,
        address: str,
        offset: int | None,
        send: Callable[[Any, Any], Awaitable[T]],
        *,
        is_read: bool = False,
        repeatable: bool = True,
        explains_later: bool = False,
    ) -> T:
        """Send a request and translate its errors.

        Args:
            address: Address of the object, for messages.
            offset: Offset of the first requested byte for messages, or None.
            send: Function that sends the request, given the package obstore and the client.
            is_read: Whether RangeOutsideObject is an answer that the caller expects. Defaults to False.
            repeatable: Whether `send` may be called twice. Defaults to True.
            explains_later: Whether a refusal without a reason raises Unexplained, if another request can find the
                reason. Defaults to False.
        """
        renewals = self._renewals
        try:
            # Kept in no variable, because the traceback of an error that the caller keeps would hold the connection.
            return await self.await_obstore(send(get_obstore(), await self.get_client()))
        except StreamloaderError:
            raise
        except obstore_errors() as error:
            if explains_later and self.reason_for_obstore is None and lacks_reason(error):
                raise Unexplained from None
            if not await self.renew_client(error, renewals) or not repeatable:
                self.raise_translated(error, address, offset, is_read=is_read)
        try:
            return await self.await_obstore(send(get_obstore(), await self.get_client()))
        except StreamloaderError:
            raise
        except obstore_errors() as error:
            self.raise_translated(error, address, offset, is_read=is_read)

    async def renew_client(self, error: BaseException, renewals: int) -> bool:
        """Replace the client if the error shows that its region or its credentials are not the right ones any more.

        Args:
            error: Exception of obstore.
            renewals: Number of renewals before the request. If there are more by now, another task has renewed it.

        Returns:
            Whether the request may be repeated.
        """
        if self.config.scheme != "s3" or (not may_be_expired(error) and not may_be_other_region(error)):
            return False
        if self._renewals == renewals:
            region = None
            if may_be_other_region(error):
                stated = error.region if isinstance(error, S3ResponseError) else None
                region = stated if stated and _REGION.fullmatch(stated) else await self._find_region()
            if self._renewals == renewals:  # no other task has renewed it
                if region is not None and region != self.config.region:
                    _log.warning("%s is in the region %s, which is used from now on: pass region=", self._url, region)
                    self.config = replace(self.config, region=region)
                elif not may_be_expired(error) or self._has_static_credentials():
                    return False
                self._client = None  # the next one calls the provider of credentials again
                self._renewals += 1
        return True

    def _has_static_credentials(self) -> bool:
        return self._settings is not None and isinstance(self._settings.provider, StaticCredentials)

    async def _find_region(self) -> str | None:
        """Return the region of the bucket as its server states it to anybody, or None."""
        server = S3Server.from_settings(self.config, self.config.find_settings())
        client = BucketClient(server, None, self._connect_http, self._timeouts)
        try:
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.response):
                http, response = await client.send("HEAD", None, {}, ErrorContext(self._url))
        except S3ResponseError as error:
            region = error.region
        except (StoreError, TimeoutError):
            return None
        else:
            http.release(response)
            region = response.headers.get("x-amz-bucket-region")
        return region if region and _REGION.fullmatch(region) else None

    async def await_obstore(self, request: Awaitable[T]) -> T:
        """Await `request`, and record whether it was cancelled."""
        try:
            return await request
        except asyncio.CancelledError:
            self.needs_grace = True
            raise

    def raise_translated(
        self, error: BaseException, address: str, offset: int | None, *, body: bool = False, is_read: bool = False
    ) -> NoReturn:
        """Raise the error of this package. The original is not chained, because its text contains secrets."""
        credentials = self._credentials
        secrets = (*self.config.secrets, *(credentials.secrets if credentials else ()))
        if credentials is not None and credentials.error is not None:
            cause = credentials.error  # of all requests that wait for these credentials
            if isinstance(cause, StreamloaderError):
                raise copy.copy(cause) from None  # each of them may add details to its own
            raise AccessDenied(
                f"no credentials for {address}: the credential provider raised {type(cause).__name__}",
                address=address,
            ) from None
        if isinstance(error, get_obstore().exceptions.InvalidPathError):
            raise NotSupported(
                f"{address} cannot be listed, because it has keys with control characters or empty parts "
                f"('//'), and {self.reason_for_obstore}: list directories without such keys, or rename them",
                address=address,
            ) from None
        translated = translate_error(error, address, secrets, offset=offset, body=body)
        if isinstance(translated, ServerBusy) and not isinstance(error, S3ResponseError):
            self.was_busy = True
        if isinstance(translated, Unreachable) and self._pinned_hosts:
            self._client = None  # the next request resolves the server's name again
        if isinstance(translated, RangeOutsideObject) and not is_read:
            raise ProtocolError(
                f"{address}: the server refused a range (status 416), but none was requested",
                address=address,
            ) from None
        raise translated from None


class Unexplained(Exception):
    """A request was refused without a reason."""


_inherited: Final[list[HttpClient]] = []  # of the parent process; freeing them would close its connections
