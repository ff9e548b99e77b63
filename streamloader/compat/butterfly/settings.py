"""Settings of the door of the reference system: from a ``.env`` file and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit, urlunsplit

from streamloader.errors import ConfigError
from streamloader.stores.registry import scheme_of

__all__ = ["ButterflySettings", "catalog_url"]

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_PORTS: Final = range(1, 1 << 16)
_DATABASE: Final = "video_chunks_db"


@dataclass(frozen=True, slots=True, kw_only=True)
class ButterflySettings:
    """What the door of the reference system goes by. Each setting has an environment variable of its name in capitals.

    Attributes:
        mongodb_uri: of the catalog; None for SQLite, in the file ``catalog.sqlite`` of `storage_path`. Never shown.
        mongodb_db_name: of the catalog's database in MongoDB.
        storage_path: folder of this machine for chunks and for an SQLite catalog.
        videos_path: folder of this machine in which videos are looked for.
        chunk_size: frames of a chunk.
        cache_limit: decoded groups of frames that a data set keeps; None for its default.
        max_cache_bytes: that it keeps; None for its default.
        remote_mode: whether videos and chunks are on `remote_host`. Without the variable: whether that one is set.
        remote_host: name of the machine, or its alias in ``~/.ssh/config``.
        remote_port: of its SSH server; None for what the configuration says, or 22.
        remote_user: who logs in; None for what the configuration says.
        remote_password: of that user. Never shown.
        remote_key_path: file of the private key to log in with; None for the agent and the usual ones.
        remote_videos_path: folder of that machine in which videos are looked for.
        remote_storage_path: folder of that machine for chunks.
        remote_known_hosts: file with the host key of that machine; None for the usual ``known_hosts`` files. A machine
            whose key is not known is refused.
    """

    mongodb_uri: str | None = field(default=None, repr=False)
    mongodb_db_name: str = _DATABASE
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
        """Read the settings. Variables of the environment go before those of the file; neither is changed.

        Args:
            env_file: the file; None for ``.env`` of the working directory, or of the next one above it that has one.

        Raises:
            ConfigError: `env_file` does not exist, or a setting makes no sense.
        """
        return cls.of({**_file(env_file), **os.environ})

    @classmethod
    def of(cls, variables: Mapping[str, str | None]) -> Self:
        """Make them of variables, of which those that are empty do not count.

        Raises:
            ConfigError: a setting makes no sense.
        """
        given = {name: value.strip() for name, value in variables.items() if value is not None and value.strip()}
        host = given.get("REMOTE_HOST")
        remote = _truth("REMOTE_MODE", given) if "REMOTE_MODE" in given else host is not None
        if remote and host is None:
            raise ConfigError("REMOTE_MODE is on, but REMOTE_HOST does not say which machine is meant")
        if host is not None and not re.fullmatch(r"[^\s/@\[\]?#]+", host):
            raise ConfigError(f"REMOTE_HOST is the name of a machine alone, got {host!r}")
        port = _number("REMOTE_PORT", given, None)
        if port is not None and port not in _PORTS:
            raise ConfigError(f"REMOTE_PORT must be from 1 to 65535, got {port}")
        chunk_size = _number("CHUNK_SIZE", given, 1000)
        assert chunk_size is not None
        return cls(
            mongodb_uri=given.get("MONGODB_URI"),
            mongodb_db_name=given.get("MONGODB_DB_NAME", _DATABASE),
            storage_path=given.get("STORAGE_PATH", "./storage"),
            videos_path=given.get("VIDEOS_PATH"),
            chunk_size=chunk_size,
            cache_limit=_number("CACHE_LIMIT", given, None),
            max_cache_bytes=_number("MAX_CACHE_BYTES", given, None, least=0),
            remote_mode=remote,
            remote_host=host,
            remote_port=port,
            remote_user=given.get("REMOTE_USER"),
            remote_password=given.get("REMOTE_PASSWORD"),
            remote_key_path=given.get("REMOTE_KEY_PATH"),
            remote_videos_path=given.get("REMOTE_VIDEOS_PATH"),
            remote_storage_path=given.get("REMOTE_STORAGE_PATH"),
            remote_known_hosts=given.get("REMOTE_KNOWN_HOSTS"),
        )


def catalog_url(uri: str, database: str) -> str:
    """Return the url of the catalog in one database of a MongoDB server; anything else that names a catalog as it is.

    What the URI said of logging in stays: its own database, or ``admin``, is the one that knows the user.
    """
    if scheme_of(uri) not in ("mongodb", "mongodb+srv"):
        return uri
    parts = urlsplit(uri)
    own = parts.path.strip("/")
    query = parts.query
    if "@" in parts.netloc and not re.search(r"(?i)(^|&)authSource=", query):
        query = "&".join(filter(None, [query, f"authSource={own or 'admin'}"]))
    return urlunsplit((parts.scheme, parts.netloc, f"/{quote(database, safe='')}", query, ""))


def _file(env_file: str | os.PathLike[str] | None) -> dict[str, Any]:
    from dotenv import dotenv_values, find_dotenv

    if env_file is None:
        path = find_dotenv(usecwd=True)
    else:
        path = os.path.expanduser(os.fspath(env_file))
        if not os.path.isfile(path):
            raise ConfigError(f"there is no file {path} with settings")
    return dict(dotenv_values(path)) if path else {}


def _truth(name: str, given: Mapping[str, str]) -> bool:
    word = given[name].lower()
    if word not in _TRUE | _FALSE:
        raise ConfigError(f"{name} must be True or False, got {given[name]!r}")
    return word in _TRUE


def _number(name: str, given: Mapping[str, str], default: int | None, least: int = 1) -> int | None:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)
