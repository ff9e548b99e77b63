"""From the options of an object store to obstore's."""

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
from streamloader.stores.objects.fork_safety import library

__all__ = ["Access", "Credentials"]

_LONG: Final = timedelta(days=30)  # for obstore's own clock over whole transfers: the store's deadlines are finer
_IDLE: Final = timedelta(seconds=30)
_OF: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"region", "profile", "access_key_id", "secret_access_key", "session_token"}),
    "gs": frozenset({"token", "service_account"}),
    "az": frozenset({"account_name", "account_key", "sas_token", "token", "connection_string"}),
}
_ANY: Final = frozenset({"endpoint_url", "anonymous", "credential_provider", "config", "client_options"})
_SECRET: Final = (
    "secret_access_key",
    "session_token",
    "token",
    "account_key",
    "sas_token",
    "connection_string",
)
_PARTS: Final = {"AccountName": "account_name", "AccountKey": "account_key", "SharedAccessSignature": "sas_token"}


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to get at a bucket; the fields are the options of :class:`streamloader.stores.objects.store.ObjectStore`."""

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
        """Refuse what does not go together."""
        given = {item.name for item in fields(self) if getattr(self, item.name) not in (None, False)}
        given -= {"scheme", "bucket", *(name for name in ("config", "client_options") if not getattr(self, name))}
        if alien := sorted(given - _ANY - _OF[self.scheme]):
            raise ConfigError(f"{self.scheme}:// has no option {alien[0]}; it takes {', '.join(sorted(self._known()))}")
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if bool(self.access_key_id) != bool(self.secret_access_key):
            raise ConfigError("s3://: access_key_id and secret_access_key go together")
        if self.session_token and not self.access_key_id:
            raise ConfigError("s3://: a session_token belongs to an access_key_id and a secret_access_key")
        ways = [
            name
            for name in ("profile", "access_key_id", "token", "account_key", "sas_token", "credential_provider")
            if name in given
        ]
        if len(ways) > 1 or (ways and self.anonymous):
            raise ConfigError(f"{self.scheme}://: {', '.join(ways)}{' and anonymous' * self.anonymous}: choose one")

    def _known(self) -> frozenset[str]:
        return _ANY | _OF[self.scheme]

    @property
    def realm(self) -> str:
        """Which of all servers and accounts with a bucket of this name it is."""
        variables = {
            "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "gs": ("STORAGE_EMULATOR_HOST",),
            "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"),
        }[self.scheme]
        found = [self.endpoint_url or "", self.account_name or "", self.profile or ""]
        return " ".join([*found, *(os.environ.get(name, "") for name in variables)]).strip()

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be told."""
        return tuple(value for name in _SECRET if (value := getattr(self, name)))

    def connect(self, timeouts: Timeouts) -> tuple[Any, Credentials | None]:
        """Return obstore's store, which connects with its first request, and what gives it credentials.

        Raises:
            ConfigError: an option is no good, or a profile is not there.
        """
        config, give = {"s3": self._s3, "gs": self._gs, "az": self._az}[self.scheme]()
        if self.anonymous:
            config["skip_signature"], give = True, None
        elif give is not None:
            config["skip_signature"] = False  # whatever the variables say
        credentials = None if give is None else Credentials(give)
        kind = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}[self.scheme]
        endpoint = str(config.get("endpoint") or config.get("base_url") or "")
        client_options = {
            "allow_http": endpoint.startswith("http://") or bool(config.get("use_emulator")),
            "connect_timeout": timedelta(seconds=timeouts.connect),
            "timeout": _LONG,
            "pool_idle_timeout": _IDLE,
            **self.client_options,
        }
        try:
            store = getattr(library().store, kind)(
                self.bucket,
                config={**config, **self.config},
                client_options=client_options,
                # Tried again is what failed by the policy of this package, which knows all deadlines.
                retry_config={"max_retries": 0},
                **({} if credentials is None else {"credential_provider": credentials}),
            )
        except (library().exceptions.BaseError, ValueError, TypeError) as error:
            known = str(error).partition("\n")[0] if not self.secrets else "see the documentation of ObjectStore"
            raise ConfigError(f"{self.scheme}://{self.bucket} cannot be set up: {known}") from None
        return store, credentials

    def _s3(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        environment = os.environ
        config: dict[str, Any] = {"disable_bulk_delete": True}  # one at a time, with an answer of its own
        give = self.credential_provider
        profile = None
        by_variables = not self.profile and "AWS_ACCESS_KEY_ID" in environment
        if self.access_key_id:
            give = _Static(
                access_key_id=self.access_key_id, secret_access_key=self.secret_access_key, token=self.session_token
            )
        elif give is None and not self.anonymous:
            profile = read_profile(self.profile)
            if by_variables:
                give = _FromVariables()
            elif not self.profile and _ambient(environment):
                pass  # obstore asks there, and again before they run out
            elif profile is not None and profile.web_identity is not None:
                config.update(profile.web_identity)
            elif profile is not None and profile.has_credentials:
                give = ProfileCredentials(profile.name)
            elif self.profile:
                raise ConfigError(f"the AWS profile {self.profile!r} does not say how to get credentials")
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
                config["aws_endpoint_url_s3"] = config["endpoint"]  # which would win
        return config, give

    def _gs(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        config: dict[str, Any] = {}
        give = self.credential_provider
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        if endpoint := self.endpoint_url or emulator:
            _check_endpoint(endpoint)
            config["base_url"] = endpoint.rstrip("/")
        if self.token:
            give = _Static(token=self.token)
        elif self.service_account:
            config["service_account"] = os.path.expanduser(self.service_account)
        elif give is None and emulator and not self.endpoint_url:
            config["skip_signature"] = True  # emulators have no accounts
        return config, give

    def _az(self) -> tuple[dict[str, Any], Callable[[], Any] | None]:
        environment = os.environ
        config: dict[str, Any] = {}
        give = self.credential_provider
        parts = {}
        connection = self.connection_string or environment.get("AZURE_STORAGE_CONNECTION_STRING")
        own = self.account_key or self.sas_token or self.token or give or self.anonymous
        if self.connection_string or (connection and not own):
            parts = dict(part.partition("=")[::2] for part in (connection or "").split(";") if part)
        options = {ours: parts.get(theirs) for theirs, ours in _PARTS.items()}
        name = self.account_name or options["account_name"] or environment.get("AZURE_STORAGE_ACCOUNT")
        if name := name or environment.get("AZURE_STORAGE_ACCOUNT_NAME"):
            config["account_name"] = name
        else:
            raise ConfigError("az:// needs an account: account_name=, or the variable AZURE_STORAGE_ACCOUNT_NAME")
        endpoint = self.endpoint_url or parts.get("BlobEndpoint") or environment.get("AZURE_STORAGE_ENDPOINT")
        if endpoint:
            _check_endpoint(endpoint)
            config["endpoint"] = endpoint.rstrip("/")
        key = self.account_key or options["account_key"]
        if not own and not key and "AZURE_STORAGE_KEY" in environment:
            key = environment["AZURE_STORAGE_KEY"]
        if key:
            give = _Static(access_key=key)
        elif signature := self.sas_token or options["sas_token"]:
            give = _Static(sas_token=signature.lstrip("?"))
        elif self.token:
            give = _Static(token=self.token)
        return config, give


class Credentials:
    """Gives obstore credentials whenever it needs new ones, and keeps what went wrong then.

    It is asked in an event loop, so that obstore's own threads run no Python code of others.
    """

    def __init__(self, give: Callable[[], Any]) -> None:
        self._give = give
        self._secrets: set[str] = set()
        self.problem: Exception | None = None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What was given so far."""
        return tuple(self._secrets)

    async def __call__(self) -> Any:
        """Return credentials."""
        try:
            found = self._give()
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:
            self.problem = error
            raise
        self.problem = None
        self._secrets |= {
            str(found[name])
            for name in ("secret_access_key", "token", "access_key", "sas_token")
            if isinstance(found.get(name), str)
        }
        return found


class _Static:
    """Credentials that stay."""

    def __init__(self, **values: str | None) -> None:
        self._values = values

    def __call__(self) -> dict[str, Any]:
        return {**self._values, "expires_at": None}


class _FromVariables:
    """The credentials of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."""

    def __call__(self) -> dict[str, Any]:
        secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not secret:
            raise ConfigError("the variable AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not")
        return {
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": secret,
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "expires_at": None,
        }


def _ambient(environment: Mapping[str, str]) -> bool:
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
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        port = parts.port
    except ValueError:
        good, parts, port = False, None, None
    del port
    if not good:
        raise ConfigError(f"endpoint_url={endpoint!r} is no address such as https://host:port")
    if parts is not None and "@" in parts.netloc:
        raise ConfigError("endpoint_url: no user and password there; give credentials as options")
