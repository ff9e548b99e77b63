"""Configuration of an object store, and the obstore client made from it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from streamloader.config import Timeouts
from streamloader.errors import ConfigError
from streamloader.stores.objects.aws_profiles import ProfileCredentials, read_profile
from streamloader.stores.objects.fork_safety import get_obstore

__all__ = ["CredentialSource", "ObjectStoreConfig"]

# obstore limits whole transfers only. The deadlines of the store are finer, so this limit is never reached.
_TRANSFER_TIMEOUT: Final = timedelta(days=30)
_CONNECTION_IDLE_TIMEOUT: Final = timedelta(seconds=30)
_COMMON_OPTIONS: Final = frozenset({"endpoint_url", "anonymous", "credential_provider", "config", "client_options"})
_SCHEME_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"region", "profile", "access_key_id", "secret_access_key", "session_token"}),
    "gs": frozenset({"token", "service_account"}),
    "az": frozenset({"account_name", "account_key", "sas_token", "token", "connection_string"}),
}
_SECRET_OPTIONS: Final = (
    "secret_access_key",
    "session_token",
    "token",
    "account_key",
    "sas_token",
    "connection_string",
)
# Parts of an Azure connection string, and the options that they stand for.
_CONNECTION_STRING_OPTIONS: Final = {
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "SharedAccessSignature": "sas_token",
}


@dataclass(frozen=True, kw_only=True)
class ObjectStoreConfig:
    """Options of :class:`streamloader.stores.objects.store.ObjectStore`, checked for consistency.

    Attributes:
        scheme: "s3", "gs" or "az".
        bucket: Name of the bucket or container.

    All other attributes are the options of the same name.

    Raises:
        ConfigError: If options are missing, unknown, or exclude each other.
    """

    scheme: str
    bucket: str
    endpoint_url: str | None = None
    anonymous: bool = False
    region: str | None = None
    profile: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    service_account: str | None = None
    account_name: str | None = None
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    connection_string: str | None = field(default=None, repr=False)
    credential_provider: Callable[[], Any] | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    client_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Reject inconsistent options."""
        given = {item.name for item in fields(self) if getattr(self, item.name) not in (None, False)}
        given -= {"scheme", "bucket", *(name for name in ("config", "client_options") if not getattr(self, name))}
        valid = _COMMON_OPTIONS | _SCHEME_OPTIONS[self.scheme]
        if unknown := sorted(given - valid):
            raise ConfigError(f"{self.scheme}:// has no option {unknown[0]}; it has {', '.join(sorted(valid))}")
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ConfigError("s3://: access_key_id and secret_access_key must be given together")
        if self.session_token and not self.access_key_id:
            raise ConfigError("s3://: session_token needs access_key_id and secret_access_key")
        logins = [
            name
            for name in ("profile", "access_key_id", "token", "account_key", "sas_token", "credential_provider")
            if name in given
        ]
        if len(logins) > 1 or (logins and self.anonymous):
            options = ", ".join(logins) + " and anonymous" * self.anonymous
            raise ConfigError(f"{self.scheme}://: {options} exclude each other: choose one")

    @property
    def identity(self) -> str:
        """Server and account, which distinguish this bucket from others of the same name."""
        variables = {
            "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "gs": ("STORAGE_EMULATOR_HOST",),
            "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
        }[self.scheme]
        options = [self.endpoint_url or "", self.account_name or "", self.profile or ""]
        return " ".join([*options, *(os.environ.get(name, "") for name in variables)]).strip()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Option values that must not appear in messages."""
        return tuple(value for name in _SECRET_OPTIONS if (value := getattr(self, name)))

    def create_client(self, timeouts: Timeouts) -> tuple[Any, CredentialSource | None]:
        """Create obstore's store object, which connects with its first request.

        Returns:
            The store object, and the source of its credentials, or None if obstore finds them by itself.

        Raises:
            ConfigError: If an option is invalid, or the profile does not exist.
        """
        configure = {"s3": self._configure_s3, "gs": self._configure_gs, "az": self._configure_az}[self.scheme]
        config, provider = configure()
        if self.anonymous:
            config["skip_signature"], provider = True, None
        elif provider is not None:
            config["skip_signature"] = False  # overrides the environment variables
        credentials = None if provider is None else CredentialSource(provider)
        class_name = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}[self.scheme]
        endpoint = str(config.get("endpoint") or config.get("base_url") or "")
        client_options = {
            "allow_http": endpoint.startswith("http://") or bool(config.get("use_emulator")),
            "connect_timeout": timedelta(seconds=timeouts.connect),
            "timeout": _TRANSFER_TIMEOUT,
            "pool_idle_timeout": _CONNECTION_IDLE_TIMEOUT,
            **self.client_options,
        }
        try:
            store = getattr(get_obstore().store, class_name)(
                self.bucket,
                config={**config, **self.config},
                client_options=client_options,
                # The retry policy of this package retries instead, because it knows all deadlines.
                retry_config={"max_retries": 0},
                **({} if credentials is None else {"credential_provider": credentials}),
            )
        except (get_obstore().exceptions.BaseError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0] if not self.secrets else "see the documentation of ObjectStore"
            raise ConfigError(f"{self.scheme}://{self.bucket} cannot be set up: {reason}") from None
        return store, credentials

    def _configure_s3(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        """Return obstore's configuration and the provider of credentials."""
        environment = os.environ
        config: dict[str, Any] = {"disable_bulk_delete": True}  # so that each deletion has its own response
        provider = self.credential_provider
        profile = None
        keys_in_environment = not self.profile and "AWS_ACCESS_KEY_ID" in environment
        if self.access_key_id:
            provider = _StaticCredentials(
                access_key_id=self.access_key_id, secret_access_key=self.secret_access_key, token=self.session_token
            )
        elif provider is None and not self.anonymous:
            profile = read_profile(self.profile)
            if keys_in_environment:
                provider = _EnvironmentCredentials()
            elif not self.profile and _has_machine_identity(environment):
                pass  # obstore uses it and refreshes the credentials
            elif profile is not None and profile.web_identity is not None:
                config.update(profile.web_identity)
            elif profile is not None and profile.has_credentials:
                provider = ProfileCredentials(profile.name)
            elif self.profile:
                raise ConfigError(f"the AWS profile {self.profile!r} names no way to get credentials")
        elif self.anonymous:
            profile = None
        endpoint = (
            self.endpoint_url
            or environment.get("AWS_ENDPOINT_URL_S3")
            or environment.get("AWS_ENDPOINT_URL")
            or (profile.endpoint_url if profile else None)
        )
        region = self.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if region := region or (profile.region if profile else None):
            config["region"] = region
        if endpoint:
            _check_endpoint(endpoint)
            config["endpoint"] = endpoint.rstrip("/")
            if "AWS_ENDPOINT_URL_S3" in environment:
                config["aws_endpoint_url_s3"] = config["endpoint"]  # otherwise the variable takes precedence
        return config, provider

    def _configure_gs(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        """Return obstore's configuration and the provider of credentials."""
        config: dict[str, Any] = {}
        provider = self.credential_provider
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        if endpoint := self.endpoint_url or emulator:
            _check_endpoint(endpoint)
            config["base_url"] = endpoint.rstrip("/")
        if self.token:
            provider = _StaticCredentials(token=self.token)
        elif self.service_account:
            config["service_account"] = os.path.expanduser(self.service_account)
        elif provider is None and emulator and not self.endpoint_url:
            config["skip_signature"] = True  # emulators have no accounts
        return config, provider

    def _configure_az(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        """Return obstore's configuration and the provider of credentials."""
        environment = os.environ
        config: dict[str, Any] = {}
        provider = self.credential_provider
        parts = {}
        connection = self.connection_string or environment.get("AZURE_STORAGE_CONNECTION_STRING")
        has_login = self.account_key or self.sas_token or self.token or provider or self.anonymous
        if self.connection_string or (connection and not has_login):
            parts = dict(part.partition("=")[::2] for part in (connection or "").split(";") if part)
        options = {option: parts.get(part) for part, option in _CONNECTION_STRING_OPTIONS.items()}
        name = self.account_name or options["account_name"] or environment.get("AZURE_STORAGE_ACCOUNT")
        if name := name or environment.get("AZURE_STORAGE_ACCOUNT_NAME"):
            config["account_name"] = name
        else:
            raise ConfigError("az:// needs an account: pass account_name=, or set AZURE_STORAGE_ACCOUNT_NAME")
        endpoint = self.endpoint_url or parts.get("BlobEndpoint") or environment.get("AZURE_STORAGE_ENDPOINT")
        if endpoint:
            _check_endpoint(endpoint)
            config["endpoint"] = endpoint.rstrip("/")
        key = self.account_key or options["account_key"]
        if not has_login and not key and "AZURE_STORAGE_KEY" in environment:
            key = environment["AZURE_STORAGE_KEY"]
        if key:
            provider = _StaticCredentials(access_key=key)
        elif signature := self.sas_token or options["sas_token"]:
            provider = _StaticCredentials(sas_token=signature.lstrip("?"))
        elif self.token:
            provider = _StaticCredentials(token=self.token)
        return config, provider


class CredentialSource:
    """Call a credential provider for obstore, and record its secrets and its last error.

    obstore awaits it in an event loop, so that the provider never runs on obstore's own threads.

    Args:
        provider: Function or coroutine function that returns credentials.

    Attributes:
        error: Exception of the last call, or None if it succeeded.
    """

    def __init__(self, provider: Callable[[], Any]) -> None:
        self._provider = provider
        self._secrets: set[str] = set()
        self.error: Exception | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Secrets of all credentials returned so far."""
        return tuple(self._secrets)

    async def __call__(self) -> Any:
        """Return credentials."""
        try:
            credentials = self._provider()
            if inspect.isawaitable(credentials):
                credentials = await credentials
        except Exception as error:
            self.error = error
            raise
        self.error = None
        self._secrets |= {
            str(credentials[name])
            for name in ("secret_access_key", "token", "access_key", "sas_token")
            if isinstance(credentials.get(name), str)
        }
        return credentials


class _StaticCredentials:
    """Provider of credentials that do not expire."""

    def __init__(self, **values: str | None) -> None:
        self._values = values

    def __call__(self) -> dict[str, Any]:
        return {**self._values, "expires_at": None}


class _EnvironmentCredentials:
    """Provider of the credentials in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."""

    def __call__(self) -> dict[str, Any]:
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not secret:
            raise ConfigError("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not")
        return {
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": secret,
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }


def _has_machine_identity(environment: Mapping[str, str]) -> bool:
    """Return whether the environment provides a web identity or the credentials of a container."""
    return any(
        name in environment
        for name in (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    )


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        port = parts.port  # raises if it is not a number
    except ValueError:
        valid, parts, port = False, None, None
    del port
    if not valid:
        raise ConfigError("endpoint_url= is not an address of the form https://host:port")
    if parts is not None and "@" in parts.netloc:
        raise ConfigError("endpoint_url= must not contain a user name or password; pass credentials as options")
