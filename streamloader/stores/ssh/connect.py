"""From an ssh:// address and options to a connection: configuration, host keys, credentials, jump hosts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import asyncssh

from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    ProtocolFault,
    ServerBusy,
    StoreError,
    StoreTimeout,
    Unreachable,
    UntrustedHost,
)
from streamloader.stores.ssh.transport import Wire

__all__ = ["TRUST_ANY", "Login", "Target", "connect", "goodbye"]

TRUST_ANY: Final = "any_host_key_even_of_an_impostor"
_FAST_FIRST: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # the rest in asyncssh's own order
_MOST_JUMPS: Final = 8
_UNANSWERED: Final = 3  # keepalives, until a connection counts as dead
_GLOBAL_KNOWN_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_BUSY: Final = (7, 12)  # codes of SSH_MSG_DISCONNECT, RFC 4253 11.1: no such service, too many connections
_NO_MORE_METHODS: Final = 14
_DEFAULT_PORT: Final = 22


@dataclass(frozen=True, slots=True)
class Target:
    """One host to log in to. None: as the configuration says."""

    host: str
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Take an address, or what is written behind its ``//``, apart.

        Raises:
            ConfigError: it is none.
        """
        wrong = ConfigError(
            "an address of an SSH server is ssh://host:port/path, with 'user@' before the host where it is needed"
        )
        try:
            parts = urlsplit(url if "://" in url else f"ssh://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise wrong from None  # it would show the address
        if host is None or host.startswith("-") or port == 0:
            raise wrong
        written = parts.netloc.rpartition("@")[2]
        if not written.startswith("["):
            host = written.partition(":")[0]  # as it was written: aliases of the configuration tell capitals apart
        user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
        return cls(host, port, user or None, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in; see :class:`streamloader.stores.ssh.store.SshStore` for what each of these means."""

    target: Target
    jumps: tuple[Target, ...] | None
    client_keys: tuple[str, ...]
    passphrase: str | None = field(repr=False)
    known_hosts: tuple[str, ...] | None
    config: tuple[str, ...] | None
    trust_any: bool

    def check(self) -> None:
        """Look for the files that were named.

        Raises:
            ConfigError: one is not there.
        """
        for name, paths in (
            ("client_keys", self.client_keys),
            ("known_hosts", self.known_hosts),
            ("config", self.config),
        ):
            for path in paths or ():
                if not os.path.isfile(path):
                    raise ConfigError(f"{name}={path!r}: there is no such file")


async def connect(login: Login, timeouts: Timeouts, address: str) -> list[asyncssh.SSHClientConnection]:
    """Return connections, the wanted one first, each one through the next.

    Raises:
        UntrustedHost: a host key is unknown, or another one than it was. Nothing was sent.
        AccessDenied: a server refuses our credentials.
        Unreachable, StoreTimeout, ServerBusy: there is no connection now.
        ProtocolFault: what answers is no SSH server that we can talk to.
    """
    chain: list[asyncssh.SSHClientConnection] = []
    limit = asyncio.timeout(timeouts.connect)
    done = False
    try:
        async with limit:
            await asyncio.to_thread(login.check)
            await _extend(chain, login, login.target, login.jumps, timeouts, address, ())
        done = True
        return chain
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise StoreTimeout(
            f"waited {timeouts.connect:.1f} s for {address} (connecting): not logged in",
            address=address,
            waited=timeouts.connect,
            stage="connecting",
        ) from error
    finally:
        if not done:
            for connection in chain:
                connection.abort()


async def goodbye(chain: Sequence[asyncssh.SSHClientConnection]) -> None:
    """Close connections, in their order."""
    for connection in chain:
        connection.close()
        await connection.wait_closed()


async def _extend(
    chain: list[asyncssh.SSHClientConnection],
    login: Login,
    target: Target,
    jumps: Sequence[Target] | None,
    timeouts: Timeouts,
    address: str,
    above: tuple[Target, ...],
) -> None:
    """Put a connection to `target` in front of `chain`, through its jump hosts."""
    if target in above or len(above) >= _MOST_JUMPS:
        raise ConfigError(f"{address}: its jump hosts lead in a circle, or there are more than {_MOST_JUMPS}")
    config = () if login.config is None else list(login.config) or None
    common: dict[str, Any] = {
        "host": target.host,
        "port": () if target.port is None else target.port,
        "username": () if target.user is None else target.user,
        "config": config,
    }
    try:
        known = await asyncio.to_thread(lambda: asyncssh.SSHClientConnectionOptions(client_keys=None, **common))
    except (OSError, ValueError, asyncssh.Error) as error:  # ConfigParseError is a ValueError
        raise ConfigError(f"{address}: the SSH configuration cannot be used: {error}") from error
    if jumps is None:
        proxy_jump = known.config.get("ProxyJump")
        jumps = [Target.parse(hop) for hop in str(proxy_jump).split(",")] if proxy_jump not in (None, "none") else []
        start = None  # whoever jumps first may have jump hosts of its own in the configuration
    else:
        start = ()
    for hop in jumps:
        await _extend(chain, login, hop, start if not chain else (), timeouts, f"ssh://{hop}", (*above, target))
    hosts = _KnownHosts(_known_hosts_files(login, known.config))
    client = _Client()
    try:
        connection = await asyncssh.connect(
            **common,
            **_credentials(login, target, known.config),
            tunnel=_way(chain, known),
            known_hosts=None if login.trust_any else hosts.match,
            client_factory=lambda: client,
            encryption_algs=() if known.config.get("Ciphers") else _FAST_FIRST,
            connect_timeout=None,
            login_timeout=timeouts.connect,
            keepalive_interval=max(1.0, min(timeouts.response, timeouts.window) / _UNANSWERED),
            keepalive_count_max=_UNANSWERED,
            agent_forwarding=False,
            x11_forwarding=False,
        )
    except (asyncssh.Error, OSError, ValueError) as error:
        raise _translated(error, known, client, hosts, address, through=bool(chain)) from error
    chain.insert(0, connection)
    if login.trust_any:
        key = connection.get_server_host_key()
        _log.warning(
            "%s shows the host key %s, which is trusted unseen, as trust=%r says: whoever is in between can read and "
            "change everything",
            address,
            key.get_fingerprint() if key is not None else "of no kind that we know",
            TRUST_ANY,
        )


def _way(chain: Sequence[asyncssh.SSHClientConnection], known: asyncssh.SSHClientConnectionOptions) -> Any:
    """Return what to connect through: a jump host, a plain connection, or None for the ProxyCommand that there is."""
    if chain:
        return chain[0]
    return None if known.proxy_command else Wire(known)


def _credentials(login: Login, target: Target, config: Any) -> dict[str, Any]:
    """Return what we log in with; a password goes to the host that it was given for, and to no other."""
    keys: tuple[str, ...] = login.client_keys
    if not keys:
        # As with OpenSSH, files of the configuration that are not there are passed over.
        named = [os.path.expanduser(str(path)) for path in config.get("IdentityFile", ())]
        keys = tuple(path for path in named if os.path.isfile(path))
    return {
        "client_keys": list(keys) if keys else (),
        "ignore_encrypted": not login.client_keys,  # named keys have to be usable, found ones may be
        "passphrase": login.passphrase,
        "password": target.password,
    }


def _known_hosts_files(login: Login, config: Any) -> list[str]:
    if login.known_hosts is not None:
        return list(login.known_hosts)
    user = config.get("UserKnownHostsFile", _USER_KNOWN_HOSTS)  # empty for "none"
    files = [*user, *config.get("GlobalKnownHostsFile", _GLOBAL_KNOWN_HOSTS)]
    return [path for path in (os.path.expanduser(str(name)) for name in files) if os.path.isfile(path)]


class _KnownHosts:
    """Looks a host up.

    Attributes:
        found: whether there was a key of it.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.found = False

    def match(self, host: str, addr: str, port: int | None) -> Any:
        """Return keys, CA keys, and revoked keys; asyncssh asks for them before anything is sent."""
        if not self.files:
            return (), (), ()
        keys = asyncssh.match_known_hosts(self.files, host, addr, port)
        self.found = any(keys[:2])
        return keys


class _Client(asyncssh.SSHClient):
    """Sees which host key was not trusted."""

    def __init__(self) -> None:
        self.refused: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Remember it; it stays refused."""
        self.refused = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Remember it; it stays refused."""
        self.refused = key
        return False


def _translated(
    error: Exception,
    known: asyncssh.SSHClientConnectionOptions,
    client: _Client,
    hosts: _KnownHosts,
    address: str,
    *,
    through: bool,
) -> StoreError | ConfigError:
    if isinstance(error, asyncssh.HostKeyNotVerifiable) or (
        isinstance(error, asyncssh.KeyExchangeFailed) and hosts.found
    ):
        return _untrusted(error, known, client, hosts, address)
    if isinstance(error, asyncssh.PermissionDenied) or (
        isinstance(error, asyncssh.DisconnectError)
        and (error.code == _NO_MORE_METHODS or "authentication failures" in error.reason)
    ):
        return AccessDenied(
            f"{address} refuses our credentials for the user {known.username!r}: check the user's name, the key (is it "
            "in the agent, or given with client_keys=, and known to the server?) or the password",
            address=address,
        )
    if isinstance(error, asyncssh.DisconnectError) and error.code in _BUSY:
        return ServerBusy(f"{address} takes no connection now: {error}", address=address)
    if isinstance(error, (asyncssh.ConnectionLost, asyncssh.ChannelOpenError, OSError)):
        hint = ", through its jump hosts" if through else ""
        return Unreachable(f"no connection to {address}{hint}: {_words(error)}", address=address)
    if isinstance(error, asyncssh.Error):
        return ProtocolFault(f"{address} is no SSH server that we can talk to: {error}", address=address)
    return ConfigError(  # a key that cannot be read, or options that exclude one another
        f"{address}: the SSH keys or options cannot be used: {error}; an encrypted key needs passphrase=, or the agent"
    )


def _untrusted(
    error: Exception,
    known: asyncssh.SSHClientConnectionOptions,
    client: _Client,
    hosts: _KnownHosts,
    address: str,
) -> UntrustedHost:
    host, port = known.host_key_alias or known.host, known.port
    name = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    shown, line = "of another kind", ""
    if client.refused is not None:
        shown = client.refused.get_fingerprint()
        text = " ".join(client.refused.export_public_key("openssh").decode().split()[:2])
        line = f" ({name} {text})"
    if hosts.found:
        what = (
            f"its host key is not the one in {', '.join(hosts.files)}: somebody may be in between, or the server was "
            f"installed anew. If it was, remove the old key (ssh-keygen -R '{name}') and add the new one"
        )
    elif "revoked" in str(error):
        what = "its host key was revoked. If that is wrong, change your known_hosts"
    else:
        what = (
            "its host key is not known. Compare the fingerprint with the server's own (ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub there); if it is the same, add the key to known_hosts"
        )
    return UntrustedHost(
        f"{address} shows a host key {shown}, and {what}: ssh-keyscan -p {port} {known.host} >> ~/.ssh/known_hosts, or "
        f"this line{line}. Nothing was sent",
        address=address,
        fingerprint=shown,
    )


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)


_log: Final = logging.getLogger("streamloader")
