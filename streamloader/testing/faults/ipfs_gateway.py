"""A misbehaving trustless IPFS gateway: https://specs.ipfs.tech/http-gateways/trustless-gateway.

It serves the blocks of a :class:`streamloader.testing.faults.ipfs_dags.DagBuilder` as ``format=raw``, as ``format=car``
(with ``dag-scope`` and ``entity-bytes``), and optionally as plain files. A fault occurs when one block, the victim, is
sent. The choice of the victim decides the position in a file.

Example::

    dag = DagBuilder(chunk_size=1000)
    entry = dag.file(data)
    async with FaultyGateway(dag.blocks, "flipped byte", victim=dag.leaves(entry)[3]) as gateway:
        store = open_store("ipfs://", gateways=gateway.url, retry=None)
        await store.read(str(entry.cid))  # raises IntegrityError, offset 3000
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator, Mapping
from typing import Final, Self

from aiohttp import web

from streamloader.errors import StoreError
from streamloader.stores.ipfs.cid import DAG_PB, RAW, Cid
from streamloader.stores.ipfs.file_reader import UnixFsReader
from streamloader.stores.ipfs.unixfs import UnixFsKind, UnixFsNode, decode_node
from streamloader.testing.faults.ipfs_dags import DagBuilder, DagEntry, encode_car, encode_node, encode_unixfs
from streamloader.testing.faults.shutdown import stop_web_runner

__all__ = ["FAULTS", "FaultyGateway", "deep_file"]

FAULTS: Final = (
    "flipped byte",  # one bit of the block differs
    "another valid block",  # a valid block, but not the requested one
    "truncated with 200",  # the response ends in the middle of the block
    "extra blocks",  # a thousand valid blocks that were not requested come first
    "oversized block",  # 16 MiB
    "HTML instead of data",  # with 200
    "stall at the header",  # no response
    "stall in the body",  # the rest never arrives
    "drip",  # one byte a second
    "reset",  # the connection is aborted
    "429",  # with Retry-After
    "503",
    "404",
)
_HTML: Final = b"<!DOCTYPE html><html><body>Please sign in to this network.</body></html>"
OVERSIZED_BYTES: Final = 16 << 20
EXTRA_BLOCKS: Final = 1000
_STATUS: Final = {"429": 429, "503": 503, "404": 404}
MAX_LINKS: Final = 1 << 20


class FaultyGateway:
    """A gateway on a free loopback port; an asynchronous context manager.

    Args:
        blocks: Blocks to serve, CID -> bytes.
        fault: One of FAULTS. None for correct responses.
        victim: Block at which the fault occurs. None for every block.
        times: Number of times that the fault occurs. None for always.
        plain: Policy for plain files. "no": requests without a format are refused. "yes": they get the plain file.
            "only": requests with a format get the plain file too, as from some gateways.
        records: IPNS records by name.

    Attributes:
        url: URL of the gateway.
        requests: Path and query of each request, in order.
        sent: CIDs of the blocks that were sent whole, in order.
        fault_count: Number of times that the fault occurred.
    """

    def __init__(
        self,
        blocks: Mapping[Cid, bytes],
        fault: str | None = None,
        *,
        victim: Cid | None = None,
        times: int | None = None,
        plain: str = "no",
        records: Mapping[str, bytes] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}; choose one of {FAULTS}")
        self.url = ""
        self._tls = tls
        self.requests: list[str] = []
        self.sent: list[Cid] = []
        self.fault_count = 0
        self._blocks: dict[tuple[int, bytes], bytes] = {}
        for cid, block in blocks.items():
            self.add_block(cid, block)
        self._fault = fault
        self._victim = victim
        self._remaining_faults = times
        self._plain = plain
        self._records = dict(records or {})
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/ipfs/{path:.+}", self._serve)
        app.router.add_get("/ipns/{name}", self._serve_record)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http{'s' if self._tls else ''}://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closing.set()
        if self._runner is not None:
            await stop_web_runner(self._runner)

    def add_block(self, cid: Cid, block: bytes) -> None:
        """Add a block."""
        self._blocks[cid.hash_code, cid.digest] = block

    def add_record(self, name: str, record: bytes) -> None:
        """Set the IPNS record of a name."""
        self._records[name] = record

    # --- correct responses -------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        kind = request.query.get("format") or _parse_accept(request.headers.get("Accept", ""))
        first, *names = request.match_info["path"].split("/")
        seen: list[Cid] = []
        try:
            found = await self._tree(seen).resolve(Cid.parse(first), names)
        except _MissingBlock as missing:
            return web.Response(status=404, text=f"no block {missing}")
        except StoreError as error:
            if kind != "raw" or names:
                return web.Response(status=400, text=error.message)
            found = Cid.parse(first), UnixFsNode(UnixFsKind.RAW)  # malformed blocks are served too
        if found is None:
            return web.Response(status=404, text="no such link")
        return await self._send(request, kind, *found, seen[:-1])

    async def _send(
        self, request: web.Request, kind: str | None, cid: Cid, node: UnixFsNode, above: list[Cid]
    ) -> web.StreamResponse:
        if self._plain == "only" or (self._plain == "yes" and kind is None):
            return await self._send_plain(request, cid, node)
        if kind == "raw":
            return await self._send_raw(request, cid)
        if kind == "car":
            return await self._send_car(request, cid, node, above)
        return web.Response(status=406, text="only application/vnd.ipld.raw and application/vnd.ipld.car")

    async def _serve_record(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        record = self._records.get(request.match_info["name"])
        if request.query.get("format") != "ipns-record" or record is None:
            return web.Response(status=404, text="no such record")
        return web.Response(body=record, content_type="application/vnd.ipfs.ipns-record")

    async def _send_raw(self, request: web.Request, cid: Cid) -> web.StreamResponse:
        block = self._block(cid)
        fault = self._match_fault(cid)
        headers = {"Content-Type": "application/vnd.ipld.raw", "ETag": f'"{cid}.raw"'}
        if fault is None:
            self.sent.append(cid)
            return web.Response(body=block, headers=headers)
        if fault in _STATUS:
            return _error_response(fault)
        return await self._misbehave(request, fault, cid, block, headers, b"")

    async def _send_car(self, request: web.Request, cid: Cid, node: UnixFsNode, above: list[Cid]) -> web.StreamResponse:
        start, end = _parse_entity_bytes(request.query.get("entity-bytes", "0:*"), node.size)
        scope = request.query.get("dag-scope", "all")
        chosen = [*above, *([cid] if scope == "block" else self._walk(cid, start, end))]
        headers = {"Content-Type": "application/vnd.ipld.car; version=1; order=dfs; dups=y"}
        victim = next((one for one in chosen if self._victim in (None, one) and self._fault), None)
        fault = self._match_fault(victim) if victim is not None else None
        if fault in _STATUS:
            return _error_response(fault)
        before = chosen[: chosen.index(victim)] if fault is not None and victim is not None else chosen
        body = encode_car(cid, [(one, self._block(one)) for one in before])
        self.sent += before
        if fault is None or victim is None:
            return web.Response(body=body, headers=headers)
        return await self._misbehave(request, fault, victim, self._block(victim), headers, body, in_car=True)

    async def _send_plain(self, request: web.Request, cid: Cid, node: UnixFsNode) -> web.StreamResponse:
        if not node.is_file:
            return web.Response(text="<html>a directory</html>", content_type="text/html")
        data = b"".join([chunk async for chunk in self._tree([]).read(node, 0, node.size)])
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{cid}"', "Accept-Ranges": "bytes"}
        wanted = request.http_range
        if wanted.start is None and wanted.stop is None:
            return web.Response(body=data, headers=headers)
        start, stop, _ = wanted.indices(len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:stop], headers=headers)

    # --- faults ------------------------------------------------------------------------------------------------------

    def _match_fault(self, cid: Cid) -> str | None:
        if self._fault is None or self._victim not in (None, cid) or self._remaining_faults == 0:
            return None
        if self._remaining_faults is not None:
            self._remaining_faults -= 1
        self.fault_count += 1
        return self._fault

    async def _misbehave(
        self,
        request: web.Request,
        fault: str,
        cid: Cid,
        block: bytes,
        headers: Mapping[str, str],
        before: bytes,
        *,
        in_car: bool = False,
    ) -> web.StreamResponse:
        """Send `before`, then the block as the fault changes it."""
        if fault == "stall at the header":
            await self._closing.wait()
            return web.Response(status=503)
        response = web.StreamResponse(headers=headers)
        whole = _frame_block(cid, block) if in_car else block
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client is gone
            await response.write(before)
            if fault == "truncated with 200":
                await response.write(whole[: len(whole) // 2])
            elif fault in ("stall in the body", "drip", "reset"):
                await self._break_off(response, request, fault, whole)
            else:
                for piece in self._forge_block(fault, cid, block, in_car=in_car):
                    await response.write(piece)
            await response.write_eof()
        return response

    async def _break_off(self, response: web.StreamResponse, request: web.Request, fault: str, whole: bytes) -> None:
        half = len(whole) // 2
        await response.write(whole[:half])
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return
        if fault == "stall in the body":
            await self._closing.wait()
        for at in range(half, len(whole)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), 1.0)
            if self._closing.is_set():
                return
            await response.write(whole[at : at + 1])

    def _forge_block(self, fault: str, cid: Cid, block: bytes, *, in_car: bool) -> Iterator[bytes]:
        """Yield the response in place of a block."""
        if fault == "HTML instead of data":
            yield _HTML
            return
        if fault == "oversized block":
            zeros = bytes(1 << 20)
            if in_car:
                yield _frame_block(cid, bytes(OVERSIZED_BYTES))[:-OVERSIZED_BYTES]
            for _ in range(OVERSIZED_BYTES // len(zeros)):
                yield zeros
            return
        if fault == "extra blocks":
            extras = DagBuilder()
            for number in range(EXTRA_BLOCKS):
                extra = extras.block(RAW, b"not requested: number %d" % number)
                yield _frame_block(extra, extras.blocks[extra]) if in_car else extras.blocks[extra]
        if fault == "another valid block":
            other = next(other for other in self._blocks if other != (cid.hash_code, cid.digest))
            cid, block = Cid(1, RAW, *other), self._blocks[other]
        if fault == "flipped byte":
            middle = len(block) // 2
            block = block[:middle] + bytes([block[middle] ^ 1]) + block[middle + 1 :]
        yield _frame_block(cid, block) if in_car else block

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _block(self, cid: Cid) -> bytes:
        block = cid.inline if cid.inline is not None else self._blocks.get((cid.hash_code, cid.digest))
        if block is None:
            raise _MissingBlock(cid)
        return block

    def _node(self, cid: Cid) -> UnixFsNode:
        return decode_node(cid, self._block(cid), max_links=MAX_LINKS)

    def _tree(self, seen: list[Cid]) -> UnixFsReader:
        async def get(cid: Cid) -> UnixFsNode:
            seen.append(cid)
            return self._node(cid)

        return UnixFsReader(get, max_concurrent=1, max_depth=1000, max_links=MAX_LINKS)

    def _walk(self, cid: Cid, start: int, end: int) -> Iterator[Cid]:
        """Yield the blocks of bytes [start, end) of a file, or all blocks of a directory, depth first."""
        if cid.inline is None:
            yield cid
        node = self._node(cid)
        at = len(node.data)
        for number, link in enumerate(node.links):
            size = node.sizes[number] if node.is_file else 0
            if not node.is_file:
                if node.kind is UnixFsKind.SHARD and len(link.name) == len(f"{node.fanout - 1:X}"):
                    yield from self._walk(link.cid, 0, 0)
            elif at < end and at + size > start:
                yield from self._walk(link.cid, max(0, start - at), min(size, end - at))
            at += size


class _MissingBlock(Exception):
    """The gateway does not have this block."""


def deep_file(dag: DagBuilder, data: bytes, levels: int) -> DagEntry:
    """Add a file below a chain of `levels` nodes with a single link each."""
    built = dag.file(data)
    for _ in range(levels):
        message = encode_unixfs(UnixFsKind.FILE, sizes=[built.size], size=built.size)
        node = encode_node(message, [(built.cid, "", built.total)])
        built = DagEntry(dag.block(DAG_PB, node), built.total + len(node), built.size)
    return built


def _frame_block(cid: Cid, block: bytes) -> bytes:
    return encode_car(cid, [(cid, block)])[len(encode_car(cid, [])) :]


def _error_response(fault: str) -> web.Response:
    headers = {"Retry-After": "1"} if fault == "429" else {}
    return web.Response(status=_STATUS[fault], headers=headers, text="not now")


def _parse_accept(accept: str) -> str | None:
    kinds = {"application/vnd.ipld.raw": "raw", "application/vnd.ipld.car": "car"}
    return next((kind for name, kind in kinds.items() if name in accept), None)


def _parse_entity_bytes(text: str, size: int) -> tuple[int, int]:
    """Parse ``from:to`` (inclusive; negative values count from the end, * is the end) into [start, end)."""
    first, _, last = text.partition(":")
    start, end = int(first), size if last == "*" else int(last) + 1
    start = max(0, size + start) if start < 0 else start
    return start, size + end if last.startswith("-") else end
