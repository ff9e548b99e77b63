"""Translate the errors of a login: what is wrong, and advice that is right and safe.

Only a host key of the same type as a known one has *changed*. Advice to remove a key is given for that case alone: a
server without a common algorithm, with keys of another type, or with a revoked key needs something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import asyncssh

from streamloader.common.printable import make_error_printable, make_printable
from streamloader.errors import (
    AccessDenied,
    ConfigError,
    ProtocolError,
    ServerBusy,
    StoreError,
    Unreachable,
    UntrustedHost,
)
from streamloader.redaction import get_user_name
from streamloader.stores.ssh.key_files import find_locked_keys
from streamloader.stores.ssh.known_hosts import KnownHosts, find_host_key_policy
from streamloader.stores.ssh.packets import BadReply, FieldReader

__all__ = ["HostKeyRecorder", "add_host_key_policy", "add_locked_keys", "translate_login_error"]

# Reason codes of SSH_MSG_DISCONNECT (RFC 4253, section 11.1).
_BUSY_CODES: Final = (7, 12)  # service not available, too many connections
_NO_MORE_AUTH_METHODS: Final = 14
_DEFAULT_PORT: Final = 22
_KEXINIT_HEAD_BYTES: Final = 17  # number of the message, and the cookie (RFC 4253, section 7.1)
# asyncssh's message for both sides of a key exchange.
_NO_COMMON_ALGORITHM: Final = re.compile(r"No matching (.+) algorithm found, sent (\S*) and received (\S*)")
_ALGORITHM_SETTINGS: Final = {"encryption": "Ciphers", "key exchange": "KexAlgorithms", "mac": "MACs"}
_STRICT_POLICIES: Final = ("", "ask", "yes", "true")  # values of StrictHostKeyChecking that never accept a key unasked
_MAX_SHOWN_CHARACTERS: Final = 400  # of a list of algorithms


class HostKeyRecorder(asyncssh.SSHClient):
    """Record an untrusted host key for the error message, and reject it.

    Args:
        watch: Function that receives the connection, or None.

    Attributes:
        rejected: Host key that was rejected, or None.
        requested: Ways to log in that the server accepts and that this client had nothing (more) to try for.
    """

    def __init__(self, watch: Callable[[asyncssh.SSHClientConnection], None] | None = None) -> None:
        self.rejected: asyncssh.SSHKey | None = None
        self.requested: set[str] = set()
        self._watch = watch
        self._connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Called when the connection is open, before anything is sent."""
        self._connection = conn
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

    def public_key_auth_requested(self) -> None:
        """Called when the server accepts keys, and all have been offered."""
        self.requested.add("a key")

    def password_auth_requested(self) -> None:
        """Called when the server accepts a password, and there is none."""
        self.requested.add("a password")

    def kbdint_auth_requested(self) -> Any:
        """Called when the server asks questions, which a password answers."""
        self.requested.add("a password")
        return NotImplemented

    def find_unwanted_types(self) -> list[str]:
        """Return the types of the server's host keys if only other types were requested. Otherwise [].

        Such a server hangs up without a reason.
        """
        connection: Any = self._connection
        head = b"" if connection is None else bytes(connection._server_kexinit)[_KEXINIT_HEAD_BYTES:]  # noqa: SLF001
        reader = FieldReader(head)
        try:
            reader.read_string()  # algorithms of the key exchange
            offered = reader.read_string().decode("ascii", "replace").split(",")
        except BadReply:  # not received yet
            return []
        wanted = {name.decode() for name in connection._server_host_key_algs}  # noqa: SLF001
        return [] if wanted.intersection(offered) else offered


def translate_login_error(  # noqa: PLR0911 - one for each kind of error
    error: Exception,
    options: asyncssh.SSHClientConnectionOptions,
    recorder: HostKeyRecorder,
    hosts: KnownHosts,
    address: str,
    *,
    through_jumps: bool,
) -> StoreError | ConfigError:
    """Return the error of this package that corresponds to an error of asyncssh.

    Args:
        error: Error of asyncssh.
        options: Options of the connection.
        recorder: Client of the connection.
        hosts: Known hosts that were looked up.
        address: Address of the server for messages.
        through_jumps: Whether there are jump hosts.
    """
    text = str(error)  # whole: the lists of algorithms are long
    make_error_printable(error)
    is_kex_failure = isinstance(error, asyncssh.KeyExchangeFailed)
    algorithms = _NO_COMMON_ALGORITHM.search(text) if is_kex_failure else None
    if algorithms is not None:
        return _no_common_algorithm(*algorithms.groups(), address=address)
    is_lost = isinstance(error, asyncssh.ConnectionLost) or (is_kex_failure and recorder.rejected is None)
    if (is_lost or isinstance(error, ConnectionError)) and (types := recorder.find_unwanted_types()):
        return _other_key_types(types, options, hosts, address)
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _untrusted_host(error, options, recorder, hosts, address)
    if isinstance(error, asyncssh.PermissionDenied) or (
        isinstance(error, asyncssh.DisconnectError)
        and (error.code == _NO_MORE_AUTH_METHODS or "authentication failures" in error.reason)
    ):
        return _access_denied(error, options, recorder, address)
    if isinstance(error, asyncssh.DisconnectError) and error.code in _BUSY_CODES:
        return ServerBusy(f"{address} accepts no connection at the moment: {error}", address=address)
    if isinstance(error, (asyncssh.ConnectionLost, asyncssh.ChannelOpenError, OSError)):
        hint = " through its jump hosts" if through_jumps else ""
        hint = " through the ProxyCommand of the configuration" if options.proxy_command else hint
        return Unreachable(f"cannot connect to {address}{hint}: {_describe_error(error)}", address=address)
    if is_kex_failure:
        return ProtocolError(
            f"{address}: the key exchange failed before the host key was checked: {error}", address=address
        )
    if isinstance(error, (asyncssh.Error, UnicodeDecodeError)):
        return ProtocolError(f"{address} does not speak SSH as this client supports it: {error}", address=address)
    return ConfigError(  # an unreadable key, or options that exclude each other
        f"{address}: the SSH keys or options cannot be used: {error}. An encrypted key needs passphrase=, or has to be "
        "in the agent"
    )


def add_host_key_policy(error: UntrustedHost, paths: Iterable[str], target: Mapping[str, Any]) -> None:
    """Say so if the configuration has another source of host keys, which this store never uses.

    Args:
        error: Error whose message is extended.
        paths: Paths of the SSH configuration files.
        target: The host, port and username, as asyncssh takes them.
    """
    files = [path for path in map(os.path.expanduser, paths) if os.access(path, os.R_OK)]
    policy = find_host_key_policy(files, target)
    place = ", ".join(files)
    if policy.strictness not in _STRICT_POLICIES:
        message = (
            f"{error.message}. StrictHostKeyChecking {policy.strictness} in {place} is not followed: connect once with "
            "ssh, which then adds a key that is not known"
        )
    elif policy.has_command:
        message = f"{error.message}. The KnownHostsCommand in {place} is not run: put its keys into known_hosts"
    else:
        return
    error.args = (message,)


def add_locked_keys(error: AccessDenied, config: Any) -> None:
    """Name the private keys that were not used because they are encrypted."""
    if locked := find_locked_keys(config):
        message = (
            f"{error.message}. Not used, because encrypted, and not in the agent: {', '.join(locked)}. Add such a key "
            "to the agent (ssh-add), or give client_keys= and passphrase="
        )
        error.args = (message,)


def _describe_user(user: str) -> str:
    """Return a user name for a message, unless it has special characters: it may then be a part of a password."""
    return "the user" if get_user_name(f"ssh://{user}@host") is None else f"the user {user!r}"


def _access_denied(
    error: Exception, options: asyncssh.SSHClientConnectionOptions, recorder: HostKeyRecorder, address: str
) -> AccessDenied:
    rejected = f"{address} rejected the credentials of {_describe_user(options.username)}"
    if "many authentication failures" in str(error):
        return AccessDenied(
            f"{rejected}: too many keys were offered before the right one. Name it with client_keys=, or with "
            "IdentityFile and IdentitiesOnly yes in the SSH configuration",
            address=address,
        )
    wanted = f" The server accepts {' or '.join(sorted(recorder.requested))}" if recorder.requested else ""
    return AccessDenied(
        f"{rejected}: check the user name, the password, and the key, which must be in the agent or given with "
        f"client_keys=, and be authorized on the server.{wanted}".rstrip("."),
        address=address,
    )


def _no_common_algorithm(kind: str, offered: str, accepted: str, *, address: str) -> ProtocolError:
    offered, accepted = (make_printable(text, _MAX_SHOWN_CHARACTERS) for text in (offered, accepted))
    kind = make_printable(kind)
    setting = _ALGORITHM_SETTINGS.get(kind.lower(), "")
    advice = f": enable one of the server's with {setting} in the SSH configuration" if setting else ""
    return ProtocolError(
        f"{address}: the server and this client have no {kind} algorithm in common. The server has {accepted}; this "
        f"client has {offered.replace('<None>', 'none')}. Its host key was not checked, and nothing is wrong with it"
        f"{advice}, or update the server",
        address=address,
    )


def _other_key_types(
    types: Sequence[str], options: asyncssh.SSHClientConnectionOptions, hosts: KnownHosts, address: str
) -> UntrustedHost:
    """Return the error for a server that has no host key of a type that is known."""
    shown = make_printable(", ".join(types), _MAX_SHOWN_CHARACTERS)
    files = ", ".join(hosts.files)
    if not hosts.trusted and not hosts.authorities:  # HostKeyAlgorithms of the configuration
        problem = "none of those that HostKeyAlgorithms of the SSH configuration allows: add one of them there"
    else:
        if hosts.trusted:
            names = sorted({key.get_algorithm() for key in hosts.trusted})
            known = f"only {', '.join(names)} for it"
        else:
            known = "only a certificate authority for it, and the server has no certificate"
        problem = f"and {files} has {known}. {_describe_comparison(options)}"
    return UntrustedHost(
        f"{address} has host keys of the types {shown}, {problem}. Nothing was sent", address=address, fingerprint=""
    )


def _describe_comparison(options: asyncssh.SSHClientConnectionOptions) -> str:
    """Return how a key that is not known is added."""
    return (
        "Compare the fingerprint of its key with the one on the server (ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub); if they are the same, add the key to known_hosts: ssh-keyscan -p "
        f"{options.port} {options.host} >> ~/.ssh/known_hosts"
    )


def _untrusted_host(
    error: Exception,
    options: asyncssh.SSHClientConnectionOptions,
    recorder: HostKeyRecorder,
    hosts: KnownHosts,
    address: str,
) -> UntrustedHost:
    host, port, key = options.host_key_alias or options.host, options.port, recorder.rejected
    name = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    files = ", ".join(hosts.files)
    if "revoked" in str(error):
        return UntrustedHost(
            f"{address} presented a host key that is revoked in {files}: do not trust it, because others may have it. "
            "The server needs a new key. Nothing was sent",
            address=address,
            fingerprint="",
        )
    if key is None:
        return UntrustedHost(
            f"{address} presented a certificate that is not valid ({error}): its administrator has to renew it, with "
            f"{host} among its names. Nothing was sent",
            address=address,
            fingerprint="",
        )
    text = " ".join(key.export_public_key("openssh").decode().split()[:2])
    if any(key.get_algorithm() == known.get_algorithm() for known in hosts.trusted):
        problem = (
            f"which differs from the one in {files}: an attacker may be intercepting the connection, or the server was "
            f"reinstalled. If it was reinstalled, remove the old key (ssh-keygen -R '{name}') and add the new one: "
            f"ssh-keyscan -p {port} {options.host} >> ~/.ssh/known_hosts"
        )
    else:
        problem = f"which is not known. {_describe_comparison(options)}"
    return UntrustedHost(
        f"{address} presented the host key {key.get_fingerprint()}, {problem}, or this line ({name} {text}). Nothing "
        "was sent",
        address=address,
        fingerprint=key.get_fingerprint(),
    )


def _describe_error(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)
