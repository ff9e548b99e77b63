"""From obstore's exceptions to ours.

Most of what goes wrong arrives as one exception, with a text in two parts: a sentence that quotes the server's answer
as it came, and "Debug source:", a tree of the causes in which all foreign text is escaped. Kinds and statuses are
taken from the second part alone, at the beginning of its lines, where no server can write. Nothing of the text is
passed on but the server's error code and its message: it holds signed addresses and request headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from streamloader.errors import (
    AccessDenied,
    ConfigError,
    Interrupted,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolFault,
    ServerBusy,
    StoreError,
    StoreTimeout,
    StreamloaderError,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.objects.fork_safety import library

__all__ = ["OutsideObject", "foreign", "scrubbed", "translated"]

_DEBUG: Final = "\n\nDebug source:\n"
_STATUS: Final = re.compile(r"^\s+status: (\d{3}),$", re.MULTILINE)
_KIND: Final = re.compile(r"^\s+kind: ([A-Z][A-Za-z]+),$", re.MULTILINE)
_DELETED: Final = re.compile(r'^\s+code: "([A-Za-z0-9.]{1,64})",$', re.MULTILINE)
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,300})</Message>")
_ASKED: Final = re.compile(r"Error performing [A-Z]+ (\S+) in ")
_METADATA: Final = re.compile(
    r"https?://[^/]+/(?:latest/(?:api/token|meta-data/)|computeMetadata/v1/|metadata/identity/)"
)
_TLS: Final = re.compile(r"certificate|CertNotValid|UnknownIssuer|\bTls|tls handshake", re.IGNORECASE)

_DENIED_CODES: Final = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "AuthenticationFailed",
        "AuthorizationFailure",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidAuthenticationInfo",
        "InvalidSecurity",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_BUSY_CODES: Final = frozenset(
    {
        "InternalError",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_NO_BUCKET: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_REGION_CODES: Final = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)


class OutsideObject(Exception):
    """The server answered that it has none of the asked bytes (416)."""


def foreign() -> tuple[type[BaseException], ...]:
    """Return what obstore raises."""
    return (library().exceptions.BaseError, OSError, ValueError, NotImplementedError)


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without these secrets."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def translated(  # noqa: PLR0911 - one for each meaning
    error: BaseException, address: str, secrets: Iterable[str], *, offset: int | None = None, body: bool = False
) -> StreamloaderError | OutsideObject:
    """Return the error of ours that says what `error` means.

    Args:
        error: of obstore.
        address: of the object.
        secrets: never to be told, whatever the server says.
        offset: of the byte that was waited for.
        body: whether the answer had begun.
    """
    text = str(error)
    said, found, debug = text.rpartition(_DEBUG)
    if not found:
        said, debug = text, ""
    status = int(match[1]) if (match := _STATUS.search(debug)) else None
    code = _first(_DELETED, debug) or _first(_CODE, said) or ""
    places: dict[str, Any] = {"address": address, "offset": offset}
    kinds = library().exceptions
    if isinstance(error, ValueError):  # it refuses the path before anything is sent
        return ConfigError(
            f"{address}: object stores take no names with control characters or empty parts ('//')", **places
        )
    if _METADATA.match(_first(_ASKED, said) or ""):
        return AccessDenied(
            f"no credentials for {address}: give them as options (profile=, access_key_id=, token=, ...) or variables, "
            "or say anonymous=True; this machine has no metadata service that would know them",
            **places,
        )
    if status is not None or code:
        return _of_answer(status, code, _words(code, _first(_MESSAGE, said), secrets), places)
    if isinstance(error, kinds.PreconditionError | kinds.NotModifiedError):
        return ObjectChanged(f"{address} is not the version that was asked for", **places)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"no such object: {address}", **places)
    if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
        return _denied(address, "", places)
    if isinstance(error, kinds.NotSupportedError | NotImplementedError):
        return NotSupported(f"{address}: its store cannot do that", **places)
    return _of_transport(debug, _first(_KIND, debug) or "", body=body, places=places)


def _of_answer(status: int | None, code: str, words: str, places: dict[str, Any]) -> StreamloaderError | OutsideObject:
    """Translate what a server said."""
    address = places["address"]
    if code in _DENIED_CODES:
        return _denied(address, words, places)
    if code in _BUSY_CODES or status == 429 or (status is not None and status >= 500 and status != 501):  # noqa: PLR2004
        return ServerBusy(f"{address}: the server is overloaded or failing{words}", status=status, **places)
    if code in _REGION_CODES or (status is not None and 300 <= status < 400 and status != 304):  # noqa: PLR2004
        return StoreError(
            f"{address} is served elsewhere{words}: say which region= the bucket is in, or which endpoint_url=",
            **places,
        )
    by_status: dict[int | None, StreamloaderError | OutsideObject] = {
        401: _denied(address, words, places),
        403: _denied(address, words, places),
        404: NotFound(
            f"no such bucket: {address}" if code in _NO_BUCKET else f"no such object: {address}", code=code, **places
        ),
        412: ObjectChanged(f"{address} is not the version that was asked for{words}", **places),
        304: ObjectChanged(f"{address} is not the version that was asked for{words}", **places),
        416: OutsideObject(),
        501: NotSupported(f"{address}: the server cannot do that{words}", **places),
    }
    return by_status.get(status) or StoreError(f"{address}: the server refused{words} (status {status})", **places)


def _of_transport(  # noqa: PLR0911
    debug: str, kind: str, *, body: bool, places: dict[str, Any]
) -> StoreError:
    """Translate what happened on the way."""
    address, offset = places["address"], places["offset"]
    if kind == "Timeout" or "TimedOut" in debug:
        return StoreTimeout(f"waited too long for {address} (connecting)", stage="connecting", **places)
    if kind == "Connect":
        if _TLS.search(debug):
            return UntrustedHost(f"{address}: the server's certificate does not hold", **places)
        if "dns error" in debug:
            return Unreachable(f"{address}: the server's name cannot be resolved", **places)
        why = "refuses connections" if "ConnectionRefused" in debug else "cannot be reached"
        return Unreachable(f"{address}: the server {why}; look at endpoint_url= and the network", **places)
    if body:
        return Interrupted(f"{address} broke off at byte {offset}", **places)
    if kind in ("Request", "Interrupted") or "IncompleteMessage" in debug or "ConnectionReset" in debug:
        return Unreachable(f"{address}: the server hung up before it answered", **places)
    if kind == "Decode" or "kind: Body" in debug:
        return Interrupted(f"{address}: the answer broke off", **places)
    return ProtocolFault(f"{address}: the server's answer makes no sense: not the one to this request", **places)


def _denied(address: str, words: str, places: dict[str, Any]) -> AccessDenied:
    return AccessDenied(
        f"{address}: access denied{words}; look at the credentials (options, variables, profile=) and their rights",
        **places,
    )


def _words(code: str, message: str | None, secrets: Iterable[str]) -> str:
    """Return what the server said, to be put behind a sentence."""
    message = " ".join(scrubbed(message or "", secrets).split())
    return "".join([f" ({code}" if code else " (", f": {message})" if message else ")"]) if code or message else ""


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None
