"""Placement of chunks: parsing the places of an archive, and choosing a place for each chunk."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from streamloader.archive.catalog.base import Place
from streamloader.archive.location import PlaceAddress
from streamloader.arguments import expand_path
from streamloader.errors import ConfigError
from streamloader.redaction import has_secrets, redact_address
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.local import local_path
from streamloader.stores.registry import scheme_of, spell_address

__all__ = ["SPREADS", "PlaceAddresses", "PlacementTarget", "Spread", "choose_target", "parse_places", "resolve_targets"]

PlaceAddresses: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, float]"
Spread: TypeAlias = Literal["weight", "free"]
SPREADS: Final = ("weight", "free")


@dataclass(frozen=True, slots=True)
class PlacementTarget:
    """A place that chunks can be written to, with the options of its store.

    Attributes:
        number: Number of the place.
        url: Address of the place.
        share: Share of this run's chunks, relative to the other targets. A target with share 0 gets none.
        options: Options of the place's store.
    """

    number: int
    url: str
    share: float
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_places(stores: PlaceAddresses, first: int = 0) -> tuple[Place, ...]:
    """Return places for the addresses of folders.

    Args:
        stores: One address, several addresses, or a mapping of addresses to weights. Local paths become absolute.
        first: Number of the first place. Defaults to 0.

    Raises:
        ConfigError: If there is no address, an address appears twice or contains a password, or a weight is invalid.
    """
    if isinstance(stores, Mapping):
        pairs: list[tuple[Any, Any]] = list(stores.items())
    elif isinstance(stores, (str, os.PathLike)):
        pairs = [(stores, 1.0)]
    else:
        pairs = [(store, 1.0) for store in stores]
    places = [
        Place(first + position, _parse_url(store), _parse_weight(store, weight))
        for position, (store, weight) in enumerate(pairs)
    ]
    if not places:
        raise ConfigError("an archive needs at least one store for its chunks")
    urls = [place.url for place in places]
    if duplicates := sorted({url for url in urls if urls.count(url) > 1}):
        raise ConfigError(f"{duplicates[0]} is given twice as a place for chunks")
    return tuple(places)


def resolve_targets(
    places: Iterable[Place],
    storage_options: Mapping[str, Any] | None,
    spread: Spread = "weight",
    only: Collection[int] | None = None,
    addresses: Mapping[int, PlaceAddress] | None = None,
) -> tuple[PlacementTarget, ...]:
    """Return the targets for new chunks.

    Args:
        places: Places of the archive.
        storage_options: Options of the stores, see :func:`streamloader.stores.registry.select_options`.
        spread: ``"weight"`` to distribute by the weights of the places, ``"free"`` to distribute by weight times free
            bytes.
        only: Numbers of the places that get new chunks. Defaults to all places.
        addresses: Address of each place for this machine, by number of the place. Defaults to the addresses in `places`
            as those that the user named.

    Raises:
        ConfigError: If no place gets new chunks, or a place does not report its free bytes.
        UntrustedAddress: If a place that gets new chunks is on another machine, and the user does not name it.
        StoreError: If the request for the free bytes of a store fails.
    """
    if spread not in SPREADS:
        raise ConfigError(f"spread must be one of {', '.join(map(repr, SPREADS))}, got {spread!r}")
    targets = []
    for place in places:
        named_by_caller = PlaceAddress(place.number, place.url, named=True, catalog="")
        address = named_by_caller if addresses is None else addresses[place.number]
        share = place.weight if only is None or place.number in only else 0.0
        if not (address.named or address.is_local):
            if not share:
                continue  # it is not contacted at all
            address.require_named()
        options = address.select_options(storage_options)
        targets.append(PlacementTarget(place.number, address.url, share, options))
    if spread == "free":
        targets = [
            replace(target, share=target.share * _get_free_bytes(target)) if target.share else target
            for target in targets
        ]
    if not any(target.share > 0 for target in targets):
        raise ConfigError(
            "no place accepts new chunks: all have weight 0" + (", or no free space" if spread == "free" else "")
        )
    return tuple(targets)


def choose_target(content: str, number: int, targets: Sequence[PlacementTarget]) -> PlacementTarget:
    """Return the target of a chunk. The same chunk and shares always give the same target.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each target draws a number ``u`` from the hash of
    its own number and the chunk's, and the largest ``-share / ln(u)`` wins. The targets get chunks in proportion to
    their shares, and an additional target takes chunks from the others, but moves none between them.

    Args:
        content: Content identifier of the video.
        number: Number of the chunk in the video.
        targets: Targets to choose from.
    """
    return max((target for target in targets if target.share > 0), key=lambda target: _score(content, number, target))


def _score(content: str, number: int, target: PlacementTarget) -> float:
    digest = hashlib.sha256(f"{content}/{number}/{target.number}".encode()).digest()
    uniform = (int.from_bytes(digest[:8]) + 0.5) / 2.0**64
    return -target.share / math.log(min(uniform, 1 - 2**-53))


def _get_free_bytes(target: PlacementTarget) -> int:
    store, path = open_shared_store(target.url, target.options)
    with store:
        free = store.call(store.store.free_bytes(path))
    if free is None:
        raise ConfigError(f"{target.url} does not report its free space: use spread='weight'")
    return free


def _parse_url(store: object) -> str:
    text = os.fspath(store) if isinstance(store, os.PathLike) else store
    if not isinstance(text, str) or not text:
        raise ConfigError(f"a place must be the address of a folder, got {store!r:.80}")
    text = spell_address(text)
    if scheme_of(text) in ("", "file"):
        return os.path.abspath(expand_path(local_path(text), create=True))
    if has_secrets(text):
        raise ConfigError(
            f"{redact_address(text)}: the catalog stores no passwords, query values or unusual user names. Omit them "
            "from the address, and pass them in storage_options={'...://...': {'password': ...}}, or log in with a key"
        )
    return text.rstrip("/") if not text.endswith("://") else text


def _parse_weight(store: object, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise ConfigError(f"the weight of a place must be a number of 0 or more, got {weight!r} for {store!s:.80}")
    return float(weight)
