"""Connect to an SSH server: configuration files, host keys, credentials and jump hosts."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import asyncssh

from streamloader.common.guarded_files import UnsafePath, check_socket
from streamloader.common.printable import make_error_printable, make_printable
from streamloader.config import Timeouts
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    ProtocolError,
    ServerBusy,
    StoreError,
    StoreTimeout,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import get_user_name
from streamloader.stores.addresses import check_host_name, check_user_name, split_url
from streamloader.stores.ssh.known_hosts import KnownHosts, find_host_key_policy
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
# Reason codes of SSH_MSG_DISCONNECT (RFC 4253, section 11.1).
_BUSY_CODES: Final = (7, 12)  # service not available, too many connections
_NO_MORE_AUTH_METHODS: Final = 14
_DEFAULT_PORT: Final = 22
# asyncssh's message for both sides of a key exchange.
_NO_COMMON_ALGORITHM: Final = re.compile(r"No matching (.+) algorithm found, sent (\S*) and received (\S*)")
_ALGORITHM_SETTINGS: Final = {"encryption": "Ciphers", "key exchange": "KexAlgorithms", "mac": "MACs"}
_STRICT_POLICIES: Final = ("", "ask", "yes", "true")  # values of StrictHostKeyChecking that never accept a key unasked
_DEFAULT_KEYS: Final = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed448", "id_ed25519", "id_ecdsa", "id_rsa", "id_dsa")
_ENCRYPTED_KEY_MARKS: Final = (b"ENCRYPTED", b"bcrypt")
_MAX_KEY_FILE_BYTES: Final = 64 << 10
_MAX_KEY_HEAD_BYTES: Final = 64
_MAX_SHOWN_CHARACTERS: Final = 400  # of a list of algorithms
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
                    raise ConfigError(f"{name}={path!r}: there is no such file")


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
    client = _HostKeyRecorder(None if watch is None else lambda connection: watch(target, connection))
    try:
        connection = await asyncssh.connect(
            **common,
            **_authentication_options(login, target, options.config),
            agent_path=find_agent(options, address),
            tunnel=_select_tunnel(chain, options),
            known_hosts=None if login.trust_any else hosts.match,
            client_factory=lambda: client,
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
        translated = _translate_error(error, options, client, hosts, address, through_jumps=bool(chain))
        if isinstance(translated, UntrustedHost):
            _add_host_key_policy(translated, login, common)
        elif isinstance(translated, AccessDenied) and not login.client_keys:
            await asyncio.to_thread(_add_locked_keys, translated, options.config)
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
    keys = find_client_keys(login, config)
    return {
        "client_keys": list(keys) if keys else (),
        "ignore_encrypted": not login.client_keys,  # explicitly given keys must be usable, configured ones need not be
        "passphrase": login.passphrase,
        "password": target.password,
    }


def find_agent(options: asyncssh.SSHClientConnectionOptions, address: str) -> str | None:
    """Return the path of the agent's socket, or None if there is no agent, or one that another user listens to."""
    configured = options.config.get("IdentityAgent", ())  # None for "none"
    path = os.path.expanduser(str((os.environ.get("SSH_AUTH_SOCK") if configured == () else configured) or ""))
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
    return [path for path in (os.path.expanduser(str(name)) for name in files) if os.path.isfile(path)]


class _HostKeyRecorder(asyncssh.SSHClient):
    """Record an untrusted host key for the error message, and reject it.

    Args:
        watch: Function that receives the connection, or None.

    Attributes:
        rejected: Host key that was rejected, or None.
    """

    def __init__(self, watch: Callable[[asyncssh.SSHClientConnection], None] | None = None) -> None:
        self.rejected: asyncssh.SSHKey | None = None
        self._watch = watch

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Called when the connection is open, before anything is sent."""
        if self._watch is not None:
            self._watch(conn)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for a host key that is not in known_hosts."""
        self.rejected = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called for the key of a certificate authority that is not in known_hosts."""
        self.rejected = key
        return False


def _translate_error(  # noqa: PLR0911 - one for each kind of error
    error: Exception,
    options: asyncssh.SSHClientConnectionOptions,
    client: _HostKeyRecorder,
    hosts: KnownHosts,
    address: str,
    *,
    through_jumps: bool,
) -> StoreError | ConfigError:
    """Return the error of this package that corresponds to an error of asyncssh."""
    make_error_printable(error)
    algorithms = _NO_COMMON_ALGORITHM.search(str(error)) if isinstance(error, asyncssh.KeyExchangeFailed) else None
    if algorithms is not None:
        kind, offered, accepted = (make_printable(text, _MAX_SHOWN_CHARACTERS) for text in algorithms.groups())
        setting = _ALGORITHM_SETTINGS.get(kind.lower(), "")
        advice = f": enable one of the server's with {setting} in the SSH configuration" if setting else ""
        return ProtocolError(
            f"{address}: the server and this client have no {kind} algorithm in common. The server has {accepted}; "
            f"this client has {offered}. Its host key was not checked, and nothing is wrong with it{advice}, or update "
            "the server",
            address=address,
        )
    if isinstance(error, asyncssh.HostKeyNotVerifiable) or (
        isinstance(error, asyncssh.KeyExchangeFailed) and hosts.has_keys
    ):
        return _untrusted_host_error(error, options, client, hosts, address)
    if isinstance(error, asyncssh.PermissionDenied) or (
        isinstance(error, asyncssh.DisconnectError)
        and (error.code == _NO_MORE_AUTH_METHODS or "authentication failures" in error.reason)
    ):
        return AccessDenied(
            f"{address} rejected the credentials of {_describe_user(options.username)}: check the user name, the "
            "password, and the key, which must be in the agent or given with client_keys=, and be authorized on the "
            "server",
            address=address,
        )
    if isinstance(error, asyncssh.DisconnectError) and error.code in _BUSY_CODES:
        return ServerBusy(f"{address} accepts no connection at the moment: {error}", address=address)
    if isinstance(error, (asyncssh.ConnectionLost, asyncssh.ChannelOpenError, OSError)):
        hint = " through its jump hosts" if through_jumps else ""
        return Unreachable(f"cannot connect to {address}{hint}: {_describe_error(error)}", address=address)
    if isinstance(error, asyncssh.Error):
        return ProtocolError(f"{address} does not speak SSH as this client supports it: {error}", address=address)
    return ConfigError(  # an unreadable key, or options that exclude each other
        f"{address}: the SSH keys or options cannot be used: {error}; an encrypted key needs passphrase= or the agent"
    )


def _add_host_key_policy(error: UntrustedHost, login: SshLogin, target: Mapping[str, Any]) -> None:
    """Say so if the configuration asks to accept unknown host keys, which this store never does."""
    paths = (_USER_CONFIG,) if login.config is None else login.config
    files = [path for path in map(os.path.expanduser, paths) if os.access(path, os.R_OK)]
    policy = find_host_key_policy(files, target)
    if policy not in _STRICT_POLICIES:
        message = (
            f"{error.message}. StrictHostKeyChecking {policy} in {', '.join(files)} is not followed: connect once with "
            "ssh, which then adds the key"
        )
        error.args = (message,)


def _add_locked_keys(error: AccessDenied, config: Any) -> None:
    """Name the private keys that were not used because they are encrypted."""
    configured = config.get("IdentityFile") or [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]
    locked = [str(path) for path in configured if _is_encrypted_key(os.path.expanduser(str(path)))]
    if locked:
        message = (
            f"{error.message}. Not used, because encrypted, and not in the agent: {', '.join(locked)}. Add such a key "
            "to the agent (ssh-add), or give client_keys= and passphrase="
        )
        error.args = (message,)


def _is_encrypted_key(path: str) -> bool:
    """Return whether a file is a private key with a passphrase."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES)
    except OSError:
        return False
    if b"OPENSSH PRIVATE KEY" in data:  # the name of the key derivation is among the first bytes
        try:
            data = base64.b64decode(b"".join(data.split(b"-----")[2].split()), validate=True)[:_MAX_KEY_HEAD_BYTES]
        except (IndexError, binascii.Error):
            return False
    return any(mark in data for mark in _ENCRYPTED_KEY_MARKS)


def _describe_user(user: str) -> str:
    """Return a user name for a message, unless it has special characters: it may then be a part of a password."""
    return "the user" if get_user_name(f"ssh://{user}@host") is None else f"the user {user!r}"


def _untrusted_host_error(
    error: Exception,
    options: asyncssh.SSHClientConnectionOptions,
    client: _HostKeyRecorder,
    hosts: KnownHosts,
    address: str,
) -> UntrustedHost:
    host, port = options.host_key_alias or options.host, options.port
    name = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    fingerprint, line = "of another type", ""
    if client.rejected is not None:
        fingerprint = client.rejected.get_fingerprint()
        text = " ".join(client.rejected.export_public_key("openssh").decode().split()[:2])
        line = f" ({name} {text})"
    if hosts.has_keys:
        problem = (
            f"which differs from the one in {', '.join(hosts.files)}: an attacker may be intercepting the connection, "
            f"or the server was reinstalled. If it was reinstalled, remove the old key (ssh-keygen -R '{name}') and "
            "add the new one"
        )
    elif "revoked" in str(error):
        problem = "which was revoked. If that is a mistake, correct your known_hosts"
    else:
        problem = (
            "which is not known. Compare the fingerprint with the one on the server (ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub); if they are the same, add the key to known_hosts"
        )
    return UntrustedHost(
        f"{address} presented the host key {fingerprint}, {problem}: ssh-keyscan -p {port} {options.host} >> "
        f"~/.ssh/known_hosts, or this line{line}. Nothing was sent",
        address=address,
        fingerprint=fingerprint,
    )


def _describe_error(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)


_log: Final = logging.getLogger("streamloader")
