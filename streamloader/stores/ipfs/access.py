"""Describe the node and the gateways of an IPFS store."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from streamloader.redaction import redact_address
from streamloader.stores.access import ServerAddress, StoreAccess
from streamloader.stores.ipfs.sources import parse_http_url

__all__ = ["describe_access"]


def describe_access(rpc: str | None, gateways: Sequence[str], *, has_token: bool, verified: bool) -> StoreAccess:
    """Return how blocks are fetched.

    Args:
        rpc: Address of the node, or None.
        gateways: Addresses of the gateways.
        has_token: Whether the node gets a token.
        verified: Whether blocks are compared with their CIDs.
    """
    nodes = [rpc] if rpc else []
    roles = [*(("node", address) for address in nodes), *(("gateway", address) for address in gateways)]
    servers = [(role, parse_http_url(address)) for role, address in roles]
    facts = {}
    for role in ("node", "gateway"):
        urls = [redact_address(url) for each, url in servers if each == role]
        if urls:
            facts[role if len(urls) == 1 else f"{role}s"] = ", ".join(urls)
    with_login = [url for _, url in servers if urlsplit(url).username is not None]
    sources = [*(["the address"] if with_login else []), *(["the option token"] if has_token and nodes else [])]
    facts["credentials"] = f"login from {' and '.join(sources)}" if sources else "none"
    facts["verification"] = "blocks are compared with their CIDs" if verified else "none"
    notes = () if verified else ("files are not compared with their CIDs because of the option verify",)
    return StoreAccess(tuple(ServerAddress.from_url(role, url) for role, url in servers), facts, notes)
