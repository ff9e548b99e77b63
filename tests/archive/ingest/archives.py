"""Small archives for the tests of ingest, and checks of their contents."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from made_clips import make_clip

from streamloader.archive.catalog.registry import get_shared_catalog
from streamloader.archive.ingest import check_archive, parse_places
from streamloader.archive.ingest.owners import MARKERS_FOLDER
from streamloader.media.chunks.format import ChunkIndex

CHUNK = 10  # frames


def clip(path, seed=0, frames=40, **options):
    """A video whose frames no other seed has."""
    from made_clips import moving_frame

    height, width = options.setdefault("height", 48), options.setdefault("width", 64)
    options.setdefault("options", {"sc_threshold": "0"})  # key frames every ten frames, and nowhere else
    return make_clip(
        Path(path), frames=frames, picture=lambda number: moving_frame(number + 1000 * seed, height, width), **options
    )


@contextlib.contextmanager
def archive(folder, places=("one",), make=True):
    """The catalog of an archive in `folder`, with places in there."""
    with get_shared_catalog(str(Path(folder) / "catalog.sqlite")) as catalog:
        if make:
            stores = [place if "://" in place else str(Path(folder) / place) for place in places]
            catalog.call(catalog.resource.create(parse_places(stores)))
        yield catalog


def rows(catalog):
    """All videos with their chunks, in order."""

    async def look():
        return [
            (video, await catalog.resource.get_chunks(video.content, 0, video.chunks))
            async for video in catalog.resource.find_videos()
        ]

    return catalog.call(look())


def files(folder):
    """All files below a folder, hidden ones too, by path."""
    return {str(path.relative_to(folder)): path for path in Path(folder).rglob("*") if path.is_file()}


def names(catalog):
    return [video.name for video, _ in rows(catalog)]


def stems(catalog):
    """The names of all videos without folders and suffixes, in order."""
    return [Path(name).stem for name in names(catalog)]


def name_of(path):
    """The default name of the video in a file."""
    return f"{Path(path).parent.name}/{Path(path).name}"


def tidied(catalog):
    """Remove the partial files of killed writers, and check everything else."""
    report = check_archive(catalog, repair=True, stale_after=0)
    assert {problem.kind for problem in report.problems} <= {"unfinished"}
    assert_whole(catalog)


def assert_whole(catalog, *, jobs=0):
    """The catalog and its local places agree: each chunk is there once with its bytes, and nothing else is."""
    header = catalog.call(catalog.resource.get_header())
    there = {(place.number, path): file for place in header.places for path, file in files(place.url).items()}
    there = {key: file for key, file in there.items() if not key[1].startswith((MARKERS_FOLDER, "catalog.sqlite"))}
    expected = set()
    start = 0
    for number, (video, chunks) in enumerate(rows(catalog)):
        assert (video.number, video.start, len(chunks)) == (number, start, video.chunks)
        start += video.frames
        first = 0
        indexes = catalog.call(catalog.resource.get_indexes(video.content, range(video.chunks)))
        for position, (chunk, index) in enumerate(zip(chunks, indexes, strict=True)):
            data = there[chunk.place, chunk.path].read_bytes()
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == chunk.digest
            assert (chunk.number, chunk.first_frame, chunk.bytes) == (position, first, len(data))
            decoded = ChunkIndex.decode(index)
            assert (len(decoded), int(decoded.pts[0])) == (chunk.frames, chunk.first_pts)
            first += chunk.frames
            expected.add((chunk.place, chunk.path))
        assert first == video.frames
        assert video.bytes_out == sum(chunk.bytes for chunk in chunks)
    assert len(catalog.call(catalog.resource.list_jobs())) == jobs
    assert set(there) == expected
    assert catalog.call(catalog.resource.find_problems()) == []
