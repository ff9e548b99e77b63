"""Find the modules that a worker, a bare interpreter, cannot import, so that their code is sent to it by value."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from typing import Any, Final

__all__ = ["pickle_local_modules_by_value"]

_MAIN_MODULES: Final = ("__main__", "__mp_main__")
_OWN_PACKAGE: Final = __name__.partition(".")[0]  # workers find it, wherever it lies: see child_processes.py
_lock = threading.Lock()  # cloudpickle has one register for all threads


@contextlib.contextmanager
def pickle_local_modules_by_value(search_path: Sequence[str]) -> Iterator[None]:
    """Have cloudpickle send the code of modules by value inside, if a worker cannot import them.

    These are the main module of a process that ``multiprocessing`` has started, modules that were loaded from a file
    that is not on the search path, and modules that were made while the program runs.

    Args:
        search_path: Module search path of the workers, in absolute paths.
    """
    import cloudpickle

    with _lock:
        known = cloudpickle.list_registry_pickle_by_value()
        local_modules = [module for module in _list_local_modules(search_path) if module.__name__ not in known]
        try:
            for module in local_modules:
                cloudpickle.register_pickle_by_value(module)
            yield
        finally:
            registered = cloudpickle.list_registry_pickle_by_value()
            for module in local_modules:
                if module.__name__ in registered:
                    cloudpickle.unregister_pickle_by_value(module)


def _list_local_modules(search_path: Sequence[str]) -> Iterator[types.ModuleType]:
    real_path = functools.lru_cache(None)(os.path.realpath)  # thousands of modules lie in a few hundred folders
    folders = {real_path(folder) for folder in search_path}
    importable: dict[str, bool] = {}  # by name of the top-level module
    for name, module in sorted(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or module.__name__ != name or name == "__main__":
            continue  # an alias, or cloudpickle sends it by value already
        top = name.partition(".")[0]
        if top not in importable:
            importable[top] = _can_import(top, sys.modules.get(top), search_path, folders, real_path)
        if not (importable[top] and _is_in_package(name, module, real_path)):
            yield module


def _can_import(
    name: str, module: Any, search_path: Sequence[str], folders: set[str], real_path: Callable[[str], str]
) -> bool:
    """Return whether a worker that imports a top-level module gets this one."""
    if name in sys.builtin_module_names or name in sys.stdlib_module_names or name == _OWN_PACKAGE:
        return True
    spec = getattr(module, "__spec__", None)
    if spec is None:  # made at run time, or the main module of a process of multiprocessing
        return False
    folder = _folder_of(spec)
    if folder is not None and real_path(folder) in folders and os.path.exists(spec.origin):
        return True
    found: Any = None
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        found = PathFinder.find_spec(name, list(search_path))
    if found is not None:
        return _locations(found) == _locations(spec)
    return _is_found_elsewhere(name, spec)


def _folder_of(spec: Any) -> str | None:
    """Return the folder in which a module is found by its name, or None if it has no file."""
    if not spec.has_location or spec.origin is None:
        return None
    folder: str = os.path.dirname(spec.origin)
    return folder if spec.submodule_search_locations is None else os.path.dirname(folder)


def _locations(spec: Any) -> tuple[Any, list[str]]:
    return spec.origin, [os.path.realpath(path) for path in spec.submodule_search_locations or ()]


def _is_found_elsewhere(name: str, spec: Any) -> bool:
    """Return whether a finder of the environment finds a module, such as that of an editable installation."""
    for finder in sys.meta_path:
        finder_class = finder if isinstance(finder, type) else type(finder)
        if finder is PathFinder or finder_class.__module__ in _MAIN_MODULES:
            continue
        try:
            found = finder.find_spec(name, None)
        except (ImportError, AttributeError, ValueError):
            continue
        if found is not None and _locations(found) == _locations(spec):
            return True
    return False


def _is_in_package(name: str, module: types.ModuleType, real_path: Callable[[str], str]) -> bool:
    """Return whether a submodule is found in its package. Those without a file are made by the package itself."""
    parent_name = name.rpartition(".")[0]
    spec = getattr(module, "__spec__", None)
    folder = None if spec is None or not parent_name else _folder_of(spec)
    if folder is None:
        return True
    parent = sys.modules.get(parent_name)
    if parent is None:  # the module was given this name, and not imported by it
        return False
    locations = [real_path(path) for path in getattr(parent, "__path__", ())]
    return not locations or real_path(folder) in locations
