"""Connect to an SSH server: configuration files, host keys, credentials and jump hosts."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import asyncssh

from streamloader.common.guarded_files import UnsafePath, check_socket
from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    StoreTimeout,
    UntrustedHost,
)
from streamloader.stores.addresses import check_host_name, check_user_name, split_url
from streamloader.stores.ssh.key_files import check_client_keys, select_client_keys
from streamloader.stores.ssh.known_hosts import KnownHosts
from streamloader.stores.ssh.login_errors import (
    HostKeyRecorder,
    add_host_key_policy,
    add_locked_keys,
    translate_login_error,
)
from streamloader.stores.ssh.transport import ChunkedTransport

__all__ = [
    "TRUST_ANY", "SshLogin", "SshTarget", "close_chain", "connect", "find_agent", "find_client_keys", "find_jumps",
    "find_known_hosts_files", "read_options",
]  # fmt: skip

TRUST_ANY: Final = "any_host_key_even_of_an_impostor"
# Put before asyncssh's own list. AES-GCM is the fastest cipher on current processors.
_PREFERRED_CIPHERS: Final = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
_MAX_JUMPS: Final = 8
_MAX_UNANSWERED_KEEPALIVES: Final = 3
_GLOBAL_KNOWN_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_ALIAS_TOKEN: Final = re.compile(r"(?<!%)%k")  # HostKeyAlias, which asyncssh does not expand
_USER_CONFIG: Final = "~/.ssh/config"


@dataclass(frozen=True, slots=True)
class SshTarget:
    """A host to log in to. Fields that are None are taken from the SSH configuration.

    Attributes:
        host: Host name, IP address, or alias of the SSH configuration.
        port: TCP port.
        user: User name.
        password: Password of the user. Never shown.
    """

    host: str
    port: int | None = None
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> SshTarget:
        """Parse an address, with or without ``ssh://`` in front.

        Raises:
            ConfigError: If the address is malformed, or if its host or user name has characters that such names must
                not have: the ProxyCommand of a configuration may put both into the command line of a shell.
        """
        form = "the address of an SSH server has the form ssh://host:port/path; put 'user@' before the host if needed"
        malformed = ConfigError(form)
        try:
            parts = split_url(url if "://" in url else f"ssh://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise malformed from None  # the original error would show the address
        if host is None or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
            raise malformed
        host_and_port = parts.netloc.rpartition("@")[2]
        if not host_and_port.startswith("["):
            host = host_and_port.partition(":")[0]  # urlsplit lowers the case, but aliases are case-sensitive
        user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
        try:
            check_host_name(host)
            if user:
                check_user_name(user)
        except ConfigError as error:
            raise ConfigError(f"{error}; {form}") from None
        return cls(host, port, user or None, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SshLogin:
    """How to log in. The fields are the options of :class:`streamloader.stores.ssh.store.SshStore`.

    Attributes:
        target: Host to log in to.
        jumps: Jump hosts in the order of connecting, or None for the ProxyJump of the configuration.
        client_keys: Paths of private keys. Empty for the keys of the configuration and the agent.
        passphrase: Passphrase of the private keys. Never shown.
        known_hosts: Paths of files with trusted host keys, or None for the usual files.
        config: Paths of SSH configuration files, or None for ``~/.ssh/config``. Empty for no configuration.
        trust_any: Whether any host key is accepted.
    """

    target: SshTarget
    jumps: tuple[SshTarget, ...] | None
    client_keys: tuple[str, ...]
    passphrase: str | None = field(repr=False)
    known_hosts: tuple[str, ...] | None
    config: tuple[str, ...] | None
    trust_any: bool

    def check_files(self) -> None:
        """Check that all named files exist.

        Raises:
            ConfigError: If a file is missing.
        """
        for name, paths in (
            ("client_keys", self.client_keys),
            ("known_hosts", self.known_hosts),
            ("config", self.config),
        ):
            for path in paths or ():
                if not os.path.isfile(path):
                    problem = "it is not a regular file" if os.path.lexists(path) else "there is no such file"
                    raise ConfigError(f"{name}={path!r}: {problem}")
        check_client_keys(self.client_keys)


Watch: TypeAlias = Callable[[SshTarget, asyncssh.SSHClientConnection], None]
"""Function that receives each connection before anything is sent on it."""


async def connect(
    login: SshLogin, timeouts: Timeouts, address: str, *, watch: Watch | None = None
) -> list[asyncssh.SSHClientConnection]:
    """Connect to a server, through its jump hosts if it has any.

    Args:
        login: Options of the store.
        timeouts: Time limits of the store.
        address: Address of the server for messages.
        watch: Function that receives each connection. Defaults to none.

    Returns:
        The connection to the server, followed by those to its jump hosts. Each connection runs through the next one.

    Raises:
        UntrustedHost: If a host key is unknown or has changed. Nothing was sent to that host.
        AccessDenied: If a server rejects the credentials.
        Unreachable, StoreTimeout, ServerBusy: If no connection can be made at the moment.
        ProtocolError: If the server does not speak SSH, or has no algorithm in common with this client.
    """
    chain: list[asyncssh.SSHClientConnection] = []
    deadline = asyncio.timeout(timeouts.connect)
    done = False
    try:
        async with deadline:
            await asyncio.to_thread(login.check_files)
            await _extend_chain(chain, login, login.target, login.jumps, timeouts, address, (), watch)
        done = True
        return chain
    except TimeoutError as error:
        if not deadline.expired():
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


async def close_chain(chain: Sequence[asyncssh.SSHClientConnection]) -> None:
    """Close the connections in the order given."""
    for connection in chain:
        connection.close()
        await connection.wait_closed()


async def _extend_chain(
    chain: list[asyncssh.SSHClientConnection],
    login: SshLogin,
    target: SshTarget,
    jumps: Sequence[SshTarget] | None,
    timeouts: Timeouts,
    address: str,
    ancestors: tuple[SshTarget, ...],
    watch: Watch | None,
) -> None:
    """Connect to `target` through its jump hosts, and insert the connections at the beginning of `chain`.

    Args:
        chain: Connections made so far.
        login: Options of the store.
        target: Host to connect to.
        jumps: Jump hosts of `target`, or None for those of the configuration.
        timeouts: Time limits of the store.
        address: Address of `target` for messages.
        ancestors: Hosts that are reached through `target`, for detecting circles.
        watch: Function that receives each connection, or None.
    """
    if target in ancestors or len(ancestors) >= _MAX_JUMPS:
        raise ConfigError(f"{address}: the jump hosts form a circle, or there are more than {_MAX_JUMPS} of them")
    common, options = await asyncio.to_thread(read_options, login, target, address)
    # The configuration may name jump hosts for the first hop, too.
    jumps_of_first_hop = None if jumps is None else ()
    for hop in find_jumps(jumps, options):
        hop_jumps = jumps_of_first_hop if not chain else ()
        await _extend_chain(chain, login, hop, hop_jumps, timeouts, f"ssh://{hop}", (*ancestors, target), watch)
    hosts = KnownHosts(find_known_hosts_files(login, options.config))
    recorder = HostKeyRecorder(None if watch is None else lambda connection: watch(target, connection))
    try:
        connection = await asyncssh.connect(
            **common,
            **_authentication_options(login, target, options.config),
            # Keys of the agent come first, and servers allow few of them.
            agent_path=None if login.client_keys else find_agent(options, address),
            tunnel=_select_tunnel(chain, options),
            known_hosts=None if login.trust_any else hosts.match,
            client_factory=lambda: recorder,
            encryption_algs=() if options.config.get("Ciphers") else _PREFERRED_CIPHERS,
            compression_algs=() if options.config.get("Compression") else None,  # asyncssh inflates without a limit
            connect_timeout=None,
            login_timeout=timeouts.connect,
            keepalive_interval=max(1.0, min(timeouts.response, timeouts.window) / _MAX_UNANSWERED_KEEPALIVES),
            keepalive_count_max=_MAX_UNANSWERED_KEEPALIVES,
            agent_forwarding=False,
            x11_forwarding=False,
        )
    except (asyncssh.Error, OSError, ValueError) as error:
        translated = translate_login_error(error, options, recorder, hosts, address, through_jumps=bool(chain))
        if isinstance(translated, UntrustedHost):
            add_host_key_policy(translated, (_USER_CONFIG,) if login.config is None else login.config, common)
        elif isinstance(translated, AccessDenied) and not login.client_keys:
            await asyncio.to_thread(add_locked_keys, translated, options.config)
        raise translated from error
    chain.insert(0, connection)
    if login.trust_any:
        key = connection.get_server_host_key()
        _log.warning(
            "%s presented the host key %s, which is accepted without verification because of trust=%r: anyone on the "
            "network path can read and change all data",
            address,
            key.get_fingerprint() if key is not None else "of an unknown type",
            TRUST_ANY,
        )


def read_options(
    login: SshLogin, target: SshTarget, address: str
) -> tuple[dict[str, Any], asyncssh.SSHClientConnectionOptions]:
    """Read the SSH configuration for a host. Return the options for connecting to it, and what they result in.

    Args:
        login: Options of the store.
        target: Host to connect to.
        address: Address of the host for messages.

    Raises:
        ConfigError: If the configuration cannot be used.
    """
    common: dict[str, Any] = {
        "host": target.host,
        "port": () if target.port is None else target.port,
        "username": () if target.user is None else target.user,
        "config": () if login.config is None else list(login.config) or None,
    }
    try:
        options = asyncssh.SSHClientConnectionOptions(client_keys=None, **common)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{address}: the SSH configuration, or a file that it includes, is not in UTF-8: convert it (iconv -f "
            "latin1 -t utf8)"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{address}: the SSH configuration includes itself, or files too deeply") from error
    except (OSError, ValueError, asyncssh.Error) as error:  # ConfigParseError is a ValueError
        raise ConfigError(f"{address}: the SSH configuration cannot be used: {error}") from error
    # The configuration may replace both, and its ProxyCommand contains the results (%h, %r).
    check_host_name(options.host)
    check_user_name(options.username)
    return common, options


def find_jumps(given: Sequence[SshTarget] | None, options: asyncssh.SSHClientConnectionOptions) -> Sequence[SshTarget]:
    """Return the jump hosts of a host: those that are given, or else those of its configuration."""
    if given is not None:
        return given
    proxy_jump = options.config.get("ProxyJump")
    return [SshTarget.parse(hop) for hop in str(proxy_jump).split(",")] if proxy_jump not in (None, "none") else []


def find_client_keys(login: SshLogin, config: Any) -> tuple[str, ...]:
    """Return the paths of the private keys of the options, or else of an SSH configuration, if they exist."""
    if login.client_keys:
        return login.client_keys
    # Like OpenSSH, skip missing files of the configuration.
    configured = [os.path.expanduser(str(path)) for path in config.get("IdentityFile", ())]
    return tuple(path for path in configured if os.path.isfile(path))


def _select_tunnel(chain: Sequence[asyncssh.SSHClientConnection], options: asyncssh.SSHClientConnectionOptions) -> Any:
    """Return the tunnel to connect through: a jump host, a plain TCP connection, or None for the ProxyCommand."""
    if chain:
        return chain[0]
    return None if options.proxy_command else ChunkedTransport(options)


def _authentication_options(login: SshLogin, target: SshTarget, config: Any) -> dict[str, Any]:
    """Return the options to authenticate with. A password is only sent to the host it was given for."""
    keys = list(find_client_keys(login, config))
    if not login.client_keys:
        keys = select_client_keys(keys, keep_public=bool(config.get("IdentitiesOnly")))
    return {
        "client_keys": keys,  # without any, asyncssh takes the default ones that exist
        "ignore_encrypted": not login.client_keys,  # explicitly given keys must be usable, configured ones need not be
        "passphrase": login.passphrase,
        "password": target.password,
    }


def find_agent(options: asyncssh.SSHClientConnectionOptions, address: str) -> str | None:
    """Return the path of the agent's socket, or None if there is no agent, or one that another user listens to."""
    configured: Any = options.config.get("IdentityAgent", "SSH_AUTH_SOCK")  # None for "none"
    if configured == "SSH_AUTH_SOCK" or str(configured).startswith("$"):
        configured = os.environ.get(str(configured).lstrip("$"))
    path = os.path.expanduser(str(configured or ""))
    if not path:
        return None
    try:
        check_socket(path)
    except UnsafePath as error:
        _log.warning("%s: the SSH agent is not used: %s", address, error.message)
        return None
    except OSError:
        return None  # there is no agent
    return path


def find_known_hosts_files(login: SshLogin, config: Any) -> list[str]:
    """Return the existing files with trusted host keys, of the options or else of an SSH configuration."""
    if login.known_hosts is not None:
        return list(login.known_hosts)
    user = config.get("UserKnownHostsFile", _USER_KNOWN_HOSTS)  # empty for "none"
    files = [*user, *config.get("GlobalKnownHostsFile", _GLOBAL_KNOWN_HOSTS)]
    return [path for path in (_expand_tokens(str(name), config) for name in files) if os.path.isfile(path)]


def _expand_tokens(path: str, config: Any) -> str:
    """Return a path of an SSH configuration in which ``~``, ``%h`` and the like, and ``${NAME}`` are expanded.

    Raises:
        ConfigError: If there is no such token or variable.
    """
    alias = str(config.get("HostKeyAlias") or "%n").replace("%k", "%n")
    try:
        expanded: str = config._expand_val(_ALIAS_TOKEN.sub(lambda _: alias, path))  # noqa: SLF001 - it knows the tokens
    except ValueError as error:
        raise ConfigError(f"the SSH configuration has the path {path}: {error}") from error
    return os.path.expanduser(expanded)


_log: Final = logging.getLogger("streamloader")
