"""Blocks from several sources, each checked against its name: the next source is asked where one fails or lies."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Self, TypeVar

from streamloader.config import Limits, Timeouts
from streamloader.errors import LimitExceeded, NotFound, StoreError, WrongContent
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.sources import Gateway, Source
from streamloader.stores.ipfs.unixfs import Node, decode

__all__ = ["Blocks", "CarBlocks", "check", "failure"]

T = TypeVar("T")

_MOST_EXTRAS: Final = 64  # blocks that nobody asked for, one after the other, in a CAR
_RECENT: Final = 8 << 20  # bytes of blocks of a CAR that are kept, because it may leave out what it sent before


class Blocks:
    """The blocks of the world.

    Args:
        sources: to ask, the first one first. One that fails is asked last from then on.
        race: how many are asked at the same time; the first right answer counts, the others are given up.
        timeouts: for one wait of a reader, which has to suffice for all sources.
        limits: see :class:`streamloader.config.Limits`; of them `block_bytes`.
        most_links: of one node.
        tree_bytes: of nodes with links that are kept.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        race: int,
        timeouts: Timeouts,
        limits: Limits,
        most_links: int,
        tree_bytes: int,
    ) -> None:
        self.timeouts = dataclasses.replace(
            timeouts,
            **{name: getattr(timeouts, name) / len(sources) for name in ("connect", "response", "window")},
        )
        self.most_links = most_links
        self.most_bytes = limits.block_bytes
        self._order = list(sources)
        self._race = race
        self._tree: OrderedDict[Cid, tuple[Node, int]] = OrderedDict()
        self._tree_bytes = tree_bytes
        self._kept = 0

    @property
    def order(self) -> tuple[Source, ...]:
        """The sources, in the order in which they are asked."""
        return tuple(self._order)

    def demote(self, source: Source) -> None:
        """Ask this source last from now on."""
        self._order.remove(source)
        self._order.append(source)

    async def get(self, cid: Cid) -> bytes:
        """Return the block that is called so.

        Raises:
            WrongContent: no source gives it, and at least one gives something else.
            LimitExceeded: it is larger than ``limits.block_bytes``.
            StoreError: see :func:`failure`.
        """
        if cid.inline is not None:
            if len(cid.inline) > self.most_bytes:
                raise LimitExceeded(f"block {str(cid)[:80]}... has more than {self.most_bytes} bytes")
            return cid.inline
        cid.require_known_hash()

        async def ask(source: Source) -> bytes:
            block = await source.block(cid, self.most_bytes, self.timeouts)
            check(cid, block, source.where)
            return block

        return await self.first(ask)

    async def node(self, cid: Cid) -> Node:
        """Return a block that was understood; those with links are kept for a while.

        Raises:
            StoreError: see :meth:`get` and :func:`streamloader.stores.ipfs.unixfs.decode`.
        """
        if (known := self._tree.get(cid)) is not None:
            self._tree.move_to_end(cid)
            return known[0]
        block = await self.get(cid)
        node = decode(cid, block, most_links=self.most_links)
        if node.links and cid not in self._tree:
            self._tree[cid] = node, len(block)
            self._kept += len(block)
            while self._kept > self._tree_bytes:
                _, (_, size) = self._tree.popitem(last=False)
                self._kept -= size
        return node

    async def first(self, ask: Callable[[Source], Awaitable[T]]) -> T:
        """Ask source after source, or several at once, and return the first answer that is right.

        Raises:
            StoreError: there is none; see :func:`failure`.
        """
        waiting = list(self._order)
        errors: list[tuple[Source, StoreError]] = []
        if self._race == 1 or len(waiting) == 1:
            for source in waiting:
                try:
                    return await ask(source)
                except StoreError as error:
                    errors.append((source, error))
                    self._note(source, error)
            raise failure(errors)
        asked: dict[asyncio.Future[T], Source] = {}
        try:
            while True:
                while waiting and len(asked) < self._race:
                    source = waiting.pop(0)
                    asked[asyncio.ensure_future(ask(source))] = source
                if not asked:
                    raise failure(errors)
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    source = asked.pop(task)
                    try:
                        return task.result()
                    except StoreError as error:
                        errors.append((source, error))
                        self._note(source, error)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _note(self, source: Source, error: StoreError) -> None:
        if not isinstance(error, NotFound):  # it may well have all others
            self.demote(source)


class CarBlocks:
    """The blocks of one CAR, in about the order in which they are wanted."""

    def __init__(self, gateway: Gateway, cid: Cid, start: int, end: int, blocks: Blocks) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._begin = partial(gateway.car, cid, start, end, blocks.most_bytes, blocks.timeouts)
        self._blocks = blocks
        self._where = gateway.where
        self._recent: OrderedDict[Cid, bytes] = OrderedDict()
        self._kept = 0

    async def __aenter__(self) -> Self:
        self._car = await self._stack.enter_async_context(self._begin())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def node(self, cid: Cid) -> Node:
        """Return the block that is called so, understood.

        Raises:
            WrongContent: the CAR has other bytes under this name.
            Interrupted: the CAR ends before it.
            ProtocolFault: the CAR is none, or is full of blocks that nobody asked for.
        """
        return decode(cid, await self._get(cid), most_links=self._blocks.most_links)

    async def _get(self, cid: Cid) -> bytes:
        if cid.inline is not None:
            return await self._blocks.get(cid)
        cid.require_known_hash()
        if cid in self._recent:
            self._recent.move_to_end(cid)
            return self._recent[cid]
        for _ in range(_MOST_EXTRAS + 1):
            found = await self._car.next()
            if found is None:
                raise self._car.cut_off()
            name, block = found
            if name.digest == cid.digest and name.hash_code == cid.hash_code:
                check(cid, block, self._where)
                self._keep(cid, block)
                return block
            if name.inline is None and name.hash_code == cid.hash_code:
                check(name, block, self._where)
                self._keep(name, block)
        raise self._car.fault(f"a CAR with more than {_MOST_EXTRAS} blocks that were not asked for")

    def _keep(self, cid: Cid, block: bytes) -> None:
        if cid in self._recent:
            return
        self._recent[cid] = block
        self._kept += len(block)
        while self._kept > _RECENT:
            _, gone = self._recent.popitem(last=False)
            self._kept -= len(gone)


def check(cid: Cid, block: bytes, where: str) -> None:
    """Compare a block with its name.

    Raises:
        WrongContent: they do not fit.
    """
    if not cid.matches(block):
        raise WrongContent(
            f"{where} gives {len(block)} bytes for block {cid}, which are not that block. If it is a gateway that only "
            "gives plain files, and you trust it, say verify='none'",
            address=where,
        )


def failure(errors: Sequence[tuple[object, StoreError]]) -> StoreError:
    """Return one error for those of all sources: one that may pass before one that will not, lies before absence."""
    if len(errors) == 1:
        return errors[0][1]
    by_weight = sorted((error for _, error in errors), key=lambda e: (not e.transient, isinstance(e, NotFound)))
    chosen = by_weight[0]
    others = "; ".join(error.message for error in by_weight[1:])
    told = type(chosen)(
        f"{chosen.message}; the other sources failed as well: {others}",
        address=chosen.address,
        offset=chosen.offset,
        **chosen.details,
    )
    told.__cause__ = chosen
    return told
