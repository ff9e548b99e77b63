"""Listings of S3 buckets with keys that obstore cannot represent: it gives up a whole listing for one of them.

The requests are signed in their query (Signature Version 4), as AWS documents it for presigned URLs:
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import html
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_plus, urlsplit

from streamloader.common.printable import make_printable
from streamloader.errors import ProtocolError
from streamloader.stores.http.document import DocumentRequest
from streamloader.stores.http.store import HttpStore

__all__ = ["list_raw", "sign_query"]

_MAX_PAGE_BYTES: Final = 64 << 20  # of 1000 keys
_VALID_S: Final = 900  # of a signature
_UNRESERVED: Final = "-_.~"
_ENTRY: Final = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)
_PREFIX: Final = re.compile(r"<CommonPrefixes>\s*<Prefix>(.*?)</Prefix>\s*</CommonPrefixes>", re.DOTALL)
_FIELD: Final = re.compile(r"<(Key|Size|ETag|LastModified)>(.*?)</\1>", re.DOTALL)
_TOKEN: Final = re.compile(r"<NextContinuationToken>(.*?)</NextContinuationToken>", re.DOTALL)
_IS_TRUNCATED: Final = re.compile(r"<IsTruncated>\s*true\s*</IsTruncated>")
_IS_ENCODED: Final = re.compile(r"<EncodingType>\s*url\s*</EncodingType>")
_UNSUPPORTED: Final = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|\Z)|[\x00-\x1f\x7f]")
_log: Final = logging.getLogger("streamloader")


async def list_raw(
    server: HttpStore,
    bucket: str,
    region: str,
    credentials: Mapping[str, Any] | None,
    prefix: str,
    *,
    recursive: bool,
    max_seconds: float,
) -> AsyncGenerator[tuple[list[dict[str, Any]], list[str]], None]:
    """Yield the pages of a listing: metadata as obstore has it, and directories. Unsupported keys are left out.

    One warning names how many were left out, and one of them.

    Args:
        server: Server of the bucket.
        bucket: Name of the bucket.
        region: Region of the bucket.
        credentials: Credentials as their provider returns them. None for an anonymous user.
        prefix: Directory to list, with "/" at its end, or "" for all.
        recursive: Whether to list objects at any depth.
        max_seconds: Maximum duration of the transfer of one page.

    Raises:
        ProtocolError: If a page is no listing.
        StoreError: If a request fails.
    """
    request = DocumentRequest({}, _MAX_PAGE_BYTES, max_seconds)
    query = {"encoding-type": "url", "list-type": "2", "prefix": prefix} | ({} if recursive else {"delimiter": "/"})
    left_out: list[str] = []
    try:
        while True:
            signed = sign_query(server.url, bucket, query, region, credentials, dt.datetime.now(dt.UTC))
            page = (await server.fetch_document(f"{bucket}?{signed}", request)).body.decode("utf-8", "replace")
            if "<ListBucketResult" not in page:
                raise ProtocolError(f"s3://{bucket}: the server sent no listing", address=f"s3://{bucket}")
            is_encoded = _IS_ENCODED.search(page) is not None
            entries = [_parse_entry(text, is_encoded=is_encoded) for text in _ENTRY.findall(page)]
            directories = [_decode(text, is_encoded=is_encoded).rstrip("/") for text in _PREFIX.findall(page)]
            # "a//" is the mark of a directory without a name, and becomes "a" above: the directory that is listed.
            directories = [path for path in directories if path.startswith(prefix) and path != prefix.rstrip("/")]
            named = [path for path in directories if not _UNSUPPORTED.search(path)]
            kept = [entry for entry in entries if not _UNSUPPORTED.search(entry["path"])]
            left_out += [path for path in directories if _UNSUPPORTED.search(path)]
            left_out += [
                entry["path"]
                for entry in entries
                if _UNSUPPORTED.search(entry["path"].removesuffix("/")) or (entry["size"] and entry["path"][-1:] == "/")
            ]
            yield kept, named
            token = _TOKEN.search(page)
            if token is None or not _IS_TRUNCATED.search(page):
                return
            query["continuation-token"] = html.unescape(token[1])
    finally:
        if left_out:
            _log.warning(
                "s3://%s: left out %d keys that have no address here (empty parts, '.', '..' or control characters), "
                "such as %s: rename them",
                bucket,
                len(left_out),
                make_printable(repr(left_out[0])),
            )


def sign_query(
    server_url: str,
    bucket: str,
    query: Mapping[str, str],
    region: str,
    credentials: Mapping[str, Any] | None,
    now: dt.datetime,
) -> str:
    """Return the query of a signed GET request for a bucket.

    Args:
        server_url: Scheme, host and port.
        bucket: Name of the bucket, which is the path.
        query: Parameters.
        region: Region of the bucket.
        credentials: ``access_key_id``, ``secret_access_key`` and ``token`` (or None). None for no signature.
        now: Time of the signature, in UTC.
    """
    if credentials is None:
        return _encode(query)
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{day}/{region}/s3/aws4_request"
    signed = {
        **query,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials['access_key_id']}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(_VALID_S),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.get("token"):
        signed["X-Amz-Security-Token"] = credentials["token"]
    text = _encode(signed)
    host = urlsplit(server_url).netloc
    canonical = f"GET\n/{quote(bucket, safe=_UNRESERVED)}\n{text}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials['secret_access_key']}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{text}&X-Amz-Signature={hmac.digest(key, to_sign.encode(), 'sha256').hex()}"


def _encode(query: Mapping[str, str]) -> str:
    return "&".join(f"{quote(name, safe=_UNRESERVED)}={quote(query[name], safe=_UNRESERVED)}" for name in sorted(query))


def _decode(text: str, *, is_encoded: bool) -> str:
    text = html.unescape(text)
    return unquote_plus(text) if is_encoded else text


def _parse_entry(text: str, *, is_encoded: bool) -> dict[str, Any]:
    fields = dict(_FIELD.findall(text))
    try:
        modified = dt.datetime.fromisoformat(fields["LastModified"])
        return {
            "path": _decode(fields["Key"], is_encoded=is_encoded),
            "size": int(fields["Size"]),
            "e_tag": html.unescape(fields["ETag"]) if "ETag" in fields else None,
            "last_modified": modified,
        }
    except (KeyError, ValueError) as error:
        raise ProtocolError("the server sent a malformed entry of a listing of an S3 bucket") from error
