"""Files and directories of IPFS, from a node or from gateways, with every block checked against its name."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeVar
from urllib.parse import quote

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolFault,
    StoreError,
)
from streamloader.stores.base import Body, Store
from streamloader.stores.http.store import HttpStore
from streamloader.stores.ipfs.blocks import Blocks, CarBlocks, failure
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.file_reader import GetNode, Tree
from streamloader.stores.ipfs.ipns import key_of, split_path, verified_target
from streamloader.stores.ipfs.listing import Listing
from streamloader.stores.ipfs.sources import Gateway, RpcNode, Source, default_gateways, default_rpc, http_url
from streamloader.stores.ipfs.transport import Http
from streamloader.stores.ipfs.unixfs import Kind, Node
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["IpfsStore"]

T = TypeVar("T")

_NAMES_DEEP: Final = 8  # names that stand for names


class IpfsStore(Store):
    """``ipfs://CID/path/in/it`` and ``ipns://name/path``: UnixFS files and directories. It is read-only.

    Blocks come from a node of yours (`rpc`), from trustless gateways (`gateways`), or from both, the node first. Each
    is compared with its CID before a byte of it is handed out, so it does not matter who sent it. The next source is
    asked where one fails, is too slow, or lies; one that did so is asked last from then on. Ranges fetch the blocks
    that they need and no others, many at the same time. Versions are CIDs: what is read is what was looked at.

    Names of ipns:// are resolved by the node, whose word is taken, or from the signed records that gateways give
    (Ed25519 and RSA keys). Names of the DNS (DNSLink) carry no signature and need a node.

    Args:
        url: ``ipfs://`` or ``ipns://``; CIDs and names are in the paths.
        rpc: address of a node's RPC API, as URL or multiaddr (``/ip4/127.0.0.1/tcp/5001``). Without it and without
            `gateways`, $IPFS_API counts, then the file ``api`` in $IPFS_PATH or ~/.ipfs that a node leaves there.
        gateways: address of a gateway, or several. Without it and without `rpc`, $IPFS_GATEWAY counts.
        token: sent to the node as a bearer token. User and password can stand in each address.
        race: how many sources are asked for the same block at the same time. The first right answer counts. CARs are
            asked of one gateway at a time.
        format: what gateways are asked for: "raw", each block by itself, or "car", all blocks of a range in one go.
            Directories are read block by block in any case.
        verify: "blocks", or "none": then the gateways are asked for plain files, and whatever they send is believed.
            Such gateways have no listings, and versions are their ETags.
        ahead: blocks that one read or listing has under way at the same time. They are held in memory.
        links: that one node may have.
        tree_bytes: of nodes of files and directories that are kept in memory.
        name_seconds: that what a name of ipns:// stands for is taken as known.
        timeouts: see :class:`streamloader.config.Timeouts`. All sources have to be tried in that time: each has its
            share of it.
        limits: see :class:`streamloader.config.Limits`; of them `block_bytes` and `depth` above all.

    Raises:
        ConfigError: there is no node and no gateway, or an option makes no sense.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ipfs", "ipns")
    writes: ClassVar[bool] = False

    def __init__(
        self,
        url: str = "ipfs://",
        *,
        rpc: str | None = None,
        gateways: str | Sequence[str] | None = None,
        token: str | None = None,
        race: int = 1,
        format: Literal["raw", "car"] = "raw",  # noqa: A002 - the gateways' own word
        verify: Literal["blocks", "none"] = "blocks",
        ahead: int = 16,
        links: int = 65_536,
        tree_bytes: int = 16 << 20,
        name_seconds: float = 60.0,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(url, timeouts=timeouts, limits=limits)
        if rpc is None and gateways is None:
            rpc, gateways = default_rpc() if verify == "blocks" else None, default_gateways()
        self._rpc = rpc
        self._gateways = [gateways] if isinstance(gateways, str) else list(gateways or ())
        self._token = token
        self._race, self._format, self._ahead = race, format, ahead
        self._links, self._tree_bytes, self._name_seconds = links, tree_bytes, name_seconds
        self._check(verify)
        # Gateways that are believed are just web servers.
        roots = [HttpStore.split(http_url(gateway)) for gateway in (self._gateways if verify == "none" else ())]
        self._plain = [
            (HttpStore(root, timeouts=self.timeouts, limits=self.limits), f"{folder}/" if folder else "")
            for root, folder in roots
        ]
        self._live: _Live | None = None

    def _check(self, verify: str) -> None:
        if verify not in ("blocks", "none") or self._format not in ("raw", "car"):
            raise ConfigError("IpfsStore takes verify='blocks' or 'none', and format='raw' or 'car'")
        if min(self._race, self._ahead, self._links) < 1 or self._tree_bytes < 0:
            raise ConfigError("IpfsStore takes race, ahead and links of at least 1, and tree_bytes of at least 0")
        for address in [*self._gateways, *([self._rpc] if self._rpc else [])]:
            http_url(address)
        if verify == "none" and (not self._gateways or self._rpc):
            raise ConfigError("verify='none' is for gateways that give plain files: it takes gateways= and no rpc=")
        if self._format == "car" and not self._gateways:
            raise ConfigError("format='car' is for gateways: it takes gateways=")
        if not self._gateways and not self._rpc:
            raise ConfigError(
                f"{self.url} needs a node or a gateway: pass rpc='/ip4/127.0.0.1/tcp/5001' (a node's RPC API) or "
                "gateways='https://...' (a trustless gateway), or set IPFS_API or IPFS_GATEWAY"
            )

    @classmethod
    def split(cls, address: str) -> tuple[str, str]:
        """Split an address into ``ipfs://`` and a path that begins with the CID."""
        scheme, _, path = address.partition("://")
        return f"{scheme.lower()}://", path.rstrip("/")

    def address(self, path: str) -> str:
        """Return the whole address of `path`, for messages."""
        return f"{self.url}{path}"

    async def add(self, data: bytes) -> str:
        """Add a file to the node of `rpc`, pinned there, and return its CID: version 1, with raw leaves.

        Raises:
            NotSupported: there is no node.
            StoreError: anything else.
        """
        self._enter("", empty=True)
        node = next((source for source in self._connected().blocks.order if isinstance(source, RpcNode)), None)
        if node is None:
            raise NotSupported(f"{self.url} adds files through a node only: pass rpc=", address=self.url)
        with self._naming("", None):
            return str(Cid.parse(await node.add(data, self.timeouts)))

    # --- the contract ------------------------------------------------------------------------------------------------

    async def _head(self, path: str) -> ObjectInfo:
        with self._naming(path, None):
            if self._plain:
                info = await self._plainly(lambda store, at: store._head(at + self._plain_path(path)))  # noqa: SLF001
                return ObjectInfo(path, info.size, info.version, info.modified)
            cid, node = await self._file(path)
            return ObjectInfo(path, node.size, str(cid), node.modified)

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        start = 0 if span is None else max(0, span.start)
        async with contextlib.AsyncExitStack() as stack:
            with self._naming(path, start):
                if self._plain:
                    body = await self._plainly(
                        lambda store, at: stack.enter_async_context(
                            store._get(at + self._plain_path(path), span, version)  # noqa: SLF001
                        )
                    )
                    info = body.info
                    body.info = ObjectInfo(path, info.size, info.version, info.modified)
                    body.chunks = self._named(path, body.start, body.chunks)
                else:
                    cid, node = await self._file(path)
                    start, end = (span or ByteRange()).within(node.size, self.address(path))
                    chunks = (
                        self._cars(cid, start, end) if self._uses_cars(node) else self._tree().read(node, start, end)
                    )
                    info = ObjectInfo(path, node.size, str(cid), node.modified)
                    body = Body(info, start, end, self._named(path, start, chunks))
            yield body

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        if self._plain:
            raise NotSupported(
                f"{self.address(prefix)}: gateways that give plain files have no listings", address=self.address(prefix)
            )
        if not prefix:
            raise NotSupported(f"{self.url} cannot be listed as a whole: name a CID", address=self.url)
        with self._naming(prefix, None):
            cid, names = await self._root(prefix)
            found = await self._tree().resolve(cid, names)
        if found is None or not found[1].is_directory:
            return
        listing = Listing(
            self._connected().blocks.node,
            ahead=self._ahead,
            depth=self.limits.depth,
            most=self.limits.listed,
            recursive=recursive,
        )
        async with contextlib.aclosing(listing.entries(found[1], prefix)) as entries:
            while True:
                with self._naming(prefix, None):
                    info = await anext(entries, None)
                if info is None:
                    return
                yield info

    async def _disconnect(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.http.close()
        for store, _ in self._plain:
            await store._disconnect()  # noqa: SLF001

    def _forget(self) -> None:
        live, self._live = self._live, None
        if live is not None and live.http.pid != os.getpid():
            _inherited.append(live)
        for store, _ in self._plain:
            store._forget()  # noqa: SLF001

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _connected(self) -> _Live:
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        if self._live is None:
            http = Http(self.limits)
            sources: list[Source] = [RpcNode(http, self._rpc, self._token)] if self._rpc else []
            blocks = Blocks(
                [*sources, *(Gateway(http, gateway) for gateway in self._gateways)],
                race=self._race,
                timeouts=self.timeouts,
                limits=self.limits,
                most_links=self._links,
                tree_bytes=self._tree_bytes,
            )
            self._live = _Live(http, blocks)
        return self._live

    def _tree(self, get: GetNode | None = None) -> Tree:
        return Tree(
            get or self._connected().blocks.node,
            ahead=1 if get else self._ahead,
            depth=self.limits.depth,
            most_links=self._links,
        )

    async def _file(self, path: str) -> tuple[Cid, Node]:
        cid, names = await self._root(path)
        found = await self._tree().resolve(cid, names)
        if found is None:
            raise NotFound(f"no such object: {self.address(path)}")
        cid, node = found
        if node.is_directory:
            raise NotFound(f"{self.address(path)} is a directory, not a file")
        if node.kind is Kind.SYMLINK:
            raise NotSupported(f"{self.address(path)} is a symbolic link, and those are not followed")
        return cid, node

    def _uses_cars(self, node: Node) -> bool:
        return self._format == "car" and bool(node.links)

    async def _cars(self, cid: Cid, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield bytes of a file from CARs: where one is not right, another gateway sends one for the rest."""
        blocks = self._connected().blocks
        errors: list[tuple[Source, StoreError]] = []
        for gateway in blocks.order:
            if not isinstance(gateway, Gateway):
                continue
            try:
                async with CarBlocks(gateway, cid, start, end, blocks) as car:
                    node = await car.node(cid)
                    async with contextlib.aclosing(self._tree(car.node).read(node, start, end)) as chunks:
                        async for chunk in chunks:
                            start += len(chunk)
                            yield chunk
                return
            except StoreError as error:
                error.offset = start
                errors.append((gateway, error))
                blocks.demote(gateway)
        raise failure(errors)

    # --- names -------------------------------------------------------------------------------------------------------

    async def _root(self, path: str) -> tuple[Cid, list[str]]:
        """Return the CID that a path begins with, or that its name stands for, and the names behind it."""
        first, *names = path.split("/")
        if self.url.startswith("ipfs:"):
            return Cid.parse(first), names
        known = self._connected().names
        if first not in known or known[first][0] <= time.monotonic():
            target = await self._resolved(first)
            known[first] = time.monotonic() + self._name_seconds, target
        cid, above = known[first][1]
        return cid, [*above, *names]

    async def _resolved(self, name: str) -> tuple[Cid, list[str]]:
        names: list[str] = []
        for _ in range(_NAMES_DEEP):
            kind, name, deeper = split_path(await self._target(name))
            names = [*deeper, *names]
            if kind == "ipfs":
                return Cid.parse(name), names
        raise ProtocolFault(f"a name that stands for more than {_NAMES_DEEP} others, one behind the other")

    async def _target(self, name: str) -> str:
        """Return the path that a name stands for."""
        key, blocks = key_of(name), self._connected().blocks

        async def ask(source: Source) -> str:
            if isinstance(source, Gateway) and key is None:
                raise NotSupported(
                    f"{name!r} is a name of the DNS: what a gateway says of it cannot be verified. Pass rpc= of a node"
                )
            said = await source.name(name if key is None else str(key), blocks.timeouts)
            if isinstance(said, str):
                return said
            assert key is not None
            return verified_target(key, said)

        return await blocks.first(ask)

    # --- gateways that are believed ----------------------------------------------------------------------------------

    async def _plainly(self, ask: Callable[[HttpStore, str], Awaitable[T]]) -> T:
        """Ask gateway after gateway, and put those that fail to the end."""
        _warn_of_belief(self.url)
        errors: list[tuple[HttpStore, StoreError]] = []
        for entry in list(self._plain):
            try:
                return await ask(*entry)
            except StoreError as error:
                errors.append((entry[0], error))
                self._plain.remove(entry)
                self._plain.append(entry)
        raise failure(errors)

    def _plain_path(self, path: str) -> str:
        return f"{self.url.partition(':')[0]}/{quote(path)}"

    # --- errors ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _naming(self, path: str, offset: int | None) -> Iterator[None]:
        """Let errors name the object, and the offset that was being read."""
        try:
            yield
        except StoreError as error:
            error.address = self.address(path)
            error.offset = offset if error.offset is None else error.offset
            raise

    async def _named(self, path: str, at: int, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                with self._naming(path, at):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                at += len(chunk)
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()


@dataclass(slots=True)
class _Live:
    """What belongs to one process and event loop."""

    http: Http
    blocks: Blocks
    names: dict[str, tuple[float, tuple[Cid, list[str]]]] = field(default_factory=dict)  # with the time they are good


def _warn_of_belief(url: str) -> None:
    if url not in _warned:
        _warned.add(url)
        _log.warning("%s with verify='none': whatever its gateways send is believed", url)


_log: Final = logging.getLogger("streamloader")
_warned: Final[set[str]] = set()
_inherited: Final[list[object]] = []  # connections of the parent process: to free them would disturb it
