"""Decide which samples on IPFS may be left out, and describe those that were."""

from __future__ import annotations

from typing import Final, NamedTuple

from streamloader.errors import (
    AccessDenied,
    ClosedError,
    ConfigError,
    MissingDependency,
    ServerBusy,
    StreamloaderError,
    TransferInterrupted,
    Unreachable,
)

__all__ = ["SkippedObject", "check_on_error", "is_skippable"]

# What is wrong with the network or the settings is not a matter of one sample. A StoreTimeout is: a block that no
# node has cannot be distinguished from one that takes long to find.
_NEVER_SKIPPED: Final = (
    AccessDenied,
    ClosedError,
    ConfigError,
    MissingDependency,
    ServerBusy,
    TransferInterrupted,
    Unreachable,
)


class SkippedObject(NamedTuple):
    """A sample that ``on_error="skip"`` left out.

    Attributes:
        object: Address of the object, without secrets.
        member: Name of the file or member. None for the whole object.
        error: Message of the error.
    """

    object: str
    member: str | None
    error: str


def check_on_error(on_error: str) -> str:
    """Return a valid value of `on_error`.

    Raises:
        ConfigError: If it is another one.
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error={on_error!r}: must be 'raise' or 'skip'")
    return on_error


def is_skippable(error: StreamloaderError) -> bool:
    """Return whether an error concerns one sample, so that the others can be read without it."""
    return not isinstance(error, _NEVER_SKIPPED)
