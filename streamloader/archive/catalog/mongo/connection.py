"""The way to a MongoDB server: addresses without their secrets, motor or PyMongo, deadlines, what its errors mean.

Only what motor's client and PyMongo's AsyncMongoClient have in common is used, so that either will do.
"""

from __future__ import annotations

import asyncio
import inspect
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

from streamloader.errors import CatalogError, CatalogTimeout, ClosedError, ConfigError, StreamloaderError

__all__ = ["DRIVERS", "Connection", "MongoAddress"]

DRIVERS: Final = ("motor", "pymongo")
SCHEMES: Final = ("mongodb", "mongodb+srv")
_DATABASE: Final = "streamloader"
_ARCHIVE: Final = "streamloader"
_TOLD: Final = frozenset(  # options that are no secrets, and tell which data it is
    {"archive", "authsource", "directconnection", "loadbalanced", "replicaset", "ssl", "tls"}
)
_LONGEST: Final = 63  # bytes of the name of a database
_GRACE: Final = 2.0  # seconds that the driver gets to end a call by itself
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between attempts while a server is away
_BAD_LOGIN: Final = frozenset({13, 18, 8000})
_PASSING: Final = frozenset({91, 189, 10107, 11600, 11602, 13435, 13436})  # it shuts down, or is not primary any more
_DUPLICATE: Final = 11000

T = TypeVar("T")


class MongoAddress:
    """A ``mongodb://`` url, taken apart.

    Attributes:
        url: without user, password and options that may be secrets.
        uri: for the driver: with all of them, and without the options that are ours.
        database: its name.
        archive: what the names of its collections begin with.
        driver: ``"motor"`` or ``"pymongo"``.

    Raises:
        ConfigError: it makes no sense.
    """

    def __init__(self, url: str, archive: str | None = None, driver: str | None = None) -> None:
        scheme, colon, rest = url.partition("://")
        if not colon or scheme.lower() not in SCHEMES:
            raise ConfigError(
                f"an address of MongoDB begins with mongodb:// or mongodb+srv://, and {scheme!r} does not"
            )
        rest, _, query = rest.partition("?")
        login, at, place = rest.rpartition("@")
        hosts, _, path = place.partition("/")
        if "/" in login:  # what comes before it would be taken for the host, and told
            raise ConfigError(f"user and password in {scheme}://***@{hosts} have to be percent-encoded")
        options = urllib.parse.parse_qsl(query, keep_blank_values=True)
        ours = {name.lower(): value for name, value in options if name.lower() in ("archive", "driver")}
        self.database = urllib.parse.unquote(path) or _DATABASE
        self.archive = archive or ours.get("archive") or _ARCHIVE
        self.driver = driver or ours.get("driver") or DRIVERS[0]
        told = [(name, value) for name, value in options if name.lower() in _TOLD and name.lower() != "archive"]
        told.append(("archive", self.archive))
        shown = f"{scheme.lower()}://{hosts}/{urllib.parse.quote(self.database, safe='')}"
        self.url = f"{shown}?{urllib.parse.urlencode(told)}"
        kept = urllib.parse.urlencode([option for option in options if option[0].lower() not in ("archive", "driver")])
        self.uri = f"{scheme.lower()}://{login}{at}{hosts}/{path}" + (f"?{kept}" if kept else "")
        self._check(hosts)

    def _check(self, hosts: str) -> None:
        if not hosts:
            raise ConfigError(f"{self.url!r} names no server")
        if self.driver not in DRIVERS:
            raise ConfigError(f"driver={self.driver!r} of {self.url!r} is none of {', '.join(DRIVERS)}")
        # Letters, digits and "_" alone: some servers of this protocol take nothing else.
        if not (self.archive.isascii() and self.archive.isidentifier() and len(self.archive) <= _LONGEST):
            raise ConfigError(
                f"archive={self.archive!r} has to be a name: up to {_LONGEST} letters, digits and _, no digit first"
            )
        if len(self.database.encode()) > _LONGEST or set(self.database) & set('/\\. "$*<>:|?\0'):
            raise ConfigError(f"{self.database!r} is no name that MongoDB takes for a database")


class Connection:
    """A client of a database, made when it is first used, and the deadline of what is done with it.

    Args:
        address: of the database.
        timeout: seconds that one call may take.
        client: one that is connected and stays so; None to make one.
        options: for the driver's client.

    Attributes:
        url: of the catalog, without secrets.
    """

    def __init__(self, address: MongoAddress, timeout: float, client: Any, options: Mapping[str, Any]) -> None:
        self.url = address.url
        self.timeout = timeout
        self._address = address
        self._options = dict(options)
        self._given = client
        self._client: Any = client
        self._closed = False

    def collection(self, name: str, *, latest: bool = False) -> Any:
        """Return a collection of the catalog.

        Args:
            name: without the archive's.
            latest: see what is not on a majority of servers yet, and so might vanish with a server that fails: for
                writers, who find out. Others see what stays.
        """
        found = self._connected()[self._address.database][f"{self._address.archive}_{name}"]
        return found.with_options(
            codec_options=CodecOptions(),
            read_preference=ReadPreference.PRIMARY,  # the others lag behind: a video might not be there yet
            read_concern=ReadConcern("local" if latest else "majority"),
            write_concern=WriteConcern("majority", j=True),
        )

    def _connected(self) -> Any:
        if self._client is None:
            milliseconds = max(1, int(self.timeout * 1000))
            options = {
                "serverSelectionTimeoutMS": milliseconds,
                "connectTimeoutMS": milliseconds,
                "appname": "streamloader",
                **self._options,
            }
            try:
                self._client = _client_class(self._address.driver)(self._address.uri, **options)
            except (pymongo.errors.PyMongoError, ValueError, TypeError) as error:
                # Not chained: the driver tells parts of the address, so perhaps of the password.
                raise ConfigError(
                    f"MongoDB's driver makes no sense of {self.url!r} or of its options ({type(error).__name__}): user "
                    "and password have to be percent-encoded, options are those of its connection strings",
                    address=self.url,
                ) from None
        return self._client

    async def call(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do something within `timeout`; again if the server went away, so it must be something that may be repeated.

        Raises:
            CatalogError: it failed.
            CatalogTimeout: it took too long.
            ClosedError: the catalog was closed.
        """
        if self._closed:
            raise ClosedError(f"{self.url}: the catalog was closed: open it again", address=self.url)
        begun = time.monotonic()
        attempt = 0
        while True:
            left = self.timeout - (time.monotonic() - begun)
            try:
                async with asyncio.timeout(left + _GRACE):
                    with pymongo.timeout(max(left, 0.001)):
                        return await work()
            except StreamloaderError:
                raise
            except pymongo.errors.PyMongoError as error:
                waited = time.monotonic() - begun
                pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                if not _passes(error) or waited + pause >= self.timeout:
                    # A bulk error shows all that was to be written, megabytes of it.
                    bulk = isinstance(error, pymongo.errors.BulkWriteError)
                    raise self._translated(what, error, waited) from (None if bulk else error)
                attempt += 1
                await asyncio.sleep(pause)
            except TimeoutError as error:
                raise self._too_long(what, time.monotonic() - begun) from error
            except (bson.errors.BSONError, OverflowError, UnicodeError) as error:
                raise CatalogError(
                    f"{self.url}: MongoDB cannot keep that: {what}: {error}", address=self.url
                ) from error

    def _translated(self, what: str, error: pymongo.errors.PyMongoError, waited: float) -> CatalogError:
        if error.timeout or (isinstance(error, pymongo.errors.AutoReconnect) and waited >= self.timeout / 2):
            return self._too_long(what, waited, str(error))
        if isinstance(error, pymongo.errors.OperationFailure) and error.code in _BAD_LOGIN:
            return CatalogError(
                f"{self.url}: {what}: the server does not let us: check user, password and authSource, and that the "
                f"user may read and write the database ({_first_line(error)})",
                address=self.url,
            )
        return CatalogError(f"{self.url}: {what}: {_first_line(error)}", address=self.url)

    def _too_long(self, what: str, waited: float, why: str = "") -> CatalogTimeout:
        because = f": {why[:300]}" if why else ""
        return CatalogTimeout(
            f"{self.url}: {what} took longer than {self.timeout:g} s: is the server there? Raise timeout= if it is "
            f"slow{because}",
            address=self.url,
            waited=waited,
        )

    async def aclose(self) -> None:
        """Disconnect, unless the client was given. Safe to call twice."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None and client is not self._given:
            closing = client.close()  # PyMongo's has to be awaited
            if inspect.isawaitable(closing):
                await closing


def duplicate_in(error: pymongo.errors.PyMongoError) -> bool:
    """Whether the server says that there is something with this key already, and nothing worse."""
    if isinstance(error, pymongo.errors.BulkWriteError):
        details = error.details or {}
        written = details.get("writeErrors", [])
        return (
            bool(written) and not details.get("writeConcernErrors") and {one["code"] for one in written} == {_DUPLICATE}
        )
    return isinstance(error, pymongo.errors.DuplicateKeyError)


def _passes(error: pymongo.errors.PyMongoError) -> bool:
    """Whether the same may well succeed a moment later."""
    if isinstance(error, pymongo.errors.AutoReconnect):
        return True
    code = error.code if isinstance(error, pymongo.errors.OperationFailure) else None
    return code in _PASSING or error.has_error_label("RetryableWriteError")


def _first_line(error: pymongo.errors.PyMongoError) -> str:
    if isinstance(error, pymongo.errors.BulkWriteError):
        told = [str(one.get("errmsg")) for one in (error.details or {}).get("writeErrors", [])]
        return "; ".join(told[:1]) or "some documents were not written"
    return str(error).partition(", full error:")[0].partition("\n")[0][:500]


def _client_class(driver: str) -> Any:
    if driver == "motor":
        from motor.motor_asyncio import AsyncIOMotorClient

        return AsyncIOMotorClient
    return pymongo.AsyncMongoClient
