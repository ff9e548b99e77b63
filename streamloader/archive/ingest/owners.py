"""Record in each place which archives use it, so that no archive deletes the chunks of another one.

Each archive has a marker in each of its places: ``.streamloader-archives/ID-NUMBER.json``, with the identity of the
archive and the number of the place, written before the first chunk. Each is a file of its own, so that several archives
can register at the same time. A file that a catalog does not know may be deleted only if these conditions hold:

- The place has the marker of this archive for this place, and no other: two places of one archive may be the same
  folder. Markers are listed after the files, so that the archive of every file that is seen has registered already.
- The place was empty when the archive registered there (``exclusive``): otherwise the files of an archive without a
  marker, made by an older version, may be in it. A check that finds no unknown file sets it, too.
- It is not in a place of another archive whose folder is inside this one.
- The catalog contains the last video that the marker names (``videos``, ``content``). If it does not, it is an old copy
  of the catalog, and newer videos are known to the original only.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from streamloader.archive.catalog.base import Catalog
from streamloader.archive.catalog.chunk_paths import CHUNKS_FOLDER
from streamloader.archive.catalog.rows import MAX_FRAMES
from streamloader.errors import NotFound, NotSupported, StoreError
from streamloader.stores.io_thread import SharedResource, open_shared_store
from streamloader.values import ByteRange, ObjectInfo

__all__ = ["MARKERS_FOLDER", "PlaceOwners", "find_nested_files"]

MARKERS_FOLDER: Final = ".streamloader-archives"
_NESTED_CHUNK: Final = re.compile(rf"/{CHUNKS_FOLDER}/[0-9a-f]{{2}}/[0-9a-f]{{64}}/")
_MAX_MARKER_BYTES: Final = 4096
_MAX_LISTED: Final = 20  # other archives that messages name


@dataclass(frozen=True, slots=True)
class _Marker:
    """The marker of one archive in a place.

    Attributes:
        archive: Identity of the archive.
        exclusive: Whether all chunks that were in the place at registration belong to this archive.
        videos: Number of videos of the archive when the marker was written.
        content: Content identifier of the last of these videos. Empty if there was none.
    """

    archive: str
    exclusive: bool
    videos: int
    content: str


class PlaceOwners:
    """The markers of one place, from the view of one archive.

    Use it as a context manager.

    Args:
        url: Address of the place.
        options: Options of the place's store.
        number: Number of the place in the catalog.
        archive: Identity of the archive.
        catalog: Catalog of the archive.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any], number: int, archive: str, catalog: SharedResource[Catalog]
    ) -> None:
        self._store, root = open_shared_store(url, options)
        self._root = f"{root.rstrip('/')}/" if root else ""
        self._archive = archive
        self._catalog = catalog
        self._path = f"{self._root}{MARKERS_FOLDER}/{archive}-{number}.json"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._store.close()

    def is_registered(self) -> bool:
        """Return whether the place has the marker of this archive.

        Raises:
            StoreError: If the marker cannot be read.
        """
        return self._read_marker() is not None

    def register(self) -> None:
        """Write the marker of this archive, or update it.

        Raises:
            StoreError: If the marker cannot be written.
            CatalogError: If the catalog cannot be read.
        """
        marker = self._read_marker()
        exclusive = self._is_empty() if marker is None else marker.exclusive and self._is_known(marker)
        self._write_marker(marker, exclusive=exclusive)

    def claim(self) -> None:
        """Write the marker of this archive, as the only user of the place. Other markers stay.

        Raises:
            StoreError: If the marker cannot be written.
            CatalogError: If the catalog cannot be read.
        """
        self._write_marker(self._read_marker(), exclusive=True)

    def find_doubt(self) -> str:
        """Return why a file without a row may belong to another archive. Return "" if it cannot.

        Raises:
            CatalogError: If the catalog cannot be read.
        """
        try:
            others = self._list_others()
            marker = self._read_marker()
        except StoreError as error:  # its message says that the store has no listings, for example
            return f"{MARKERS_FOLDER} cannot be read: {error.message}"
        if others:
            doubt = (
                f"the place is used by other archives, or as several places: {', '.join(others)}. If one of them is "
                f"gone, delete its file in {MARKERS_FOLDER}"
            )
        elif marker is None:
            doubt = "the place does not record which archives use it"
        elif not self._is_known(marker):
            doubt = "this catalog is an older copy of the one that wrote to the place last"
        elif not marker.exclusive:
            doubt = "files were in the place before this archive registered there"
        else:
            doubt = ""
        return doubt

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _list_others(self) -> list[str]:
        names = self._store.call(_take_names(self._store.store.list(self._root + MARKERS_FOLDER)))
        own = self._path.rpartition("/")[2]
        return [name.removesuffix(".json") for name in names if name != own][:_MAX_LISTED]

    def _read_marker(self) -> _Marker | None:
        """Return the marker of this archive, or None. A damaged marker counts as one that proves nothing."""
        try:
            size = self._store.head(self._path).size
            data = self._store.read(self._path, ByteRange(0, min(size or 0, _MAX_MARKER_BYTES)))
        except NotFound:
            return None
        try:
            document = json.loads(data)
            marker = _Marker(**{name: document[name] for name in ("archive", "exclusive", "videos", "content")})
        except (ValueError, KeyError, TypeError, RecursionError):
            marker = None
        is_valid = (
            marker is not None
            and marker.archive == self._archive
            and isinstance(marker.exclusive, bool)
            and isinstance(marker.videos, int)
            and marker.videos < MAX_FRAMES
            and isinstance(marker.content, str)
        )
        return marker if is_valid else _Marker(self._archive, exclusive=False, videos=0, content="")

    def _write_marker(self, existing: _Marker | None, *, exclusive: bool) -> None:
        videos = self._catalog.call(self._catalog.resource.get_snapshot()).videos
        last = self._catalog.call(self._catalog.resource.get_video(videos - 1)) if videos else None
        marker = _Marker(self._archive, exclusive, videos if last else 0, last.content if last else "")
        if marker != existing:
            self._store.write(self._path, json.dumps(asdict(marker)).encode())

    def _is_known(self, marker: _Marker) -> bool:
        """Return whether the catalog contains all videos that it had when the marker was written."""
        if marker.videos <= 0:
            return True
        video = self._catalog.call(self._catalog.resource.get_video(marker.videos - 1))
        return video is not None and video.content == marker.content

    def _is_empty(self) -> bool:
        """Return whether no file is in the place's folder of chunks."""
        try:
            with contextlib.closing(self._store.list(self._root + CHUNKS_FOLDER)) as files:  # type: ignore[type-var]
                return next(iter(files), None) is None
        except NotSupported:
            return False


def find_nested_files(paths: Sequence[str]) -> set[str]:
    """Return those of the unknown files of a place that are in a place of its own, whose folder is inside this one.

    Args:
        paths: Paths of all unknown files, relative to the place.
    """
    roots = tuple({path[: path.index(f"{MARKERS_FOLDER}/")] for path in paths if f"{MARKERS_FOLDER}/" in path})
    return {path for path in paths if path.startswith(roots) or _NESTED_CHUNK.search(path)}


async def _take_names(infos: AsyncGenerator[ObjectInfo, None]) -> list[str]:
    """Return the first names of a listing, more than messages show."""
    names: list[str] = []
    async with contextlib.aclosing(infos):
        async for info in infos:
            names.append(info.path.rpartition("/")[2])
            if len(names) > _MAX_LISTED:
                break
    return sorted(names)
