"""Which class serves which scheme, and from an address with options to a store."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from streamloader.config import Retry
from streamloader.errors import ConfigError, MissingExtra
from streamloader.stores.base import Store

__all__ = ["open_store", "options_for", "register_store", "scheme_of", "schemes", "split_address"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_PLAIN: Final = ("", "file", "memory")  # schemes that take none of the options that others need
_ANY_OTHER: Final = "streamloader.stores.fsspec:FsspecStore"
_KINDS: Final[dict[str, str]] = {
    "": "streamloader.stores.local:LocalStore",
    "az": "streamloader.stores.objects.store:ObjectStore",
    "file": "streamloader.stores.local:LocalStore",
    "gs": "streamloader.stores.objects.store:ObjectStore",
    "http": "streamloader.stores.http.store:HttpStore",
    "https": "streamloader.stores.http.store:HttpStore",
    "ipfs": "streamloader.stores.ipfs.store:IpfsStore",
    "ipns": "streamloader.stores.ipfs.store:IpfsStore",
    "memory": "streamloader.stores.memory:MemoryStore",
    "s3": "streamloader.stores.objects.store:ObjectStore",
    "sftp": "streamloader.stores.ssh.store:SshStore",
    "ssh": "streamloader.stores.ssh.store:SshStore",
}


def register_store(scheme: str, target: str | type[Store]) -> None:
    """Serve a scheme with a class: one of yours, or ``"module:Class"`` to be imported when it is needed.

    Worker processes do not know what was registered here: register at the import of a module that both import.

    Raises:
        ConfigError: that is no scheme.
    """
    if not _SCHEME.fullmatch(f"{scheme}://"):
        raise ConfigError(f"{scheme!r} is no scheme of an address")
    _KINDS[scheme.lower()] = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def schemes() -> Mapping[str, str]:
    """Return what serves each scheme that has a store of its own, as ``"module:Class"``. "" stands for local paths."""
    return dict(_KINDS)


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case, "" for a local path."""
    found = _SCHEME.match(address)
    return found[1].lower() if found else ""


def split_address(address: str) -> tuple[str, str]:
    """Split an address into the url of its store and the path in there, as the store's class does it.

    Raises:
        ConfigError: no store serves its scheme.
    """
    return _kind(scheme_of(address)).split(address)


def open_store(url: str | os.PathLike[str], **options: Any) -> Store:
    """Return the store of an address. It connects when it is first used; close it with ``aclose()``.

    Args:
        url: ``/path``, ``file://``, ``memory://name``, ``http(s)://host``, ``ssh://user@host:port`` (or ``sftp://``),
            ``s3://bucket``, ``gs://bucket``, ``az://container``, ``ipfs://``, ``ipns://``, or any scheme that fsspec
            knows. What follows the host or bucket is a directory: paths are then relative to it.
        **options: for every store: ``timeouts`` (:class:`~streamloader.config.Timeouts`), ``limits``
            (:class:`~streamloader.config.Limits`), ``retry`` (:class:`~streamloader.config.Retry`, None for never),
            ``digests`` (expected digests of objects), ``cache_dir`` and ``cache_bytes``. All others go to the
            store's class, whose docstring tells of them.

    Raises:
        ConfigError: no store serves this scheme, or it knows no such option.
        MissingExtra: it needs a package that is not installed.
    """
    from streamloader.stores.wrappers import wrapped

    root, path = split_address(os.fspath(url))
    retry = options.pop("retry", Retry())
    digests, cache_dir, cache_bytes = (options.pop(name, None) for name in ("digests", "cache_dir", "cache_bytes"))
    kind = _kind(scheme_of(root))
    try:
        store = kind(root, **options)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__}, which serves {root}, takes no such option: {error}") from error
    return wrapped(store, path, retry=retry, digests=digests, cache_dir=cache_dir, cache_bytes=cache_bytes)


def _kind(scheme: str) -> type[Store]:
    target = _KINDS.get(scheme, _ANY_OTHER)
    module, _, name = target.partition(":")
    try:
        kind: type[Store] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        if isinstance(error, MissingExtra):
            raise
        raise ConfigError(f"the store of {scheme}:// ({target}) cannot be imported: {error}") from error
    return kind


def options_for(address: str, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options of the store of one address.

    Args:
        address: of a store, or of something in it.
        storage_options: either options themselves, for all stores that are not of this machine; or, where stores need
            different ones, beginnings of addresses with the options for what begins so::

                {"ssh://me@box": {"client_keys": ["~/.ssh/box"]}, "s3://": {"region": "eu-central-1"}}

            The longest beginning that fits counts. It fits whole names only: ``"s3://a"`` is not the beginning of
            ``s3://ab``.

    Raises:
        ConfigError: the two forms are mixed, or what belongs to a beginning is no mapping.
    """
    if not storage_options:
        return {}
    beginnings = [name for name in storage_options if "://" in name]
    if not beginnings:
        return {} if scheme_of(address) in _PLAIN else dict(storage_options)
    mixed = [name for name in storage_options if "://" not in name]
    if mixed:
        raise ConfigError(
            f"storage_options has beginnings of addresses ({beginnings[0]!r}) and options ({mixed[0]!r}) side by side: "
            "put the options under the address that they are for"
        )
    fitting = [beginning for beginning in beginnings if _begins(address, beginning)]
    if not fitting:
        return {}
    chosen = storage_options[max(fitting, key=len)]
    if not isinstance(chosen, Mapping):
        raise ConfigError(f"storage_options[{max(fitting, key=len)!r}] must be a mapping of options")
    return dict(chosen)


def _begins(address: str, beginning: str) -> bool:
    if not address.startswith(beginning):
        return False
    return len(address) == len(beginning) or beginning.endswith("/") or address[len(beginning)] == "/"
