"""Examine the path to a server below the store: resolve its name, connect, and make the TLS handshake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError, StoreError, Unreachable, UntrustedHost
from streamloader.stores.addresses import is_numeric_host

if TYPE_CHECKING:
    from streamloader.cli.doctor.steps import StepRecorder
    from streamloader.stores.access import ServerAddress

__all__ = ["examine_server"]

_MAX_ADDRESSES: Final = 8  # of one name, that are shown and tried


async def examine_server(server: ServerAddress, ca_file: str | None, steps: StepRecorder) -> bool:
    """Resolve the name of a server, connect to it, and make the TLS handshake if it has one.

    Args:
        server: Server to connect to. Nothing but the handshake is sent to it.
        ca_file: PEM file of the trusted certificate authorities. None for those of the system.
        steps: Record of the steps.

    Returns:
        Whether all of them have succeeded.
    """
    target = f"{server.role} {server}"
    addresses = [server.host]
    if not is_numeric_host(server.host):
        found = await steps.run("resolve", f"{server.role} {server.host}", _resolve(server), describe=", ".join)
        if found is None:
            return False
        addresses = found
    if await steps.run("connect", target, _connect(addresses, server.port), describe=str) is None:
        return False
    if not server.tls:
        return True
    return await steps.run("tls", target, _shake_hands(addresses, server, ca_file), describe=str) is not None


async def _resolve(server: ServerAddress) -> list[str]:
    try:
        results = await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"the name {server.host} does not resolve: {_describe(error)}") from error
    return list(dict.fromkeys(str(result[4][0]) for result in results))[:_MAX_ADDRESSES]


async def _connect(addresses: list[str], port: int, **options: Any) -> str:
    """Connect to the first address that accepts it, and return it."""
    writer, address = await _open(addresses, port, **options)
    await _close(writer)
    return address


async def _open(addresses: list[str], port: int, **options: Any) -> tuple[asyncio.StreamWriter, str]:
    errors: dict[str, OSError] = {}
    for address in addresses:
        try:
            _, writer = await asyncio.open_connection(address, port, **options)
        except ssl.SSLError:
            raise
        except OSError as error:
            errors[address] = error
        else:
            return writer, address
    reasons = "; ".join(f"{address}: {_describe(error)}" for address, error in errors.items())
    raise Unreachable(f"no connection to port {port} ({reasons})") from next(iter(errors.values()), None)


async def _shake_hands(addresses: list[str], server: ServerAddress, ca_file: str | None) -> str:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        raise ConfigError(f"ca_file={ca_file!r} contains no readable certificates: {error}") from error
    try:
        writer, _ = await _open(addresses, server.port, ssl=context, server_hostname=server.host)
    except ssl.SSLError as error:
        raise _translate_tls_error(error, server) from error
    tls = writer.get_extra_info("ssl_object")
    certificate = tls.getpeercert() or {}
    await _close(writer)
    cipher = (tls.cipher() or ("",))[0]
    issuer = make_printable(_find_name(certificate.get("issuer", ())))
    return f"{tls.version()}, {cipher}, certificate by {issuer} until {certificate.get('notAfter', 'unknown')}"


def _translate_tls_error(error: ssl.SSLError, server: ServerAddress) -> StoreError:
    reason = getattr(error, "verify_message", "") or error.reason or str(error)
    return UntrustedHost(f"the TLS connection to {server} is not valid: {make_printable(reason)}")


def _find_name(parts: Any) -> str:
    """Return the most telling name of a certificate's issuer, in the form of :meth:`ssl.SSLSocket.getpeercert`."""
    names = {key: value for part in parts for key, value in part}
    return next((names[key] for key in ("organizationName", "commonName") if key in names), "an unnamed authority")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the server may reset it, as nothing was requested
        await writer.wait_closed()


def _describe(error: OSError) -> str:
    return make_printable(error.strerror or str(error) or type(error).__name__)
