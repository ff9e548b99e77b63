"""Describe how an SSH server is reached, and what a login agreed on: keys by their fingerprints only."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Any, Final

import asyncssh

from streamloader.config import Timeouts
from streamloader.errors import StreamloaderError
from streamloader.stores.access import ServerAddress, StoreAccess
from streamloader.stores.ssh.connect import (
    SshLogin,
    SshTarget,
    close_chain,
    connect,
    find_agent,
    find_client_keys,
    find_jumps,
    find_known_hosts_files,
    read_options,
)

__all__ = ["describe_access", "describe_login"]

_DEFAULT_KEYS: Final = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed448", "id_ed25519", "id_ecdsa", "id_rsa", "id_dsa")
_MAX_KEYS: Final = 20  # that are listed


def describe_access(login: SshLogin, address: str) -> StoreAccess:
    """Return how a server is reached, from the options and the SSH configuration.

    Raises:
        ConfigError: If the configuration cannot be used.
    """
    login.check_files()
    _, options = read_options(login, login.target, address)
    server = ServerAddress("server", str(options.host), int(options.port))
    facts = {"user": str(options.username), "server": str(server)}
    servers: tuple[ServerAddress, ...] = (server,)
    jumps = find_jumps(login.jumps, options)
    if jumps:
        facts["jump hosts"] = ", ".join(map(str, jumps))
        _, hop_options = read_options(login, jumps[0], address)
        servers = (ServerAddress("jump host", str(hop_options.host), int(hop_options.port)),)
    elif options.proxy_command:
        facts["proxy"] = "the ProxyCommand of the configuration"
        servers = ()
    keys = list(find_client_keys(login, options.config)) or _find_default_keys()
    facts["keys"] = ", ".join(keys[:_MAX_KEYS]) or "none"
    agent = None if login.client_keys else find_agent(options, address)
    facts["agent"] = agent or "none"
    if login.target.password is not None:
        facts["password"] = "given"  # noqa: S105 - it says that there is one
    facts["known hosts"] = ", ".join(find_known_hosts_files(login, options.config)) or "none"
    notes = []
    if login.trust_any:
        notes.append("host keys are accepted without verification because of the option trust")
    return StoreAccess(servers, facts, tuple(notes))


async def describe_login(login: SshLogin, timeouts: Timeouts, address: str) -> dict[str, Any]:
    """Log in on a connection of its own, close it, and return what was agreed on.

    Returns:
        "user", "host_key" and "key" (type and fingerprint), "authentication", "server_version" and "cipher".

    Raises:
        StoreError: If the login fails. Its ``details`` have "offered", the keys that the server refused.
    """
    requests: list[_KeyRequests] = []

    def watch(target: SshTarget, connection: asyncssh.SSHClientConnection) -> None:
        if target == login.target:
            requests.append(_KeyRequests(connection))

    try:
        chain = await connect(login, timeouts, address, watch=watch)
    except StreamloaderError as error:
        error.details["offered"] = [
            _describe_pair(pair) for each in requests for pair in each.pairs if pair is not None
        ]
        raise
    try:
        connection = chain[0]
        host_key = connection.get_server_host_key()
        last = requests[-1].pairs[-1] if requests and requests[-1].pairs else None
        return {
            "user": str(connection.get_extra_info("username")),
            "host_key": None
            if host_key is None
            else _describe_key(host_key.get_algorithm(), host_key.get_fingerprint()),
            "authentication": "public key" if last is not None else "password or none",
            "key": None if last is None else _describe_pair(last),
            "server_version": str(connection.get_extra_info("server_version")),
            "cipher": str(connection.get_extra_info("send_cipher")),
        }
    finally:
        await close_chain(chain)


class _KeyRequests:
    """Records the keys that a connection offers to its server. The last one is the one that was accepted.

    Args:
        connection: Connection that has not authenticated yet.

    Attributes:
        pairs: Keys in the order in which they were offered. None stands for the end of the keys.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.pairs: list[asyncssh.SSHKeyPair | None] = []
        self._request: Callable[[], Any] = connection.public_key_auth_requested
        setattr(connection, "public_key_auth_requested", self._record)  # noqa: B010 - a method of another class

    async def _record(self) -> asyncssh.SSHKeyPair | None:
        pair: asyncssh.SSHKeyPair | None = await self._request()
        self.pairs.append(pair)
        return pair


def _describe_pair(pair: asyncssh.SSHKeyPair) -> str:
    digest = base64.b64encode(hashlib.sha256(pair.key_public_data).digest()).decode().rstrip("=")
    source = " of the agent" if pair.get_key_type() == "agent" else ""
    return _describe_key(pair.algorithm.decode("ascii", "replace"), f"SHA256:{digest}{source}")


def _describe_key(algorithm: str, fingerprint: str) -> str:
    return f"{algorithm} {fingerprint}"


def _find_default_keys() -> list[str]:
    paths = (os.path.expanduser(f"~/.ssh/{name}") for name in _DEFAULT_KEYS)
    return [path for path in paths if os.path.isfile(path)]
