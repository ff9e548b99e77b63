"""Store for files and directories on IPFS, fetched from a node or from gateways and verified block by block."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeVar
from urllib.parse import quote

from typing_extensions import override

from streamloader.config import Limits, Timeouts
from streamloader.errors import (
    ClosedError,
    ConfigError,
    NotFound,
    NotSupported,
    ProtocolError,
    StoreError,
)
from streamloader.redaction import redact_address
from streamloader.stores.access import StoreAccess
from streamloader.stores.base import Body, Store
from streamloader.stores.http.address_scope import PinnedHosts
from streamloader.stores.http.store import HttpStore
from streamloader.stores.ipfs.access import describe_access
from streamloader.stores.ipfs.blocks import CarFetcher, IpfsBlockFetcher, combine_errors
from streamloader.stores.ipfs.cid import LIBP2P_KEY, Cid
from streamloader.stores.ipfs.file_reader import GetNode, UnixFsReader
from streamloader.stores.ipfs.ipns import parse_key, split_path, verify_record
from streamloader.stores.ipfs.listing import IpfsListing
from streamloader.stores.ipfs.sources import (
    BlockSource,
    Gateway,
    RpcNode,
    get_default_gateways,
    get_default_rpc,
    parse_http_url,
)
from streamloader.stores.ipfs.transport import IpfsHttpClient
from streamloader.stores.ipfs.unixfs import UnixFsKind, UnixFsNode
from streamloader.stores.listing_budget import ListingBudget
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["IpfsStore"]

T = TypeVar("T")

_MAX_NAME_DEPTH: Final = 8  # names that stand for other names


class IpfsStore(Store):
    """UnixFS files and directories at ``ipfs://CID/path`` and ``ipns://name/path``. The store is read-only.

    Blocks come from an IPFS node of your own (`rpc`), from trustless gateways (`gateways`), or from both, with the node
    first. Every block is compared with its CID before any byte of it is returned, so sources need not be trusted. If a
    source fails, is too slow, or sends wrong data, the next one is tried, and the failed one moves to the end of the
    order. A range is read by fetching only the blocks that it needs, many at the same time. Versions are CIDs.

    Names of ``ipns://`` are resolved by the node, which is trusted, or from the signed records that gateways provide
    (Ed25519 and RSA keys). DNS names (DNSLink) are not signed and need a node.

    Args:
        url: ``ipfs://`` or ``ipns://``. CIDs and names are part of the paths. Defaults to ``ipfs://``.
        rpc: Address of a node's RPC API, as URL or multiaddr (``/ip4/127.0.0.1/tcp/5001``). If neither `rpc` nor
            `gateways` is given, it defaults to $IPFS_API, or to the content of the file ``api`` that a node writes to
            $IPFS_PATH or ~/.ipfs.
        gateways: Address of a gateway, or several. If neither `rpc` nor `gateways` is given, it defaults to
            $IPFS_GATEWAY.
        token: Bearer token for the node. Any address may contain a user name and password instead.
        race: Number of sources that are requested for the same block at the same time. The first valid response is
            used. CARs are requested from one gateway at a time. Defaults to 1.
        format: Format requested from gateways: "raw" for single blocks, or "car" for all blocks of a range in one
            response. Directories are always read block by block. Defaults to "raw".
        verify: "blocks", or "none" to request plain files from the gateways, without any verification. Such gateways
            provide no listings, and versions are their ETags. Defaults to "blocks".
        prefetch_blocks: Number of blocks that one read or listing fetches at the same time. They are held in memory.
            Defaults to 16.
        max_links: Maximum number of links of a node. Defaults to 65,536.
        node_cache_bytes: Size of the cache for nodes of files and directories, in bytes. Defaults to 16 MiB.
        ca_file: PEM file of the trusted certificate authorities. Defaults to those of the environment or the system, as
            for :class:`streamloader.stores.http.store.HttpStore`. Proxies of the environment are used, too.
        name_ttl: Time in seconds for which a resolved name of ``ipns://`` is cached. Defaults to 60.
        timeouts: Time limits; see :class:`streamloader.config.Timeouts`. They apply to all sources together, and each
            source gets an equal share of them.
        limits: Size limits; see :class:`streamloader.config.Limits`, in particular `block_bytes` and `depth`.

    Raises:
        ConfigError: If there is neither a node nor a gateway, or if an option is invalid.
    """

    schemes: ClassVar[tuple[str, ...]] = ("ipfs", "ipns")
    supports_writes: ClassVar[bool] = False

    def __init__(
        self,
        url: str = "ipfs://",
        *,
        rpc: str | None = None,
        gateways: str | Sequence[str] | None = None,
        token: str | None = None,
        race: int = 1,
        format: Literal["raw", "car"] = "raw",  # noqa: A002 - the name of the gateways' query parameter
        verify: Literal["blocks", "none"] = "blocks",
        prefetch_blocks: int = 16,
        max_links: int = 65_536,
        node_cache_bytes: int = 16 << 20,
        name_ttl: float = 60.0,
        ca_file: str | os.PathLike[str] | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(url, timeouts=timeouts, limits=limits)
        if rpc is None and gateways is None:
            rpc, gateways = get_default_rpc() if verify == "blocks" else None, get_default_gateways()
        self._rpc = rpc
        self._gateways = [gateways] if isinstance(gateways, str) else list(gateways or ())
        self._token = token
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        self._race, self._format, self._prefetch_blocks = race, format, prefetch_blocks
        self._max_links, self._node_cache_bytes, self._name_ttl = max_links, node_cache_bytes, name_ttl
        self._check_options(verify)
        # Gateways that serve plain files without verification are ordinary web servers.
        roots = [HttpStore.split(parse_http_url(gateway)) for gateway in (self._gateways if verify == "none" else ())]
        self._plain_gateways = [
            (
                HttpStore(root, timeouts=self.timeouts, limits=self.limits, ca_file=ca_file),
                f"{folder}/" if folder else "",
            )
            for root, folder in roots
        ]
        self._pinned_hosts: PinnedHosts = {}  # outlives the connections
        self._session: _IpfsSession | None = None

    def _check_options(self, verify: str) -> None:
        if verify not in ("blocks", "none") or self._format not in ("raw", "car"):
            raise ConfigError("verify= must be 'blocks' or 'none', and format= must be 'raw' or 'car'")
        if min(self._race, self._prefetch_blocks, self._max_links) < 1 or self._node_cache_bytes < 0:
            raise ConfigError(
                "race=, prefetch_blocks= and max_links= must be at least 1, and node_cache_bytes= at least 0"
            )
        for address in [*self._gateways, *([self._rpc] if self._rpc else [])]:
            parse_http_url(address)
        if verify == "none" and (not self._gateways or self._rpc):
            raise ConfigError("verify='none' is for gateways that serve plain files: it needs gateways= and no rpc=")
        if self._format == "car" and not self._gateways:
            raise ConfigError("format='car' is for gateways: it needs gateways=")
        if not self._gateways and not self._rpc:
            raise ConfigError(
                f"{self.url} needs a node or a gateway: pass rpc='/ip4/127.0.0.1/tcp/5001' (a node's RPC API) or "
                "gateways='https://...' (a trustless gateway), or set IPFS_API or IPFS_GATEWAY"
            )

    @classmethod
    @override
    def split(cls, address: str) -> tuple[str, str]:
        scheme, _, path = address.partition("://")
        return f"{scheme.lower()}://", path.rstrip("/")

    @override
    def address(self, path: str) -> str:
        return redact_address(f"{self.url}{path}")

    @override
    def describe_access(self) -> StoreAccess:
        return describe_access(
            self._rpc, self._gateways, has_token=self._token is not None, verified=not self._plain_gateways
        )

    async def add(self, data: bytes) -> str:
        """Add a file to the node of `rpc` and pin it there. Return its CID, of version 1 with raw leaves.

        Raises:
            NotSupported: If the store has no node.
            StoreError: If the request fails.
        """
        self._prepare_call("", allow_empty=True)
        node = next((source for source in self._get_session().blocks.sources if isinstance(source, RpcNode)), None)
        if node is None:
            raise NotSupported(f"{self.url} can only add files through a node: pass rpc=", address=self.url)
        with self._annotate_errors("", None):
            return str(Cid.parse(await node.add(data, self.timeouts)))

    # --- methods of the store contract -------------------------------------------------------------------------------

    async def _head(self, path: str) -> ObjectInfo:
        with self._annotate_errors(path, None):
            if self._plain_gateways:
                info = await self._try_plain_gateways(
                    lambda store, folder: store._head(folder + self._plain_path(path))  # noqa: SLF001
                )
                return ObjectInfo(path, info.size, info.version, info.modified)
            cid, node = await self._resolve_file(path)
            return ObjectInfo(path, node.size, str(cid), node.modified)

    @contextlib.asynccontextmanager
    async def _get(self, path: str, span: ByteRange | None, version: str | None) -> AsyncIterator[Body]:
        start = 0 if span is None else max(0, span.start)
        async with contextlib.AsyncExitStack() as stack:
            with self._annotate_errors(path, start):
                if self._plain_gateways:
                    body = await self._try_plain_gateways(
                        lambda store, folder: stack.enter_async_context(
                            store._get(folder + self._plain_path(path), span, version)  # noqa: SLF001
                        )
                    )
                    info = body.info
                    body.info = ObjectInfo(path, info.size, info.version, info.modified)
                    body.pieces = self._annotate_pieces(path, body.start, body.pieces)
                else:
                    cid, node = await self._resolve_file(path)
                    start, end = (span or ByteRange()).within(node.size, self.address(path))
                    if self._uses_cars(node):
                        pieces = self._read_from_cars(cid, start, end)
                    else:
                        pieces = self._make_reader().read(node, start, end)
                    info = ObjectInfo(path, node.size, str(cid), node.modified)
                    body = Body(info, start, end, self._annotate_pieces(path, start, pieces))
            yield body

    async def _list(self, prefix: str, *, recursive: bool) -> AsyncGenerator[ObjectInfo, None]:
        if self._plain_gateways:
            raise NotSupported(
                f"{self.address(prefix)}: gateways that serve plain files provide no listings",
                address=self.address(prefix),
            )
        if not prefix:
            raise NotSupported(f"{self.url} cannot be listed as a whole: name a directory by its CID", address=self.url)
        with self._annotate_errors(prefix, None):
            cid, names = await self._resolve_root(prefix)
            resolved = await self._make_reader().resolve(cid, names)
        if resolved is None or not resolved[1].is_directory:
            return
        listing = IpfsListing(
            self._get_session().blocks.get_node,
            max_concurrent=self._prefetch_blocks,
            budget=ListingBudget(self.limits, self.address(prefix)),
            recursive=recursive,
        )
        async with contextlib.aclosing(listing.list_entries(resolved[1], prefix)) as entries:
            while True:
                with self._annotate_errors(prefix, None):
                    info = await anext(entries, None)
                if info is None:
                    return
                yield info

    async def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.client.close()
        for store, _ in self._plain_gateways:
            await store._disconnect()  # noqa: SLF001

    def _drop_connections(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.client.pid != os.getpid():
            _inherited.append(session)
        for store, _ in self._plain_gateways:
            store._drop_connections()  # noqa: SLF001

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _get_session(self) -> _IpfsSession:
        if self._closed:
            raise ClosedError(f"{self!r} was closed", address=self.url)
        if self._session is None:
            client = IpfsHttpClient(self.limits, self._pinned_hosts, self._ca_file)
            nodes: list[BlockSource] = [RpcNode(client, self._rpc, self._token)] if self._rpc else []
            blocks = IpfsBlockFetcher(
                [*nodes, *(Gateway(client, gateway) for gateway in self._gateways)],
                race=self._race,
                timeouts=self.timeouts,
                limits=self.limits,
                max_links=self._max_links,
                node_cache_bytes=self._node_cache_bytes,
            )
            self._session = _IpfsSession(client, blocks)
        return self._session

    def _make_reader(self, car: CarFetcher | None = None) -> UnixFsReader:
        """Return a reader that fetches nodes block by block, or from a CAR."""
        get_node: GetNode = self._get_session().blocks.get_node if car is None else car.get_node
        return UnixFsReader(
            get_node,
            max_concurrent=self._prefetch_blocks if car is None else 1,  # blocks of a CAR arrive one after the other
            max_depth=self.limits.depth,
            max_links=self._max_links,
        )

    async def _resolve_file(self, path: str) -> tuple[Cid, UnixFsNode]:
        """Return the CID and the node of a file."""
        cid, names = await self._resolve_root(path)
        resolved = await self._make_reader().resolve(cid, names)
        if resolved is None:
            raise NotFound(f"no such object: {self.address(path)}")
        cid, node = resolved
        if node.is_directory:
            raise NotFound(f"{self.address(path)} is a directory, not a file")
        if node.kind is UnixFsKind.SYMLINK:
            raise NotSupported(f"{self.address(path)} is a symbolic link, which is not followed")
        return cid, node

    def _uses_cars(self, node: UnixFsNode) -> bool:
        return self._format == "car" and bool(node.links)

    async def _read_from_cars(self, cid: Cid, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield bytes of a file from a CAR. If it fails, request a CAR for the rest from the next gateway."""
        blocks = self._get_session().blocks
        errors: list[tuple[BlockSource, StoreError]] = []
        for gateway in blocks.sources:
            if not isinstance(gateway, Gateway):
                continue
            try:
                async with CarFetcher(gateway, cid, start, end, blocks) as car:
                    node = await car.get_node(cid)
                    async with contextlib.aclosing(self._make_reader(car).read(node, start, end)) as pieces:
                        async for piece in pieces:
                            start += len(piece)
                            yield piece
                return
            except StoreError as error:
                error.offset = start
                errors.append((gateway, error))
                blocks.demote(gateway)
        raise combine_errors(errors)

    # --- names -------------------------------------------------------------------------------------------------------

    async def _resolve_root(self, path: str) -> tuple[Cid, list[str]]:
        """Split a path into the CID that it begins with, or that its name stands for, and the names below it."""
        first, *names = path.split("/")
        if self.url.startswith("ipfs:"):
            cid = Cid.parse(first)
            if cid.codec == LIBP2P_KEY:
                raise NotSupported(f"{first} is no file or directory but a name: write ipns://{path}", address=self.url)
            return cid, names
        cached = self._get_session().resolved_names
        if first not in cached or cached[first][0] <= time.monotonic():
            target = await self._resolve_name(first)
            cached[first] = time.monotonic() + self._name_ttl, target
        cid, parents = cached[first][1]
        return cid, [*parents, *names]

    async def _resolve_name(self, name: str) -> tuple[Cid, list[str]]:
        names: list[str] = []
        for _ in range(_MAX_NAME_DEPTH):
            kind, name, below = split_path(await self._get_name_target(name))
            names = [*below, *names]
            if kind == "ipfs":
                return Cid.parse(name), names
        raise ProtocolError(f"a name that leads to a chain of more than {_MAX_NAME_DEPTH} other names")

    async def _get_name_target(self, name: str) -> str:
        """Return the path that a name stands for."""
        key, blocks = parse_key(name), self._get_session().blocks

        async def resolve(source: BlockSource) -> str:
            if isinstance(source, Gateway) and key is None:
                raise NotSupported(
                    f"{name!r} is a DNS name, which cannot be verified through a gateway: pass rpc= of a node"
                )
            answer = await source.resolve_name(name if key is None else str(key), blocks.timeouts)
            if isinstance(answer, str):
                return answer
            assert key is not None
            return verify_record(key, answer)

        return await blocks.try_sources(resolve)

    # --- gateways that serve plain files -----------------------------------------------------------------------------

    async def _try_plain_gateways(self, request: Callable[[HttpStore, str], Awaitable[T]]) -> T:
        """Call `request` with the store and the folder of one gateway after the other until one succeeds.

        Gateways that fail move to the end of the order.
        """
        _warn_unverified(self.url)
        errors: list[tuple[HttpStore, StoreError]] = []
        for entry in list(self._plain_gateways):
            try:
                return await request(*entry)
            except StoreError as error:
                errors.append((entry[0], error))
                self._plain_gateways.remove(entry)
                self._plain_gateways.append(entry)
        raise combine_errors(errors)

    def _plain_path(self, path: str) -> str:
        return f"{self.url.partition(':')[0]}/{quote(path)}"

    # --- errors ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _annotate_errors(self, path: str, offset: int | None) -> Iterator[None]:
        """Set the address of errors to that of the object, and their offset if they have none."""
        try:
            yield
        except StoreError as error:
            error.address = self.address(path)
            error.offset = offset if error.offset is None else error.offset
            raise

    async def _annotate_pieces(
        self, path: str, offset: int, pieces: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of an object from `offset` on, and annotate errors."""
        try:
            while True:
                with self._annotate_errors(path, offset):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                offset += len(piece)
                yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


@dataclass(slots=True)
class _IpfsSession:
    """State of a store that belongs to one process and event loop.

    Attributes:
        client: HTTP client.
        blocks: Fetcher of blocks, with its cache of nodes.
        resolved_names: Name -> (time of expiration on the monotonic clock, (CID, names below it)).
    """

    client: IpfsHttpClient
    blocks: IpfsBlockFetcher
    resolved_names: dict[str, tuple[float, tuple[Cid, list[str]]]] = field(default_factory=dict)


def _warn_unverified(url: str) -> None:
    if url not in _warned:
        _warned.add(url)
        _log.warning("%s with verify='none': the data from its gateways is not verified", url)


_log: Final = logging.getLogger("streamloader")
_warned: Final[set[str]] = set()
_inherited: Final[list[object]] = []  # connections of the parent process, which freeing would disturb
