"""Rebuild broken chunks from their sources."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from streamloader.archive.catalog.base import ChunkRow, VideoRow
from streamloader.archive.ingest.inventory import PlaceInventory
from streamloader.archive.ingest.naming import compute_content
from streamloader.archive.ingest.report import Problem
from streamloader.archive.ingest.sources import open_source
from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.errors import CatalogError, CorruptStream, StreamloaderError
from streamloader.media.video.files import open_media_file
from streamloader.media.video.limits import DEFAULT_MAX_PIXELS
from streamloader.redaction import MASK
from streamloader.stores.origins import select_access
from streamloader.stores.registry import is_local_file

if TYPE_CHECKING:
    from streamloader.media.chunks.plan import CutPlan
    from streamloader.media.chunks.settings import CutSettings

__all__ = ["BrokenChunk", "rebuild_chunks"]

# Options of encoders that a catalog may set. Others can make an encoder read and write files (x264's "stats").
_ALLOWED_ENCODER_OPTIONS: Final = frozenset(
    "b bf bufsize coder context cpu-used crf deadline g keyint_min level maxrate minrate pix_fmt preset "  # noqa: SIM905
    "profile q qmax qmin qp refs row-mt sc_threshold slicecrc slices speed tier tile-columns tile-rows tune".split()
)


@dataclass(frozen=True, slots=True)
class BrokenChunk:
    """A chunk that is missing or was changed.

    Attributes:
        video: Row of its video.
        row: Row of the chunk.
        problem: Problem with the chunk.
        repaired: Whether the chunk was rebuilt.
        outcome: Result of the attempt to rebuild it, as a sentence for users. Empty if there was no attempt.
    """

    video: VideoRow
    row: ChunkRow
    problem: Problem
    repaired: bool = False
    outcome: str = ""


def rebuild_chunks(
    broken: Sequence[BrokenChunk],
    inventories: Mapping[int, PlaceInventory],
    storage_options: Mapping[str, Any] | None,
    catalog: str,
    is_writable: Callable[[PlaceInventory], bool],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> list[BrokenChunk]:
    """Rebuild chunks, each in its place, and return them with their outcomes.

    A chunk is only written if it has the digest of the catalog, so the frames of a video never change. Sources are
    parsed in child processes.

    Args:
        broken: Chunks to rebuild.
        inventories: Inventories of all places, by number of the place.
        storage_options: Options of the stores of the sources. Only the catalog names the sources, so they have the
            limited reach of :mod:`streamloader.stores.origins`.
        catalog: Address of the catalog.
        is_writable: Function that returns whether chunks may be written to a place.
        max_pixels: Maximum number of pixels of a frame of the sources. Defaults to 2^26.
    """
    outcomes: list[BrokenChunk] = []
    for content in dict.fromkeys(chunk.row.content for chunk in broken):
        of_video = [chunk for chunk in broken if chunk.row.content == content]
        video_outcomes: list[BrokenChunk] = []
        try:
            options = select_access(of_video[0].video.source, storage_options, named=False, document=catalog)
            _rebuild_video(of_video, inventories, options, is_writable, max_pixels, video_outcomes)
        except StreamloaderError as error:
            message = f"It cannot be rebuilt: {error.message}"
            video_outcomes += [replace(chunk, outcome=message) for chunk in of_video[len(video_outcomes) :]]
        outcomes += video_outcomes
    return outcomes


def _rebuild_video(
    broken: Sequence[BrokenChunk],
    inventories: Mapping[int, PlaceInventory],
    options: Mapping[str, Any],
    is_writable: Callable[[PlaceInventory], bool],
    max_pixels: int,
    outcomes: list[BrokenChunk],
) -> None:
    """Rebuild chunks of one video, and append each outcome to `outcomes`, in order."""
    from streamloader.media.chunks.settings import CutSettings
    from streamloader.media.parser_pool import ParserPool

    video = broken[0].video
    origin = video.origin
    if not origin.get("digest") or not origin.get("settings"):
        outcomes += [replace(chunk, outcome="The catalog does not store how it was made") for chunk in broken]
        return
    try:
        settings = replace(CutSettings.from_json(origin["settings"]), max_pixels=max_pixels)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CatalogError(f"the origin of {video.name!r} in the catalog is malformed: {error}") from error
    unknown = sorted(set(settings.options) - _ALLOWED_ENCODER_OPTIONS)
    if unknown:
        message = f"It is not rebuilt, because the catalog has the encoder option {unknown[0]!r}, which may name files"
        outcomes += [replace(chunk, outcome=message) for chunk in broken]
        return
    if origin.get("address") or (MASK in video.source and not is_local_file(video.source)):
        message = (
            "It cannot be rebuilt: the catalog does not store the complete address of its source, which has secrets"
        )
        outcomes += [replace(chunk, outcome=message) for chunk in broken]
        return
    with (
        TempDir() as temp_dir,
        open_source(video.source, None, options, temp_dir.folder, lambda step, count: None) as source,
        ParserPool(max_processes=1) as parsers,
    ):
        if source.digest != origin["digest"] or compute_content(source.digest, origin["settings"]) != video.content:
            message = f"Its source {video.source} was changed: restore the original file under this name"
            outcomes += [replace(chunk, outcome=message) for chunk in broken]
            return
        for chunk in broken:
            number, inventory = chunk.row.number, inventories.get(chunk.row.place)
            if inventory is not None and not is_writable(inventory):
                message = f"It cannot be rebuilt: only the catalog names {inventory.url}. Pass places= to name it"
                outcomes.append(replace(chunk, outcome=message))
                continue
            name = None
            if inventory is not None:
                name = parsers.call(video.source, _build_in_child, source.path, settings, number, temp_dir.folder)
            if name is None or inventory is None:
                outcomes.append(replace(chunk, outcome="It cannot be rebuilt: its source is cut differently now"))
                continue
            data = _take_file(temp_dir.folder, name)
            source.check_unchanged()
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != chunk.row.digest:
                message = "It cannot be rebuilt: this version of FFmpeg makes other bytes of the same source"
                outcomes.append(replace(chunk, outcome=message))
                continue
            inventory.write(chunk.row.path, data)
            outcomes.append(replace(chunk, repaired=True, outcome="It was rebuilt"))


def _build_in_child(path: str, settings: CutSettings, number: int, folder: str) -> str | None:
    """Build a chunk in a child process, and return the name of its file, or None if there is no such chunk.

    The source may be hostile, so the caller checks the file before it uses it.
    """
    from streamloader.media.chunks.build import build_chunk

    plan = _plan_once(path, json.dumps(settings.to_json()), settings.max_pixels)
    if number >= len(plan.cuts):
        return None
    return os.path.basename(build_chunk(path, plan, settings, number, folder).file)


@lru_cache(maxsize=1)
def _plan_once(path: str, settings: str, max_pixels: int) -> CutPlan:
    from streamloader.media.chunks.plan import plan_cuts
    from streamloader.media.chunks.settings import CutSettings

    return plan_cuts(path, replace(CutSettings.from_json(json.loads(settings)), max_pixels=max_pixels))


def _take_file(folder: str, name: Any) -> bytes:
    """Return the bytes of a file in a folder, and delete it."""
    path = os.path.join(folder, os.path.basename(str(name)))
    try:
        with open(open_media_file(path), "rb") as file:
            data = file.read()
        os.unlink(path)
    except OSError as error:
        raise CorruptStream(f"the process that rebuilt the chunk left no file: {error}") from error
    return data
