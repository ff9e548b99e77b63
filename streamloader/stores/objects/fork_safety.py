"""Obstore, in the process where it is used.

Its requests run on threads of its own, which a forked child does not have: there, every request would wait for ever.
No library can start them anew, as they are made once for each loaded library. So a child loads its own copy.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any, Final

from streamloader.errors import MissingExtra, StoreError

__all__ = ["SETTLING", "library", "never_free"]

_NAMES: Final = ("obstore", "obstore.store", "obstore.exceptions")
_BINARY: Final = "obstore._obstore"
SETTLING: Final = 0.05  # seconds in which the library's threads let go of a request that has ended


class _Library:
    """The modules of obstore that belong to this process."""

    def __init__(self) -> None:
        try:
            self.modules = _import()
        except ImportError as error:
            raise MissingExtra(
                "s3://, gs:// and az:// need the package obstore: pip install streamloader[objects]"
            ) from error
        self.pid = os.getpid()
        self.file = str(sys.modules[_BINARY].__file__)
        self.inherited: list[object] = []  # never freed: what it would wait for when it ends does not exist here
        self.lock = threading.Lock()
        self.used = 0  # by which process

    def begin_anew(self) -> None:
        """Load a copy of the library, for this child of a fork."""
        if not sys.platform.startswith("linux"):
            raise StoreError(
                "object stores cannot be used in a forked child on this system, once their library was loaded in the "
                "parent: start processes with 'spawn', or open such stores in the children only"
            )
        taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "obstore"}
        try:
            with _copied(self.file) as path:
                finder = _Finder(path)
                sys.meta_path.insert(0, finder)
                try:
                    modules = _import()
                finally:
                    sys.meta_path.remove(finder)
        except BaseException:
            sys.modules.update(taken)
            raise
        self.inherited.append((self.modules, taken))
        self.modules, self.pid = modules, os.getpid()


class _Finder:
    """Finds obstore's binary elsewhere."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _BINARY:
            return None
        return spec_from_file_location(name, self._path, loader=ExtensionFileLoader(name, self._path))


def library() -> Any:
    """Return the package ``obstore`` (with its modules ``store`` and ``exceptions``) that works in this process.

    Raises:
        StoreError: this is a forked child, on a system where that cannot work.
    """
    if _library.pid != os.getpid():
        with _library.lock:
            if _library.pid != os.getpid():
                _library.begin_anew()
    _library.used = _library.pid
    return _library.modules


def never_free(thing: object) -> None:
    """Keep what another process made until this one ends."""
    _library.inherited.append(thing)


def _import() -> Any:
    package, *_ = [importlib.import_module(name) for name in _NAMES]
    return package


@contextlib.contextmanager
def _copied(file: str) -> Iterator[str]:
    """Copy a file into memory: the dynamic loader takes the same file only once, but this is another one."""
    descriptor = os.memfd_create("obstore")
    try:
        with open(file, "rb") as source:
            at, size = 0, os.fstat(source.fileno()).st_size
            while at < size:
                at += os.sendfile(descriptor, source.fileno(), at, size - at)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)  # what was loaded stays mapped


def _renew_lock() -> None:
    _library.lock = threading.Lock()  # another thread may have held it when the process was forked


def _settle_at_exit() -> None:
    """Let the library's threads put down what they hold of Python before that ends: otherwise they abort the process.

    They need it for a moment after each request, also after one that was cancelled; there is nothing to wait for but
    time (PyO3/pyo3-async-runtimes, issues 40 and 90).
    """
    shared = sys.modules.get("streamloader.stores.io_thread")
    if shared is not None:
        shared.close_shared_stores()  # which would otherwise happen after this
    if _library.used == os.getpid():
        time.sleep(SETTLING)


_library: Final = _Library()
os.register_at_fork(after_in_child=_renew_lock)
atexit.register(_settle_at_exit)
