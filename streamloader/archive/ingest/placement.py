"""Where chunks go: places, and how chunks are spread over them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from streamloader.archive.catalog.base import Place
from streamloader.archive.ingest.naming import password_of, without_secrets
from streamloader.errors import ConfigError
from streamloader.stores.io_thread import shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import options_for, scheme_of

__all__ = ["SPREADS", "Spread", "Stores", "Target", "as_places", "choose", "targets"]

Stores: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, float]"
Spread: TypeAlias = Literal["weight", "free"]
SPREADS: Final = ("weight", "free")


@dataclass(frozen=True, slots=True)
class Target:
    """A place that chunks can be written to, with all that it takes.

    Attributes:
        number: of the place.
        url: of the place.
        share: of the chunks of this run, relative to that of the others; 0 takes none.
        options: of its store.
    """

    number: int
    url: str
    share: float
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def as_places(stores: Stores, first: int = 0) -> tuple[Place, ...]:
    """Return the places that a user names: an address of a folder, several, or addresses with their weights.

    Args:
        stores: see above; local folders become absolute paths.
        first: number of the first one.

    Raises:
        ConfigError: there is none, one is there twice, has a password in it, or a weight that is none.
    """
    if isinstance(stores, Mapping):
        pairs: list[tuple[Any, Any]] = list(stores.items())
    elif isinstance(stores, (str, os.PathLike)):
        pairs = [(stores, 1.0)]
    else:
        pairs = [(store, 1.0) for store in stores]
    places = [
        Place(first + number, _url(store), _weight(store, weight)) for number, (store, weight) in enumerate(pairs)
    ]
    if not places:
        raise ConfigError("an archive needs at least one store that its chunks are put into")
    urls = [place.url for place in places]
    if twice := sorted({url for url in urls if urls.count(url) > 1}):
        raise ConfigError(f"{twice[0]} is named twice as a place for chunks")
    return tuple(places)


def targets(
    places: Iterable[Place],
    storage_options: Mapping[str, Any] | None,
    spread: Spread = "weight",
    only: Collection[int] | None = None,
) -> tuple[Target, ...]:
    """Return where chunks can go now.

    Args:
        places: of the archive.
        storage_options: see :func:`streamloader.stores.registry.options_for`.
        spread: by the weights of the places, or by these times the bytes that are free there.
        only: numbers of the places that take new chunks; None for all.

    Raises:
        ConfigError: no place takes any, or one does not tell what is free.
        StoreError: a store cannot be asked for its free bytes.
    """
    if spread not in SPREADS:
        raise ConfigError(f"spread must be one of {', '.join(map(repr, SPREADS))}, got {spread!r}")
    found = [
        Target(
            place.number,
            place.url,
            place.weight if only is None or place.number in only else 0.0,
            options_for(place.url, storage_options),
        )
        for place in places
    ]
    if spread == "free":
        found = [replace(target, share=target.share * _free(target)) if target.share else target for target in found]
    if not any(target.share > 0 for target in found):
        raise ConfigError(
            "no place takes new chunks: all have weight 0" + (", or nothing is free there" if spread == "free" else "")
        )
    return tuple(found)


def choose(content: str, number: int, found: Sequence[Target]) -> Target:
    """Return where a chunk goes: the same answer for the same chunk and shares, whatever else was asked before.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each place draws a number from the hash of its own
    number and the chunk's, and the largest ``-share / ln(u)`` wins. So places get their shares of the chunks, and a
    further place takes chunks away from the others, but moves none between them.
    """
    return max((target for target in found if target.share > 0), key=lambda target: _score(content, number, target))


def _score(content: str, number: int, target: Target) -> float:
    drawn = hashlib.sha256(f"{content}/{number}/{target.number}".encode()).digest()
    uniform = (int.from_bytes(drawn[:8]) + 0.5) / 2.0**64
    return -target.share / math.log(min(uniform, 1 - 2**-53))


def _free(target: Target) -> int:
    store, path = shared_store(target.url, target.options)
    with store:
        free = store.call(store.store.free(path))
    if free is None:
        raise ConfigError(f"{target.url} does not tell how much is free there: use spread='weight'")
    return free


def _url(store: object) -> str:
    text = os.fspath(store) if isinstance(store, os.PathLike) else store
    if not isinstance(text, str) or not text:
        raise ConfigError(f"a place is the address of a folder, got {store!r:.80}")
    if scheme_of(text) in ("", "file"):
        return os.path.abspath(os.path.expanduser(local_path(text)))
    if password_of(text) is not None:
        raise ConfigError(
            f"{without_secrets(text)}: the catalog keeps no passwords. Leave it out of the address, and give it in "
            "storage_options={'...://...': {'password': ...}}, or log in with a key"
        )
    return text.rstrip("/") if not text.endswith("://") else text


def _weight(store: object, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigError(f"the weight of a place is a number of 0 or more, got {weight!r} for {store!s:.80}")
    return float(weight)
