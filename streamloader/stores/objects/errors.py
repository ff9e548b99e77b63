"""Translate obstore's exceptions to the errors of this package.

obstore reports most failures with one exception type, whose text has two parts: a sentence that quotes the server's
response unchanged, and "Debug source:", a tree of causes in which all foreign text is escaped. Kinds and statuses are
read only from line starts of the second part, where no server can write. Only the server's error code and message
are passed on, because the rest of the text contains signed addresses and request headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from streamloader.common.printable import make_printable
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    NotFound,
    NotSupported,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StorageFull,
    StoreError,
    StoreTimeout,
    StreamloaderError,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.objects.credentials import CredentialsFailed
from streamloader.stores.objects.fork_safety import get_obstore
from streamloader.stores.objects.network import FENCE

__all__ = [
    "RangeOutsideObject",
    "S3ResponseError",
    "lacks_reason",
    "may_be_expired",
    "may_be_other_region",
    "obstore_errors",
    "remove_secrets",
    "translate_error",
]

_DEBUG_HEADING: Final = "\n\nDebug source:\n"
_STATUS: Final = re.compile(r"^\s+status: (\d{3}),$", re.MULTILINE)
_KIND: Final = re.compile(r"^\s+kind: ([A-Z][A-Za-z]+),$", re.MULTILINE)
_DELETE_ERROR_CODE: Final = re.compile(r'^\s+code: "([A-Za-z0-9.]{1,64})",$', re.MULTILINE)
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,300})</Message>")
_REQUEST_URL: Final = re.compile(r"Error performing [A-Z]+ (\S+) in ")
_METADATA_URL: Final = re.compile(
    r"https?://[^/]+/(?:latest/(?:api/token|meta-data/)|computeMetadata/v1/|metadata/identity/)"
)
_TLS_FAILURE: Final = re.compile(r"certificate|CertNotValid|UnknownIssuer|\bTls|tls handshake", re.IGNORECASE)
# The request after a redirect ends at the fence, or the client refuses it: too many redirects, or no https.
_REDIRECT_FAILURE: Final = re.compile(rf"^\s+(?:kind: Redirect|{re.escape(FENCE)}),$", re.MULTILINE)

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
_NO_BUCKET_CODES: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
# Of Ceph, MinIO and others; Amazon's own service has no quotas for the size of a bucket.
_FULL_CODES: Final = frozenset(
    {
        "InsufficientStorage",
        "QuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
_STATUS_INSUFFICIENT_STORAGE: Final = 507
_STATUS_BAD_REQUEST: Final = 400
_STATUS_FORBIDDEN: Final = 403
_STATUS_NOT_FOUND: Final = 404
# A redirect without a target: S3's answer for a bucket in another region.
_BARE_REDIRECT: Final = re.compile(r"^\s+(?:inner: )?BareRedirect,$", re.MULTILINE)
_REGION_CODES: Final = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)


# Of credentials that were replaced or withdrawn, and of signatures that are too old when they arrive.
_EXPIRED_CODES: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "TokenRefreshRequired",
    }
)
_ARCHIVED_CODE: Final = "InvalidObjectState"
_CUSTOMER_KEY: Final = "Server Side Encryption. The correct parameters"
_NO_VERSION_CODES: Final = frozenset({"InvalidArgument", "MethodNotAllowed", "NoSuchVersion"})
_VERSION_PARAMETER: Final = re.compile(r"\?(?:versionId|generation)=")
# Statuses of HEAD responses whose reason only the response to another request shows.
_UNEXPLAINED_STATUSES: Final = (_STATUS_BAD_REQUEST, _STATUS_FORBIDDEN, 405)


class RangeOutsideObject(Exception):
    """The server answered that the object has none of the requested bytes (status 416)."""


class S3ResponseError(Exception):
    """An error response of S3 to a request that was not sent by obstore.

    Args:
        status: Status of the response.
        code: Error code of S3, or "".
        message: Text of the server, or "".
        region: Region of the bucket, if the server states it.
        retry_after: Seconds that the server demands to wait, or None.
        is_delete_marker: Whether the requested version marks a deletion.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        region: str | None = None,
        retry_after: float | None = None,
        is_delete_marker: bool = False,
    ) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.message = message
        self.region = region
        self.retry_after = retry_after
        self.is_delete_marker = is_delete_marker


def obstore_errors() -> tuple[type[BaseException], ...]:
    """Return the exception types that are translated: those of obstore, and those of this package's own requests."""
    exceptions = get_obstore().exceptions
    own = (S3ResponseError, CredentialsFailed)
    return (exceptions.BaseError, OSError, ValueError, OverflowError, NotImplementedError, *own)


def _parse_response(error: BaseException) -> tuple[int | None, str, str, str]:
    """Return the status and the code of the server's response, the sentence that quotes it, and the tree of causes."""
    if isinstance(error, S3ResponseError):
        return error.status, error.code, "", ""
    text = str(error)
    response, heading, debug = text.rpartition(_DEBUG_HEADING)
    if not heading:
        response, debug = text, ""
    status = int(match[1]) if (match := _STATUS.search(debug)) else None
    code = _first_group(_DELETE_ERROR_CODE, debug) or _first_group(_CODE, response) or ""
    return status, code, response, debug


def may_be_expired(error: BaseException) -> bool:
    """Return whether an error of obstore may mean that the credentials have expired. HEAD responses give no reason."""
    status, code, _, _ = _parse_response(error)
    return code in _EXPIRED_CODES or (not code and status == _STATUS_BAD_REQUEST)


def lacks_reason(error: BaseException) -> bool:
    """Return whether an error is that of a refusal without a reason, as responses to HEAD requests are."""
    status, code, _, debug = _parse_response(error)
    return not code and (status in _UNEXPLAINED_STATUSES or _BARE_REDIRECT.search(debug) is not None)


def may_be_other_region(error: BaseException) -> bool:
    """Return whether an error of obstore may mean that the bucket is in another region."""
    status, code, _, debug = _parse_response(error)
    return (
        code in _REGION_CODES
        or _BARE_REDIRECT.search(debug) is not None
        or (not code and status == _STATUS_BAD_REQUEST)
    )


def remove_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with each of the secrets replaced by asterisks."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def translate_error(  # noqa: PLR0911 - one for each kind of error
    error: BaseException, address: str, secrets: Iterable[str], *, offset: int | None = None, body: bool = False
) -> StreamloaderError | RangeOutsideObject:
    """Return the error of this package that corresponds to `error`.

    Args:
        error: Exception of obstore.
        address: Address of the object.
        secrets: Strings that must not appear in the error, even if the server sends them.
        offset: Offset of the next expected byte, or None.
        body: Whether the body of the response was being received.
    """
    text = str(error)
    status, code, response, debug = _parse_response(error)
    location: dict[str, Any] = {"address": address, "offset": offset}
    if isinstance(error, S3ResponseError):
        return _translate_own_response(error, secrets, location)
    exceptions = get_obstore().exceptions
    if isinstance(error, OverflowError) or (isinstance(error, ValueError) and "out of range" in text):
        return ProtocolError(f"{address}: the server states an impossible date", **location)
    if isinstance(error, ValueError):  # obstore rejects the path before it sends anything
        return ConfigError(
            f"{address}: object stores do not support names with control characters or empty parts ('//')", **location
        )
    if _METADATA_URL.match(_first_group(_REQUEST_URL, response) or ""):
        return AccessDenied(
            f"no credentials for {address}: pass them as options (profile=, access_key_id=, token=, ...), set the "
            "environment variables, or pass anonymous=True; this machine has no metadata service that provides them",
            **location,
        )
    if status is not None or code:
        details = _format_details(code, _first_group(_MESSAGE, response), secrets)
        return _translate_response(status, code, details, location)
    if _BARE_REDIRECT.search(debug):
        return StoreError(f"{address} is in another region: pass the bucket's region= or its endpoint_url=", **location)
    if _REDIRECT_FAILURE.search(debug):
        return UntrustedHost(
            f"{address}: the server redirects to another server, which is not followed: if you trust that one, pass "
            "its address as endpoint_url=, or the bucket's region=",
            **location,
        )
    if isinstance(error, exceptions.PreconditionError | exceptions.NotModifiedError):
        return ObjectChanged(f"{address} is not the requested version", **location)
    if isinstance(error, FileNotFoundError):
        return NotFound(f"no such object: {address}", **location)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return _make_access_error(address, "", location)
    if isinstance(error, exceptions.NotSupportedError | NotImplementedError):
        return NotSupported(f"{address}: the store does not support this operation", **location)
    return _translate_transport_error(debug, _first_group(_KIND, debug) or "", body=body, location=location)


def _translate_own_response(
    error: S3ResponseError, secrets: Iterable[str], location: dict[str, Any]
) -> StreamloaderError | RangeOutsideObject:
    details = _format_details(error.code, error.message, secrets)
    marks_deletion = error.is_delete_marker
    translated = _translate_response(error.status, error.code, details, location, is_delete_marker=marks_deletion)
    if isinstance(translated, ServerBusy) and error.retry_after is not None:
        translated.details["retry_after"] = error.retry_after
    return translated


def _translate_response(  # noqa: PLR0911 - one for each kind of error
    status: int | None, code: str, details: str, location: dict[str, Any], *, is_delete_marker: bool = False
) -> StreamloaderError | RangeOutsideObject:
    """Return the error for an error response of the server."""
    address = location["address"]
    if code == _ARCHIVED_CODE:
        return NotSupported(
            f"{address} is archived{details}: restore it before it is read (aws s3api restore-object), or copy it to "
            "another storage class",
            **location,
        )
    if _CUSTOMER_KEY in details:
        return AccessDenied(
            f"{address} is encrypted with a key of the customer{details}: pass it as config="
            '{"server_side_encryption": "sse-c", "sse_customer_key_base64": ...}',
            **location,
        )
    if _VERSION_PARAMETER.search(address) and (
        code in _NO_VERSION_CODES
        or is_delete_marker
        or (status == _STATUS_NOT_FOUND and code not in _NO_BUCKET_CODES)
        or (not code and status in _UNEXPLAINED_STATUSES and status != _STATUS_FORBIDDEN)
    ):
        return NotFound(
            f"no such version of an object: {address}{details}. It was deleted, marks a deletion, or never existed",
            code=code,
            **location,
        )
    if code in _FULL_CODES or status == _STATUS_INSUFFICIENT_STORAGE:
        return StorageFull(
            f"{address}: the bucket or its server has no room left{details}: delete objects, or raise the quota",
            **location,
        )
    if code in _DENIED_CODES:
        return _make_access_error(address, details, location)
    if code in _BUSY_CODES or status == 429 or (status is not None and status >= 500 and status != 501):  # noqa: PLR2004
        return ServerBusy(f"{address}: the server is overloaded or failing{details}", status=status, **location)
    if code in _REGION_CODES or (status is not None and 300 <= status < 400 and status != 304):  # noqa: PLR2004
        return StoreError(
            f"{address} is served elsewhere{details}: pass the bucket's region= or its endpoint_url=", **location
        )
    by_status: dict[int | None, StreamloaderError | RangeOutsideObject] = {
        401: _make_access_error(address, details, location),
        403: _make_access_error(address, details, location),
        404: NotFound(
            f"no such bucket: {address}" if code in _NO_BUCKET_CODES else f"no such object: {address}",
            code=code,
            **location,
        ),
        412: ObjectChanged(f"{address} is not the requested version{details}", **location),
        304: ObjectChanged(f"{address} is not the requested version{details}", **location),
        416: RangeOutsideObject(),
        501: NotSupported(f"{address}: the server does not support this operation{details}", **location),
    }
    return by_status.get(status) or StoreError(
        f"{address}: the server refused the request{details} (status {status})", **location
    )


def _translate_transport_error(  # noqa: PLR0911
    debug: str, kind: str, *, body: bool, location: dict[str, Any]
) -> StoreError:
    """Return the error for a failed connection or transfer."""
    address, offset = location["address"], location["offset"]
    if kind == "Timeout" or "TimedOut" in debug:
        return StoreTimeout(f"waited too long for {address} (connecting)", stage="connecting", **location)
    if kind == "Connect":
        if _TLS_FAILURE.search(debug):
            return UntrustedHost(f"{address}: the server's certificate is not valid", **location)
        if "dns error" in debug:
            return Unreachable(f"{address}: the server's name cannot be resolved", **location)
        reason = "refuses connections" if "ConnectionRefused" in debug else "cannot be reached"
        return Unreachable(f"{address}: the server {reason}; check endpoint_url= and the network", **location)
    if body:
        return TransferInterrupted(f"{address}: the transfer was interrupted at byte {offset}", **location)
    if kind in ("Request", "Interrupted") or "IncompleteMessage" in debug or "ConnectionReset" in debug:
        return Unreachable(f"{address}: the server closed the connection before it answered", **location)
    if kind == "Decode" or "kind: Body" in debug:
        return TransferInterrupted(f"{address}: the response was interrupted", **location)
    return ProtocolError(f"{address}: the server's response does not match the request", **location)


def _make_access_error(address: str, details: str, location: dict[str, Any]) -> AccessDenied:
    return AccessDenied(
        f"{address}: access denied{details}; check the credentials (options, environment variables, profile=) and "
        "their permissions",
        **location,
    )


def _format_details(code: str, message: str | None, secrets: Iterable[str]) -> str:
    """Return the server's error code and message in parentheses, to be appended to a sentence."""
    message = make_printable(" ".join(remove_secrets(message or "", secrets).split()))
    return "".join([f" ({code}" if code else " (", f": {message})" if message else ")"]) if code or message else ""


def _first_group(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None
