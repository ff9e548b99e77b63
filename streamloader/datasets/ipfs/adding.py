"""Store blocks on an IPFS node, and pin them, through its RPC API: https://docs.ipfs.tech/reference/kubo/rpc."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from typing import Any, Final

import aiohttp

from streamloader.config import Limits, Retry, Timeouts
from streamloader.errors import ClosedError, ConfigError, NotFound, ProtocolError, StoreError
from streamloader.redaction import redact_address
from streamloader.stores.http.address_scope import PinnedHosts
from streamloader.stores.ipfs.cid import Cid
from streamloader.stores.ipfs.sources import RpcNode, get_default_rpc, parse_http_url
from streamloader.stores.ipfs.transport import IpfsHttpClient
from streamloader.stores.wrappers.retry import call_with_retries

__all__ = ["BlockUploader"]

_MIN_UPLOAD_BYTES_PER_S: Final = 64 << 10
_MIN_PINNED_BYTES_PER_S: Final = 4 << 20  # a node visits all blocks below a pin
_MAX_ANSWER_BYTES: Final = 64 << 10


class BlockUploader:
    """Stores blocks on one node. It belongs to the event loop that uses it first, and connects on first use.

    Args:
        rpc: Address of the node's RPC API, as URL or multiaddr. Defaults to the user's own node, as for
            :class:`streamloader.stores.ipfs.store.IpfsStore`.
        token: Bearer token for the node.
        timeouts: Time limits. Uploading and pinning get longer ones, in proportion to their bytes.
        limits: Limits of connections.
        retry: Policy of retries. None disables them.

    Attributes:
        url: Address of the node without secrets.

    Raises:
        ConfigError: If there is no node, or its address is malformed.
    """

    def __init__(
        self,
        rpc: str | None,
        *,
        token: str | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        retry: Retry | None = Retry(),  # noqa: B008 - immutable
    ) -> None:
        rpc = rpc or get_default_rpc()
        if not rpc:
            raise ConfigError(
                "exporting needs an IPFS node: pass the address of its RPC API, such as /ip4/127.0.0.1/tcp/5001, or "
                "set IPFS_API"
            )
        self.url = redact_address(parse_http_url(rpc))
        self._rpc, self._token = rpc, token
        self._timeouts, self._limits = timeouts or Timeouts(), limits or Limits()
        self._retry = retry or Retry(attempts=1)
        self._pinned_hosts: PinnedHosts = {}
        self._node: _ImportingNode | None = None
        self._client: IpfsHttpClient | None = None
        self._closed = False

    async def store(self, car: bytes, root: Cid, *, pinned_bytes: int | None = None) -> None:
        """Store the blocks of a CAR.

        Args:
            car: CAR, see :func:`streamloader.datasets.ipfs.dag_writer.pack_car`.
            root: Root of the CAR.
            pinned_bytes: Size of all blocks below `root`, to pin it and all of them. None to pin nothing.

        Raises:
            StoreError: If the node does not take them, or does not have all blocks below a pinned root.
        """
        seconds = self._timeouts.response + len(car) / _MIN_UPLOAD_BYTES_PER_S
        if pinned_bytes is not None:
            seconds += pinned_bytes / _MIN_PINNED_BYTES_PER_S
        timeouts = dataclasses.replace(self._timeouts, response=seconds)
        await self._call(lambda node: node.import_car(car, root, timeouts, pin=pinned_bytes is not None))

    async def unpin(self, root: Cid) -> None:
        """Remove the pin of a root. A root that is not pinned is no error.

        Raises:
            StoreError: If the request fails.
        """
        await self._call(lambda node: node.unpin(root, self._timeouts))

    async def aclose(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._client is not None and self._client.pid == os.getpid():
            await self._client.close()

    async def _call(self, request: Any) -> None:
        await call_with_retries(self._retry, lambda: request(self._get_node()))

    def _get_node(self) -> _ImportingNode:
        if self._closed:
            raise ClosedError(f"the connection to {self.url} was closed", address=self.url)
        if self._node is None:
            self._client = IpfsHttpClient(self._limits, self._pinned_hosts)
            self._node = _ImportingNode(self._client, self._rpc, self._token)
        return self._node


class _ImportingNode(RpcNode):
    """RPC API of a node, with the methods that write."""

    async def import_car(self, car: bytes, root: Cid, timeouts: Timeouts, *, pin: bool) -> None:
        """Store the blocks of a CAR, and pin its root with all blocks below it if `pin` is set."""
        with aiohttp.MultipartWriter("form-data") as body:
            body.append(io.BytesIO(car), {"Content-Disposition": 'form-data; name="file"; filename="file"'})
        query = {"pin-roots": "true" if pin else "false"}
        answer = await self._call("dag/import", query, _MAX_ANSWER_BYTES, f"blocks below {root}", timeouts, body)
        if pin:
            self._check_pinned(answer, root)

    async def unpin(self, root: Cid, timeouts: Timeouts) -> None:
        """Remove a pin."""
        try:
            await self._call("pin/rm", {"arg": str(root)}, _MAX_ANSWER_BYTES, f"the pin of {root}", timeouts)
        except NotFound:
            pass
        except StoreError as error:
            if "not pinned" not in error.message:
                raise

    def _check_pinned(self, answer: bytes, root: Cid) -> None:
        for line in answer.splitlines():
            try:
                report = json.loads(line)["Root"]
                cid, problem = str(report["Cid"]["/"]), str(report.get("PinErrorMsg") or "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            if problem:
                raise StoreError(f"{self.origin} cannot pin {root}: {problem[:300]}", address=self.origin)
            if Cid.parse(cid).digest == root.digest:
                return
        raise ProtocolError(f"{self.origin} does not confirm that it has pinned {root}", address=self.origin)
