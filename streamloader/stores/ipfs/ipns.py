"""Verify IPNS records: signed statements of the path that a name stands for.

An IPNS name is a public key. A gateway's own answer for a name proves nothing, so the store requests the record,
which is signed with that key. Formats: https://specs.ipfs.tech/ipns/ipns-record and https://github.com/libp2p/specs
(peer ids and keys).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import libipld
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from streamloader.errors import IntegrityError, NotSupported, ProtocolError
from streamloader.stores.ipfs.cid import LIBP2P_KEY, Cid
from streamloader.stores.ipfs.unixfs import read_fields

__all__ = ["parse_key", "split_path", "verify_record"]

_SIGNATURE_PREFIX: Final = b"ipns-signature:"
_MIN_KEY_CHARACTERS: Final = 46  # of a text without a dot: a host name of one label is hardly that long
_RSA, _ED25519 = 0, 1
_TIME_PATTERN: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def parse_key(name: str) -> Cid | None:
    """Return the key of a name in any of its text forms, or None for a DNS name.

    Raises:
        ProtocolError: If the name has the form of a key but is not valid.
    """
    if "." in name:
        return None
    if name.startswith(("Qm", "1")):  # a bare multihash
        cid = Cid.parse(name) if name.startswith("Qm") else Cid.decode(b"\x01\x72" + _decode_base58(name))
        return Cid(1, LIBP2P_KEY, cid.hash_code, cid.digest)
    try:
        cid = Cid.parse(name)
    except ProtocolError:
        if len(name) >= _MIN_KEY_CHARACTERS:
            raise
        return None
    return cid if cid.codec == LIBP2P_KEY else Cid(1, LIBP2P_KEY, cid.hash_code, cid.digest)


def split_path(path: str) -> tuple[str, str, list[str]]:
    """Split the path that a name stands for into "ipfs" or "ipns", the CID or name, and the file names below it.

    Raises:
        ProtocolError: If it is not such a path.
    """
    parts = path.strip("/").split("/")
    if len(parts) < 2 or parts[0] not in ("ipfs", "ipns"):
        raise ProtocolError(f"a name that stands for {path[:200]!r}, which is not an IPFS path")
    return parts[0], parts[1], parts[2:]


def verify_record(key: Cid, record: bytes, now: datetime | None = None) -> str:
    """Verify a record and return its path.

    Args:
        key: Key of the name.
        record: Encoded record.
        now: Time at which the record must be valid. Defaults to the current time.

    Raises:
        IntegrityError: If the record is not signed with this key, or has expired.
        ProtocolError: If the record is malformed.
        NotSupported: If the key is of an unsupported type.
    """
    signature = data = public_key = b""
    for number, value in read_fields(record):
        if number == 8 and isinstance(value, bytes):
            signature = value
        elif number == 9 and isinstance(value, bytes):
            data = value
        elif number == 7 and isinstance(value, bytes):
            public_key = value
    if not signature or not data:
        raise ProtocolError("an IPNS record without a signature of version 2")
    _check_signature(key, public_key, signature, _SIGNATURE_PREFIX + data)
    try:
        document = libipld.decode_dag_cbor(data)
        value, valid_until = bytes(document["Value"]), bytes(document["Validity"]).decode()
        validity_type = document["ValidityType"]
        path = value.decode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"a signed IPNS record that is malformed: {error}") from error
    if validity_type != 0 or _parse_time(valid_until) <= (now or datetime.now(UTC)):
        raise IntegrityError(f"the record of name {key} was valid until {valid_until}: a newer one is needed")
    return path


def _check_signature(key: Cid, public_key: bytes, signature: bytes, message: bytes) -> None:
    encoded = key.inline if key.inline is not None else public_key
    if not encoded or not key.matches(encoded):
        raise IntegrityError(f"a record that does not belong to name {key}: its key is a different one")
    key_type, key_data = None, b""
    for number, value in read_fields(encoded):
        if number == 1 and isinstance(value, int):
            key_type = value
        elif number == 2 and isinstance(value, bytes):
            key_data = value
    try:
        if key_type == _ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(key_data).verify(signature, message)
        elif key_type == _RSA and isinstance(loaded := load_der_public_key(key_data), rsa.RSAPublicKey):
            loaded.verify(signature, message, padding.PKCS1v15(), SHA256())
        else:
            raise NotSupported(f"name {key} is a key of type {key_type}: only Ed25519 and RSA are supported")
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(f"a record that is not signed with the key of name {key}") from error


def _parse_time(text: str) -> datetime:
    match = _TIME_PATTERN.fullmatch(text)
    if match is None:
        raise ProtocolError(f"an IPNS record with the malformed expiration time {text[:60]!r}")
    try:
        return datetime.fromisoformat(f"{match[1]}{'+00:00' if match[3] == 'Z' else match[3]}")
    except ValueError as error:
        raise ProtocolError(f"an IPNS record with the malformed expiration time {text[:60]!r}") from error


def _decode_base58(text: str) -> bytes:
    try:
        return bytes(libipld.decode_multibase(f"z{text}")[1])
    except ValueError as error:
        raise ProtocolError(f"{text[:80]!r} is not an IPNS name") from error
