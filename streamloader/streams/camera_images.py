"""Planar images for virtual cameras: image files, arrays, and the steps of other streams."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
from typing_extensions import override

from streamloader.errors import ConfigError, CorruptStream, StreamloaderError
from streamloader.stores.addresses import Addresses, FileKeys, SourceFile, as_addresses
from streamloader.stores.registry import is_local_file
from streamloader.stores.search import Unreadable, UnreadableReport
from streamloader.stream_table import StreamTable
from streamloader.streams.base import PreparedStream, SourceSizes, Stream, StreamDataset, skip_unreadable
from streamloader.streams.image_files import (
    FileTable,
    ImageFiles,
    ImageFolder,
    StoredImages,
    describe_files,
    find_images,
    group_by_folder,
)
from streamloader.streams.image_index import require_image_libraries
from streamloader.streams.image_probe import parse_image
from streamloader.streams.lane_thread import decode_in_lane_thread, in_lane_thread
from streamloader.streams.unreadable import SkippedVideo, settle_errors
from streamloader.values import Array, Field, StreamInfo

__all__ = ["ArrayImages", "ChooseSize", "FetchedImage", "FileImages", "PlaneImages", "StepImages"]

ChooseSize: TypeAlias = "Callable[[int, int], tuple[int, int]]"  # size of an image -> size that is needed

_DTYPES: Final = ("uint8", "uint16", "int16", "float32", "float64")  # that OpenCV scales
_MAX_CHANNELS: Final = 4
_NOUN: Final = "images"
_REMEDY: Final = 'Repair or remove it, or pass on_error="skip" to the loader to leave it out'


class FetchedImage(abc.ABC):
    """An image that will be read soon. Exactly one of its methods is called, once."""

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether its bytes have arrived."""

    @abc.abstractmethod
    async def read(self, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        """Return its pixels, as :meth:`PlaneImages.read` does."""

    @abc.abstractmethod
    def release(self) -> None:
        """Release it, because it will not be read. Must not block."""


class PlaneImages(abc.ABC):
    """The images in front of which cameras move, one for each stream or for several."""

    skipped: Sequence[SkippedVideo] = ()

    @property
    @abc.abstractmethod
    def pixel(self) -> tuple[int, np.dtype[Any]]:
        """Number of channels and dtype of all images. Called after :meth:`index`."""

    @abc.abstractmethod
    async def index(self, unreadable: Unreadable) -> StreamTable:
        """Describe all images, in an order that is the same for every call. Lengths are not used.

        Args:
            unreadable: Handling of images that cannot be used, and of directories that may not be read.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the options that determine the pixels, as plain values."""

    @abc.abstractmethod
    def measure(self, images: StreamTable) -> SourceSizes:
        """Return the size of the source of each image."""

    @abc.abstractmethod
    async def read(self, image: StreamInfo, key: str, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        """Return the pixels (H, W, C) of an image. They are not modified.

        Args:
            image: Description of the image.
            key: Key of the stream for which it is read, for error messages.
            rng: Random generator for augmentation of the image.
            choose_size: Function from the (height, width) of the image to the size to which it is scaled down.
        """

    async def fetch(self, image: StreamInfo, key: str) -> FetchedImage | None:
        """Start to fetch an image, if that takes long. Errors are left to :meth:`read`."""
        return None


# --- files -----------------------------------------------------------------------------------------------------------


class FileImages(PlaneImages):
    """Image files, each of its own size. Of an animation, the first frame is used.

    Args:
        addresses: Paths, patterns, directories and addresses.
        pix_fmt: Pixel format: ``"rgb24"`` or ``"gray"``.
        max_pixels: Maximum number of pixels of an image.
        options: Options of the stores.
    """

    def __init__(self, addresses: Addresses, pix_fmt: str, max_pixels: int, options: Mapping[str, Any] | None) -> None:
        self._addresses = as_addresses(addresses)
        self._pix_fmt = pix_fmt
        self._max_pixels = max_pixels
        self._options = options
        self._files: FileTable | None = None
        self._prefixes: list[str] = []  # of the folders
        self._folders = np.empty(0, np.int64)  # number of the folder of each file

    @property
    @override
    def pixel(self) -> tuple[int, np.dtype[Any]]:
        return 1 if self._pix_fmt == "gray" else 3, np.dtype(np.uint8)

    @override
    async def index(self, unreadable: Unreadable) -> StreamTable:
        import anyio.to_thread

        return await anyio.to_thread.run_sync(partial(self._index, unreadable), abandon_on_cancel=True)

    @override
    def describe(self) -> dict[str, Any]:
        return {"pix_fmt": self._pix_fmt}

    @override
    def measure(self, images: StreamTable) -> SourceSizes:
        assert self._files is not None
        is_remote = np.array([not is_local_file(prefix) for prefix in self._prefixes])
        numbers = images.extra_integers("file")
        return SourceSizes(self._files.sizes[numbers], is_remote[self._folders[numbers]])

    @override
    async def read(self, image: StreamInfo, key: str, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        files = self._find(image)
        data = await in_lane_thread(self._read_file, files, key)
        return await self.decode(data, files, key, choose_size)

    @override
    async def fetch(self, image: StreamInfo, key: str) -> FetchedImage | None:
        files = self._find(image)
        if files.is_local or files.version(0) is None:
            return None
        try:
            source = files.open(self._options, key)
        except StreamloaderError:  # read() raises it again
            return None
        assert isinstance(source, StoredImages)
        source.start([0])
        return _FetchedFile(self, source, files, key)

    async def decode(self, data: bytes, files: ImageFiles, key: str, choose_size: ChooseSize) -> Array:
        """Return the pixels of an image, given its bytes."""
        return await decode_in_lane_thread(self._decode, data, files.name(0), key, choose_size)

    def _find(self, image: StreamInfo) -> ImageFiles:
        if self._files is None:
            raise ConfigError("the images are unknown before index() was called")
        number = image.extra["file"]
        return self._files.select(self._prefixes[self._folders[number]], number, 1)

    def _read_file(self, files: ImageFiles, key: str) -> bytes:
        with contextlib.closing(files.open(self._options, key)) as source:
            return source.read(0)

    def _index(self, unreadable: Unreadable) -> StreamTable:
        require_image_libraries()
        described: list[ImageFiles] = []
        members: list[SourceFile] = []
        errors: dict[int, StreamloaderError] = {}
        found = UnreadableReport(unreadable)
        images = find_images(self._addresses, self._options, unreadable=found)
        found.check(images)
        for folder in group_by_folder(images):
            files, error = describe_files(folder, range(len(folder.files)))
            if error is None:
                described.append(files)
            else:  # find out which of the files cannot be accessed
                for number, file in enumerate(folder.files, len(members)):
                    files, error = describe_files(ImageFolder(folder.prefix, [file]), [0])
                    described.append(files)
                    if error is not None:
                        errors[number] = error
            members += folder.files
        keys = FileKeys.of_files(members)
        self.skipped = settle_errors(found, errors, keys.names, keys.keys, _NOUN)
        kept = [number for number in range(len(members)) if number not in errors]
        if errors:
            keys = keys.select(kept)
        self._files = FileTable.of_streams(described, [None] * len(described))
        self._prefixes = [files.prefix for files in described]
        self._folders = np.repeat(np.arange(len(described)), [len(files) for files in described])
        columns: dict[str, Any] = {"file": np.array(kept, np.int64)}
        return StreamTable(keys.keys, None, columns, keys.identities)

    def _decode(self, data: bytes, name: str, key: str, choose_size: ChooseSize) -> Array:
        try:
            return self._decode_first_frame(data, name, key, choose_size)
        except StreamloaderError as error:
            error.stream, error.offset = key, 0
            raise

    def _decode_first_frame(self, data: bytes, name: str, key: str, choose_size: ChooseSize) -> Array:
        from streamloader.media.image.animation import AnimationReader
        from streamloader.media.image.decoder import EncodedImage, ImageDecoder
        from streamloader.media.video.convert import Converter

        probe = parse_image(data, name, self._max_pixels, tolerant=False)
        size = choose_size(*probe.header.upright_size)
        pixels = np.empty((1, *size, self.pixel[0]), np.uint8)
        if probe.times is None:
            decoder = ImageDecoder(self._pix_fmt, *size, self._max_pixels, scales=True)
            with contextlib.closing(decoder):
                decoder.convert_into(EncodedImage(data, name, key, 0, _REMEDY), decoder.wrap_outputs([pixels]), 0)
            return np.asarray(pixels[0])
        reader = AnimationReader(
            data, probe.header, len(probe.times), name=name, stream=key, max_pixels=self._max_pixels, remedy=_REMEDY
        )
        converter = Converter(self._pix_fmt, *size, probe.header.orientation, name=name)
        with contextlib.closing(reader), contextlib.closing(converter):
            converter.convert_into(reader.read_frame(0), converter.wrap_outputs([pixels]), 0)
        return np.asarray(pixels[0])


class _FetchedFile(FetchedImage):
    """An image in a store."""

    def __init__(self, images: FileImages, source: StoredImages, files: ImageFiles, key: str) -> None:
        self._images, self._source, self._files, self._key = images, source, files, key

    @property
    @override
    def ready(self) -> bool:
        return self._source.is_idle

    @override
    async def read(self, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        with contextlib.closing(self._source) as source:
            source.drop_failed()
            data = await in_lane_thread(source.read, 0)
        return await self._images.decode(data, self._files, self._key, choose_size)

    @override
    def release(self) -> None:
        self._source.close()


# --- arrays ----------------------------------------------------------------------------------------------------------


class ArrayImages(PlaneImages):
    """Images in memory.

    Args:
        arrays: Images (H, W, C) or (H, W), of one dtype and number of channels.

    Raises:
        ConfigError: If they are not such images.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = [_as_image(array, number) for number, array in enumerate(arrays)]
        if not self._arrays:
            raise ConfigError("the list of images is empty: pass at least one")
        kinds = {(array.shape[2], array.dtype) for array in self._arrays}
        if len(kinds) > 1:
            shown = " and ".join(sorted(f"{channels} channels of {dtype}" for channels, dtype in kinds))
            raise ConfigError(f"images must have one dtype and one number of channels, got {shown}")
        self._pixel = kinds.pop()

    @property
    @override
    def pixel(self) -> tuple[int, np.dtype[Any]]:
        return self._pixel

    @override
    async def index(self, unreadable: Unreadable) -> StreamTable:
        require_image_libraries()
        return StreamTable(len(self._arrays))

    @override
    def describe(self) -> dict[str, Any]:
        return {}

    @override
    def measure(self, images: StreamTable) -> SourceSizes:
        return SourceSizes(np.zeros(len(images), np.int64), np.zeros(len(images), bool))

    @override
    async def read(self, image: StreamInfo, key: str, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        return await decode_in_lane_thread(_shrink, self._arrays[int(image.key)], choose_size)


def _as_image(array: Array, number: int) -> Array:
    """Return an array as an image (H, W, C)."""
    image = array[..., None] if array.ndim == 2 else array  # noqa: PLR2004
    if not _is_image(image.shape, image.dtype):
        raise ConfigError(
            f"image {number} must have the shape (H, W, C) or (H, W) with at most {_MAX_CHANNELS} channels, and one of "
            f"the dtypes {', '.join(_DTYPES)}, got {array.shape} {array.dtype}"
        )
    return np.ascontiguousarray(image)


def _is_image(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return len(shape) == 3 and min(shape) > 0 and shape[2] <= _MAX_CHANNELS and dtype.name in _DTYPES  # noqa: PLR2004


def _shrink(image: Array, choose_size: ChooseSize) -> Array:
    from streamloader.media.image.plane import shrink_image

    return shrink_image(image, *choose_size(*image.shape[:2]))


# --- steps of streams ------------------------------------------------------------------------------------------------


class StepImages(PlaneImages):
    """The steps of other streams: each is an image.

    Args:
        dataset: Dataset of the streams, with a field ``"data"`` (H, W, C).
    """

    def __init__(self, dataset: StreamDataset) -> None:
        self._dataset = dataset
        self._streams = StreamTable(0)

    @property
    @override
    def pixel(self) -> tuple[int, np.dtype[Any]]:
        field = self._dataset.fields.get("data", Field((), bool))
        if not _is_image(field.shape, field.dtype) or field.axes not in (None, "HWC"):
            raise ConfigError(
                f"the images of {type(self._dataset).__name__} must be a field 'data' (H, W, C) with at most "
                f"{_MAX_CHANNELS} channels and one of the dtypes {', '.join(_DTYPES)}, got the fields "
                f"{dict(self._dataset.fields)}"
            )
        return field.shape[2], field.dtype

    @override
    async def index(self, unreadable: Unreadable) -> StreamTable:
        require_image_libraries()
        with skip_unreadable() if unreadable == "skip" else contextlib.nullcontext():
            self._streams = StreamTable.from_infos(await self._dataset.index())
        self.skipped = getattr(self._dataset, "skipped", ())
        lengths = self._streams.lengths
        if (lengths < 0).any():
            key = self._streams[int(lengths.argmin())].key
            raise ConfigError(
                f"the number of images of {key} is unknown: streams in front of which cameras move need their lengths",
                stream=key,
            )
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        steps = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = list(zip(numbers.tolist(), steps.tolist(), strict=True))
        are_single = bool((lengths == 1).all())

        def name_steps(names: Sequence[str]) -> list[str]:
            return list(names) if are_single else [f"{names[number]}[{step}]" for number, step in places]

        keys = name_steps([info.key for info in self._streams])
        columns: dict[str, Any] = {"stream": numbers, "step": steps}
        return StreamTable(keys, None, columns, name_steps(self._streams.identities))

    @override
    def describe(self) -> dict[str, Any]:
        return {"images": dict(self._dataset.settings)}

    @override
    def measure(self, images: StreamTable) -> SourceSizes:
        numbers = images.extra_integers("stream")
        sources = self._dataset.source_sizes(self._streams)
        sizes = sources.sizes[numbers]
        if sources.by_step:
            sizes = np.where(sizes < 0, sizes, sizes // np.maximum(1, self._streams.lengths[numbers]))
        return SourceSizes(sizes, sources.remote[numbers])

    @override
    async def read(self, image: StreamInfo, key: str, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        with _name_stream(key):
            stream = await self._dataset.open(self._streams[image.extra["stream"]], rng)
        return await self.read_from(stream, image, key, choose_size)

    @override
    async def fetch(self, image: StreamInfo, key: str) -> FetchedImage | None:
        info = self._streams[image.extra["stream"]]
        if info.length != 1:  # it would fetch the first steps
            return None
        prepared = await self._dataset.prepare(info)
        return None if prepared is None else _PreparedStep(self, prepared, image, key)

    async def read_from(self, stream: Stream, image: StreamInfo, key: str, choose_size: ChooseSize) -> Array:
        """Return the pixels of a step of an open stream, and close the stream."""
        out = {name: np.empty((1, *field.shape), field.dtype) for name, field in self._dataset.fields.items()}
        try:
            with _name_stream(key):
                count = await _read_step(stream, image.extra["step"], out)
        finally:
            await stream.aclose()
        if not count:
            raise CorruptStream(
                f"{key} is missing: the stream has ended before this step, although it declared it", stream=key
            )
        return await decode_in_lane_thread(_shrink, out["data"][0], choose_size)


async def _read_step(stream: Stream, step: int, out: Mapping[str, Array]) -> int:
    """Read one step of a stream that was just opened, and return the number of steps that were read: 1 or 0."""
    try:
        await stream.seek(step)
    except NotImplementedError:
        for _ in range(step):
            await stream.read_into(out)
    return await stream.read_into(out)


@contextlib.contextmanager
def _name_stream(key: str) -> Iterator[None]:
    """Have errors that are raised inside name a camera's stream."""
    try:
        yield
    except StreamloaderError as error:
        error.stream = key
        raise


class _PreparedStep(FetchedImage):
    """The only step of a stream that was prepared."""

    def __init__(self, images: StepImages, prepared: PreparedStream, image: StreamInfo, key: str) -> None:
        self._images, self._prepared, self._image, self._key = images, prepared, image, key

    @property
    @override
    def ready(self) -> bool:
        return self._prepared.ready

    @override
    async def read(self, rng: np.random.Generator, choose_size: ChooseSize) -> Array:
        with _name_stream(self._key):
            stream = await self._prepared.open(rng)
        return await self._images.read_from(stream, self._image, self._key, choose_size)

    @override
    def release(self) -> None:
        self._prepared.release()
