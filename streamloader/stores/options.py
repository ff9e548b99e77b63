"""Which options belong to which address, where several stores are used side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamloader.errors import ConfigError
from streamloader.stores.registry import scheme_of

__all__ = ["options_for"]

_PLAIN = ("", "file", "memory")  # schemes that take none of the options that others need


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
