"""Load obstore so that it works in every process, including forked children.

obstore runs requests on its own threads, which do not exist in a forked child. Requests would hang there, and the
threads cannot be restarted, because they are created once per loaded library. A forked child therefore loads its own
copy of the library.
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

from streamloader.errors import MissingDependency, StoreError

__all__ = ["SHUTDOWN_GRACE_S", "get_obstore", "leak_on_purpose"]

_MODULE_NAMES: Final = ("obstore", "obstore.store", "obstore.exceptions")
_BINARY_MODULE: Final = "obstore._obstore"
# Time in which obstore's threads release the Python objects of a request that has ended.
SHUTDOWN_GRACE_S: Final = 0.05


class _ObstoreModules:
    """The modules of obstore that belong to this process.

    Attributes:
        package: Package ``obstore`` of this process.
        pid: Process that the package belongs to.
        binary_path: Path of the extension module.
        leaked: Objects that are never freed, because freeing them would wait for threads that do not exist here.
        lock: Held while a copy is loaded.
        used_by_pid: Last process that used obstore, or 0.
    """

    def __init__(self) -> None:
        try:
            self.package = _import_obstore()
        except ImportError as error:
            raise MissingDependency(
                "s3://, gs:// and az:// need the package obstore: pip install streamloader[objects]"
            ) from error
        self.pid = os.getpid()
        self.binary_path = str(sys.modules[_BINARY_MODULE].__file__)
        self.leaked: list[object] = []
        self.lock = threading.Lock()
        self.used_by_pid = 0

    def load_copy(self) -> None:
        """Load a copy of the library for this forked child."""
        if not sys.platform.startswith("linux"):
            raise StoreError(
                "object stores cannot be used in a forked child on this system after obstore was loaded in the "
                "parent: start processes with 'spawn', or open object stores in the children only"
            )
        inherited = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "obstore"}
        try:
            with _copy_to_memory(self.binary_path) as path:
                finder = _BinaryFinder(path)
                sys.meta_path.insert(0, finder)
                try:
                    package = _import_obstore()
                finally:
                    sys.meta_path.remove(finder)
        except BaseException:
            sys.modules.update(inherited)
            raise
        self.leaked.append((self.package, inherited))
        self.package, self.pid = package, os.getpid()


class _BinaryFinder:
    """Import finder that loads obstore's extension module from another path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _BINARY_MODULE:
            return None
        return spec_from_file_location(name, self._path, loader=ExtensionFileLoader(name, self._path))


def get_obstore() -> Any:
    """Return the package ``obstore``, with its modules ``store`` and ``exceptions``, that works in this process.

    Raises:
        StoreError: If this is a forked child on a system that cannot load a copy of the library.
    """
    if _modules.pid != os.getpid():
        with _modules.lock:
            if _modules.pid != os.getpid():
                _modules.load_copy()
    _modules.used_by_pid = _modules.pid
    return _modules.package


def leak_on_purpose(inherited: object) -> None:
    """Keep an object that another process made until this process ends."""
    _modules.leaked.append(inherited)


def _import_obstore() -> Any:
    package, *_ = [importlib.import_module(name) for name in _MODULE_NAMES]
    return package


@contextlib.contextmanager
def _copy_to_memory(file: str) -> Iterator[str]:
    """Copy a file to an anonymous one and yield its path. The dynamic loader loads the same file only once."""
    descriptor = os.memfd_create("obstore")
    try:
        with open(file, "rb") as source:
            offset, size = 0, os.fstat(source.fileno()).st_size
            while offset < size:
                offset += os.sendfile(descriptor, source.fileno(), offset, size - offset)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)  # the loaded library stays mapped


def _reset_lock() -> None:
    _modules.lock = threading.Lock()  # another thread may have held it when the process was forked


def _wait_at_exit() -> None:
    """Let obstore's threads release their Python objects before the interpreter ends. Otherwise they abort the process.

    The threads need Python for a moment after each request, even after a cancelled one. They offer nothing to wait
    for, so this waits a fixed time (PyO3/pyo3-async-runtimes, issues 40 and 90).
    """
    shared = sys.modules.get("streamloader.stores.io_thread")
    if shared is not None:
        shared.close_shared_stores()  # before the wait, because closing a store ends requests
    if _modules.used_by_pid == os.getpid():
        time.sleep(SHUTDOWN_GRACE_S)


_modules: Final = _ObstoreModules()
os.register_at_fork(after_in_child=_reset_lock)
atexit.register(_wait_at_exit)
