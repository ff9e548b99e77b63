"""Rebuild broken chunks from their sources."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from streamloader.archive.catalog.base import ChunkRow, VideoRow
from streamloader.archive.ingest.inventory import PlaceInventory
from streamloader.archive.ingest.naming import compute_content
from streamloader.archive.ingest.report import Problem
from streamloader.archive.ingest.sources import open_source
from streamloader.archive.ingest.temp_dir import TempDir
from streamloader.errors import CatalogError, StreamloaderError
from streamloader.stores.origins import select_access

__all__ = ["BrokenChunk", "rebuild_chunks"]

# Options of encoders that a catalog may set. Others can name files, which the encoder would read or write.
_SAFE_ENCODER_OPTIONS: Final = frozenset(
    {
        "b", "bf", "bufsize", "coder", "cpu-used", "crf", "deadline", "g", "keyint_min", "level", "maxrate", "minrate",
        "preset", "profile", "qmax", "qmin", "qp", "refs", "row-mt", "sc_threshold", "slices", "tier", "tile-columns",
        "tile-rows", "tune",
    }
)  # fmt: skip


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
) -> list[BrokenChunk]:
    """Rebuild chunks, each in its place, and return them with their outcomes.

    A chunk is only written if it has the digest of the catalog, so the frames of a video never change.

    Args:
        broken: Chunks to rebuild.
        inventories: Inventories of all places, by number of the place.
        storage_options: Options of the stores of the sources. Only the catalog names the sources, so they have the
            limited reach of :mod:`streamloader.stores.origins`.
        catalog: Address of the catalog.
        is_writable: Function that returns whether chunks may be written to a place.
    """
    outcomes: list[BrokenChunk] = []
    for content in dict.fromkeys(chunk.row.content for chunk in broken):
        of_video = [chunk for chunk in broken if chunk.row.content == content]
        video_outcomes: list[BrokenChunk] = []
        try:
            options = select_access(of_video[0].video.source, storage_options, named=False, document=catalog)
            _rebuild_video(of_video, inventories, options, is_writable, video_outcomes)
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
    outcomes: list[BrokenChunk],
) -> None:
    """Rebuild chunks of one video, and append each outcome to `outcomes`, in order."""
    from streamloader.media.chunks.build import build_chunk, plan_cuts
    from streamloader.media.chunks.settings import CutSettings

    video = broken[0].video
    origin = video.origin
    if not origin.get("digest") or not origin.get("settings"):
        outcomes += [replace(chunk, outcome="The catalog does not store how it was made") for chunk in broken]
        return
    try:
        settings = CutSettings.from_json(origin["settings"])
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CatalogError(f"the origin of {video.name!r} in the catalog is malformed: {error}") from error
    if unsafe := sorted(set(settings.options) - _SAFE_ENCODER_OPTIONS):
        message = f"It cannot be rebuilt: the catalog sets {unsafe[0]!r} of the encoder, which may write files"
        outcomes += [replace(chunk, outcome=message) for chunk in broken]
        return
    with (
        TempDir() as temp_dir,
        open_source(video.source, None, options, temp_dir.folder, lambda step, count: None) as source,
    ):
        if source.digest != origin["digest"] or compute_content(source.digest, origin["settings"]) != video.content:
            message = f"Its source {video.source} was changed: restore the original file under this name"
            outcomes += [replace(chunk, outcome=message) for chunk in broken]
            return
        plan = plan_cuts(source.path, settings)
        for chunk in broken:
            inventory = inventories.get(chunk.row.place)
            if inventory is not None and not is_writable(inventory):
                message = f"It cannot be rebuilt: only the catalog names {inventory.url}. Pass places= to name it"
                outcomes.append(replace(chunk, outcome=message))
                continue
            if chunk.row.number >= len(plan.cuts) or inventory is None:
                outcomes.append(replace(chunk, outcome="It cannot be rebuilt: its source is cut differently now"))
                continue
            built = build_chunk(source.path, plan, settings, chunk.row.number, temp_dir.folder, lambda: False)
            try:
                source.check_unchanged()
                if built.digest != chunk.row.digest:
                    message = "It cannot be rebuilt: this version of FFmpeg makes other bytes of the same source"
                    outcomes.append(replace(chunk, outcome=message))
                    continue
                with open(built.file, "rb") as file:
                    inventory.write(chunk.row.path, file.read())
            finally:
                os.unlink(built.file)
            outcomes.append(replace(chunk, repaired=True, outcome="It was rebuilt"))
