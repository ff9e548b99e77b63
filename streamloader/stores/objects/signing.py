"""Signatures of requests to S3, as AWS documents Signature Version 4 in headers.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

__all__ = ["EMPTY_SHA256", "encode_query", "quote_key", "sign_headers"]

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
"""Digest of a request without a body."""
_UNRESERVED: Final = "-_.~"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


def quote_key(key: str) -> str:
    """Return a key as a path of a URL. Each byte but unreserved characters and "/" is percent-encoded."""
    return quote(key, safe=f"/{_UNRESERVED}", errors="surrogateescape")


def encode_query(query: Mapping[str, str]) -> str:
    """Return the parameters of a request in their canonical form: percent-encoded, and sorted by name."""
    return "&".join(
        f"{quote(name, safe=_UNRESERVED)}={quote(query[name], safe=_UNRESERVED, errors='surrogateescape')}"
        for name in sorted(query)
    )


def sign_headers(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body_sha256: str,
    region: str,
    credentials: Mapping[str, Any],
    now: dt.datetime,
) -> dict[str, str]:
    """Return the headers of a signed request: those that are given, the date, the digest and the signature.

    Args:
        method: Method of the request.
        path: Path as it is sent, percent-encoded, with "/" at its beginning.
        query: Query as :func:`encode_query` returns it.
        headers: Headers to sign. "host" must be among them. Names are in lower case.
        body_sha256: Digest of the body as hexadecimal digits.
        region: Region of the bucket.
        credentials: ``access_key_id``, ``secret_access_key`` and ``token`` (or None).
        now: Time of the signature, in UTC.
    """
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "x-amz-content-sha256": body_sha256, "x-amz-date": moment}
    if credentials.get("token"):
        signed["x-amz-security-token"] = credentials["token"]
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in sorted(signed))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{body_sha256}"
    scope = f"{day}/{region}/s3/aws4_request"
    to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials['secret_access_key']}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    login = f"{_ALGORITHM} Credential={credentials['access_key_id']}/{scope}, SignedHeaders={names}, "
    return {**signed, "authorization": f"{login}Signature={signature}"}
