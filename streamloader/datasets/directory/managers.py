"""Data managers: how the objects of a directory become files, and files objects.

A data manager of the user's own is any object with the four methods of :class:`DataManager`. The ones of this package
never run code that a file contains: nothing is unpickled, and no other program is started. They can be pickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import numpy as np

from streamloader.config import Limits
from streamloader.errors import ConfigError, CorruptSample, LimitExceeded

__all__ = [
    "Buffer",
    "BytesDataManager",
    "DataManager",
    "FileDataManager",
    "JsonDataManager",
    "NumpyDataManager",
    "TextDataManager",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

_ZIP_MAGIC: Final = b"PK"
_ARRAY_ERRORS: Final = (ValueError, TypeError, LookupError, OSError, EOFError, OverflowError, MemoryError, SyntaxError)
_MEMBER_ERRORS: Final = (*_ARRAY_ERRORS, zipfile.BadZipFile, NotImplementedError, RuntimeError)


class DataManager(Protocol):
    """Objects as files and as bytes: the interface that a directory needs.

    A manager may also have an attribute ``packs_files``. If it is true, ``deserialize`` takes the bytes of a file as
    they are, so packs hold copies of the files. Without it, packs hold ``serialize(load(path))``.
    """

    def save(self, path: str, value: Any) -> None:
        """Write an object to a new file. The ending of the path may select its format."""

    def load(self, path: str) -> Any:
        """Return the object in a file."""

    def serialize(self, value: Any) -> bytes:
        """Return an object as bytes."""

    def deserialize(self, data: Any) -> Any:
        """Return the object that :meth:`serialize` has made bytes of. `data` is bytes, or a read-only memoryview."""


class FileDataManager:
    """Base of the managers here. Packs hold the bytes of the files: ``load(path)`` equals ``deserialize(its bytes)``.

    A subclass has ``deserialize`` and ``_encode``.

    Attributes:
        packs_files: Whether ``deserialize`` takes the bytes of a file. Always True.
    """

    packs_files: ClassVar[bool] = True

    def save(self, path: str, value: Any) -> None:
        """Write an object to a file, which is replaced if it exists. Nothing is written if that is impossible.

        Raises:
            ConfigError: If the object cannot be written to a file of this name.
        """
        data = self._encode(value, path)
        with open(path, "wb") as file:
            file.write(data)

    def load(self, path: str) -> Any:
        """Return the object in a file.

        Raises:
            CorruptSample: If the file is damaged, or not of this kind.
        """
        with open(path, "rb") as file:
            data = file.read()
        try:
            return self.deserialize(data)
        except (CorruptSample, LimitExceeded) as error:
            raise type(error)(f"{path}: {error.message}", address=path) from error

    def serialize(self, value: Any) -> bytes:
        """Return an object as the bytes of a file.

        Raises:
            ConfigError: If the object is not of this kind.
        """
        return self._encode(value, None)

    def deserialize(self, data: Buffer) -> Any:
        """Return the object in the bytes of a file.

        Raises:
            CorruptSample: If the bytes are damaged, or not of this kind.
        """
        raise NotImplementedError

    def _encode(self, value: Any, path: str | None) -> bytes:
        """Return an object as the bytes of a file, whose path is given if it has one."""
        raise NotImplementedError


@dataclass(frozen=True)
class BytesDataManager(FileDataManager):
    """Bytes as they are. It reads every file."""

    def deserialize(self, data: Buffer) -> bytes:
        """Return the bytes."""
        return bytes(data)

    def _encode(self, value: Any, path: str | None) -> bytes:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise ConfigError(f"BytesDataManager takes bytes, got {type(value).__name__}")
        return bytes(value)


@dataclass(frozen=True)
class TextDataManager(FileDataManager):
    """Strings as text files. Line ends are kept as they are.

    Args:
        encoding: Encoding of the files. Defaults to UTF-8.
        errors: Name of the error handler of ``str.encode`` and ``bytes.decode``. Defaults to ``"strict"``.
    """

    encoding: str = "utf-8"
    errors: str = "strict"

    def __post_init__(self) -> None:
        """Check that the encoding exists."""
        try:
            "".encode(self.encoding, self.errors)
        except LookupError as error:
            raise ConfigError(f"TextDataManager: {error}") from error

    def deserialize(self, data: Buffer) -> str:
        """Return the text.

        Raises:
            CorruptSample: If the bytes are not valid in the encoding.
        """
        try:
            return str(data, self.encoding, self.errors)
        except UnicodeError as error:
            raise CorruptSample(f"it is no text in {self.encoding}: {error}") from error

    def _encode(self, value: Any, path: str | None) -> bytes:
        if not isinstance(value, str):
            raise ConfigError(f"TextDataManager takes strings, got {type(value).__name__}")
        try:
            return value.encode(self.encoding, self.errors)
        except UnicodeError as error:
            raise ConfigError(f"the text cannot be written in {self.encoding}: {error}") from error


@dataclass(frozen=True)
class JsonDataManager(FileDataManager):
    """Plain values as JSON files in UTF-8. As always with JSON, tuples become lists, and keys strings.

    Args:
        indent: Number of spaces for each level. None writes one line. Defaults to None.
    """

    indent: int | None = None

    def deserialize(self, data: Buffer) -> Any:
        """Return the value.

        Raises:
            CorruptSample: If the bytes are not JSON.
        """
        try:
            return json.loads(bytes(data))
        except (ValueError, RecursionError) as error:
            raise CorruptSample(f"it is no valid JSON: {error}") from error

    def _encode(self, value: Any, path: str | None) -> bytes:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=self.indent).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"a value of type {type(value).__name__} cannot be written as JSON: {error}") from error


@dataclass(frozen=True)
class NumpyDataManager(FileDataManager):
    """Arrays as files ``.npy``, and mappings from names to arrays as files ``.npz``. Arrays of objects are refused.

    Tensors are written as arrays. What a file holds is recognised by its first bytes, not by its name.
    """

    def deserialize(self, data: Buffer) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
        """Return the array, or a dictionary of arrays. They can be written to.

        Raises:
            CorruptSample: If the bytes are damaged, or if an array would need pickle.
            LimitExceeded: If the compressed arrays expand beyond ``Limits(expansion_ratio=..., expansion_bytes=...)``.
        """
        if data[:2] == _ZIP_MAGIC:
            return _decode_arrays(data)
        try:
            return _read_array(io.BytesIO(data))
        except _ARRAY_ERRORS as error:
            raise CorruptSample(f"it is no array that can be read: {type(error).__name__}: {error}") from error

    def _encode(self, value: Any, path: str | None) -> bytes:
        is_mapping = isinstance(value, Mapping)
        if path is not None and is_mapping != path.lower().endswith(".npz"):
            raise ConfigError(
                f"{path} cannot be written: files .npz hold mappings from names to arrays, and all others one array"
            )
        file = io.BytesIO()
        if is_mapping:
            _write_arrays(file, value)
        else:
            _write_array(file, value)
        return file.getvalue()


def _read_array(file: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("other data follow the array")
    return array


def _decode_arrays(data: Buffer) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            _check_expansion(members, len(data))
            return {info.filename.removesuffix(".npy"): _read_member(members, info) for info in members.infolist()}
    except LimitExceeded:
        raise
    except _MEMBER_ERRORS as error:
        raise CorruptSample(f"its arrays cannot be read: {type(error).__name__}: {error}") from error


def _read_member(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with members.open(info) as member:
        return _read_array(member)


def _check_expansion(members: zipfile.ZipFile, compressed_bytes: int) -> None:
    """Refuse archives that are made to exhaust their readers, before anything is allocated."""
    limits = Limits()
    needed = sum(info.file_size for info in members.infolist())
    if needed > limits.expansion_bytes and needed > limits.expansion_ratio * compressed_bytes:
        raise LimitExceeded(f"{compressed_bytes} compressed bytes expand to {needed}, as only bombs do")


def _write_arrays(file: io.BytesIO, arrays: Mapping[str, Any]) -> None:
    with zipfile.ZipFile(file, "w") as members:
        for name, value in arrays.items():
            if not isinstance(name, str):
                raise ConfigError(f"NumpyDataManager: the names of arrays are strings, got {type(name).__name__}")
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, value)


def _write_array(file: Any, value: Any) -> None:
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        if array.dtype.hasobject:
            raise ValueError("arrays of objects would need pickle")
        np.lib.format.write_array(file, array, allow_pickle=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"a value of type {type(value).__name__} cannot be written as an array: {error}") from error
