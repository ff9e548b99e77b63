"""Fetch blocks from several sources and verify them. If a source fails or sends wrong data, the next one is tried."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from streamloader.config import Limits, Timeouts
from streamloader.errors import IntegrityError, LimitExceeded, NotFound, StoreError
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.sources import BlockSource, Gateway
from streamloader.stores.ipfs.unixfs import UnixFsNode, decode_node

__all__ = ["CarFetcher", "IpfsBlockFetcher", "combine_errors", "verify_block"]

T = TypeVar("T")

_MAX_UNREQUESTED_BLOCKS: Final = 64  # of a CAR, one after the other, and in total beyond the number of requested blocks
# Cache for blocks of a CAR, because a gateway may omit a block that it has sent before.
_CAR_CACHE_BYTES: Final = 8 << 20


class IpfsBlockFetcher:
    """Fetch verified blocks from several sources.

    Args:
        sources: Sources in the order in which they are tried. One that fails moves to the end.
        race: Number of sources that are requested at the same time. The first valid response is used, and the other
            requests are cancelled.
        timeouts: Time limits of one read. Each source gets an equal share of them.
        limits: Limits of the store, of which `block_bytes` is used.
        max_links: Maximum number of links of a node.
        node_cache_bytes: Size of the cache for nodes with links, in bytes of their blocks.

    Attributes:
        timeouts: Time limits of one request to one source.
        max_links: Maximum number of links of a node.
        max_block_bytes: Maximum size of a block.
    """

    def __init__(
        self,
        sources: Sequence[BlockSource],
        *,
        race: int,
        timeouts: Timeouts,
        limits: Limits,
        max_links: int,
        node_cache_bytes: int,
    ) -> None:
        self.timeouts = dataclasses.replace(
            timeouts,
            **{name: getattr(timeouts, name) / len(sources) for name in ("connect", "response", "window")},
        )
        self.max_links = max_links
        self.max_block_bytes = limits.block_bytes
        self._sources = list(sources)
        self._race = race
        self._node_cache: OrderedDict[Cid, tuple[UnixFsNode, int]] = OrderedDict()
        self._node_cache_bytes = node_cache_bytes
        self._cached_bytes = 0

    @property
    def sources(self) -> tuple[BlockSource, ...]:
        """Sources in the order in which they are tried."""
        return tuple(self._sources)

    def demote(self, source: BlockSource) -> None:
        """Move a source to the end of the order."""
        self._sources.remove(source)
        self._sources.append(source)

    async def get_block(self, cid: Cid) -> bytes:
        """Return a verified block.

        Raises:
            IntegrityError: If no source sends the block, and at least one sends other data.
            LimitExceeded: If the block is larger than ``limits.block_bytes``.
            StoreError: If all sources fail; see :func:`combine_errors`.
        """
        if cid.inline is not None:
            if len(cid.inline) > self.max_block_bytes:
                raise LimitExceeded(f"block {str(cid)[:80]}... has more than {self.max_block_bytes} bytes")
            return cid.inline
        cid.require_known_hash()

        async def fetch(source: BlockSource) -> bytes:
            block = await source.get_block(cid, self.max_block_bytes, self.timeouts)
            verify_block(cid, block, source.origin)
            return block

        return await self.try_sources(fetch)

    async def get_node(self, cid: Cid) -> UnixFsNode:
        """Return a verified and decoded block. Nodes with links are cached.

        Raises:
            StoreError: If the block cannot be fetched or decoded; see :meth:`get_block` and
                :func:`streamloader.stores.ipfs.unixfs.decode_node`.
        """
        if (cached := self._node_cache.get(cid)) is not None:
            self._node_cache.move_to_end(cid)
            return cached[0]
        block = await self.get_block(cid)
        node = decode_node(cid, block, max_links=self.max_links)
        if node.links and cid not in self._node_cache:
            self._node_cache[cid] = node, len(block)
            self._cached_bytes += len(block)
            while self._cached_bytes > self._node_cache_bytes:
                _, (_, size) = self._node_cache.popitem(last=False)
                self._cached_bytes -= size
        return node

    async def try_sources(self, fetch: Callable[[BlockSource], Awaitable[T]]) -> T:
        """Call `fetch` with one source after the other, or with several at once, and return the first result.

        Raises:
            StoreError: If it fails for all sources; see :func:`combine_errors`.
        """
        waiting = list(self._sources)
        errors: list[tuple[BlockSource, StoreError]] = []
        if self._race == 1 or len(waiting) == 1:
            for source in waiting:
                try:
                    return await fetch(source)
                except StoreError as error:
                    errors.append((source, error))
                    self._demote_after(source, error)
            raise combine_errors(errors)
        running: dict[asyncio.Future[T], BlockSource] = {}
        try:
            while True:
                while waiting and len(running) < self._race:
                    source = waiting.pop(0)
                    running[asyncio.ensure_future(fetch(source))] = source
                if not running:
                    raise combine_errors(errors)
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    source = running.pop(task)
                    try:
                        return task.result()
                    except StoreError as error:
                        errors.append((source, error))
                        self._demote_after(source, error)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _demote_after(self, source: BlockSource, error: StoreError) -> None:
        if not isinstance(error, NotFound):  # a source without one block may have all others
            self.demote(source)


class CarFetcher:
    """Fetch verified blocks from one CAR, which contains them roughly in the order in which they are requested.

    Args:
        gateway: Gateway that sends the CAR.
        cid: CID of a file.
        start: Offset in the file of the first byte.
        end: Offset in the file after the last byte.
        blocks: Fetcher whose limits apply.
    """

    def __init__(self, gateway: Gateway, cid: Cid, start: int, end: int, blocks: IpfsBlockFetcher) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._open_car = partial(gateway.open_car, cid, start, end, blocks.max_block_bytes, blocks.timeouts)
        self._blocks = blocks
        self._origin = gateway.origin
        self._cache: OrderedDict[Cid, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._allowed_unrequested = _MAX_UNREQUESTED_BLOCKS

    async def __aenter__(self) -> Self:
        self._car = await self._stack.enter_async_context(self._open_car())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def get_node(self, cid: Cid) -> UnixFsNode:
        """Return a verified and decoded block.

        Raises:
            IntegrityError: If the CAR contains other bytes for this CID.
            TransferInterrupted: If the CAR ends before the block.
            ProtocolError: If the data is not a valid CAR, or contains too many blocks that were not requested.
        """
        return decode_node(cid, await self._get_block(cid), max_links=self._blocks.max_links)

    async def _get_block(self, cid: Cid) -> bytes:
        if cid.inline is not None:
            return await self._blocks.get_block(cid)
        cid.require_known_hash()
        self._allowed_unrequested += 1
        if cid in self._cache:
            self._cache.move_to_end(cid)
            return self._cache[cid]
        for _ in range(min(_MAX_UNREQUESTED_BLOCKS, self._allowed_unrequested) + 1):
            received = await self._car.read_block()
            if received is None:
                raise self._car.make_truncated_error()
            received_cid, block = received
            if received_cid.digest == cid.digest and received_cid.hash_code == cid.hash_code:
                verify_block(cid, block, self._origin)
                self._cache_block(cid, block)
                return block
            self._allowed_unrequested -= 1
            if received_cid.inline is None and received_cid.hash_code == cid.hash_code:
                verify_block(received_cid, block, self._origin)
                self._cache_block(received_cid, block)
        raise self._car.make_protocol_error(
            f"a CAR with more than {_MAX_UNREQUESTED_BLOCKS} blocks that were not requested"
        )

    def _cache_block(self, cid: Cid, block: bytes) -> None:
        if cid in self._cache:
            return
        self._cache[cid] = block
        self._cached_bytes += len(block)
        while self._cached_bytes > _CAR_CACHE_BYTES:
            _, evicted = self._cache.popitem(last=False)
            self._cached_bytes -= len(evicted)


def verify_block(cid: Cid, block: bytes, origin: str) -> None:
    """Compare a block with its CID.

    Raises:
        IntegrityError: If they do not match.
    """
    if not cid.matches(block):
        raise IntegrityError(
            f"{origin} sent {len(block)} bytes for block {cid}, which are not that block. If it is a gateway that only "
            "serves plain files, and you trust it, pass verify='none'",
            address=origin,
        )


def combine_errors(errors: Sequence[tuple[object, StoreError]]) -> StoreError:
    """Return one error for the errors of all sources.

    A transient error takes precedence over a permanent one, and wrong data over a missing block.

    Args:
        errors: Each source with its error.
    """
    if len(errors) == 1:
        return errors[0][1]
    ranked = sorted((error for _, error in errors), key=lambda e: (not e.transient, isinstance(e, NotFound)))
    chosen = ranked[0]
    others = "; ".join(error.message for error in ranked[1:])
    details = dict(chosen.details)
    if chosen.transient:  # the source that is available first decides how long to wait
        details["retry_after"] = min(
            float(error.details.get("retry_after") or 0) for error in ranked if error.transient
        )
    combined = type(chosen)(
        f"{chosen.message}; the other sources failed as well: {others}",
        address=chosen.address,
        offset=chosen.offset,
        **details,
    )
    combined.__cause__ = chosen
    return combined
