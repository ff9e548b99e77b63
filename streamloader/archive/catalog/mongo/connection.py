"""Connections to MongoDB: addresses without secrets, clients of motor or PyMongo, deadlines, retries and errors.

Only the methods that motor's client and PyMongo's AsyncMongoClient have in common are used.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import bson
import bson.errors
import pymongo
import pymongo.errors
from bson.codec_options import CodecOptions
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from streamloader.archive.catalog.rows import name_catalog
from streamloader.common.printable import make_printable
from streamloader.errors import CatalogError, CatalogTimeout, ClosedError, ConfigError, StreamloaderError
from streamloader.stores.addresses import check_authority, check_user_name

__all__ = ["DRIVERS", "SCHEMES", "MongoAddress", "MongoConnection", "is_duplicate_key_error"]

DRIVERS: Final = ("motor", "pymongo")
SCHEMES: Final = ("mongodb", "mongodb+srv")
_DEFAULT_DATABASE: Final = "streamloader"
_DEFAULT_ARCHIVE: Final = "streamloader"
_OWN_OPTIONS: Final = ("archive", "driver")
_PUBLIC_OPTIONS: Final = frozenset(  # options that are not secret, and select the data
    {"archive", "authsource", "directconnection", "loadbalanced", "replicaset", "ssl", "tls"}
)
_MAX_NAME_BYTES: Final = 63
_SOCKET_FILE: Final = re.compile(r"(?:%2[Ff][A-Za-z0-9_-][A-Za-z0-9._-]*)+\.sock")  # in place of a host
_GRACE_S: Final = 2.0  # for the driver to end a call by its own timeout
_RETRY_DELAYS_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_AUTH_ERROR_CODES: Final = frozenset({13, 18, 8000})
_TRANSIENT_ERROR_CODES: Final = frozenset({91, 189, 10107, 11600, 11602, 13435, 13436})  # shutdown, or not primary
_DUPLICATE_KEY_CODE: Final = 11000
_MAX_ERROR_CHARACTERS: Final = 500
_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[\w.%-]+)(?::\d{1,5})?"  # "%" for the path of a Unix socket
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*")

T = TypeVar("T")


class MongoAddress:
    """A parsed ``mongodb://`` url.

    Args:
        url: Address with user, password and options.
        archive: Name of the archive. Defaults to the option of the url.
        driver: Name of the driver. Defaults to the option of the url.

    Attributes:
        url: Address without user, password and options that may be secret.
        uri: Address for the driver, with all options except ``archive`` and ``driver``.
        database: Name of the database.
        archive: Prefix of the names of the archive's collections.
        driver: ``"motor"`` or ``"pymongo"``.

    Raises:
        ConfigError: If the url is malformed.
    """

    def __init__(self, url: str, archive: str | None = None, driver: str | None = None) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in SCHEMES:
            raise ConfigError(
                f"an address of MongoDB starts with mongodb:// or mongodb+srv://, and {scheme!r} does not"
            )
        rest, _, query = rest.partition("?")
        login, at_sign, location = rest.rpartition("@")
        hosts, _, path = location.partition("/")
        # Otherwise a part of the password would be taken for the host or an option, and appear in messages.
        if "/" in login or "@" in query or (hosts and _HOSTS.fullmatch(hosts) is None):
            raise ConfigError(
                f"the address {scheme}://*** of MongoDB is malformed: user and password must be percent-encoded, and "
                "hosts have the form name:port"
            )
        options = urllib.parse.parse_qsl(query, keep_blank_values=True)
        own_options = {name.lower(): value for name, value in options if name.lower() in _OWN_OPTIONS}
        self.database = urllib.parse.unquote(path) or _DEFAULT_DATABASE
        self.archive = archive or own_options.get("archive") or _DEFAULT_ARCHIVE
        self.driver = driver or own_options.get("driver") or DRIVERS[0]
        public = [
            (name, value) for name, value in options if name.lower() in _PUBLIC_OPTIONS and name.lower() != "archive"
        ]
        public.append(("archive", self.archive))
        base = f"{scheme.lower()}://{hosts}/{urllib.parse.quote(self.database, safe='')}"
        self.url = f"{base}?{urllib.parse.urlencode(public)}"
        driver_query = urllib.parse.urlencode([option for option in options if option[0].lower() not in _OWN_OPTIONS])
        self.uri = f"{scheme.lower()}://{login}{at_sign}{hosts}/{path}" + (f"?{driver_query}" if driver_query else "")
        self._check(hosts, urllib.parse.unquote(login.partition(":")[0]))

    def _check(self, hosts: str, user: str) -> None:
        if not hosts:
            raise ConfigError(f"{self.url!r} names no server")
        try:
            for host in hosts.split(","):
                if not _SOCKET_FILE.fullmatch(host):
                    check_authority(host)
            if user:
                check_user_name(user)
        except ConfigError as error:
            raise ConfigError(f"{error}; user and password of a MongoDB address must be percent-encoded") from None
        if self.driver not in DRIVERS:
            raise ConfigError(f"driver={self.driver!r} of {self.url!r} is not one of {', '.join(DRIVERS)}")
        # Letters, digits and "_" only: some servers of this protocol accept no other characters.
        if not (self.archive.isascii() and self.archive.isidentifier() and len(self.archive) <= _MAX_NAME_BYTES):
            raise ConfigError(
                f"archive={self.archive!r} must be a name of up to {_MAX_NAME_BYTES} letters, digits and _, not "
                "starting with a digit"
            )
        if len(self.database.encode()) > _MAX_NAME_BYTES or set(self.database) & set('/\\. "$*<>:|?\0'):
            raise ConfigError(f"{self.database!r} is not a name that MongoDB accepts for a database")


class MongoConnection:
    """A client of a database, created on first use, that enforces the deadline of each call.

    Args:
        address: Address of the database.
        timeout: Time limit of one call in seconds.
        client: Client of the caller, which stays open. None to create one.
        options: Options for the driver's client.

    Attributes:
        url: Address of the catalog, without secrets.
        timeout: Time limit of one call in seconds.
    """

    def __init__(self, address: MongoAddress, timeout: float, client: Any, options: Mapping[str, Any]) -> None:
        self.url = address.url
        self.timeout = timeout
        self._address = address
        self._options = dict(options)
        self._external_client = client
        self._client: Any = client
        self._closed = False

    def collection(self, name: str, *, latest: bool = False) -> Any:
        """Return a collection of the catalog.

        Args:
            name: Name of the collection, without the archive's prefix.
            latest: Whether reads return writes that a majority of servers does not have yet. Such writes can be lost
                when a server fails. Writers need this, and notice the loss. Readers must not use it.
        """
        collection = self._connect()[self._address.database][f"{self._address.archive}_{name}"]
        return collection.with_options(
            codec_options=CodecOptions(),
            read_preference=ReadPreference.PRIMARY,  # secondaries lag behind: a new video could be missing there
            read_concern=ReadConcern("local" if latest else "majority"),
            write_concern=WriteConcern("majority", j=True),
        )

    def _connect(self) -> Any:
        if self._client is None:
            timeout_ms = max(1, int(self.timeout * 1000))
            options = {
                "serverSelectionTimeoutMS": timeout_ms,
                "connectTimeoutMS": timeout_ms,
                "appname": "streamloader",
                **self._options,
            }
            try:
                self._client = _import_client_class(self._address.driver)(self._address.uri, **options)
            except (pymongo.errors.PyMongoError, ValueError, TypeError) as error:
                # Not chained: the driver's message contains parts of the address, possibly of the password.
                raise ConfigError(
                    f"MongoDB's driver refuses {self.url!r} or its options ({type(error).__name__}): user and password "
                    "must be percent-encoded, and options must be those of MongoDB's connection strings",
                    address=self.url,
                ) from None
        return self._client

    async def call(self, description: str, work: Callable[[], Awaitable[T]]) -> T:
        """Call a function within `timeout`. It is called again if the server went away, so it must be repeatable.

        Args:
            description: Description of the work for error messages, such as "reading the header".
            work: Function to call.

        Raises:
            CatalogError: If the call failed.
            CatalogTimeout: If the call took longer than `timeout`.
            ClosedError: If the catalog was closed.
        """
        if self._closed:
            raise ClosedError(f"{self.url}: the catalog was closed: open it again", address=self.url)
        try:
            return await self._call_until_available(description, work)
        except StreamloaderError:
            raise
        except Exception as error:  # noqa: BLE001 - the driver and this package miss many things in an odd answer
            # Not chained: its text may be the server's own.
            reason = f"{type(error).__name__}: {make_printable(error, _MAX_ERROR_CHARACTERS)}"
            raise CatalogError(
                f"{self.url}: {description}: the answer is not one of a MongoDB server ({reason}): check that the "
                "address is that of a MongoDB server, and that nothing in between changes its answers",
                address=self.url,
            ) from None

    async def _call_until_available(self, description: str, work: Callable[[], Awaitable[T]]) -> T:
        started = time.monotonic()
        attempt = 0
        while True:
            remaining = self.timeout - (time.monotonic() - started)
            try:
                async with asyncio.timeout(remaining + _GRACE_S):
                    with pymongo.timeout(max(remaining, 0.001)):
                        return await work()
            except CatalogError as error:
                name_catalog(error, self.url)
                raise
            except StreamloaderError:
                raise
            except pymongo.errors.PyMongoError as error:
                waited = time.monotonic() - started
                delay = _RETRY_DELAYS_S[min(attempt, len(_RETRY_DELAYS_S) - 1)]
                if not _is_transient(error) or waited + delay >= self.timeout:
                    # The text of a server's error is the server's own. That of a bulk error also contains all documents
                    # of the write, megabytes of them.
                    is_answer = isinstance(error, pymongo.errors.OperationFailure)
                    raise self._translate_error(description, error, waited) from (None if is_answer else error)
                attempt += 1
                await asyncio.sleep(delay)
            except TimeoutError as error:
                raise self._build_timeout_error(description, time.monotonic() - started) from error
            except (bson.errors.BSONError, OverflowError, UnicodeError) as error:
                raise CatalogError(
                    f"{self.url}: {description}: a value cannot be converted from or to MongoDB: {error}",
                    address=self.url,
                ) from error

    def _translate_error(self, description: str, error: pymongo.errors.PyMongoError, waited: float) -> CatalogError:
        if error.timeout or (isinstance(error, pymongo.errors.AutoReconnect) and waited >= self.timeout / 2):
            return self._build_timeout_error(description, waited, str(error))
        if isinstance(error, pymongo.errors.OperationFailure) and error.code in _AUTH_ERROR_CODES:
            return CatalogError(
                f"{self.url}: {description}: the server denies access: check user, password and authSource, and that "
                f"the user may read and write the database ({_summarize_error(error)})",
                address=self.url,
            )
        return CatalogError(f"{self.url}: {description}: {_summarize_error(error)}", address=self.url)

    def _build_timeout_error(self, description: str, waited: float, reason: str = "") -> CatalogTimeout:
        suffix = f": {make_printable(reason, _MAX_ERROR_CHARACTERS)}" if reason else ""
        return CatalogTimeout(
            f"{self.url}: {description} took longer than {self.timeout:g} s: check that the server is running, or "
            f"raise timeout= if it is slow{suffix}",
            address=self.url,
            waited=waited,
        )

    async def aclose(self) -> None:
        """Disconnect, unless the client belongs to the caller. Safe to call twice."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None and client is not self._external_client:
            closing = client.close()  # a coroutine with PyMongo, None with motor
            if inspect.isawaitable(closing):
                await closing


def is_duplicate_key_error(error: pymongo.errors.PyMongoError) -> bool:
    """Return whether duplicate keys are the only reason for an error."""
    if isinstance(error, pymongo.errors.BulkWriteError):
        write_errors = _list_write_errors(error)
        return (
            bool(write_errors)
            and not (error.details or {}).get("writeConcernErrors")
            and all(each.get("code") == _DUPLICATE_KEY_CODE for each in write_errors)
        )
    return isinstance(error, pymongo.errors.DuplicateKeyError)


def _list_write_errors(error: pymongo.errors.BulkWriteError) -> list[Mapping[str, Any]]:
    """Return the errors of the documents of a write, as far as the answer has the form of such errors."""
    listed = (error.details or {}).get("writeErrors")
    entries = listed if isinstance(listed, list) else []
    return [each if isinstance(each, Mapping) else {} for each in entries]


def _is_transient(error: pymongo.errors.PyMongoError) -> bool:
    """Return whether the same call may succeed a moment later."""
    if isinstance(error, pymongo.errors.AutoReconnect):
        return True
    code = error.code if isinstance(error, pymongo.errors.OperationFailure) else None
    return code in _TRANSIENT_ERROR_CODES or error.has_error_label("RetryableWriteError")


def _summarize_error(error: pymongo.errors.PyMongoError) -> str:
    if isinstance(error, pymongo.errors.BulkWriteError):
        messages = [str(each.get("errmsg")) for each in _list_write_errors(error)]
        return make_printable("; ".join(messages[:1])) or "some documents were not written"
    return make_printable(str(error).partition(", full error:")[0].partition("\n")[0], _MAX_ERROR_CHARACTERS)


def _import_client_class(driver: str) -> Any:
    if driver == "motor":
        from motor.motor_asyncio import AsyncIOMotorClient

        return AsyncIOMotorClient
    return pymongo.AsyncMongoClient
