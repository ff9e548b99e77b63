"""Content identifiers (CIDs): names of blocks that contain a hash of the block.

Formats: https://github.com/multiformats/cid (versions 0 and 1), https://github.com/multiformats/multihash and the
codes of https://github.com/multiformats/multicodec. libipld converts text forms (multibase). Binary forms are parsed
here, because libipld accepts no digest of more than 64 bytes, and CIDs that contain their block have longer ones.
"""

from __future__ import annotations

import functools
import hashlib
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from streamloader.errors import MissingDependency, NotSupported, ProtocolError

try:
    import libipld
except ImportError as error:  # pragma: no cover - the tests have it
    raise MissingDependency("ipfs:// and ipns:// need libipld: pip install streamloader[ipfs]") from error

__all__ = [
    "DAG_PB",
    "HASHES",
    "IDENTITY",
    "LIBP2P_KEY",
    "RAW",
    "Cid",
    "compute_digest",
    "encode_varint",
    "read_varint",
]

RAW: Final = 0x55
DAG_PB: Final = 0x70
LIBP2P_KEY: Final = 0x72
IDENTITY: Final = 0x00
_SHA2_256: Final = 0x12
_VERSION_0_CHARACTERS: Final = 46
_PUNCTUATION: Final = ".,;:!)]>'\""  # what follows a CID in a sentence
_MAX_TEXT_CHARACTERS: Final = 4096  # enough for a CID that contains a block of 2 KiB
_CODEC_NAMES: Final = {RAW: "raw", DAG_PB: "dag-pb", 0x71: "dag-cbor", 0x0129: "dag-json", LIBP2P_KEY: "libp2p-key"}


# Name in the multicodec table -> (code, digest size in bytes).
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
    """Identifier of a block: the codec to decode it with, and the digest of its bytes.

    Attributes:
        version: Version of the CID, 0 or 1. Version 0 always means dag-pb and sha2-256.
        codec: Multicodec of the block: ``RAW`` or ``DAG_PB`` for UnixFS.
        hash_code: Multicodec of the hash function.
        digest: Digest of the block's bytes. Identity CIDs contain the bytes themselves.
    """

    version: int
    codec: int
    hash_code: int
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Parse the text form: base58 for version 0, any multibase that libipld supports for version 1.

        Raises:
            ProtocolError: If the text is not a CID.
        """
        if not 2 <= len(text) <= _MAX_TEXT_CHARACTERS:
            raise ProtocolError(f"{text[:80]!r} is not a CID")
        if advice := _explain_text(text):
            raise ProtocolError(f"{text[:80]!r} is not a CID: {advice}")
        try:
            is_version_0 = text[0] == "Q"  # version 0 has no multibase prefix
            _, data = libipld.decode_multibase(f"z{text}" if is_version_0 else text)
        except ValueError as error:
            raise ProtocolError(f"{text[:80]!r} is not a CID: {error}") from error
        cid = cls.decode(bytes(data))
        if is_version_0 != (cid.version == 0):
            raise ProtocolError(f"{text[:80]!r} is not a CID: its base does not match its version")
        return cid

    @classmethod
    def decode(cls, data: bytes) -> Cid:
        """Decode the binary form, which must be all of `data`.

        Raises:
            ProtocolError: If the data is not a CID.
        """
        cid, end = cls.read(data, 0)
        if end != len(data):
            raise ProtocolError(f"a CID with {len(data) - end} extra bytes")
        return cid

    @classmethod
    def read(cls, data: bytes, offset: int) -> tuple[Cid, int]:
        """Decode the binary form at `offset`. Return the CID and the offset after it.

        Raises:
            ProtocolError: If there is no CID at `offset`.
        """
        if data[offset : offset + 2] == b"\x12\x20":
            digest = data[offset + 2 : offset + 34]
            if len(digest) != 32:
                raise ProtocolError("a truncated CID")
            return cls(0, DAG_PB, _SHA2_256, digest), offset + 34
        version, offset = read_varint(data, offset)
        if version != 1:
            raise ProtocolError(f"a CID of version {version}, where only 0 and 1 exist")
        codec, offset = read_varint(data, offset)
        hash_code, offset = read_varint(data, offset)
        length, offset = read_varint(data, offset)
        digest = data[offset : offset + length]
        if len(digest) != length:
            raise ProtocolError("a truncated CID")
        return cls(1, codec, hash_code, digest), offset + length

    @property
    def codec_name(self) -> str:
        """Name of the codec for messages."""
        return _CODEC_NAMES.get(self.codec, f"codec {self.codec:#x}")

    @property
    def inline(self) -> bytes | None:
        """The block itself if the CID contains it, otherwise None."""
        return self.digest if self.hash_code == IDENTITY else None

    def encode(self) -> bytes:
        """Return the binary form."""
        multihash = encode_varint(self.hash_code) + encode_varint(len(self.digest)) + self.digest
        return multihash if self.version == 0 else b"\x01" + encode_varint(self.codec) + multihash

    def matches(self, block: bytes) -> bool:
        """Return whether `block` is the block that this CID identifies.

        Raises:
            NotSupported: If the hash function is not supported.
        """
        if self.hash_code == IDENTITY:
            return block == self.digest
        return compute_digest(self.hash_code, len(self.digest), block) == self.digest

    def require_known_hash(self) -> None:
        """Check that blocks of this CID can be verified, before they are fetched.

        Raises:
            NotSupported: If the hash function is not supported.
        """
        if self.hash_code != IDENTITY:
            _get_hasher(self.hash_code, len(self.digest))

    def __str__(self) -> str:
        """Return the text form: base58 for version 0, base32 for version 1."""
        if self.version == 0:
            return str(libipld.encode_multibase("z", self.encode()))[1:]
        return str(libipld.encode_multibase("b", self.encode()))


def _explain_text(text: str) -> str | None:
    """Return why a text cannot be a CID, and what it may have been meant to be, or None."""
    if text[:2] != "Qm" and text[:2].lower() == "qm" and len(text) == _VERSION_0_CHARACTERS:
        return (
            "letters of CIDs that begin with Qm must keep their case, which browsers and host names change; write it "
            "as it was published, or as version 1 (ipfs cid base32)"
        )
    if text.startswith("z") and text.islower() and len(text) > _VERSION_0_CHARACTERS:
        return (
            "letters of CIDs that begin with z must keep their case, which browsers and host names change; write it as "
            "it was published, or in base 32 (ipfs cid base32)"
        )
    if not text.isalnum() and text.rstrip(_PUNCTUATION).isalnum():
        return f"write it without the {text.lstrip(string.ascii_letters + string.digits)!r} at its end"
    if "." in text:
        return f"it is a DNS name, so write ipns://{text}"
    return None if text.isascii() and text.isprintable() else "it contains characters that no CID has"


def read_varint(data: bytes | bytearray, offset: int) -> tuple[int, int]:
    """Read an unsigned varint of at most 64 bits in its shortest form. Return its value and the offset after it.

    Raises:
        ProtocolError: If there is no such varint at `offset`.
    """
    value = shift = 0
    while True:
        if offset >= len(data):
            raise ProtocolError("a truncated number")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ProtocolError("a number of more than 64 bits")
    if value >> 64 or (shift and not byte):
        raise ProtocolError("a number that is not in its shortest form")
    return value, offset


def encode_varint(value: int) -> bytes:
    """Return an unsigned varint in its shortest form."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def compute_digest(code: int, size: int, block: bytes) -> bytes:
    """Return the digest of a block.

    Args:
        code: Multicodec of the hash function.
        size: Size of the digest in bytes.
        block: Bytes to hash.

    Raises:
        NotSupported: If the hash function, or its digest size, is not supported.
    """
    return _get_hasher(code, size)(block)


@functools.cache
def _get_hasher(code: int, size: int) -> Callable[[bytes], bytes]:
    if (code, size) == HASHES["blake2b-256"]:
        return lambda block: hashlib.blake2b(block, digest_size=32).digest()
    if (code, size) == HASHES["blake3"]:
        try:
            from blake3 import blake3
        except ImportError as error:  # pragma: no cover - the tests have it
            raise MissingDependency("CIDs with blake3 need it: pip install streamloader[ipfs]") from error
        return lambda block: bytes(blake3(block).digest())
    name = next((name for name, code_and_size in HASHES.items() if code_and_size == (code, size)), None)
    if name is None:
        raise NotSupported(
            f"a CID with hash {code:#x} of {size} bytes cannot be verified: {', '.join(HASHES)} and identity are "
            "supported, each with its full digest"
        )
    function = {
        "sha2-256": hashlib.sha256,
        "sha2-512": hashlib.sha512,
        "sha3-256": hashlib.sha3_256,
        "sha3-512": hashlib.sha3_512,
    }[name]
    return lambda block: function(block).digest()
