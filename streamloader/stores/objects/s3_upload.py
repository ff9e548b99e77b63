"""Uploads to S3 in parts, each of which is repeated by itself after a transient error.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from xml.sax.saxutils import escape

from streamloader.config import Timeouts
from streamloader.errors import NotFound, ProtocolError, StoreError
from streamloader.stores.objects.listing import unescape_xml
from streamloader.stores.objects.upload import MAX_PARTS_IN_FLIGHT, find_part_bytes, run_with_deadline

__all__ = ["PartRequest", "UploadResponse", "upload_parts"]

_UPLOAD_ID: Final = re.compile(r"<UploadId>([^<]{1,2048})</UploadId>")
_ETAG: Final = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class UploadResponse:
    """Response to a request of an upload.

    Attributes:
        etag: ETag in its headers, with its quotes, or "".
        text: Text of its body.
    """

    etag: str
    text: str


class PartRequest(Protocol):
    """Function that sends one request for the object. It repeats it as the store's policy has it."""

    def __call__(
        self, method: str, query: Mapping[str, str], body: bytes | memoryview = b""
    ) -> Awaitable[UploadResponse]:
        """Return a response with status 200 or 204.

        Raises:
            StoreError: If the request fails.
        """


async def upload_parts(
    request: PartRequest,
    first: bytes | memoryview,
    rest: AsyncIterator[memoryview | bytes],
    *,
    size: int | None,
    timeouts: Timeouts,
    address: str,
) -> None:
    """Upload an object in parts. It appears completely or not at all.

    Args:
        request: Function that sends a request.
        first: First bytes of the object.
        rest: Remaining bytes, in pieces.
        size: Size of the object in bytes, or None if it is not known.
        timeouts: Time limits of the requests.
        address: Address of the object for messages.

    Raises:
        StoreError: If a request fails. The upload is aborted.
    """
    beginning = asyncio.ensure_future(_begin(request, address))
    sending: set[asyncio.Task[None]] = set()
    etags: dict[int, str] = {}

    async def send(upload_id: str, number: int, part: bytes | memoryview) -> None:
        response = await request("PUT", {"partNumber": str(number), "uploadId": upload_id}, part)
        if not response.etag:
            raise ProtocolError(f"{address}: the server stored a part without an ETag", address=address)
        etags[number] = response.etag

    try:
        upload_id = await asyncio.shield(beginning)
        number = 0
        async with contextlib.aclosing(_join_parts(first, rest, find_part_bytes(size))) as parts:
            async for part in parts:
                while len(sending) >= MAX_PARTS_IN_FLIGHT:
                    sending = await _wait_for_some(sending, timeouts.close)
                number += 1
                sending.add(asyncio.create_task(send(upload_id, number, part)))
        while sending:
            sending = await _wait_for_some(sending, timeouts.close)
        await _complete(request, upload_id, [etags[number] for number in sorted(etags)])
    except BaseException:
        await _stop_parts(sending, timeouts.close)
        await _abort(request, beginning, timeouts, address)
        raise


async def _begin(request: PartRequest, address: str) -> str:
    """Begin an upload, and return its id."""
    found = _UPLOAD_ID.search((await request("POST", {"uploads": ""})).text)
    if found is None:
        raise ProtocolError(f"{address}: the server began an upload without an id", address=address)
    return unescape_xml(found[1])


async def _stop_parts(sending: set[asyncio.Task[None]], seconds: float) -> None:
    """Cancel the requests of parts, and wait until they have ended. Their errors do not matter any more."""
    for task in sending:
        task.cancel()
    if sending:
        done, _ = await asyncio.wait(sending, timeout=seconds)
        for task in done:
            if not task.cancelled():
                task.exception()  # mark it as retrieved


async def _abort(request: PartRequest, beginning: asyncio.Future[str], timeouts: Timeouts, address: str) -> None:
    """Abort an upload. If it is just beginning, wait for its id, with which alone it can be aborted."""
    try:
        await asyncio.wait({beginning}, timeout=timeouts.close)
    finally:
        has_ended = not beginning.cancel()
    if not has_ended or beginning.cancelled() or beginning.exception() is not None:
        return
    with contextlib.suppress(StoreError):  # the error that follows is the one that matters
        aborting = request("DELETE", {"uploadId": beginning.result()})
        await run_with_deadline(aborting, timeouts.close + timeouts.response, address, "aborting the upload")


async def _wait_for_some(sending: set[asyncio.Task[None]], seconds: float) -> set[asyncio.Task[None]]:
    """Wait until a part is stored. Return the tasks that are not done, and raise the error of one that failed.

    Args:
        sending: Tasks of parts.
        seconds: Time limit of stopping the other ones.
    """
    done, pending = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
    errors = [error for task in done if (error := task.exception()) is not None]
    if errors:
        await _stop_parts(pending, seconds)
        raise errors[0]
    return pending


async def _join_parts(
    first: bytes | memoryview, rest: AsyncIterator[memoryview | bytes], part_bytes: int
) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the bytes of an object in parts of one size, except for the last."""
    joined = bytearray()
    pieces: list[bytes | memoryview] = [first]
    while True:
        for piece in pieces:
            if not joined and len(piece) == part_bytes:
                yield piece
                continue
            joined += piece
            while len(joined) >= part_bytes:
                yield bytes(joined[:part_bytes])
                del joined[:part_bytes]
        following = await anext(rest, None)
        if following is None:
            break
        pieces = [following]
    if joined:
        yield bytes(joined)


async def _complete(request: PartRequest, upload_id: str, etags: list[str]) -> None:
    """Make an object of the parts.

    A request that is repeated because its response was lost finds no upload any more. The object is then compared.
    """
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    try:
        await request("POST", {"uploadId": upload_id}, body)
    except NotFound:
        expected = _combine_etags(etags)
        if expected is None or (await request("HEAD", {})).etag.strip('"') != expected:
            raise


def _combine_etags(etags: list[str]) -> str | None:
    """Return the ETag of an object with parts of these ETags, or None if they are no digests."""
    matches = [_ETAG.fullmatch(etag) for etag in etags]
    digests = b"".join(bytes.fromhex(match[1]) for match in matches if match is not None)
    if None in matches:
        return None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"
