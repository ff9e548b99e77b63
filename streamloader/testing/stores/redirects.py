"""Tests of stores that speak HTTP: where redirects and name servers may lead them."""

# ruff: noqa: D102 - the name of a test describes it

from __future__ import annotations

import contextlib
import errno
import pickle
import socket
import traceback
from collections.abc import Iterator
from typing import Final

import pytest

from streamloader.config import Retry
from streamloader.errors import StoreError
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.registry import open_store
from streamloader.testing.faults.dns import override_host_names
from streamloader.testing.faults.redirects import INNER_TEXT, InnerServer, RedirectServer, override_address_scopes
from streamloader.testing.stores.binding import HttpLocation, StoreBinding, run

__all__ = ["RedirectSuite"]

_OUTER: Final = "127.0.0.2"  # plays a public address
_INNER: Final = "127.0.0.1"
_NAME: Final = "origin.test"
_PORT_ATTEMPTS: Final = 20
# Nothing listens on these here: a redirect there has to be refused, not tried.
_METADATA_ADDRESSES: Final = (
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "100.100.100.200",
    "[fd00:ec2::254]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
)
_SECRET_HEADERS: Final = ("authorization", "cookie", "proxy-authorization", "x-amz-security-token")


class RedirectSuite(StoreBinding):
    """Tests of redirects. They need :meth:`StoreBinding.http_location`; other stores follow none."""

    @pytest.mark.parametrize(
        ("target", "status"),
        [
            (_INNER, 301),
            ("localhost", 302),
            (f"sub.{_NAME}", 303),
            (_NAME, 307),
            ("[::ffff:127.0.0.1]", 308),
        ],
    )
    def test_a_public_server_cannot_redirect_to_this_machine(self, target: str, status: int) -> None:
        if not self._speaks_http():
            return
        names = {_NAME: [_OUTER, _INNER], f"sub.{_NAME}": [_INNER]}
        with _play_public_address(), override_host_names(names), InnerServer() as inner:
            location = f"http://{target}:{inner.port}/a.bin"
            with RedirectServer(location, status=status, host=_OUTER, name=_NAME) as outer:
                self._fail_to_read(outer.url)
            assert inner.requests == []

    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
    def test_another_server_receives_no_secrets_and_is_not_quoted(self, name: str) -> None:
        # Both are on this machine, where a redirect to another port may be followed.
        if not self._speaks_http():
            return
        with InnerServer(name=name) as inner, RedirectServer(f"{inner.url}/a.bin", name=name) as outer:
            secrets = self._fail_to_read(outer.url).secrets
        for request in inner.requests:
            assert [header for header in _SECRET_HEADERS if header in request.headers] == []
            text = f"{request.line} {dict(request.headers)}"
            assert [secret for secret in secrets if secret in text] == []

    def test_no_server_can_redirect_to_a_metadata_service(self) -> None:
        if not self._speaks_http():
            return
        for address in _METADATA_ADDRESSES:
            with RedirectServer(f"http://{address}/latest/meta-data/") as outer:
                self._fail_to_read(outer.url)

    def test_a_public_name_cannot_move_to_this_machine(self) -> None:
        # DNS rebinding: the name first has a public address, then one of this machine, with a server at the same port.
        if not self._speaks_http():
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(_play_public_address())
            outer, inner = _open_servers_at_one_port(stack)
            location = self.http_location(outer.url)
            assert location is not None
            stack.enter_context(override_host_names({_NAME: [_OUTER, _INNER]}))
            store = open_store(location.url, **{"retry": Retry(attempts=1), **location.options})

            async def fail() -> bytes:
                with pytest.raises(StoreError):
                    await store.read(location.path)
                pickled = pickle.dumps(store)
                await store.aclose()
                return pickled

            for _ in range(3):  # as in worker processes, each with connections of its own
                store = pickle.loads(run(fail))  # noqa: S301 - pickled by this test
            assert outer.requests, "the store never contacted the server"
            assert inner.requests == []

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _speaks_http(self) -> bool:
        return self.http_location("http://127.0.0.1:9") is not None

    def _fail_to_read(self, server_url: str) -> HttpLocation:
        """Read an object of a server that redirects to the inside, and check that errors show nothing of it."""
        location = self.http_location(server_url)
        assert location is not None
        url, path, options = location.url, location.path, location.options

        async def fail() -> str:
            shown = ""
            async with open_store(url, **{"retry": Retry(attempts=1), **options}) as store:
                for request in (store.read, store.head):
                    with pytest.raises(StoreError) as caught:
                        await request(path)
                    assert not caught.value.transient, f"the redirect was tried, not refused: {caught.value!r}"
                    shown += "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
            return shown

        shown = run(fail)
        assert INNER_TEXT not in shown
        assert [secret for secret in location.secrets if secret in shown] == []
        return location


@contextlib.contextmanager
def _play_public_address() -> Iterator[None]:
    """Treat the second loopback address as a public one."""
    with socket.socket() as probe:
        try:
            probe.bind((_OUTER, 0))
        except OSError:
            pytest.skip(f"this machine has no address {_OUTER}; on macOS: ifconfig lo0 alias {_OUTER}")
    with override_address_scopes({_OUTER: AddressScope.PUBLIC}):
        yield


def _open_servers_at_one_port(stack: contextlib.ExitStack) -> tuple[RedirectServer, InnerServer]:
    """Open a server at the public address, which redirects to itself, and one of this machine at the same port."""
    for attempt in range(_PORT_ATTEMPTS):
        with contextlib.ExitStack() as servers:
            outer = servers.enter_context(RedirectServer("/a.bin", host=_OUTER, name=_NAME))
            try:
                inner = servers.enter_context(InnerServer(port=outer.port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                stack.push(servers.pop_all())
                return outer, inner
    raise AssertionError("unreachable")
