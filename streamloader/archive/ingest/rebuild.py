"""Making broken chunks again, from the sources they came from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamloader.archive.catalog.base import ChunkRow, VideoRow
from streamloader.archive.ingest.inventory import Shelf
from streamloader.archive.ingest.naming import content_of
from streamloader.archive.ingest.report import Problem
from streamloader.archive.ingest.sources import opened
from streamloader.archive.ingest.temp_dir import Scratch
from streamloader.errors import StreamloaderError
from streamloader.stores.registry import options_for

__all__ = ["Broken", "remake"]


@dataclass(frozen=True, slots=True)
class Broken:
    """A chunk that is not there, or not what it was.

    Attributes:
        video: it belongs to.
        row: of the chunk.
        problem: what is wrong.
        mended: whether it is whole again.
        outcome: what became of it, for people.
    """

    video: VideoRow
    row: ChunkRow
    problem: Problem
    mended: bool = False
    outcome: str = ""


def remake(
    broken: Sequence[Broken], shelves: Mapping[int, Shelf], storage_options: Mapping[str, Any] | None
) -> list[Broken]:
    """Make chunks again, each where it was, and say what became of each.

    A chunk is only put there if it has the digest that it had: so a video never gets other frames than it had.
    """
    outcomes: list[Broken] = []
    for content in dict.fromkeys(one.row.content for one in broken):
        mine = [one for one in broken if one.row.content == content]
        done: list[Broken] = []
        try:
            _remake(mine, shelves, storage_options, done)
        except StreamloaderError as error:
            told = f"It cannot be made again: {error.message}"
            done += [replace(one, outcome=told) for one in mine[len(done) :]]
        outcomes += done
    return outcomes


def _remake(
    broken: Sequence[Broken],
    shelves: Mapping[int, Shelf],
    storage_options: Mapping[str, Any] | None,
    outcomes: list[Broken],
) -> None:
    """Make chunks of one video again; what becomes of each is added to `outcomes`, in order."""
    from streamloader.media.chunks.build import make_chunk, plan_cuts
    from streamloader.media.chunks.settings import CutSettings

    video = broken[0].video
    known = video.origin
    if not known.get("digest") or not known.get("settings"):
        outcomes += [replace(one, outcome="The catalog does not say how it was made") for one in broken]
        return
    settings = CutSettings.from_json(known["settings"])
    with (
        Scratch() as scratch,
        opened(
            video.source, None, options_for(video.source, storage_options), scratch.folder, lambda stage, done: None
        ) as source,
    ):
        if source.digest != known["digest"] or content_of(source.digest, known["settings"]) != video.content:
            told = f"Its source {video.source} is not what it was: keep the file and its name as they are"
            outcomes += [replace(one, outcome=told) for one in broken]
            return
        plan = plan_cuts(source.path, settings)
        for one in broken:
            if one.row.number >= len(plan.cuts) or one.row.place not in shelves:
                outcomes.append(replace(one, outcome="It cannot be made again: the source is cut in another way now"))
                continue
            made = make_chunk(source.path, plan, settings, one.row.number, scratch.folder, lambda: False)
            try:
                source.check()
                if made.digest != one.row.digest:
                    told = "It cannot be made again: this version of FFmpeg makes other bytes of the same source"
                    outcomes.append(replace(one, outcome=told))
                    continue
                with open(made.file, "rb") as file:
                    shelves[one.row.place].write(one.row.path, file.read())
            finally:
                os.unlink(made.file)
            outcomes.append(replace(one, mended=True, outcome="It was made again"))
