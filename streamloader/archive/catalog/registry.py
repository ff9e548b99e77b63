"""Which class serves which kind of address, and from an address to a catalog."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from streamloader.archive.catalog.base import Catalog
from streamloader.errors import ConfigError, MissingExtra
from streamloader.stores.io_thread import Shared, options_key, shared
from streamloader.stores.registry import scheme_of

__all__ = ["catalog_schemes", "open_catalog", "register_catalog", "shared_catalog"]

_KINDS: Final[dict[str, str]] = {
    "": "streamloader.archive.catalog.sqlite.catalog:SqliteCatalog",
    "mongodb": "streamloader.archive.catalog.mongo.catalog:MongoCatalog",
    "mongodb+srv": "streamloader.archive.catalog.mongo.catalog:MongoCatalog",
    "sqlite": "streamloader.archive.catalog.sqlite.catalog:SqliteCatalog",
}


def register_catalog(scheme: str, target: str | type[Catalog]) -> None:
    """Serve a scheme with a class: one of yours, or ``"module:Class"`` to be imported when it is needed.

    Worker processes do not know what was registered here: register at the import of a module that both import.

    Raises:
        ConfigError: that is no scheme.
    """
    if scheme_of(f"{scheme}://") != scheme.lower() or not scheme:
        raise ConfigError(f"{scheme!r} is no scheme of an address")
    _KINDS[scheme.lower()] = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def catalog_schemes() -> Mapping[str, str]:
    """Return what serves each scheme, as ``"module:Class"``. "" stands for local paths."""
    return dict(_KINDS)


def open_catalog(url: str | os.PathLike[str], **options: Any) -> Catalog:
    """Return the catalog at an address. It connects when it is first used; close it with ``aclose()``.

    Args:
        url: the path of an SQLite file, ``sqlite:///path`` (three slashes and an absolute path give four), or
            ``mongodb://host/database`` (or ``mongodb+srv://``).
        **options: ``timeout`` (seconds that one call may take); all others go to the catalog's class, whose docstring
            tells of them.

    Raises:
        ConfigError: nothing serves this scheme, or it knows no such option.
        MissingExtra: it needs a package that is not installed.
    """
    address = os.fspath(url)
    kind = _kind(address)
    make: Callable[..., Catalog] = kind
    try:
        return make(address, **options)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__} takes no such option: {error}", address=address) from error


def shared_catalog(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Shared[Catalog]:
    """Return this process's catalog at an address with these options; it lives on the I/O thread.

    Raises:
        ConfigError: see :func:`open_catalog`; or options that cannot be pickled.
        MissingExtra: it needs a package that is not installed.
    """
    address, options = os.fspath(url), dict(options or {})
    if not scheme_of(address):
        address = os.path.abspath(os.path.expanduser(address))
    return shared(("catalog", address, options_key(options)), lambda: open_catalog(address, **options))


def _kind(address: str) -> type[Catalog]:
    scheme = scheme_of(address)
    if scheme not in _KINDS:
        known = ", ".join(f"{name}://" for name in sorted(_KINDS) if name)
        raise ConfigError(f"no catalog lives at {scheme}:// addresses: give a path, or one of {known}", address=address)
    module, _, name = _KINDS[scheme].partition(":")
    try:
        kind: type[Catalog] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        if isinstance(error, MissingExtra):
            raise
        raise ConfigError(f"the catalog of {scheme}:// cannot be imported: {error}", address=address) from error
    return kind
