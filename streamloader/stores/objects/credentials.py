"""Providers of credentials for object stores, from options and environment variables."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from streamloader.errors import AccessDenied, ConfigError

__all__ = ["CredentialSource", "CredentialsFailed", "EnvironmentCredentials", "NoCredentials", "StaticCredentials"]

_CREDENTIALS: Final = ("secret_access_key", "token", "access_key", "sas_token")
_MIN_LIFETIME: Final = timedelta(minutes=1)  # of credentials with which a request is signed


class CredentialsFailed(Exception):
    """The provider of credentials raised an error, which its :class:`CredentialSource` has."""


class CredentialSource:
    """Call a credential provider, and record its secrets and its last error.

    obstore awaits it in an event loop, so that the provider never runs on obstore's own threads.

    Args:
        provider: Function or coroutine function that returns credentials.

    Attributes:
        error: Exception of the last call of the provider, or None if it succeeded.
    """

    def __init__(self, provider: Callable[[], Any]) -> None:
        self._provider = provider
        self._secrets: set[str] = set()
        self._current: Any = None
        self._lock = asyncio.Lock()
        self.error: Exception | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets of all credentials returned so far."""
        return tuple(self._secrets)

    async def __call__(self) -> Any:
        """Return the last credentials, or new ones if they expire soon. obstore and this package thus use the same."""
        async with self._lock:
            if self._current is None or _expires_soon(self._current):
                self._current = await self._call_provider()
            return self._current

    async def fetch_current(self) -> Any:
        """Return the same as a call.

        Raises:
            CredentialsFailed: If the provider raised an error. It is in `error`.
        """
        try:
            return await self()
        except Exception as error:
            raise CredentialsFailed from error

    async def _call_provider(self) -> Any:
        try:
            credentials = self._provider()
            if inspect.isawaitable(credentials):
                credentials = await credentials
            _check_credentials(credentials)
        except Exception as error:
            self.error = error
            raise
        self.error = None
        self._secrets |= {str(credentials[name]) for name in _CREDENTIALS if isinstance(credentials.get(name), str)}
        return credentials


def _check_credentials(credentials: Any) -> None:
    """Check what a provider returned, before a signature or a header is made of it.

    Raises:
        ConfigError: If it is not of the documented form.
    """
    if not isinstance(credentials, Mapping) or "expires_at" not in credentials:
        raise ConfigError("credential_provider= must return a dict with 'expires_at' and the credentials")
    expires_at = credentials["expires_at"]
    if expires_at is not None and (not isinstance(expires_at, datetime) or expires_at.tzinfo is None):
        raise ConfigError("the 'expires_at' of credential_provider= must be a datetime with a time zone, or None")
    if ("access_key_id" in credentials) != ("secret_access_key" in credentials):
        raise ConfigError("credential_provider= must return 'access_key_id' and 'secret_access_key' together")
    if not any(credentials.get(name) for name in _CREDENTIALS):
        raise ConfigError(f"credential_provider= must return one of {', '.join(_CREDENTIALS)}")
    for name in ("access_key_id", *_CREDENTIALS):
        value = credentials.get(name)
        if value is not None and (not isinstance(value, str) or not value.isprintable()):
            raise ConfigError(
                f"the {name} of the credentials is no text of one line: remove the line break, such as that at its end"
            )


def _expires_soon(credentials: Any) -> bool:
    expires_at = credentials["expires_at"]
    return expires_at is not None and expires_at <= datetime.now(UTC) + _MIN_LIFETIME


class StaticCredentials:
    """Provider of credentials that do not expire."""

    def __init__(self, **values: str | None) -> None:
        self._values = values

    def __call__(self) -> dict[str, Any]:
        """Return the credentials, which do not expire."""
        return {**self._values, "expires_at": None}


class EnvironmentCredentials:
    """Provider of the credentials in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."""

    def __call__(self) -> dict[str, Any]:
        """Return the credentials that the variables have now."""
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not secret:
            raise ConfigError("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not")
        return {
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": secret,
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }


class NoCredentials:
    """Provider for a user without credentials. It is used instead of obstore's query to a metadata service.

    Args:
        address: Address of the bucket.
        setting: Environment variable that allows the query.
    """

    def __init__(self, address: str, setting: str) -> None:
        self._address = address
        self._setting = setting

    def __call__(self) -> dict[str, Any]:
        """Raise AccessDenied."""
        raise AccessDenied(
            f"no credentials for {self._address}: pass them as options (profile=, access_key_id=, token=, ...), "
            "set the environment variables, or pass anonymous=True for public data. The metadata service of a cloud is "
            f"used for the cloud's own servers, and for others only if the environment names it: {self._setting}",
            address=self._address,
        )
