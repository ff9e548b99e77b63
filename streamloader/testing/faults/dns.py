"""Host names that lead where a test wants them to, or nowhere."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["host_names"]

_lock: Final = threading.Lock()
_left: Final[dict[str, list[str]]] = {}  # name -> addresses of the look-ups to come
_real: Final[list[Callable[..., Any]]] = []  # what was replaced, while it is


@contextlib.contextmanager
def host_names(answers: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Let host names of this process lead to these addresses; no name server is asked for them.

    It replaces :func:`socket.getaddrinfo`, which asyncio's own event loop uses for every name. uvloop does not.

    Args:
        answers: name -> numeric addresses, one for each look-up in turn, the last one for good. None at all: there is
            no such name. A name may be given by one user at a time.

    Raises:
        ValueError: a name is given already.
    """
    with _lock:
        if taken := _left.keys() & answers.keys():
            raise ValueError(f"already given: {', '.join(sorted(taken))}")
        _left.update({name: list(addresses) for name, addresses in answers.items()})
        if not _real:
            _real.append(socket.getaddrinfo)
            socket.getaddrinfo = _look_up
    try:
        yield
    finally:
        with _lock:
            for name in answers:
                del _left[name]
            if not _left:
                socket.getaddrinfo = _real.pop()


def _look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
    with _lock:
        real = _real[0] if _real else socket.getaddrinfo
        left = _left.get(host)
        if left is not None:
            if not left:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = left.pop(0) if len(left) > 1 else left[0]
    return real(host, *args, **kwargs)
