"""Index images: group files into streams, look into as few of them as possible, and count steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Final

import numpy as np

from streamloader.errors import MissingDependency, StreamloaderError
from streamloader.media.image.timing import NANOSECOND, ImageTimes
from streamloader.media.video.selection import Selection
from streamloader.redaction import redact_address
from streamloader.stores.addresses import FileKeys
from streamloader.stores.expand import SourceFile
from streamloader.stores.search import UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.frames import require_common_size
from streamloader.streams.image_files import (
    FileTable,
    ImageFiles,
    ImageFolder,
    describe_files,
    file_name,
    find_images,
    group_by_folder,
)
from streamloader.streams.image_names import check_numbering, is_animation_name, may_be_animation, order_naturally
from streamloader.streams.image_probe import ImageProbe, probe_images, read_side_file
from streamloader.streams.image_times import ImageTimesOption, resolve_times
from streamloader.streams.unreadable import SkippedVideo, ends_indexing, settle_errors
from streamloader.values import Array

__all__ = ["ImageIndex", "ImageIndexer", "image_times", "require_image_libraries"]

_NOUN: Final = "image streams"


@dataclass(slots=True)
class ImageIndex:
    """Result of indexing.

    Attributes:
        streams: All streams that can be used.
        files: Files of these streams.
        secret_prefixes: Address of the folder by key, where it contains secrets.
        common_size: Common (height, width) of all first images, or None if it was not needed.
        skipped: Streams that cannot be used.
    """

    streams: StreamTable
    files: FileTable
    secret_prefixes: dict[str, str]
    common_size: tuple[int, int] | None
    skipped: tuple[SkippedVideo, ...]


@dataclass(slots=True)
class _ImageEntry:
    """A stream that is being indexed.

    Attributes:
        source: Folder or file as a source, for the key.
        files: Files of the stream, in its order, with their versions.
        members: Files of the stream, in its order, as they were found.
        is_folder: Whether the files are images of one stream.
        probe: Result of looking into the first file. None if that was not needed.
        pts: Times of the images in ns, or None.
        steps: Number of steps.
        error: Error that the stream has caused, or None.
    """

    source: SourceFile
    files: ImageFiles
    members: list[SourceFile]
    is_folder: bool
    probe: ImageProbe | None = None
    pts: Array | None = None
    steps: int = 0
    error: StreamloaderError | None = None

    @property
    def name(self) -> str:
        """Path or address of the folder or file, without secrets."""
        return redact_address(self.source.address)

    @property
    def times(self) -> ImageTimes | None:
        """Times of the frames of an animation. Otherwise None."""
        return None if self.probe is None else self.probe.times

    @property
    def file_names(self) -> list[str]:
        """Name of each file, without the query of a URL."""
        return [file_name(member) for member in self.members]

    def split(self) -> list[_ImageEntry]:
        """Return a stream for each file."""
        return [
            _ImageEntry(member, self.files.select(n), [member], is_folder=False)
            for n, member in enumerate(self.members)
        ]


def require_image_libraries() -> None:
    """Check that the optional packages for images are installed.

    Raises:
        MissingDependency: If one of them is not.
    """
    from importlib.util import find_spec

    missing = [name for name in ("cv2", "PIL", "simplejpeg") if find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"images need packages that are not installed ({', '.join(missing)}): pip install streamloader[images]"
        )


def image_times(count: int, pts: Array | None, fps: Fraction | None) -> ImageTimes:
    """Return the times of the images of a folder. The last one is shown for as long as the one before it.

    Args:
        count: Number of images.
        pts: Time of each image in ns, or None for images without times.
        fps: Frame rate, or None for one image a second if they have no times.
    """
    if pts is None:
        return ImageTimes.at_rate(count, fps or Fraction(1))
    last = int(pts[-1] - pts[-2]) if count > 1 else int((1 / fps if fps else Fraction(1)) / NANOSECOND)
    return ImageTimes(pts, NANOSECOND, int(pts[-1]) + last)


class ImageIndexer:
    """Indexes images. The arguments are those of :class:`~streamloader.ImageStreams`.

    Args:
        selection: Selection of the images that become steps.
        times: Source of times.
        time_unit: Unit of the times in names and tables.
        options: Options of the stores.
        max_pixels: Maximum number of pixels of an image.
        per_file: Whether each file is a stream.
        keeps_gaps: Whether numbers may be missing.
        keeps_damaged: Whether animations may be truncated.
        needs_size: Whether the size of images must be found.
    """

    def __init__(
        self,
        selection: Selection,
        times: ImageTimesOption,
        time_unit: str,
        *,
        options: Mapping[str, Any] | None,
        max_pixels: int,
        per_file: bool,
        keeps_gaps: bool,
        keeps_damaged: bool,
        needs_size: bool,
    ) -> None:
        self._selection = selection
        self._times = times
        self._time_unit = time_unit
        self._options = options
        self._max_pixels = max_pixels
        self._per_file = per_file
        self._keeps_gaps = keeps_gaps
        self._keeps_damaged = keeps_damaged
        self._needs_size = needs_size

    def run(self, addresses: Sequence[str] | Sequence[SourceFile], report: UnreadableReport) -> ImageIndex:
        """Return the index of all images that `addresses` stand for.

        Args:
            addresses: Addresses of images and folders, or files that were found already.
            report: Report of what may not be read, with the handling of it and of streams that cannot be used.
        """
        require_image_libraries()
        found = [address for address in addresses if isinstance(address, SourceFile)]
        files = found or find_images([str(address) for address in addresses], self._options, unreadable=report)
        report.check(files)
        entries = self._make_entries(files)
        self._probe(entries)
        entries = self._split_animations(entries)
        for entry in entries:
            if entry.error is None:
                _keep_error(entry, self._complete)
        return self._build(entries, report)

    def _make_entries(self, files: Sequence[SourceFile]) -> list[_ImageEntry]:
        """Return a stream for each folder of images, and for each file that is one, in the order of the files."""
        entries = []
        for folder in group_by_folder(files):
            names = [file_name(file) for file in folder.files]
            alone = [number for number, name in enumerate(names) if self._per_file or is_animation_name(name)]
            entries += [_describe(folder, [number], is_folder=False) for number in alone]
            images = range(len(folder.files)) if not alone else sorted(set(range(len(folder.files))) - set(alone))
            if images:
                order = order_naturally([names[number] for number in images])
                entries.append(_describe(folder, [images[number] for number in order], is_folder=True))
        return entries

    def _probe(self, entries: Sequence[_ImageEntry]) -> None:
        """Look into the first file of the streams of which the names do not tell enough."""
        entries = [entry for entry in entries if entry.error is None and self._needs_probe(file_name(entry.members[0]))]
        results = probe_images(
            [(entry.files, 0) for entry in entries],
            self._options,
            max_pixels=self._max_pixels,
            tolerant=self._keeps_damaged,
        )
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, StreamloaderError):
                entry.error = result
            else:
                entry.probe = result

    def _needs_probe(self, name: str) -> bool:
        return self._needs_size or is_animation_name(name) or may_be_animation(name)

    def _split_animations(self, entries: list[_ImageEntry]) -> list[_ImageEntry]:
        """Replace folders whose first file is an animation by a stream for each of their files."""
        result: list[_ImageEntry] = []
        for entry in entries:
            if not entry.is_folder or entry.times is None:
                result.append(entry)
                continue
            parts = entry.split()
            self._probe(parts)
            result += parts
        return result

    def _complete(self, entry: _ImageEntry) -> None:
        """Check one stream, and determine its times and its number of steps."""
        times = entry.times
        if times is None:
            if not self._keeps_gaps and self._times != "names":
                check_numbering(entry.file_names, entry.name)
            if self._times is not None:
                read_table = partial(read_side_file, entry.files, options=self._options)
                entry.pts = resolve_times(self._times, self._time_unit, entry.file_names, entry.name, read_table)
            times = image_times(len(entry.files), entry.pts, self._selection.fps)
        entry.steps = self._selection.count_video_steps(times)
        self._selection.check_steps(entry.steps, len(times), entry.name)

    def _build(self, entries: list[_ImageEntry], report: UnreadableReport) -> ImageIndex:
        keys = FileKeys.of_files([entry.source for entry in entries])
        errors = {number: entry.error for number, entry in enumerate(entries) if entry.error is not None}
        skipped = settle_errors(report, errors, keys.names, keys.keys, _NOUN)
        if errors:
            kept = [number for number in range(len(entries)) if number not in errors]
            keys, entries = keys.select(kept), [entries[number] for number in kept]
        size = require_common_size(_sizes(entries)) if self._needs_size else None
        prefixes = [_public_prefix(entry.files) for entry in entries]
        secret_prefixes = {
            key: entry.files.prefix
            for key, entry, prefix in zip(keys.keys, entries, prefixes, strict=True)
            if prefix != entry.files.prefix
        }
        files = FileTable.of_streams([entry.files for entry in entries], [entry.pts for entry in entries])
        return ImageIndex(_build_table(keys, entries, prefixes), files, secret_prefixes, size, skipped)


def _describe(folder: ImageFolder, numbers: Sequence[int], *, is_folder: bool) -> _ImageEntry:
    files, error = describe_files(folder, numbers)
    members = [folder.files[number] for number in numbers]
    return _ImageEntry(folder.source if is_folder else members[0], files, members, is_folder, error=error)


def _keep_error(entry: _ImageEntry, function: Any) -> None:
    """Call a function with a stream, and keep the error that comes from the stream."""
    try:
        function(entry)
    except StreamloaderError as error:
        if ends_indexing(error):
            raise
        entry.error = error


def _sizes(entries: Sequence[_ImageEntry]) -> list[tuple[str, tuple[int, int]]]:
    return [(entry.files.name(0), entry.probe.header.upright_size) for entry in entries if entry.probe is not None]


def _public_prefix(files: ImageFiles) -> str:
    return files.prefix if files.is_local else redact_address(files.prefix)


def _build_table(keys: FileKeys, entries: Sequence[_ImageEntry], prefixes: Sequence[str]) -> StreamTable:
    counts = np.array([len(entry.files) for entry in entries], np.int64)
    frames = [0 if entry.times is None else len(entry.times) for entry in entries]
    columns: dict[str, Any] = {
        "folder": list(prefixes),
        "first": np.cumsum(counts) - counts,
        "images": counts,
        "frames": np.array(frames, np.int64),
    }
    steps = np.array([entry.steps for entry in entries], np.int64)
    return StreamTable(keys.keys, steps, columns, keys.identities)
