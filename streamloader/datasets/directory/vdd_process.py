"""A child process that reads one ``.vdd`` file (``python -m streamloader.datasets.directory.vdd_process``).

A ``.vdd`` file is a pickle of a dictionary from names to bytes, usually compressed with zlib. A pickle is a program: it
can name any function of any module, and have it called. This process therefore limits what the pickle can do:

* The unpickler finds no class and no function, except stand-ins for what pickles of bytes name. Nothing is imported.
* The system limits memory and CPU time of this process. It can write no file, open none, and start no process.
* From then on, the interpreter refuses whatever it audits: imports, files, processes, sockets, code.

The file is the standard input. The answer goes to the standard output: a JSON document with its size, and then name and
content of each member, in ascending order of the names' bytes. The parent checks all of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Final

from typing_extensions import override

from streamloader.common.printable import make_printable
from streamloader.common.subprocesses import exit_process, exit_with_parent, shield_from_signals
from streamloader.datasets.directory.filenames import describe_bad_filename

__all__ = ["DOCUMENT_HEADER", "MAX_DOCUMENT_BYTES", "MEMBER_HEADER", "NAME_ENCODING", "main", "read_members"]

DOCUMENT_HEADER: Final = struct.Struct("<I")  # size of the JSON document in bytes
MEMBER_HEADER: Final = struct.Struct("<HQ")  # sizes of name and content in bytes
MAX_DOCUMENT_BYTES: Final = 1 << 16
NAME_ENCODING: Final = ("utf-8", "surrogateescape")  # as in packs

_BUFFER_BYTES: Final = 1 << 20
_CPU_GRACE_S: Final = 5
_OPEN_FILES: Final = 4  # the three standard streams, and one that shows the end of the parent
_MAX_TEXT_CHARACTERS: Final = 300
_PAIR: Final = 2


class UnusableVdd(Exception):
    """A file is not converted. The text says why.

    Args:
        problem: Description of what was found.
        is_limit: Whether the file exceeds a limit. Otherwise it is damaged, or no pack.
    """

    def __init__(self, problem: str, *, is_limit: bool = False) -> None:
        super().__init__(problem)
        self.is_limit = is_limit


def main(argv: Sequence[str]) -> int:
    """Read the file, send its members, and return the exit status.

    Args:
        argv: Process id of the parent, maximum memory in bytes, maximum CPU time in seconds, and maximum size of the
            decompressed pickle, and of all members together, in bytes.
    """
    parent_pid, memory_bytes, cpu_s, max_bytes = map(int, argv)
    shield_from_signals()
    exit_with_parent(parent_pid)
    with (
        open(0, "rb", buffering=0, closefd=False) as file,
        open(1, "wb", buffering=_BUFFER_BYTES, closefd=False) as output,
        contextlib.suppress(BrokenPipeError),  # the parent needs no answer any more
    ):
        _shorten("\0")  # imports a codec, which is forbidden from now on
        _limit_resources(memory_bytes, cpu_s)
        sys.addaudithook(_refuse_event)
        _answer(file, output, max_bytes)
        output.flush()
    return 0


def _answer(file: io.RawIOBase, output: BinaryIO, max_bytes: int) -> None:
    try:
        members = read_members(file, max_bytes)
    except UnusableVdd as error:
        _send_document(output, {"problem": str(error), "is_limit": error.is_limit})
        return
    except MemoryError:
        _send_document(output, {"problem": "it needs more memory than is allowed", "is_limit": True})
        return
    _send_document(output, {"members": len(members), "bytes": sum(len(content) for _, content in members)})
    for name, content in members:
        output.write(MEMBER_HEADER.pack(len(name), len(content)))
        output.write(name)
        output.write(content)


def _send_document(output: BinaryIO, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    output.write(DOCUMENT_HEADER.pack(len(body)) + body)


# --- limits ----------------------------------------------------------------------------------------------------------


def _limit_resources(memory_bytes: int, cpu_s: int) -> None:
    """Limit this process, as far as the system can."""
    import resource

    for name, soft, hard in (
        ("RLIMIT_DATA", memory_bytes, memory_bytes),
        ("RLIMIT_CPU", cpu_s, cpu_s + _CPU_GRACE_S),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NPROC", 0, 0),
        ("RLIMIT_NOFILE", _OPEN_FILES, _OPEN_FILES),
        ("RLIMIT_CORE", 0, 0),
    ):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            limit = getattr(resource, name)
            old_hard = resource.getrlimit(limit)[1]
            new_hard = hard if old_hard == resource.RLIM_INFINITY else min(hard, old_hard)
            resource.setrlimit(limit, (min(soft, new_hard), new_hard))


def _refuse_event(event: str, _arguments: tuple[Any, ...]) -> None:
    raise UnusableVdd(f"it makes the interpreter do something that no pack needs: {event}")


# --- the pickle ------------------------------------------------------------------------------------------------------


def read_members(file: io.RawIOBase, max_bytes: int) -> list[tuple[bytes, bytes | bytearray]]:
    """Return name and content of all members, in ascending order of the names.

    Args:
        file: File, at its beginning.
        max_bytes: Maximum size in bytes of the pickle, and of all members together.

    Raises:
        UnusableVdd: If the file is damaged or no pack, or if it exceeds the limit.
        MemoryError: If it needs too much memory.
    """
    payload = io.BufferedReader(_PayloadReader(file, max_bytes), _BUFFER_BYTES)
    try:
        value = _PlainUnpickler(payload).load()
        if payload.read(1):
            raise UnusableVdd("other data follow its pickle")
    except (UnusableVdd, MemoryError):
        raise
    except zlib.error as error:
        raise UnusableVdd(f"its compressed data are damaged: {_shorten(error)}") from error
    except Exception as error:  # unpicklers raise errors of any type for damaged data
        raise UnusableVdd(f"its pickle is damaged: {type(error).__name__}: {_shorten(error)}") from error
    members = sorted(_list_members(value))
    _check_members(members, max_bytes)
    return members


class _PayloadReader(io.RawIOBase):
    """The decompressed bytes of a file, or its bytes as they are if it is not compressed.

    Args:
        file: File, at its beginning.
        max_bytes: Maximum number of decompressed bytes.
    """

    def __init__(self, file: io.RawIOBase, max_bytes: int) -> None:
        self._file = file
        self._remaining = max_bytes
        self._data = self._read_file()
        self._inflater = zlib.decompressobj() if _is_zlib(self._data) else None

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int:
        data = self._read_plain(len(buffer)) if self._inflater is None else self._inflate(len(buffer))
        self._remaining -= len(data)
        if self._remaining < 0:
            raise UnusableVdd("it expands to more bytes than are allowed", is_limit=True)
        buffer[: len(data)] = data
        return len(data)

    def _read_plain(self, count: int) -> bytes:
        data = self._data or self._read_file()
        self._data = data[count:]
        return data[:count]

    def _inflate(self, count: int) -> bytes:
        assert self._inflater is not None
        while not self._inflater.eof:
            self._data = self._data or self._read_file()
            is_last = not self._data
            data = self._inflater.decompress(self._data, count)
            self._data = self._inflater.unconsumed_tail
            if data:
                return data
            if is_last and not self._inflater.eof:
                raise UnusableVdd("it is cut: its compressed data go on")
        if self._inflater.unused_data or self._read_file():
            raise UnusableVdd("other data follow its compressed data")
        return b""

    def _read_file(self) -> bytes:
        return self._file.read(_BUFFER_BYTES) or b""


def _is_zlib(data: bytes) -> bool:
    """Return whether data begin with a header of zlib: see section 2.2 of RFC 1950."""
    return len(data) >= _PAIR and data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0  # noqa: PLR2004


class _BytesStandIn:
    """Stands for ``bytes`` and ``bytearray``. It makes them of nothing, of bytes, or of a text in Latin-1.

    The class itself would make gigabytes of a number. A pickle can set no attributes of instances of this class.
    """

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case ():
                return b""
            case (bytes() as content,):
                return content
            case (str() as text, "latin1" | "latin-1"):
                return text.encode("latin-1")
        raise UnusableVdd("it makes bytes of something else than bytes")


class _EncodeStandIn:
    """Stands for ``codecs.encode``, with which pickles of the protocols 0 to 2 write bytes: as a text in Latin-1.

    The function itself would also find other codecs, which can decompress, or be registered by other modules.
    """

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        match arguments:
            case (str() as text, "latin1"):
                return text.encode("latin-1")
        raise UnusableVdd("it calls a codec other than latin1")


_STAND_INS: Final = {
    ("_codecs", "encode"): _EncodeStandIn(),
    **{(module, name): _BytesStandIn() for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, texts and bytes. It imports nothing, and finds nothing but the stand-ins."""

    @override
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        stand_in = _STAND_INS.get((module_name, global_name))
        if stand_in is None:
            raise UnusableVdd(
                f"its pickle names {_shorten(module_name)}.{_shorten(global_name)}, which is neither a container nor "
                "bytes: opening it could run code"
            )
        return stand_in

    @override
    def persistent_load(self, pid: Any) -> Any:
        raise UnusableVdd("its pickle refers to objects outside of it")


def _list_members(value: Any) -> Iterable[tuple[bytes, bytes | bytearray]]:
    """Yield the members of a dictionary or of a sequence of pairs, without entering anything else."""
    if type(value) is dict:
        pairs: Iterable[Any] = value.items()
    elif type(value) in (list, tuple):
        pairs = value
    else:
        raise UnusableVdd(
            f"it contains a value of type {type(value).__name__} instead of a dictionary from names to bytes"
        )
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != _PAIR:
            raise UnusableVdd(
                f"it contains a value of type {type(pair).__name__} instead of a pair of a name and bytes"
            )
        yield _check_member(*pair)


def _check_member(name: Any, content: Any) -> tuple[bytes, bytes | bytearray]:
    if type(name) is not str:
        raise UnusableVdd(f"it contains a name of type {type(name).__name__} instead of a text")
    if (problem := describe_bad_filename(name)) is not None:
        raise UnusableVdd(f"it contains the name {_shorten(name)!r}, which {problem}")
    if type(content) not in (bytes, bytearray):
        kind = type(content).__name__
        raise UnusableVdd(f"it contains a value of type {kind} instead of bytes under the name {_shorten(name)!r}")
    return name.encode(*NAME_ENCODING), content


def _check_members(members: Sequence[tuple[bytes, bytes | bytearray]], max_bytes: int) -> None:
    """Check that names are unique, and the size of all: a pickle can name the same bytes any number of times."""
    if sum(len(content) for _, content in members) > max_bytes:
        raise UnusableVdd("its members have more bytes than are allowed", is_limit=True)
    for index in range(1, len(members)):
        if members[index - 1][0] == members[index][0]:
            raise UnusableVdd(f"it contains the name {_shorten(members[index][0].decode(*NAME_ENCODING))!r} twice")


def _shorten(text: object) -> str:
    return make_printable(text, _MAX_TEXT_CHARACTERS)


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
