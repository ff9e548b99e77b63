"""Watch the connections of libraries that open them by themselves, and refuse those into the user's network.

The file systems of fsspec bring HTTP clients of many packages, which follow redirects and resolve names by their own
rules. All of them connect with Python's sockets, which report each connection before it is made (PEP 578). The first
address that a store connects to is the one that the user named, and limits the later ones as
:mod:`streamloader.stores.http.address_scope` describes. Threads that a library starts itself are not watched.
"""

from __future__ import annotations

import contextlib
import contextvars
import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final

from streamloader.stores.http import address_scope
from streamloader.stores.http.address_scope import AddressScope, ForbiddenAddress, allowed_redirect_scope

__all__ = ["ConnectionGuard", "WatchedCall"]


class ConnectionGuard:
    """Limit of the addresses that one store connects to. It can be pickled."""

    def __init__(self) -> None:
        self._named: str | None = None
        self._allowed = AddressScope.SPECIAL

    @contextlib.contextmanager
    def watch(self) -> Iterator[WatchedCall]:
        """Watch the connections of the code in this context: this task, and the tasks and threads that it starts."""
        _install_hook()
        call = WatchedCall(self)
        token = _current_call.set(call)
        try:
            yield call
        finally:
            _current_call.reset(token)

    def check(self, address: str) -> None:
        """Check one numeric address. The first one of all is allowed.

        Raises:
            ForbiddenAddress: If the address is outside the allowed scope.
        """
        scope = address_scope.classify_address(address)
        if self._named is None:
            self._named, self._allowed = address, allowed_redirect_scope(scope)
        elif address != self._named and scope > self._allowed:
            name = scope.name.lower().replace("special", "link-local or reserved")
            raise ForbiddenAddress(f"the server led to {address}, a {name} address")


class WatchedCall:
    """A call whose connections are watched.

    Args:
        guard: Limit of the store.

    Attributes:
        refusal: Error of the last connection that was refused, or None.
    """

    def __init__(self, guard: ConnectionGuard) -> None:
        self._guard = guard
        self.refusal: ForbiddenAddress | None = None

    def check(self, host: str) -> None:
        """Check the host of a connection, which is usually numeric.

        Raises:
            ForbiddenAddress: If an address of the host is outside the allowed scope.
            OSError: If the host is a name that does not resolve.
        """
        try:
            ipaddress.ip_address(host)
            addresses = [host]
        except ValueError:
            addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
        try:
            for address in addresses:
                self._guard.check(address)
        except ForbiddenAddress as error:
            self.refusal = error
            raise


def _install_hook() -> None:
    with _lock:
        if not _installed.is_set():
            sys.addaudithook(_check_connection)
            _installed.set()


def _check_connection(event: str, args: tuple[Any, ...]) -> None:
    if event != "socket.connect":
        return
    call = _current_call.get()
    if call is not None and isinstance(args[1], tuple):  # not a local socket, whose address is a path
        call.check(str(args[1][0]))


_current_call: Final[contextvars.ContextVar[WatchedCall | None]] = contextvars.ContextVar("watched_call", default=None)
_installed: Final = threading.Event()
_lock: Final = threading.Lock()
