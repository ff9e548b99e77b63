"""The registry of catalog classes by scheme, and functions that open a catalog by its address."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog
from streamloader.arguments import expand_path
from streamloader.errors import ConfigError, MissingDependency
from streamloader.stores.io_thread import SharedResource, get_shared_resource, options_key
from streamloader.stores.registry import scheme_of

__all__ = ["catalog_schemes", "get_shared_catalog", "open_catalog", "register_catalog"]

_CATALOG_CLASSES: Final[dict[str, str]] = {
    "": "streamloader.archive.catalog.sqlite.catalog:SqliteCatalog",
    "mongodb": "streamloader.archive.catalog.mongo.catalog:MongoCatalog",
    "mongodb+srv": "streamloader.archive.catalog.mongo.catalog:MongoCatalog",
    "sqlite": "streamloader.archive.catalog.sqlite.catalog:SqliteCatalog",
}


def register_catalog(scheme: str, target: str | type[Catalog]) -> None:
    """Register a catalog class for a scheme.

    Worker processes do not inherit registrations. Register in a module that every process imports.

    Args:
        scheme: Scheme of the addresses, without ``://``.
        target: Subclass of :class:`Catalog`, or ``"module:Class"`` to import on first use.

    Raises:
        ConfigError: If `scheme` is not a valid scheme.
    """
    if scheme_of(f"{scheme}://") != scheme.lower() or not scheme:
        raise ConfigError(f"{scheme!r} is not a valid scheme of an address")
    path = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
    _CATALOG_CLASSES[scheme.lower()] = path


def catalog_schemes() -> Mapping[str, str]:
    """Return the class of each scheme as ``"module:Class"``. The scheme of local paths is ""."""
    return dict(_CATALOG_CLASSES)


def open_catalog(url: str | os.PathLike[str], **options: Any) -> Catalog:
    """Return the catalog at an address. It connects on first use; close it with ``aclose()``.

    Args:
        url: Path of an SQLite file, ``sqlite:///path`` (an absolute path then follows four slashes), or
            ``mongodb://host/database`` (or ``mongodb+srv://``).
        **options: ``timeout``, the time limit of one call in seconds, and options of the catalog's class.

    Raises:
        ConfigError: If no class is registered for the scheme, or the class does not have such an option.
        MissingDependency: If the catalog needs a package that is not installed.
    """
    address = os.fspath(url)
    catalog_class = _import_class(address)
    construct: Callable[..., Catalog] = catalog_class
    try:
        return construct(address, **options)
    except TypeError as error:
        raise ConfigError(f"{catalog_class.__name__} does not accept an option: {error}", address=address) from error


def get_shared_catalog(
    url: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> SharedResource[Catalog]:
    """Return the catalog that this process shares for an address and options. It lives on the I/O thread.

    Raises:
        ConfigError: If :func:`open_catalog` refuses the arguments, or the options cannot be pickled.
        MissingDependency: If the catalog needs a package that is not installed.
    """
    address, options = os.fspath(url), dict(options or {})
    if not scheme_of(address):
        address = os.path.abspath(expand_path(address, create=True))
    return get_shared_resource(("catalog", address, options_key(options)), lambda: open_catalog(address, **options))


def _import_class(address: str) -> type[Catalog]:
    scheme = scheme_of(address)
    if scheme not in _CATALOG_CLASSES:
        supported = ", ".join(f"{name}://" for name in sorted(_CATALOG_CLASSES) if name)
        raise ConfigError(
            f"{scheme}:// is not an address of a catalog: give a path, or one of {supported}", address=address
        )
    module, _, name = _CATALOG_CLASSES[scheme].partition(":")
    try:
        catalog_class: type[Catalog] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        if isinstance(error, MissingDependency):
            raise
        raise ConfigError(f"the catalog of {scheme}:// cannot be imported: {error}", address=address) from error
    return catalog_class
