"""Fetch many members of packs and many files at once, on the I/O thread."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from streamloader.common.gather import gather_bounded
from streamloader.datasets.directory.remote_pack import RemotePack
from streamloader.errors import NotFound, ObjectChanged, RangeNotSatisfiable, StoreError
from streamloader.stores.base import Store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["GONE", "Fetched", "Outcome", "Piece", "SubmitWork", "fetch_ahead", "fetch_span", "sort_pieces"]

GONE: Final = (ObjectChanged, RangeNotSatisfiable, NotFound)  # the object is no longer the one that was listed

_MAX_GAP_BYTES: Final = 64 << 10  # that are fetched in vain: at 50 MB/s they take as long as a short request
_MAX_SPAN_BYTES: Final = 8 << 20
_MAX_BATCH_BYTES: Final = 32 << 20
_MAX_BATCH_PIECES: Final = 1024
_UNKNOWN_BYTES: Final = 64 << 10  # assumed size of a file
_MAX_REQUESTS: Final = 32  # of one batch
_BATCHES: Final = 2  # in flight

R = TypeVar("R")


class SubmitWork(Protocol):
    """Runs a coroutine function with the store on the I/O thread."""

    def __call__(self, work: Callable[[Store], Coroutine[Any, Any, R]], /) -> concurrent.futures.Future[R]:
        """Return the future of the result."""


class Piece(NamedTuple):
    """A member of a pack, or a whole file, to be fetched.

    Attributes:
        position: Number with which the caller recognizes the piece.
        source: Pack, or the metadata of a file: its path, its size and version if they are known.
        row: Row of the member in the pack. Defaults to -1, for files.
    """

    position: int
    source: RemotePack | ObjectInfo
    row: int = -1

    @property
    def info(self) -> ObjectInfo:
        """Metadata of the object."""
        return self.source.info if isinstance(self.source, RemotePack) else self.source

    @property
    def span(self) -> tuple[int, int | None]:
        """Offsets between which the bytes lie. The end is None for whole files."""
        return self.source.get_span(self.row) if isinstance(self.source, RemotePack) else (0, None)


class Fetched(NamedTuple):
    """Stored bytes of a piece.

    Attributes:
        data: The bytes.
        info: Metadata of the object, as the response has it.
    """

    data: bytes | memoryview
    info: ObjectInfo


Outcome: TypeAlias = Fetched | StoreError


def sort_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """Return pieces in an order in which neighbours can be fetched together."""
    return sorted(pieces, key=lambda piece: (piece.info.path, piece.span[0]))


def fetch_ahead(submit: SubmitWork, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Outcome]]:
    """Yield pieces with what was fetched for them, in their order, while the next ones are fetched.

    Neighbours in a pack are fetched by one request. About 64 MiB are fetched ahead.

    Args:
        submit: Function that starts work on the I/O thread.
        pieces: Pieces, in an order in which neighbours can be recognized.

    Yields:
        A piece, and its bytes; or the error, if the object is gone or has changed.

    Raises:
        StoreError: If the store fails otherwise.
    """
    running: deque[tuple[list[Piece], concurrent.futures.Future[list[Outcome]]]] = deque()
    batches = _split_into_batches(pieces)
    try:
        for batch in batches:
            running.append((batch, submit(_make_work(batch))))
            if len(running) == _BATCHES:
                yield from _finish(*running.popleft())
        while running:
            yield from _finish(*running.popleft())
    finally:
        for _, future in running:
            future.cancel()


def _finish(batch: list[Piece], future: concurrent.futures.Future[list[Outcome]]) -> Iterator[tuple[Piece, Outcome]]:
    try:
        outcomes = future.result()
    except BaseException:
        future.cancel()
        raise
    outcomes.reverse()
    for piece in batch:
        yield piece, outcomes.pop()  # so that what was used can be freed


def _split_into_batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    batch_bytes = 0
    for piece in pieces:
        start, end = piece.span
        size = (piece.info.size or _UNKNOWN_BYTES) if end is None else end - start
        if batch and (batch_bytes + size > _MAX_BATCH_BYTES or len(batch) == _MAX_BATCH_PIECES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(piece)
        batch_bytes += size
    if batch:
        yield batch


def _make_work(batch: list[Piece]) -> Callable[[Store], Coroutine[Any, Any, list[Outcome]]]:
    async def fetch_batch(store: Store) -> list[Outcome]:
        outcomes: list[Any] = [None] * len(batch)
        groups = _merge(batch)
        results = await gather_bounded((_fetch_group(store, batch, group) for group in groups), limit=_MAX_REQUESTS)
        for group, result in zip(groups, results, strict=True):
            for index, outcome in zip(group, result, strict=True):
                outcomes[index] = outcome
        return outcomes

    return fetch_batch


def _merge(batch: list[Piece]) -> list[list[int]]:
    """Return the indexes of the pieces that are fetched together, in ascending order of their offsets."""
    groups: list[list[int]] = []
    path, first, last = None, 0, 0
    for index in sorted(range(len(batch)), key=lambda index: (batch[index].info.path, batch[index].span[0])):
        piece = batch[index]
        start, end = piece.span
        is_near = piece.info.path == path and end is not None and start - last <= _MAX_GAP_BYTES
        if is_near and max(last, end or 0) - first <= _MAX_SPAN_BYTES:
            groups[-1].append(index)
            last = max(last, end or 0)
            continue
        groups.append([index])
        path, first, last = (None if end is None else piece.info.path), start, end or 0
    return groups


async def _fetch_group(store: Store, batch: list[Piece], group: list[int]) -> list[Outcome]:
    info, (start, end) = batch[group[0]].info, batch[group[0]].span
    if end is not None:
        end = max(batch[index].span[1] or 0 for index in group)
    try:
        fetched = await fetch_span(store, info, start, end)
    except GONE as error:
        return [error] * len(group)
    if len(group) == 1:
        return [fetched]
    # Copies, because a view would keep the gaps in memory, too.
    return [Fetched(_cut(fetched.data, start, *batch[index].span), fetched.info) for index in group]


def _cut(data: bytes | memoryview, base: int, start: int, end: int | None) -> bytes:
    assert end is not None
    return bytes(data[start - base : end - base])


async def fetch_span(store: Store, info: ObjectInfo, start: int, end: int | None) -> Fetched:
    """Fetch the bytes [start, end) of an object in its version.

    Raises:
        ObjectChanged: If it has another version or size.
        StoreError: If the store fails otherwise.
    """
    if start == end:
        return Fetched(b"", info)
    parts: list[bytes] = []
    current = info

    def set_current(response: ObjectInfo, _: int) -> None:
        nonlocal current
        current = response

    span = None if end is None else ByteRange(start, end)
    await store.fetch(info.path, span, parts.append, version=info.version, size=info.size, on_start=set_current)
    return Fetched(parts[0] if len(parts) == 1 else b"".join(parts), current)
