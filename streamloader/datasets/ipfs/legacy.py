"""Read data sets that were exported in version "1.0": tar files whose members are results of ``torch.save``.

Such a member is a pickle in a zip file. It is only read with ``torch.load(weights_only=True)``, which builds tensors
and plain values and runs no code. Images of Pillow are allowed besides: their state is taken as plain values, and the
image is built from them after their sizes have been checked.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import struct
import threading
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np

from streamloader.common.printable import make_printable
from streamloader.containers.base import ContainerSource
from streamloader.containers.tar.container import TarContainer
from streamloader.datasets.ipfs.encoding import TENSOR_TYPES
from streamloader.datasets.ipfs.image_encoding import MalformedImage, unpack_image
from streamloader.errors import CorruptSample, CorruptShard
from streamloader.stores.base import Store
from streamloader.torch_support import require_torch
from streamloader.values import Array

__all__ = ["decode_legacy_item", "scan_legacy_shard"]

_MAX_DEPTH: Final = 64
_IMAGE_GLOBAL: Final = b"PIL.Image\nImage\n"  # as protocol 2 of pickle names the class; torch.save does not compress
_ALLOWED_GLOBALS: Final = frozenset(
    (
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_sparse_tensor",
        "torch.serialization _get_layout",
        "torch.storage UntypedStorage",
        "torch Size",
        "collections OrderedDict",
        "_codecs encode",
        "__builtin__ complex",
        "PIL.Image Image",
    )
)  # not bytearray, for example, which allocates any amount of memory
_load_lock: Final = threading.Lock()


def decode_legacy_item(data: bytes) -> Any:
    """Decode one member. Nothing that it contains is executed, and its tensors lie within its bytes.

    Raises:
        CorruptSample: If it was not written by ``torch.save``, is damaged, or contains objects other than tensors,
            plain values, and images of Pillow.
        MissingDependency: If torch is not installed.
    """
    _check_archive(data)
    require_torch("an item of version 1.0 needs")
    import torch

    try:
        with _allow_images(data):
            value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - of any type, for malformed bytes
        raise CorruptSample(
            f"an item of version 1.0 cannot be read: {type(error).__name__}: {make_printable(str(error))[:300]}"
        ) from None
    return _ItemConverter(len(data)).convert(value)


async def scan_legacy_shard(store: Store, path: str) -> Array:
    """Return offset and size of each item of a tar file, int64 (n, 2).

    Raises:
        CorruptShard: If it is empty, or has members that are no files.
        CorruptContainer: If it is no tar file, or damaged.
        StoreError: If the store fails otherwise.
    """
    info = await store.head(path)
    if info.size == 0:
        raise CorruptShard(
            f"{store.address(path)} is an empty file: the exporter of version 1.0 that wrote it has lost the items. "
            "Export the data set again",
            address=store.address(path),
            offset=0,
        )
    spans: list[tuple[int, int]] = []
    container = TarContainer(ContainerSource(store, info))
    async with contextlib.aclosing(container.scan()) as members:
        async for member in members:
            if member.problem is not None:
                raise CorruptShard(
                    f"{container.describe(member)} is {member.problem}, not an item",
                    address=store.address(path),
                    offset=member.offset,
                )
            spans.append((member.data, member.size))
    return np.asarray(spans, np.int64).reshape(-1, 2)


def _check_archive(data: bytes) -> None:
    """Check that the zip file cannot need more memory than its own size, and that its pickle names no other objects."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_sizes(members, len(data))
            for member in members:
                if member.filename.endswith("data.pkl"):
                    _check_globals(archive.read(member))
    except CorruptSample:
        raise
    except (zipfile.BadZipFile, ValueError, OverflowError, struct.error, EOFError, NotImplementedError) as error:
        raise CorruptSample(
            f"an item of version 1.0 is not a file of torch.save: {make_printable(str(error))[:200]}"
        ) from None


def _check_sizes(members: Iterable[zipfile.ZipInfo], max_bytes: int) -> None:
    total = 0
    for member in members:
        total += member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size or total > max_bytes:
            raise CorruptSample(
                "an item of version 1.0 has compressed or overlapping parts, which torch.save never writes"
            )


def _check_globals(data: bytes) -> None:
    """Check the names in a pickle, without reading it."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name not in ("GLOBAL", "INST", "STACK_GLOBAL"):
            continue
        name = str(argument)
        if operation.name != "GLOBAL" or not (name in _ALLOWED_GLOBALS or _is_element_type(name)):
            raise CorruptSample(
                f"an item of version 1.0 is refused: only tensors, plain values and images are read from pickles, and "
                f"it contains {make_printable(name.replace(' ', '.'))[:100]}. Export the data set again"
            )


def _is_element_type(name: str) -> bool:
    """Return whether a name is that of a type of elements, or of a class of storages."""
    module, _, attribute = name.partition(" ")
    return module == "torch" and (attribute.endswith("Storage") or attribute in TENSOR_TYPES)


class ImageState:
    """The state of an image of Pillow, in place of the image while a pickle is read. It only stores the state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The names under which torch.load looks up the classes that it may build.
ImageState.__module__, ImageState.__qualname__, ImageState.__name__ = "PIL.Image", "Image", "Image"


@contextlib.contextmanager
def _allow_images(data: bytes) -> Iterator[None]:
    """Let torch.load build :class:`ImageState` while this context is open, if the pickle names images."""
    if _IMAGE_GLOBAL not in data:
        yield
        return
    import torch

    with _load_lock:
        previous = list(torch.serialization.get_safe_globals())
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([ImageState])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(previous)


class _ItemConverter:
    """Replaces the states of images by images, and checks that tensors have no more bytes than the item.

    Args:
        max_bytes: Size of the item.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._done: dict[int, tuple[object, Any]] = {}  # by id, with the object, so that the id stays its own

    def convert(self, value: Any, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise CorruptSample(f"an item of version 1.0 is nested in more than {_MAX_DEPTH} levels")
        if id(value) in self._done:
            return self._done[id(value)][1]
        kind = type(value)
        if kind in (tuple, list):
            result: Any = kind([self.convert(one, depth + 1) for one in value])
        elif isinstance(value, dict):
            result = value
            for key in list(value):
                value[key] = self.convert(value[key], depth + 1)
        elif kind is ImageState:
            result = self._build_image(getattr(value, "state", None))
        else:
            self._check_tensor(value)
            result = value
        self._done[id(value)] = value, result
        return result

    def _build_image(self, state: Any) -> Any:
        """Build an image from its state: info, mode, size, palette as RGB, pixels, and since Pillow 9.1 a version."""
        try:
            info, mode, (width, height), palette, pixels = state[:5]
            types = type(info), type(mode), type(width), type(height), type(pixels)
            if types != (dict, str, int, int, bytes):
                raise ValueError(types)
            colors = bytes(palette) if palette and mode in ("P", "PA") else b""
            return unpack_image(mode, (width, height), pixels, "RGB" if colors else "", colors, info)
        except (MalformedImage, TypeError, ValueError) as error:
            raise CorruptSample(
                f"an item of version 1.0 has a malformed image: {make_printable(str(error))[:200]}"
            ) from None

    def _check_tensor(self, value: Any) -> None:
        import torch

        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            size = value.untyped_storage().nbytes()
            if size > self._max_bytes:
                raise CorruptSample(f"an item of version 1.0 has a tensor of {size} bytes, more than the item itself")
