"""Name an S3 server and its keys once, for uploading and reading data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamloader.errors import ConfigError
from streamloader.redaction import redact_address

__all__ = ["S3Client", "make_client"]


@dataclass(frozen=True, repr=False)
class S3Client:
    """An S3 server with the keys to use. It opens nothing, and can be pickled. Its repr shows no secrets.

    Attributes:
        endpoint: Address of the server. None for Amazon's own.
        storage_options: Options of its stores, see :func:`streamloader.stores.open_store`.
    """

    endpoint: str | None
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def address(self, bucket: str, folder: str = "") -> str:
        """Return the address of a folder in a bucket.

        Raises:
            ConfigError: If the bucket is no name.
        """
        if not bucket or not isinstance(bucket, str) or set(bucket) & set("/@:?#"):
            raise ConfigError(f"the bucket must be a name, got {bucket!r:.80}")
        return f"s3://{bucket}/{folder.strip('/')}".rstrip("/")

    def __repr__(self) -> str:
        return f"S3Client({redact_address(self.endpoint) if self.endpoint else 'Amazon S3'})"


def make_client(
    endpoint: str | None, access_key: str | None = None, secret_key: str | None = None, **options: Any
) -> S3Client:
    """Return a client for an S3 server.

    Args:
        endpoint: Address of the server, such as ``http://127.0.0.1:9000``. None for Amazon's own.
        access_key: Access key. Defaults to the credentials of the environment, see
            :class:`streamloader.stores.objects.store.ObjectStore`.
        secret_key: Secret key of `access_key`.
        **options: Further options of the store, such as ``region``, ``timeouts`` or ``retry``.

    Raises:
        ConfigError: If only one of the keys is given.
    """
    if (access_key is None) != (secret_key is None):
        raise ConfigError("make_client needs both access_key and secret_key, or neither")
    given = {"endpoint_url": endpoint, "access_key_id": access_key, "secret_access_key": secret_key, **options}
    return S3Client(endpoint, {name: value for name, value in given.items() if value is not None})
