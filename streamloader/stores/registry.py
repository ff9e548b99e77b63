"""Select the store class for an address, select its options, and open the store."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from streamloader.arguments import check_options
from streamloader.config import Retry
from streamloader.errors import ConfigError, MissingDependency
from streamloader.redaction import redact_address
from streamloader.stores.base import Store
from streamloader.stores.container_addresses import split_container_address
from streamloader.stores.spellings import SCHEME_ALIASES, expand_authority, normalize_address

__all__ = [
    "is_local_file", "open_store", "register_store", "scheme_of", "schemes", "select_options", "spell_address",
    "split_address",
]  # fmt: skip

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SCHEMES_WITHOUT_OPTIONS: Final = ("", "file", "memory")
_CONTAINER_CLASS: Final = "streamloader.containers.store:ContainerStore"
_FALLBACK_CLASS: Final = "streamloader.stores.fsspec:FsspecStore"
_STORE_CLASSES: Final[dict[str, str]] = {
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
    """Register the store class for a scheme.

    Worker processes do not inherit the registration: make it when a module is imported that the workers import, too.

    Args:
        scheme: Scheme of the addresses, without "://".
        target: Store class, or ``"module:Class"``, which is imported when it is needed.

    Raises:
        ConfigError: If the scheme is malformed.
    """
    if not _SCHEME.fullmatch(f"{scheme}://"):
        raise ConfigError(f"{scheme!r} is not a valid scheme of an address")
    _STORE_CLASSES[scheme.lower()] = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def schemes() -> Mapping[str, str]:
    """Return the class of each registered scheme as ``"module:Class"``. "" stands for local paths."""
    return dict(_STORE_CLASSES)


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case, "gs" for "gcs" and the like, or "" for a local path."""
    match = _SCHEME.match(address)
    scheme = match[1].lower() if match else ""
    return SCHEME_ALIASES[scheme] if scheme in SCHEME_ALIASES and scheme not in _STORE_CLASSES else scheme


def is_local_file(address: str) -> bool:
    """Return whether an address is that of a file of this machine, and not of a member of a container."""
    return scheme_of(address) in ("", "file") and split_container_address(address) is None


def split_address(address: str) -> tuple[str, str]:
    """Split an address into the URL of its store and the path within it, by the rules of the store's class.

    Other spellings are those of :func:`streamloader.stores.spellings.normalize_address`. The store of
    ``s3://bucket/set.zip!/a/b.png`` is the container: ``s3://bucket/set.zip!``.

    Raises:
        ConfigError: If no store serves the scheme.
    """
    address = _normalize(address)
    member = split_container_address(address)
    if member is not None:
        container = member[0]
        if is_local_file(container):  # absolute: a worker may have another current directory
            container = f"/{split_address(container)[1]}"
        return f"{container}!", member[1]
    return _load_store_class(scheme_of(address)).split(address)


def spell_address(address: str) -> str:
    """Return an address that a user passed in the spelling of this package, with its environment variables expanded.

    Variables in local paths are expanded when the path is used, unless it exists literally.

    Raises:
        ConfigError: If a variable is not set, or if the spelling is that of another tool and has no counterpart.
    """
    return expand_authority(_normalize(address))


def open_store(url: str | os.PathLike[str], **options: Any) -> Store:
    """Open the store of an address. It connects on first use; close it with ``aclose()``.

    Args:
        url: Address of the store: ``/path``, ``file://``, ``memory://name``, ``http(s)://host``,
            ``ssh://user@host:port`` (or ``sftp://``), ``s3://bucket``, ``gs://bucket``, ``az://container``,
            ``ipfs://``, ``ipns://``, or any scheme that fsspec supports. Text after the host or bucket names a
            directory: paths are then relative to it. A container in a store is a store, too:
            ``s3://bucket/set.zip!`` (see :class:`streamloader.containers.store.ContainerStore`).
        **options: Options of every store: ``timeouts`` (:class:`~streamloader.config.Timeouts`), ``limits``
            (:class:`~streamloader.config.Limits`), ``retry`` (:class:`~streamloader.config.Retry`, or None to disable
            retries), ``digests`` (expected digests of objects), ``cache_dir`` and ``cache_bytes``. All others are
            passed to the store's class, whose docstring describes them.

    Raises:
        ConfigError: If no store serves the scheme, or if the store does not take one of the options.
        MissingDependency: If the store needs a package that is not installed.
    """
    from streamloader.stores.wrappers import wrap_store

    root, path = split_address(os.fspath(url))
    member = split_container_address(root)
    if member is not None:
        inner, name = split_address(member[0])
        return wrap_store(_load_class(_CONTAINER_CLASS)(open_store(inner, **options), name), path)
    retry = options.pop("retry", Retry())
    digests, cache_dir, cache_bytes = (options.pop(name, None) for name in ("digests", "cache_dir", "cache_bytes"))
    store_class = _load_store_class(scheme_of(root))
    try:
        store = store_class(root, **options)
    except TypeError as error:
        raise ConfigError(
            f"{store_class.__name__}, which serves {redact_address(root)}, takes no such option: {error}"
        ) from error
    return wrap_store(store, path, retry=retry, digests=digests, cache_dir=cache_dir, cache_bytes=cache_bytes)


def select_options(address: str, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options that apply to the store of one address.

    Args:
        address: Address of a store or of an object in it.
        storage_options: Either options for all stores that are not on this machine; or, if stores need different
            options, a mapping from address prefixes to options::

                {"ssh://me@box": {"client_keys": ["~/.ssh/box"]}, "s3://": {"region": "eu-central-1"}}

            The longest matching prefix applies. A prefix matches whole names only: ``"s3://a"`` does not match
            ``s3://ab``.

    Raises:
        ConfigError: If the two forms are mixed, or if the options of a prefix are not a mapping.
    """
    storage_options = check_options("storage_options", storage_options)
    if not storage_options:
        return {}
    address = _normalize(address)
    prefixes = [name for name in storage_options if "://" in name]
    if not prefixes:
        return {} if scheme_of(address) in _SCHEMES_WITHOUT_OPTIONS else dict(storage_options)
    plain = [name for name in storage_options if "://" not in name]
    if plain:
        raise ConfigError(
            f"storage_options mixes address prefixes ({redact_address(prefixes[0])!r}) and options ({plain[0]!r}): "
            "move each option under the prefix that it belongs to"
        )
    matching = [prefix for prefix in prefixes if _has_prefix(address, _normalize(prefix))]
    if not matching:
        return {}
    longest = max(matching, key=len)
    options = storage_options[longest]
    if not isinstance(options, Mapping):
        raise ConfigError(f"storage_options[{redact_address(longest)!r}] must be a mapping of options")
    return dict(options)


def _has_prefix(address: str, prefix: str) -> bool:
    address, prefix = (_SCHEME.sub(lambda match: match[0].lower(), text, count=1) for text in (address, prefix))
    if not address.startswith(prefix):
        return False
    return len(address) == len(prefix) or prefix.endswith("/") or address[len(prefix)] == "/"


def _normalize(address: str) -> str:
    """Return an address in the spelling of this package, unless a store is registered for its own scheme."""
    match = _SCHEME.match(address)
    is_registered = match is not None and match[1].lower() in SCHEME_ALIASES and match[1].lower() in _STORE_CLASSES
    return address if is_registered else normalize_address(address)


def _load_store_class(scheme: str) -> type[Store]:
    target = _STORE_CLASSES.get(scheme, _FALLBACK_CLASS)
    try:
        return _load_class(target)
    except ImportError as error:
        if isinstance(error, MissingDependency):
            raise
        raise ConfigError(f"the store of {scheme}:// ({target}) cannot be imported: {error}") from error


def _load_class(target: str) -> type[Any]:
    module, _, name = target.partition(":")
    loaded: type[Any] = getattr(importlib.import_module(module), name)
    return loaded
