"""Settings of the ButterflyTorch compatibility layer, read from a ``.env`` file and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit, urlunsplit

from streamloader.arguments import expand_path
from streamloader.errors import ConfigError
from streamloader.stores.registry import scheme_of

__all__ = ["ButterflySettings", "catalog_url"]

_TRUE_WORDS: Final = frozenset({"1", "true", "yes", "on"})
_FALSE_WORDS: Final = frozenset({"0", "false", "no", "off"})
_VALID_PORTS: Final = range(1, 1 << 16)
_DEFAULT_DATABASE: Final = "video_chunks_db"


@dataclass(frozen=True, slots=True, kw_only=True)
class ButterflySettings:
    """Settings of the compatibility layer. Each has an environment variable of its name in capitals.

    Attributes:
        mongodb_uri: URI of the MongoDB server with the catalog. It is never shown. None for an SQLite catalog, in the
            file ``catalog.sqlite`` of `storage_path`.
        mongodb_db_name: Name of the catalog's database in MongoDB. Defaults to ``video_chunks_db``.
        storage_path: Folder of this machine for chunks and for an SQLite catalog. Defaults to ``./storage``.
        videos_path: Folder of this machine with videos.
        chunk_size: Number of frames of a chunk. Defaults to 1000.
        cache_limit: Maximum number of cached groups of decoded frames of a dataset. None for the default.
        max_cache_bytes: Maximum number of bytes of the cache of a dataset. None for the default.
        remote_mode: Whether videos and chunks are on `remote_host`. Without the variable, whether REMOTE_HOST is set.
        remote_host: Name of the machine, or its alias in ``~/.ssh/config``.
        remote_port: Port of its SSH server. None for the port in the SSH configuration, or 22.
        remote_user: Name of the user who logs in. None for the user in the SSH configuration.
        remote_password: Password of that user. It is never shown.
        remote_key_path: File of the private key. None for the SSH agent and the default keys.
        remote_videos_path: Folder of that machine with videos.
        remote_storage_path: Folder of that machine for chunks.
        remote_known_hosts: File with the host key of that machine. None for the default ``known_hosts`` files. A
            machine with an unknown key is refused.
    """

    mongodb_uri: str | None = field(default=None, repr=False)
    mongodb_db_name: str = _DEFAULT_DATABASE
    storage_path: str = "./storage"
    videos_path: str | None = None
    chunk_size: int = 1000
    cache_limit: int | None = None
    max_cache_bytes: int | None = None
    remote_mode: bool = False
    remote_host: str | None = None
    remote_port: int | None = None
    remote_user: str | None = None
    remote_password: str | None = field(default=None, repr=False)
    remote_key_path: str | None = None
    remote_videos_path: str | None = None
    remote_storage_path: str | None = None
    remote_known_hosts: str | None = None

    @classmethod
    def load(cls, env_file: str | os.PathLike[str] | None = None) -> Self:
        """Read the settings. Variables of the environment take precedence over those of the file.

        Args:
            env_file: File of variables. Defaults to ``.env`` in the working directory or in its nearest parent that has
                one.

        Raises:
            ConfigError: If `env_file` does not exist, or a setting is invalid.
        """
        return cls.from_variables({**_read_env_file(env_file), **os.environ})

    @classmethod
    def from_variables(cls, variables: Mapping[str, str | None]) -> Self:
        """Create settings from variables. Empty variables are ignored.

        Raises:
            ConfigError: If a setting is invalid.
        """
        values = {name: value.strip() for name, value in variables.items() if value is not None and value.strip()}
        host = values.get("REMOTE_HOST")
        remote = _parse_bool("REMOTE_MODE", values) if "REMOTE_MODE" in values else host is not None
        if remote and host is None:
            raise ConfigError("REMOTE_MODE is on, but REMOTE_HOST is not set: set it to the name of the machine")
        if host is not None and not re.fullmatch(r"[^\s/@\[\]?#]+", host):
            raise ConfigError("REMOTE_HOST must be the name of a machine only, without user name, password and folder")
        port = _parse_int("REMOTE_PORT", values, None)
        if port is not None and port not in _VALID_PORTS:
            raise ConfigError(f"REMOTE_PORT must be from 1 to 65535, got {port}")
        chunk_size = _parse_int("CHUNK_SIZE", values, 1000)
        assert chunk_size is not None
        return cls(
            mongodb_uri=values.get("MONGODB_URI"),
            mongodb_db_name=values.get("MONGODB_DB_NAME", _DEFAULT_DATABASE),
            storage_path=values.get("STORAGE_PATH", "./storage"),
            videos_path=values.get("VIDEOS_PATH"),
            chunk_size=chunk_size,
            cache_limit=_parse_int("CACHE_LIMIT", values, None),
            max_cache_bytes=_parse_int("MAX_CACHE_BYTES", values, None, minimum=0),
            remote_mode=remote,
            remote_host=host,
            remote_port=port,
            remote_user=values.get("REMOTE_USER"),
            remote_password=values.get("REMOTE_PASSWORD"),
            remote_key_path=values.get("REMOTE_KEY_PATH"),
            remote_videos_path=values.get("REMOTE_VIDEOS_PATH"),
            remote_storage_path=values.get("REMOTE_STORAGE_PATH"),
            remote_known_hosts=values.get("REMOTE_KNOWN_HOSTS"),
        )


def catalog_url(uri: str, database: str) -> str:
    """Return the URL of the catalog in a database of a MongoDB server. Other URLs are returned unchanged.

    The login stays valid: the database in the URI, or ``admin``, remains the one that authenticates the user.
    """
    if scheme_of(uri) not in ("mongodb", "mongodb+srv"):
        return uri
    parts = urlsplit(uri)
    login_database = parts.path.strip("/")
    query = parts.query
    if "@" in parts.netloc and not re.search(r"(?i)(^|&)authSource=", query):
        query = "&".join(filter(None, [query, f"authSource={login_database or 'admin'}"]))
    return urlunsplit((parts.scheme, parts.netloc, f"/{quote(database, safe='')}", query, ""))


def _read_env_file(env_file: str | os.PathLike[str] | None) -> dict[str, Any]:
    from dotenv import dotenv_values, find_dotenv

    if env_file is None:
        path = find_dotenv(usecwd=True)
    else:
        path = expand_path(env_file)
        if not os.path.isfile(path):
            raise ConfigError(f"the settings file {path} does not exist")
    return dict(dotenv_values(path)) if path else {}


def _parse_bool(name: str, values: Mapping[str, str]) -> bool:
    word = values[name].lower()
    if word not in _TRUE_WORDS | _FALSE_WORDS:
        raise ConfigError(f"{name} must be True or False, got {values[name]!r}")
    return word in _TRUE_WORDS


def _parse_int(name: str, values: Mapping[str, str], default: int | None, minimum: int = 1) -> int | None:
    text = values.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or int(text) < minimum:
        raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {text!r}")
    return int(text)
