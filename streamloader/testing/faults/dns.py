"""Override the addresses of host names in this process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["override_host_names"]

_lock: Final = threading.Lock()
_remaining: Final[dict[str, list[str]]] = {}  # name -> addresses for the next look-ups
_original: Final[list[Callable[..., Any]]] = []  # getaddrinfo, while it is replaced


@contextlib.contextmanager
def override_host_names(answers: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Resolve host names to given addresses in this process, without a name server.

    It replaces :func:`socket.getaddrinfo`, which asyncio's own event loop uses for every name. uvloop does not.

    Args:
        answers: Host names, each with the numeric addresses for its look-ups in turn. The last address is used from
            then on. Without any address, the name does not exist.

    Raises:
        ValueError: If another call overrides one of the names at the same time.
    """
    with _lock:
        if taken := _remaining.keys() & answers.keys():
            raise ValueError(f"already overridden: {', '.join(sorted(taken))}")
        _remaining.update({name: list(addresses) for name, addresses in answers.items()})
        if not _original:
            _original.append(socket.getaddrinfo)
            socket.getaddrinfo = _look_up
    try:
        yield
    finally:
        with _lock:
            for name in answers:
                del _remaining[name]
            if not _remaining:
                socket.getaddrinfo = _original.pop()


def _look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
    with _lock:
        original = _original[0] if _original else socket.getaddrinfo
        addresses = _remaining.get(host)
        if addresses is not None:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
    return original(host, *args, **kwargs)
