"""Create signed IPNS records: https://specs.ipfs.tech/ipns/ipns-record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import libipld
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from streamloader.stores.ipfs.cid import IDENTITY, LIBP2P_KEY, Cid, encode_varint


@dataclass
class Owner:
    """Owner of an IPNS name, which is a public key.

    Attributes:
        key: Private key. Defaults to a new Ed25519 key.
    """

    key: Any = field(default_factory=ed25519.Ed25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        """Public key in libp2p's encoding."""
        key = self.key.public_key()
        if isinstance(self.key, rsa.RSAPrivateKey):
            public_format = serialization.PublicFormat.SubjectPublicKeyInfo
            return _message((1, 0), (2, key.public_bytes(serialization.Encoding.DER, public_format)))
        raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return _message((1, 1), (2, raw))

    @property
    def cid(self) -> Cid:
        """Name of the owner."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return Cid(1, LIBP2P_KEY, 0x12, hashlib.sha256(self.public).digest())
        return Cid(1, LIBP2P_KEY, IDENTITY, self.public)

    def record(self, target: str, until: str = "2999-01-02T03:04:05.123456789Z") -> bytes:
        """Return a signed record that the name stands for `target` until the time `until`."""
        document = {
            "Value": target.encode(),
            "Validity": until.encode(),
            "ValidityType": 0,
            "Sequence": 1,
            "TTL": 1,
        }
        data = libipld.encode_dag_cbor(document)
        message = b"ipns-signature:" + data
        if isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(message, padding.PKCS1v15(), SHA256())
            return _message((1, target.encode()), (7, self.public), (8, signature), (9, data))
        return _message((1, target.encode()), (8, self.key.sign(message)), (9, data))


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    encoded = b""
    for number, value in fields:
        if isinstance(value, int):
            encoded += encode_varint(number << 3) + encode_varint(value)
        else:
            encoded += encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
    return encoded
