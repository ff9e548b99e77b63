"""IPNS: names that belong to a key, and records that say what is behind them.

A gateway's word for that is worth nothing, so it is asked for the record, which carries a signature of the key that the
name is. Formats: https://specs.ipfs.tech/ipns/ipns-record and https://github.com/libp2p/specs (peer ids and keys).
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

from streamloader.errors import NotSupported, ProtocolFault, WrongContent
from streamloader.stores.ipfs.cid import LIBP2P_KEY, Cid
from streamloader.stores.ipfs.unixfs import fields

__all__ = ["key_of", "split_path", "verified_target"]

_SIGNED: Final = b"ipns-signature:"
_RSA, _ED25519 = 0, 1
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def key_of(name: str) -> Cid | None:
    """Return the key that a name is, in any of the ways to write it; None for names of the DNS.

    Raises:
        ProtocolFault: it looks like a key and is none.
    """
    if "." in name:
        return None
    if name.startswith(("Qm", "1")):  # a bare multihash
        cid = Cid.parse(name) if name.startswith("Qm") else Cid.decode(b"\x01\x72" + _base58(name))
        return Cid(1, LIBP2P_KEY, cid.hash_code, cid.digest)
    try:
        cid = Cid.parse(name)
    except ProtocolFault:
        return None
    return cid if cid.codec == LIBP2P_KEY else Cid(1, LIBP2P_KEY, cid.hash_code, cid.digest)


def split_path(path: str) -> tuple[str, str, list[str]]:
    """Split what a name stands for into "ipfs" or "ipns", a CID or name, and the names behind it.

    Raises:
        ProtocolFault: it is no such path.
    """
    parts = path.strip("/").split("/")
    if len(parts) < 2 or parts[0] not in ("ipfs", "ipns"):
        raise ProtocolFault(f"a name that stands for {path[:200]!r}, which is no path of IPFS")
    return parts[0], parts[1], parts[2:]


def verified_target(key: Cid, record: bytes, now: datetime | None = None) -> str:
    """Return the path that a record gives to a key, if the key signed it and it is still good.

    Raises:
        WrongContent: it is not signed by this key, or says two things.
        ProtocolFault: it is damaged.
        NotSupported: the key is of a kind that is not known here.
    """
    signature = data = public = b""
    for number, value in fields(record):
        if number == 8 and isinstance(value, bytes):
            signature = value
        elif number == 9 and isinstance(value, bytes):
            data = value
        elif number == 7 and isinstance(value, bytes):
            public = value
    if not signature or not data:
        raise ProtocolFault("a record of a name without a signature of version 2")
    _check_signature(key, public, signature, _SIGNED + data)
    try:
        said = libipld.decode_dag_cbor(data)
        value, until, kind = bytes(said["Value"]), bytes(said["Validity"]).decode(), said["ValidityType"]
        target = value.decode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolFault(f"a signed record of a name that makes no sense: {error}") from error
    if kind != 0 or _time(until) <= (now or datetime.now(UTC)):
        raise WrongContent(f"the record of name {key} was good until {until}: it takes a newer one")
    return target


def _check_signature(key: Cid, public: bytes, signature: bytes, message: bytes) -> None:
    encoded = key.inline if key.inline is not None else public
    if not encoded or not key.matches(encoded):
        raise WrongContent(f"a record that is not of name {key}: its key is another one")
    kind, data = None, b""
    for number, value in fields(encoded):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, bytes):
            data = value
    try:
        if kind == _ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(data).verify(signature, message)
        elif kind == _RSA and isinstance(loaded := load_der_public_key(data), rsa.RSAPublicKey):
            loaded.verify(signature, message, padding.PKCS1v15(), SHA256())
        else:
            raise NotSupported(f"name {key} is a key of kind {kind}: only Ed25519 and RSA can be checked")
    except (InvalidSignature, ValueError) as error:
        raise WrongContent(f"a record that is not signed by name {key}") from error


def _time(text: str) -> datetime:
    found = _TIME.fullmatch(text)
    if found is None:
        raise ProtocolFault(f"a record of a name that is good until {text[:60]!r}")
    try:
        return datetime.fromisoformat(f"{found[1]}{'+00:00' if found[3] == 'Z' else found[3]}")
    except ValueError as error:
        raise ProtocolFault(f"a record of a name that is good until {text[:60]!r}") from error


def _base58(text: str) -> bytes:
    try:
        return bytes(libipld.decode_multibase(f"z{text}")[1])
    except ValueError as error:
        raise ProtocolFault(f"{text[:80]!r} is no name") from error
