"""Content identifiers: what a block is called, and whether bytes are that block.

Formats: https://github.com/multiformats/cid (versions 0 and 1), https://github.com/multiformats/multihash and the
code numbers of https://github.com/multiformats/multicodec. Text forms (multibase) are libipld's business; the bytes
are read here, because libipld takes no digest of more than 64 bytes, and blocks that lie in their own name have them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from streamloader.errors import MissingExtra, NotSupported, ProtocolFault

try:
    import libipld
except ImportError as error:  # pragma: no cover - the tests have it
    raise MissingExtra("ipfs:// and ipns:// need libipld: pip install streamloader[ipfs]") from error

__all__ = ["DAG_PB", "HASHES", "IDENTITY", "LIBP2P_KEY", "RAW", "Cid", "digest_of", "read_varint", "varint"]

RAW: Final = 0x55
DAG_PB: Final = 0x70
LIBP2P_KEY: Final = 0x72
IDENTITY: Final = 0x00
_SHA2_256: Final = 0x12
_LONGEST_TEXT: Final = 4096  # characters; a block of 2 KiB in its own name has that many
_CODECS: Final = {RAW: "raw", DAG_PB: "dag-pb", 0x71: "dag-cbor", 0x0129: "dag-json", LIBP2P_KEY: "libp2p-key"}


# By their names in the table of multicodecs, with the bytes of a digest.
HASHES: Final = {
    "sha2-256": (_SHA2_256, 32),
    "sha2-512": (0x13, 64),
    "sha3-512": (0x14, 64),
    "sha3-256": (0x16, 32),
    "blake3": (0x1E, 32),
    "blake2b-256": (0xB220, 32),
}


@dataclass(frozen=True, slots=True)
class Cid:
    """The name of a block: how it is to be read, and the digest of its bytes.

    Attributes:
        version: 0 or 1. Version 0 is always dag-pb with sha2-256.
        codec: multicodec of the block: ``RAW`` or ``DAG_PB`` for UnixFS.
        hash_code: multicodec of the hash.
        digest: of the block's bytes; for identity CIDs the bytes themselves.
    """

    version: int
    codec: int
    hash_code: int
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Read the text form: base58 for version 0, any multibase that libipld knows for version 1.

        Raises:
            ProtocolFault: that is no CID.
        """
        if not text.isascii() or not 2 <= len(text) <= _LONGEST_TEXT:
            raise ProtocolFault(f"{text[:80]!r} is no CID")
        try:
            plain = text[0] == "Q"  # version 0 has no letter for its base
            _, data = libipld.decode_multibase(f"z{text}" if plain else text)
        except ValueError as error:
            raise ProtocolFault(f"{text[:80]!r} is no CID: {error}") from error
        cid = cls.decode(bytes(data))
        if plain != (cid.version == 0):
            raise ProtocolFault(f"{text[:80]!r} is no CID: a wrong base for its version")
        return cid

    @classmethod
    def decode(cls, data: bytes) -> Cid:
        """Read the binary form, which has to end with `data`.

        Raises:
            ProtocolFault: that is no CID.
        """
        cid, end = cls.read(data, 0)
        if end != len(data):
            raise ProtocolFault(f"a CID with {len(data) - end} bytes too many")
        return cid

    @classmethod
    def read(cls, data: bytes, at: int) -> tuple[Cid, int]:
        """Read the binary form that begins at `at`, and return where it ends too.

        Raises:
            ProtocolFault: there is none.
        """
        if data[at : at + 2] == b"\x12\x20":
            digest = data[at + 2 : at + 34]
            if len(digest) != 32:
                raise ProtocolFault("a CID that is cut off")
            return cls(0, DAG_PB, _SHA2_256, digest), at + 34
        version, at = read_varint(data, at)
        if version != 1:
            raise ProtocolFault(f"a CID of version {version}; there are 0 and 1")
        codec, at = read_varint(data, at)
        code, at = read_varint(data, at)
        length, at = read_varint(data, at)
        digest = data[at : at + length]
        if len(digest) != length:
            raise ProtocolFault("a CID that is cut off")
        return cls(1, codec, code, digest), at + length

    @property
    def codec_name(self) -> str:
        """For messages."""
        return _CODECS.get(self.codec, f"codec {self.codec:#x}")

    @property
    def inline(self) -> bytes | None:
        """The block itself, where it lies in its name."""
        return self.digest if self.hash_code == IDENTITY else None

    def encode(self) -> bytes:
        """Return the binary form."""
        hashed = varint(self.hash_code) + varint(len(self.digest)) + self.digest
        return hashed if self.version == 0 else b"\x01" + varint(self.codec) + hashed

    def matches(self, block: bytes) -> bool:
        """Whether `block` is the one that is called so.

        Raises:
            NotSupported: it is named by a hash that is not known here, so that nobody can tell.
        """
        if self.hash_code == IDENTITY:
            return block == self.digest
        return digest_of(self.hash_code, len(self.digest), block) == self.digest

    def require_known_hash(self) -> None:
        """Refuse, before anything is fetched, what could not be checked.

        Raises:
            NotSupported: see :meth:`matches`.
        """
        if self.hash_code != IDENTITY:
            _hasher(self.hash_code, len(self.digest))

    def __str__(self) -> str:
        """Write version 0 in base58, version 1 in base32."""
        if self.version == 0:
            return str(libipld.encode_multibase("z", self.encode()))[1:]
        return str(libipld.encode_multibase("b", self.encode()))


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Read an unsigned varint of at most 64 bits in its shortest form, and return where it ends too.

    Raises:
        ProtocolFault: there is none.
    """
    value = shift = 0
    while True:
        if at >= len(data):
            raise ProtocolFault("a number that is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ProtocolFault("a number of more than 64 bits")
    if value >> 64 or (shift and not byte):
        raise ProtocolFault("a number that is not in its shortest form")
    return value, at


def varint(value: int) -> bytes:
    """Return an unsigned varint in its shortest form."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def digest_of(code: int, size: int, block: bytes) -> bytes:
    """Return the digest of a block by the hash with this multicodec.

    Raises:
        NotSupported: that hash is not known here, or not in this length.
    """
    return _hasher(code, size)(block)


@functools.cache
def _hasher(code: int, size: int) -> Callable[[bytes], bytes]:
    if (code, size) == HASHES["blake2b-256"]:
        return lambda block: hashlib.blake2b(block, digest_size=32).digest()
    if (code, size) == HASHES["blake3"]:
        try:
            from blake3 import blake3
        except ImportError as error:  # pragma: no cover - the tests have it
            raise MissingExtra("blocks named by blake3 need it: pip install streamloader[ipfs]") from error
        return lambda block: bytes(blake3(block).digest())
    name = next((name for name, known in HASHES.items() if known == (code, size)), None)
    if name is None:
        raise NotSupported(
            f"a CID with hash {code:#x} of {size} bytes cannot be checked: known are {', '.join(HASHES)} and identity, "
            "each in full length"
        )
    function = {
        "sha2-256": hashlib.sha256,
        "sha2-512": hashlib.sha512,
        "sha3-256": hashlib.sha3_256,
        "sha3-512": hashlib.sha3_512,
    }[name]
    return lambda block: function(block).digest()
