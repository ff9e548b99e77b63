"""Parse the headers of tar files: ustar, pax, GNU and the format before POSIX (V7).

Sources: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Header Block"; for GNU's extensions, the chapters "Basic
Tar Format" and "Storing Sparse Files" of the manual of GNU tar. Nothing in here reads or waits.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final, NamedTuple

from streamloader.containers.base import Member, describe_unsafe_name

__all__ = [
    "BLOCK_BYTES",
    "Extensions",
    "MalformedHeader",
    "TarEntry",
    "TarHeader",
    "parse_header",
    "parse_ordinary_member",
    "parse_pax_records",
    "round_up",
]

BLOCK_BYTES: Final = 512
_MAX_CONTENT_BYTES: Final = (1 << 63) - 1

# Values of the type field.
_REGULAR: Final = b"0\0" + b"7"  # 7: contiguous, a regular file where the file system has nothing better
_HARD_LINK: Final = b"1"
_DIRECTORY: Final = b"5"
_DIRECTORY_WITH_CONTENT: Final = b"D"  # its content is a list of names, of an incremental backup of GNU tar
_VOLUME_LABEL: Final = b"V"
_SPARSE: Final = b"S"
_GNU_LONG_NAME: Final = b"L"
_GNU_LONG_LINK: Final = b"K"
_PAX_GLOBAL: Final = b"g"
_EXTENSIONS: Final = b"xXgLK"  # X: pax of Solaris
_WITHOUT_CONTENT: Final = b"123456"  # whatever their size field states
_PROBLEMS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"M": "a part of a file that begins in another volume",
    b"S": "a sparse file",
}

# Keys of pax records. All others describe what a member with bytes and a name does not have.
_PATH: Final = b"path"
_LINK_PATH: Final = b"linkpath"
_SIZE: Final = b"size"
_MODIFIED: Final = b"mtime"
_SPARSE_NAME: Final = b"GNU.sparse.name"
_SPARSE_PREFIX: Final = b"GNU.sparse."
_SPARSE_REAL_SIZE: Final = b"SCHILY.realsize"  # of star
_KEPT_KEYS: Final = frozenset({_PATH, _LINK_PATH, _SIZE, _MODIFIED, _SPARSE_NAME})

_MAX_PLAIN_NAME_CHARACTERS: Final = 255
_MAX_LENGTH_DIGITS: Final = 20
_NEWLINE: Final = 10
_OCTAL: Final = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_BINARY_POSITIVE: Final = 0x80
_BINARY_NEGATIVE: Final = 0xFF
_DECIMAL_SIZE: Final = re.compile(rb"[0-9]{1,20}")
_DECIMAL_TIME: Final = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]{0,40})?(?:e-[0-9]{1,3})?")  # tarfile writes exponents
_LEADING_DOTS: Final = re.compile(r"(?:\./+)*")

# Size, modification time and checksum, each in digits and terminator.
_ORDINARY: Final = struct.Struct("124x 11s c 11s c 6s 2s 356x")
_ORDINARY_KIND: Final = 0x30
_POSIX_MAGIC: Final = b"ustar\x0000"
_GNU_MAGIC: Final = b"ustar  \0"
_TERMINATORS: Final = (b"\0", b" ")
_CHECKSUM_TERMINATORS: Final = (b"\0 ", b" \0", b"\0\0", b"  ")
_CHECKSUM_AS_BLANKS: Final = 8 * 0x20


class MalformedHeader(Exception):
    """A header, or the content of an extended header, is damaged."""


class TarHeader(NamedTuple):
    """The fields of one header that matter here.

    Attributes:
        kind: Type field. An extended header has no other values here than its size.
        name: Name as it is stored, with its prefix.
        link: Name of the link's target, as it is stored.
        size: Size field in bytes.
        modified: Modification time in seconds since 1970. None if the field is malformed.
        continues: Whether further blocks of a sparse file's map follow.
    """

    kind: bytes
    name: bytes
    link: bytes
    size: int
    modified: float | None
    continues: bool

    @property
    def is_extension(self) -> bool:
        """Whether the content describes the following members."""
        return self.kind in _EXTENSIONS


class TarEntry(NamedTuple):
    """What a header and its extensions describe.

    Attributes:
        member: Member. None for directories and labels.
        end: Offset of the next header.
        link: Name of the target of a hard link, normalized as the names of members are. None for all others.
    """

    member: Member | None
    end: int
    link: str | None = None


def round_up(size: int) -> int:
    """Return the number of bytes of the blocks that hold `size` bytes."""
    return (size + BLOCK_BYTES - 1) & -BLOCK_BYTES


def parse_ordinary_member(block: bytes, offset: int, modified: float | None = None) -> Member | None:
    """Return the member of a header, if it is an ordinary file and the header is as most programs write it.

    This takes half the time of :func:`parse_header` and :meth:`Extensions.build_entry`, which decide on all other
    headers: a valid header gives the same member in both ways.

    Args:
        block: The 512 bytes of the header. :attr:`Extensions.apply` is False.
        offset: Offset of the header.
        modified: Modification time from an extended header. Defaults to the one in the header.
    """
    magic = block[257:265]
    if block[156] != _ORDINARY_KIND or not (magic == _GNU_MAGIC or (magic == _POSIX_MAGIC and block[345] == 0)):
        return None
    numbers = _parse_ordinary_numbers(block)
    if numbers is None:
        return None
    size, seconds = numbers
    name_end = block.find(0, 0, 100)
    name = str(block[: 100 if name_end < 0 else name_end], "ascii")
    if name[:2] == "./":
        name = name[2:]
    if not _is_plainly_safe(name):
        return None
    if modified is None:
        modified = float(seconds)
    return Member(name, size, offset, offset + BLOCK_BYTES, size, 0, None, modified, None)


def parse_header(block: bytes) -> TarHeader:
    """Parse the 512 bytes of a header.

    Raises:
        MalformedHeader: If its checksum is wrong, or its size field is malformed.
    """
    size, seconds = _parse_ordinary_numbers(block) or _parse_numbers(block)
    kind = block[156:157]
    if kind in _EXTENSIONS:
        return TarHeader(kind, b"", b"", size, None, continues=False)
    modified = None if seconds is None else float(seconds)
    continues = kind == _SPARSE and block[482] != 0
    return TarHeader(kind, _join_name(block), _cut_at_nul(block[157:257]), size, modified, continues)


def parse_pax_records(content: bytes) -> dict[bytes, bytes]:
    r"""Return the records of an extended header of pax, each of which is ``LENGTH KEY=VALUE\n``.

    Raises:
        MalformedHeader: If a record is malformed.
    """
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        blank = content.find(b" ", position, position + _MAX_LENGTH_DIGITS + 1)
        digits = content[position:blank]
        if blank < 0 or not digits.isdigit():
            if not content[position:].strip(b"\0"):  # padding; tarfile accepts it too
                break
            raise MalformedHeader("the length of a pax record is malformed")
        end = position + int(digits)
        if not blank < end <= len(content) or content[end - 1] != _NEWLINE:
            raise MalformedHeader("the length of a pax record is wrong")
        key, equals, value = content[blank + 1 : end - 1].partition(b"=")
        if not equals:
            raise MalformedHeader("a pax record has no value")
        records[key] = value
        position = end
    return records


class Extensions:
    """The extended headers that apply to the next header: global and local ones of pax, and long names of GNU tar.

    Attributes:
        apply: Whether they change what the next header describes, apart from the modification time.
        modified: Modification time that they state.
        are_pending: Whether a header has to follow, because there are local ones.
    """

    __slots__ = ("_global", "_local", "_values", "apply", "are_pending", "modified")

    def __init__(self) -> None:
        self._global: dict[bytes, bytes] = {}
        self._local: dict[bytes, bytes] = {}
        self.are_pending = False
        self._combine()

    def add(self, header: TarHeader, content: bytes) -> None:
        """Add an extended header.

        Raises:
            MalformedHeader: If its content is malformed.
        """
        if header.kind == _GNU_LONG_NAME:
            self._local.setdefault(_PATH, _cut_at_nul(content))  # pax has the last word, as in GNU tar
        elif header.kind == _GNU_LONG_LINK:
            self._local.setdefault(_LINK_PATH, _cut_at_nul(content))
        elif header.kind != _PAX_GLOBAL:
            _select_records(content, self._local)
        else:
            _select_records(content, self._global)
            if _SIZE in self._global:
                raise MalformedHeader("a global extended header states the size of all members")
        self._combine()
        self.are_pending = self.are_pending or header.kind != _PAX_GLOBAL

    def use_up(self) -> None:
        """Forget the local extensions, because the header to which they apply was parsed."""
        if self.are_pending:
            self.are_pending = self.apply = False
            self.modified = None
            self._local.clear()
            self._values.clear()
            if self._global:
                self._combine()

    def build_entry(self, header: TarHeader, offset: int, data: int) -> TarEntry:
        """Return what a header describes that is no extended one itself.

        Args:
            header: Header.
            offset: Offset of the header.
            data: Offset of the content.

        Raises:
            MalformedHeader: If an extended header states a malformed size.
        """
        values = self._values
        name = _normalize_name(values.get(_SPARSE_NAME) or values.get(_PATH) or header.name)
        size = 0 if header.kind in _WITHOUT_CONTENT else _parse_pax_size(values.get(_SIZE), header.size)
        end = data + round_up(size)
        if _is_directory_or_label(header.kind, name, size):
            return TarEntry(None, end)
        problem = _describe_kind(header.kind, is_sparse=_SPARSE_PREFIX in values)
        if problem is None and not _is_plainly_safe(name):
            problem = describe_unsafe_name(name)
        modified = header.modified if self.modified is None else self.modified
        member = Member(name, size, offset, data, size, 0, None, modified, problem)
        if header.kind != _HARD_LINK:
            return TarEntry(member, end)
        return TarEntry(member, end, _normalize_name(values.get(_LINK_PATH) or header.link))

    def _combine(self) -> None:
        """Derive the values that apply: local ones replace global ones, and an empty one removes both."""
        values = self._values = {**self._global, **self._local}
        if b"" in values.values():
            values = self._values = {key: value for key, value in values.items() if value}
        self.modified = _parse_pax_time(values.get(_MODIFIED))
        self.apply = len(values) > (_MODIFIED in values)


def _is_plainly_safe(name: str) -> bool:
    """Return whether a name is safe. :func:`describe_unsafe_name` decides on the others, and takes much longer."""
    return not (
        not name
        or "/." in name
        or "//" in name
        or ":" in name
        or "\0" in name
        or name[0] in "./"
        or name[-1] == "/"
        or len(name) > _MAX_PLAIN_NAME_CHARACTERS
    )


def _parse_ordinary_numbers(block: bytes) -> tuple[int, int] | None:
    """Return size and time of a header whose checksum is right, if they are written as most programs do."""
    size_field, size_end, time_field, time_end, sum_field, sum_end = _ORDINARY.unpack(block)
    if not (
        size_field.isdigit()
        and time_field.isdigit()
        and sum_field.isdigit()
        and size_end in _TERMINATORS
        and time_end in _TERMINATORS
        and sum_end in _CHECKSUM_TERMINATORS
        and block.isascii()
    ):
        return None
    try:
        numbers = int(size_field, 8), int(time_field, 8)
        return numbers if int(sum_field, 8) == _sum_ascii(block) else None
    except ValueError:  # an 8 or 9
        return None


def _parse_numbers(block: bytes) -> tuple[int, int | None]:
    """Return size and time of a header, in any notation. The time is None if it is malformed."""
    if not _has_valid_checksum(block):
        raise MalformedHeader("the checksum of a header is wrong")
    size = _parse_number(block[124:136])
    if size is None or not 0 <= size <= _MAX_CONTENT_BYTES:
        raise MalformedHeader("the size in a header is malformed")
    return size, _parse_number(block[136:148])


def _sum_ascii(block: bytes) -> int:
    """Return the checksum of a header that contains only ASCII.

    The lower half of Adler-32 (RFC 1950, section 8.2) is the sum of the bytes and 1, modulo 65521, which such a block
    does not reach. It takes a tenth of the time of ``sum``.
    """
    return (zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF) - 1 + _CHECKSUM_AS_BLANKS


def _has_valid_checksum(block: bytes) -> bool:
    """Return whether the checksum is right. Some old programs summed the bytes as signed numbers."""
    checksum = _parse_number(block[148:156])
    if block.isascii():
        return checksum == _sum_ascii(block)
    other_bytes = block[:148] + block[156:]
    unsigned = sum(other_bytes) + _CHECKSUM_AS_BLANKS
    return checksum in (unsigned, unsigned - 256 * sum(byte >> 7 for byte in other_bytes))


def _parse_number(field: bytes) -> int | None:
    """Return the value of an octal field, or of a binary one as GNU tar writes large values. None if it is neither."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit() and not (b"8" in digits or b"9" in digits):
        return int(digits, 8)
    if field[0] in (_BINARY_POSITIVE, _BINARY_NEGATIVE):
        value = int.from_bytes(field[1:], "big")
        return value if field[0] == _BINARY_POSITIVE else value - (1 << 8 * (len(field) - 1))
    match = _OCTAL.fullmatch(field)
    return None if match is None else int(match[1] or b"0", 8)


def _join_name(block: bytes) -> bytes:
    """Return the name, with the prefix that only POSIX has in its place."""
    name = _cut_at_nul(block[:100])
    if block[345] == 0 or block[257:263] != _POSIX_MAGIC[:6]:
        return name
    return _cut_at_nul(block[345:500]) + b"/" + name


def _cut_at_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _normalize_name(name: bytes) -> str:
    """Return a name without leading "./". Bytes that are not UTF-8 become lone surrogates, as in names of files."""
    text = name.decode("utf-8", "surrogateescape")
    match = _LEADING_DOTS.match(text)
    return text if match is None else text[match.end() :]


def _select_records(content: bytes, values: dict[bytes, bytes]) -> None:
    """Add those records of an extended header to `values` that matter here."""
    for key, value in parse_pax_records(content).items():
        if key in _KEPT_KEYS:
            values[key] = value
        if key.startswith(_SPARSE_PREFIX) or key == _SPARSE_REAL_SIZE:
            values[_SPARSE_PREFIX] = b"1"


def _parse_pax_size(value: bytes | None, default: int) -> int:
    if value is None:
        return default
    if not _DECIMAL_SIZE.fullmatch(value) or int(value) > _MAX_CONTENT_BYTES:
        raise MalformedHeader("the size in a pax record is malformed")
    return int(value)


def _parse_pax_time(value: bytes | None) -> float | None:
    return None if value is None or not _DECIMAL_TIME.fullmatch(value) else float(value)


def _is_directory_or_label(kind: bytes, name: str, size: int) -> bool:
    """Return whether a header describes no member. Before POSIX, only a "/" at the end marked directories."""
    if kind in _REGULAR:
        return size == 0 and name.endswith("/")
    return kind in (_DIRECTORY, _DIRECTORY_WITH_CONTENT, _VOLUME_LABEL)


def _describe_kind(kind: bytes, *, is_sparse: bool) -> str | None:
    """Return the reason why a member of this type is never read. None for ordinary files."""
    if kind in _REGULAR:
        return _PROBLEMS[_SPARSE] if is_sparse else None
    return _PROBLEMS.get(kind, f"a member of the unknown type {kind.decode('latin-1')!a}")
