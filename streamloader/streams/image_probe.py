"""Look into images while they are indexed, for their sizes, and for the frames and times of animations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from streamloader.common.gather import gather_bounded
from streamloader.common.guarded_files import open_regular_file
from streamloader.errors import CorruptStream, StreamloaderError, StreamNotFound, UnreadableStream
from streamloader.media.image.headers import ImageHeader, IncompleteImage, InvalidImage, parse_header
from streamloader.media.image.timing import ImageTimes, read_times
from streamloader.media.video.limits import PixelLimit
from streamloader.stores.io_thread import open_shared_store
from streamloader.stores.registry import split_address
from streamloader.streams.image_files import ImageFiles, check_file_size
from streamloader.streams.unreadable import ends_indexing
from streamloader.values import ByteRange

if TYPE_CHECKING:
    from streamloader.stores.base import Store

__all__ = ["ImageProbe", "parse_image", "probe_images", "read_side_file"]

_HEAD_BYTES: Final = 32 << 10  # of a file, which usually contain its header
_MAX_CONCURRENT_READS: Final = 64
_MAX_BATCH_BYTES: Final = 64 << 20  # of files that are in memory at a time
_MAX_SIDE_FILE_BYTES: Final = 64 << 20


@dataclass(frozen=True, eq=False, slots=True)
class ImageProbe:
    """What is known about one file.

    Attributes:
        header: Header of the file.
        times: Times of its frames, if it is an animation. Otherwise None.
    """

    header: ImageHeader
    times: ImageTimes | None


def probe_images(
    items: Sequence[tuple[ImageFiles, int]],
    options: Mapping[str, Any] | None,
    *,
    max_pixels: int,
    tolerant: bool,
) -> list[ImageProbe | StreamloaderError]:
    """Read the headers of images, and all of animations, to find their times.

    Args:
        items: Files, each as the files of its stream and its number in them.
        options: Options of the stores.
        max_pixels: Maximum number of pixels of an image.
        tolerant: Whether animations may be truncated.

    Returns:
        The result for each item, or the error that it has caused. An error that does not come from one file is raised.
    """
    results: list[ImageProbe | StreamloaderError | None] = [None] * len(items)
    unfinished = list(range(len(items)))
    for count in (_HEAD_BYTES, None):
        for batch in _split_batches(unfinished, items, count):
            contents = _read_files([items[number] for number in batch], count, options)
            for number, content in zip(batch, contents, strict=True):
                if isinstance(content, StreamloaderError):
                    results[number] = content
                else:
                    files, position = items[number]
                    whole = count is None or len(content) < count
                    results[number] = _parse(content, files.name(position), max_pixels, whole=whole, tolerant=tolerant)
        unfinished = [number for number in unfinished if results[number] is None]
    return [result for result in results if result is not None]


def _split_batches(
    numbers: Sequence[int], items: Sequence[tuple[ImageFiles, int]], count: int | None
) -> Iterator[list[int]]:
    """Yield numbers of items of which the first `count` bytes, or all, fit in memory together."""
    batch: list[int] = []
    total = 0
    for number in numbers:
        files, position = items[number]
        size = max(int(files.sizes[position]), 0)
        size = size if count is None else min(size, count)
        if batch and total + size > _MAX_BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += size
    if batch:
        yield batch


def parse_image(data: bytes, name: str, max_pixels: int, *, tolerant: bool) -> ImageProbe:
    """Return the header of a whole file, and the times of an animation.

    Raises:
        UnreadableStream: If the file is not an image of an accepted format.
        CorruptStream: If it is truncated.
        MediaLimitExceeded: If it exceeds `max_pixels`.
    """
    result = _parse(data, name, max_pixels, whole=True, tolerant=tolerant)
    if isinstance(result, StreamloaderError):
        raise result
    assert result is not None
    return result


def _parse(
    data: bytes, name: str, max_pixels: int, *, whole: bool, tolerant: bool
) -> ImageProbe | StreamloaderError | None:
    """Return the result for one file, its error, or None if more of it is needed."""
    try:
        header = parse_header(data)
        PixelLimit(max_pixels, name).check(header.width, header.height)
        if not whole and header.is_animation:
            return None
        return ImageProbe(header, read_times(data, header, tolerant=tolerant) if header.is_animation else None)
    except IncompleteImage as error:
        if not whole:
            return None
        return CorruptStream(f"{name} cannot be used: {error}. Repair or remove it", stream=name, address=name)
    except InvalidImage as error:
        return UnreadableStream(f"{name} cannot be used: {error}. Convert or remove it", stream=name, address=name)
    except StreamloaderError as error:
        return error


def read_side_file(files: ImageFiles, name: str, options: Mapping[str, Any] | None) -> bytes:
    """Return the content of a small file in the folder of some images, or in a folder above (``../name``).

    Raises:
        StreamNotFound: If there is no such file.
        UnreadableStream: If it cannot be read, or is too large.
        StoreError: If a store fails.
    """
    folder = files.prefix.rstrip("/")
    while name.startswith("../"):
        folder, name = folder.rpartition("/")[0], name.removeprefix("../")
    address = f"{folder}/{name}"
    if files.is_local:
        data = _read_local(address, _MAX_SIDE_FILE_BYTES + 1)
        if len(data) > _MAX_SIDE_FILE_BYTES:
            raise UnreadableStream(f"{address} is too large for a table", address=address)
        return data
    shared, path = open_shared_store(address, options)
    with shared:
        try:
            info = shared.head(path)
            if info.size is None or info.size > _MAX_SIDE_FILE_BYTES:
                raise UnreadableStream(f"{shared.store.address(path)} is too large for a table", address=address)
            return shared.read(path, version=info.version, size=info.size)
        except FileNotFoundError as error:
            raise StreamNotFound(f"there is no file {shared.store.address(path)}", address=address) from error


def _read_files(
    items: Sequence[tuple[ImageFiles, int]], count: int | None, options: Mapping[str, Any] | None
) -> list[bytes | StreamloaderError]:
    """Return the first `count` bytes of each file, or all, or its error. Those in stores are read concurrently."""
    results: list[bytes | StreamloaderError] = [b""] * len(items)
    stored: dict[str, list[int]] = {}
    for number, (files, position) in enumerate(items):
        try:
            check_file_size(files.name(position), int(files.sizes[position]), files.name(position), 0)
            if files.is_local:
                results[number] = _read_local(files.address(position), count)
            else:
                stored.setdefault(split_address(files.address(position))[0], []).append(number)
        except StreamloaderError as error:
            results[number] = error
    for numbers in stored.values():
        files, position = items[numbers[0]]
        with open_shared_store(files.address(position), options)[0] as shared:
            reads = (_read_stored(shared.store, *items[number], count) for number in numbers)
            found = shared.call(gather_bounded(reads, limit=_MAX_CONCURRENT_READS))
        for number, result in zip(numbers, found, strict=True):
            results[number] = result
    return results


def _read_local(path: str, count: int | None) -> bytes:
    try:
        with open(open_regular_file(path), "rb", buffering=0) as file:
            return file.read() if count is None else file.read(count)
    except FileNotFoundError as error:
        raise StreamNotFound(f"there is no file {path}", stream=path, address=path) from error
    except OSError as error:
        raise UnreadableStream(f"{path} cannot be read: {error.strerror}", stream=path, address=path) from error


async def _read_stored(store: Store, files: ImageFiles, position: int, count: int | None) -> bytes | StreamloaderError:
    size = int(files.sizes[position])
    span = None if count is None or size < count else ByteRange(0, count)
    try:
        path = split_address(files.address(position))[1]
        return await store.read(path, span, version=files.version(position), size=size)
    except StreamloaderError as error:
        if ends_indexing(error):
            raise
        error.stream = files.name(position)
        return error
