"""Configuration of an object store, and the obstore client made from it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Final, TypeAlias

from streamloader.arguments import expand_path
from streamloader.config import Timeouts
from streamloader.errors import ConfigError
from streamloader.stores.addresses import check_host_name, split_url
from streamloader.stores.environment import find_ca_path, load_authorities
from streamloader.stores.objects.aws_profiles import (
    AwsProfile,
    ProfileCredentials,
    is_metadata_service_disabled,
    may_query_metadata_service,
    read_profile,
)
from streamloader.stores.objects.credentials import (
    CredentialSource,
    EnvironmentCredentials,
    NoCredentials,
    StaticCredentials,
)
from streamloader.stores.objects.fork_safety import get_obstore
from streamloader.stores.objects.machine_credentials import (
    ContainerCredentials,
    InstanceCredentials,
    MachineCredentials,
    WebIdentityCredentials,
)
from streamloader.stores.objects.network import restrict_connections

__all__ = ["ObjectStoreConfig", "ObstoreSettings"]

# obstore limits whole transfers only. The deadlines of the store are finer, so this limit is never reached.
_TRANSFER_TIMEOUT: Final = timedelta(days=30)
_CONNECTION_IDLE_TIMEOUT: Final = timedelta(seconds=30)
_COMMON_OPTIONS: Final = frozenset(
    {"endpoint_url", "anonymous", "credential_provider", "ca_file", "config", "client_options"}
)
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
_NAME: Final = re.compile(r"\$?[A-Za-z0-9][A-Za-z0-9._-]{0,254}")  # of buckets, containers, accounts and regions
_EXPRESS_ZONE: Final = re.compile(r"--([a-z0-9-]+)--x-s3$")
# Keys of `config` that name the server. obstore accepts each of them with and without the name of the cloud in front.
_ENDPOINT_KEYS: Final = ("endpoint_url_s3", "endpoint", "endpoint_url", "base_url", "storage_endpoint")
_CLOUD_PREFIXES: Final = ("aws_", "google_", "azure_storage_", "azure_")
# Parts of the names of settings with which obstore gets credentials or needs none.
_CREDENTIAL_WORDS: Final = (
    "key",
    "token",
    "credential",
    "skip_signature",
    "service_account",
    "client_",
    "sas",
    "msi",
    "cli",
)
_METADATA_HOST: Final = "169.254.169.254"
_GOOGLE_METADATA_HOSTS: Final = ("metadata.google.internal", _METADATA_HOST)
_CONTAINER_VARIABLES: Final = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_AZURE_METADATA_SETTING: Final = "IDENTITY_ENDPOINT=http://169.254.169.254/metadata/identity/oauth2/token"
_AZURE_EMULATOR: Final = "http://127.0.0.1:10000"
_AZURE_LOGIN_HOST: Final = "login.microsoftonline.com"
_GOOGLE_HOSTS: Final = ("accounts.google.com", "oauth2.googleapis.com", "iamcredentials.googleapis.com")
_GOOGLE_METADATA_VARIABLES: Final = ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP")
_AZURE_METADATA_VARIABLES: Final = ("IDENTITY_ENDPOINT", "MSI_ENDPOINT", "AZURE_MSI_ENDPOINT")


@dataclass(frozen=True, kw_only=True)
class ObstoreSettings:
    """Settings of one obstore client, from the options, the environment and the files of the user.

    Attributes:
        config: Settings for obstore's S3Config, GCSConfig or AzureConfig.
        provider: Provider of credentials. None if obstore finds them by itself.
        endpoint: Address of the server.
        has_own_endpoint: Whether that is not the usual server of the cloud.
        credential_hosts: Hosts from which credentials are requested.
    """

    config: dict[str, Any] = field(repr=False)
    provider: Callable[[], Any] | None = field(repr=False)
    endpoint: str
    has_own_endpoint: bool
    credential_hosts: tuple[str, ...]


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
    ca_file: str | None = None
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
        for name in ("bucket", "region", "account_name"):  # each becomes a part of a host name or of a path
            if (value := getattr(self, name)) is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
                raise ConfigError(f"the {name} of {self.scheme}:// may contain only letters, digits, '.', '_' and '-'")
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

    def find_settings(self) -> ObstoreSettings:
        """Collect the settings of the client from the options, the environment and the user's files.

        Raises:
            ConfigError: If an option is invalid, or the profile does not exist.
        """
        configure = {"s3": self._configure_s3, "gs": self._configure_gs, "az": self._configure_az}[self.scheme]
        config, provider, default_endpoint, hosts = configure()
        if self.anonymous:
            config["skip_signature"], provider = True, None
        elif provider is not None:
            config["skip_signature"] = False  # overrides the environment variables
        own_endpoint = _find_endpoint({**config, **self.config})
        endpoint = own_endpoint or default_endpoint
        if self.scheme == "az" and _is_set({**os.environ, **self.config}, "use_emulator"):
            endpoint = os.environ.get("AZURITE_BLOB_STORAGE_URL", _AZURE_EMULATOR)
        _check_endpoint(endpoint)
        return ObstoreSettings(
            config=config,
            provider=provider,
            endpoint=endpoint,
            has_own_endpoint=own_endpoint is not None,
            credential_hosts=tuple(hosts),
        )

    def create_client(
        self, settings: ObstoreSettings, server_address: str | None, timeouts: Timeouts
    ) -> tuple[Any, CredentialSource | None]:
        """Create obstore's store object, which connects with its first request, and only to the servers of `settings`.

        Args:
            settings: Result of :meth:`find_settings`.
            server_address: Numeric address of the server, see
                :func:`streamloader.stores.objects.network.find_server_address`.
            timeouts: Time limits of the store.

        Returns:
            The store object, and the source of its credentials, or None if obstore finds them by itself.

        Raises:
            ConfigError: If an option is invalid.
        """
        credentials = None if settings.provider is None else CredentialSource(settings.provider)
        hosts = settings.credential_hosts
        if isinstance(settings.provider, MachineCredentials):  # obstore itself requests nothing there
            hosts = tuple(host for host in hosts if host != settings.provider.host)
        class_name = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}[self.scheme]
        client_options = {
            "allow_http": settings.endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=timeouts.connect),
            "timeout": _TRANSFER_TIMEOUT,
            "pool_idle_timeout": _CONNECTION_IDLE_TIMEOUT,
            **restrict_connections(settings.endpoint, server_address, hosts),
            **self._find_authorities(),
            **self.client_options,
        }
        try:
            store = getattr(get_obstore().store, class_name)(
                self.bucket,
                config={**settings.config, **self.config},
                client_options=client_options,
                # The retry policy of this package retries instead, because it knows all deadlines.
                retry_config={"max_retries": 0},
                **({} if credentials is None else {"credential_provider": credentials}),
            )
        except (get_obstore().exceptions.BaseError, ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0] if not self.secrets else "see the documentation of ObjectStore"
            raise ConfigError(f"{self.scheme}://{self.bucket} cannot be set up: {reason}") from None
        return store, credentials

    def _find_authorities(self) -> dict[str, Any]:
        """Return the client option for the certificate authorities of the options and the environment.

        Raises:
            ConfigError: If the file cannot be read.
        """
        path = find_ca_path(self.ca_file, first="AWS_CA_BUNDLE" if self.scheme == "s3" else None)
        if path is None or os.path.isdir(path):  # of a folder, obstore's own libraries read SSL_CERT_DIR
            return {}
        load_authorities(path)
        with open(path, encoding="latin-1") as file:
            # obstore trusts it for servers, too: it always has a proxy, see `restrict_connections`.
            return {"proxy_ca_certificate": file.read()}

    def _names_credentials(self, variables: Iterable[str]) -> bool:
        """Return whether `config` or one of these variables tells obstore how to get credentials."""
        return any(word in name.lower() for name in (*self.config, *variables) for word in _CREDENTIAL_WORDS)

    def _configure_s3(self) -> _Configuration:
        """Return obstore's configuration, the provider of credentials, the usual server, and those of credentials."""
        environment = os.environ
        config: dict[str, Any] = {"disable_bulk_delete": True}  # so that each deletion has its own response
        endpoint = (
            self.endpoint_url
            or environment.get("AWS_ENDPOINT_URL_S3")
            or environment.get("AWS_ENDPOINT_URL")
            or environment.get("AWS_ENDPOINT")
        )
        is_provider = not (endpoint or _find_endpoint(self.config))
        metadata = self._find_aws_metadata_service(is_provider=is_provider)
        provider, profile = self._find_aws_credentials(metadata)
        endpoint = endpoint or (profile.endpoint_url if profile else None)
        region = self.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        if region := region or (profile.region if profile else None):
            config["region"] = region
        if endpoint:
            _check_endpoint(endpoint)
            config["endpoint"] = endpoint.rstrip("/")
            if "AWS_ENDPOINT_URL_S3" in environment:
                config["aws_endpoint_url_s3"] = config["endpoint"]  # otherwise the variable takes precedence
        region = str(self.config.get("region") or self.config.get("aws_region") or region or "us-east-1")
        if not _NAME.fullmatch(region):
            raise ConfigError("the region of s3:// may contain only letters, digits and '-'")
        hosts = []
        if provider is None and not self.anonymous:
            hosts = [split_url(metadata).hostname or ""] if metadata else []
            hosts += [f"sts.{region}.amazonaws.com", *_find_hosts(environment, "AWS_ENDPOINT_URL_STS")]
        elif isinstance(provider, MachineCredentials) and not self.anonymous:
            hosts = [provider.host]
        if (zone := _EXPRESS_ZONE.search(self.bucket)) is not None:  # S3 Express has a server for each bucket
            hosts.append(f"{self.bucket}.s3express-{zone[1]}.{region}.amazonaws.com")
        return config, provider, f"https://s3.{region}.amazonaws.com", hosts

    def _find_aws_credentials(  # noqa: PLR0911 - one for each source
        self, metadata: str | None
    ) -> tuple[Callable[[], Any] | None, AwsProfile | None]:
        """Return the provider of credentials (None if obstore finds them) and the profile.

        Args:
            metadata: Address of the metadata service, or None if it may not be queried.
        """
        if self.access_key_id:
            keys = {"secret_access_key": self.secret_access_key, "token": self.session_token}
            return StaticCredentials(access_key_id=self.access_key_id, **keys), None
        if self.credential_provider is not None or self.anonymous:
            return self.credential_provider, None
        profile = read_profile(self.profile)
        if not self.profile and (found := _find_keys(self.config)) is not None:
            return StaticCredentials(**found), profile
        if not self.profile and "AWS_ACCESS_KEY_ID" in os.environ:
            return EnvironmentCredentials(), profile
        if not self.profile and (identity := self._find_machine_identity(profile)) is not None:
            return identity, profile
        if profile is not None and profile.web_identity is not None:
            return self._assume_role(profile.web_identity, profile), profile
        if profile is not None and profile.has_credentials:
            return ProfileCredentials(profile.name), profile
        if self.profile:
            raise ConfigError(f"the AWS profile {self.profile!r} names no way to get credentials")
        has_own_server = profile is not None and profile.endpoint_url and not may_query_metadata_service()
        settings = {**os.environ, **self.config}
        if metadata and not has_own_server and not _is_set(settings, "skip_signature"):
            return InstanceCredentials(metadata, allows_version_1=_is_set(settings, "imdsv1_fallback")), profile
        if self._names_credentials(os.environ.keys() & {"AWS_SKIP_SIGNATURE"}):
            return None, profile
        return NoCredentials(f"s3://{self.bucket}", "AWS_EC2_METADATA_DISABLED=false"), profile

    def _find_machine_identity(self, profile: AwsProfile | None) -> MachineCredentials | None:
        """Return the provider for the web identity or the container that `config` or the environment names, or None."""
        given = {f"AWS_{str(name).upper().removeprefix('AWS_')}": str(value) for name, value in self.config.items()}
        environment = {**os.environ, **given}
        if "AWS_WEB_IDENTITY_TOKEN_FILE" in environment:
            settings = {
                name: environment[f"AWS_{name.upper()}"]
                for name in ("role_arn", "web_identity_token_file", "role_session_name")
                if f"AWS_{name.upper()}" in environment
            }
            return self._assume_role(settings, profile)
        if any(name in environment for name in _CONTAINER_VARIABLES):
            return ContainerCredentials(environment)
        return None

    def _assume_role(self, settings: Mapping[str, str], profile: AwsProfile | None) -> WebIdentityCredentials:
        """Return the provider for a web identity.

        Raises:
            ConfigError: If it names no role.
        """
        environment = os.environ
        if "role_arn" not in settings:
            raise ConfigError("AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN, the role for the token, is not")
        region = self.region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        region = region or (profile.region if profile else None) or "us-east-1"
        if not _NAME.fullmatch(region):
            raise ConfigError("the region of s3:// may contain only letters, digits and '-'")
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = environment.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{domain}"
        _check_endpoint(endpoint)
        return WebIdentityCredentials(
            endpoint,
            settings["role_arn"],
            settings.get("role_session_name", "streamloader"),
            expand_path(settings["web_identity_token_file"]),
            find_ca_path(self.ca_file, first="AWS_CA_BUNDLE"),
        )

    def _find_aws_metadata_service(self, *, is_provider: bool) -> str | None:
        """Return the address of the metadata service if it may be queried, otherwise None.

        It may if the environment names it or allows it. By default it may for Amazon's own servers, and for no others.
        """
        environment = os.environ
        given = self.config.get("metadata_endpoint") or self.config.get("aws_metadata_endpoint")
        if given or environment.get("AWS_METADATA_ENDPOINT"):
            return str(given or environment["AWS_METADATA_ENDPOINT"])
        if not may_query_metadata_service() and not (is_provider and not is_metadata_service_disabled()):
            return None
        return environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or f"http://{_METADATA_HOST}"

    def _configure_gs(self) -> _Configuration:
        """Return obstore's configuration, the provider of credentials, the usual server, and those of credentials."""
        config: dict[str, Any] = {}
        provider = self.credential_provider
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        endpoint = self.endpoint_url or emulator or os.environ.get("GOOGLE_BASE_URL") or _find_endpoint(self.config)
        if endpoint:
            _check_endpoint(endpoint)
            config["base_url"] = endpoint.rstrip("/")
        if self.token:
            provider = StaticCredentials(token=self.token)
        elif self.service_account:
            config["service_account"] = expand_path(self.service_account)
        elif provider is None and emulator and not self.endpoint_url:
            config["skip_signature"] = True  # emulators have no accounts
        elif provider is None and endpoint and not self.anonymous and not self._finds_google_credentials():
            provider = NoCredentials(f"gs://{self.bucket}", "GCE_METADATA_HOST=metadata.google.internal")
        hosts = [] if provider is not None or self.anonymous else [*_GOOGLE_HOSTS]
        names = [os.environ[name] for name in _GOOGLE_METADATA_VARIABLES if name in os.environ]
        if hosts and (names or not endpoint):
            hosts += [*_GOOGLE_METADATA_HOSTS, *(name.partition(":")[0] for name in names)]
        return config, provider, "https://storage.googleapis.com", hosts

    def _finds_google_credentials(self) -> bool:
        """Return whether obstore finds credentials of Google, or may ask the metadata service for them."""
        return (
            self._names_credentials(name for name in os.environ if name.startswith("GOOGLE_"))
            or any(name in os.environ for name in ("SERVICE_ACCOUNT", *_GOOGLE_METADATA_VARIABLES))
            or os.path.isfile(os.path.expanduser("~/.config/gcloud/application_default_credentials.json"))
        )

    def _configure_az(self) -> _Configuration:
        """Return obstore's configuration, the provider of credentials, the usual server, and those of credentials."""
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
        endpoint = endpoint or environment.get("AZURE_ENDPOINT") or _find_endpoint(self.config)
        if endpoint:
            _check_endpoint(endpoint)
            config["endpoint"] = endpoint.rstrip("/")
        key = self.account_key or options["account_key"]
        if not has_login and not key and "AZURE_STORAGE_KEY" in environment:
            key = environment["AZURE_STORAGE_KEY"]
        if key:
            provider = StaticCredentials(access_key=key)
        elif signature := self.sas_token or options["sas_token"]:
            provider = StaticCredentials(sas_token=signature.lstrip("?"))
        elif self.token:
            provider = StaticCredentials(token=self.token)
        elif provider is None and endpoint and not self.anonymous and not self._finds_azure_credentials():
            provider = NoCredentials(f"az://{self.bucket}", _AZURE_METADATA_SETTING)
        hosts = [] if provider is not None or self.anonymous else [_AZURE_LOGIN_HOST]
        if hosts:
            hosts += _find_hosts(environment, "AZURE_AUTHORITY_HOST", *_AZURE_METADATA_VARIABLES)
            hosts += [] if endpoint else [_METADATA_HOST]
        if not _NAME.fullmatch(str(name)):
            raise ConfigError("the account_name of az:// may contain only letters, digits and '-'")
        fabric = _is_set({**environment, **self.config}, "use_fabric_endpoint")
        domain = "fabric.microsoft.com" if fabric else "core.windows.net"
        return config, provider, f"https://{name}.blob.{domain}", hosts

    def _finds_azure_credentials(self) -> bool:
        """Return whether obstore finds credentials of Azure, or may ask the machine's identity service for them."""
        names = [name for name in os.environ if name.startswith("AZURE_")]
        return self._names_credentials(names) or any(name in os.environ for name in _AZURE_METADATA_VARIABLES)


_Configuration: TypeAlias = tuple[dict[str, Any], Callable[[], Any] | None, str, list[str]]


def _find_keys(config: Mapping[str, Any]) -> dict[str, str | None] | None:
    """Return the keys in a configuration of obstore for S3, or None."""
    plain = {str(name).lower().removeprefix("aws_"): value for name, value in config.items() if value}
    if "access_key_id" not in plain or "secret_access_key" not in plain:
        return None
    token = plain.get("session_token") or plain.get("token")
    return {
        "access_key_id": str(plain["access_key_id"]),
        "secret_access_key": str(plain["secret_access_key"]),
        "token": None if token is None else str(token),
    }


def _find_endpoint(config: Mapping[str, Any]) -> str | None:
    """Return the address of the server in a configuration of obstore, or None."""
    plain = {str(name).lower(): value for name, value in config.items() if value}
    names = [prefix + key for key in _ENDPOINT_KEYS for prefix in ("", *_CLOUD_PREFIXES)]
    return next((str(plain[name]).rstrip("/") for name in names if name in plain), None)


def _is_set(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether a setting of Azure is switched on, by a variable or in a configuration of obstore."""
    plain = {str(key).lower(): str(value).lower() for key, value in settings.items()}
    return any(
        plain.get(prefix + name, "") in ("1", "true", "t", "yes", "y", "on") for prefix in ("", *_CLOUD_PREFIXES)
    )


def _find_hosts(environment: Mapping[str, str], *variables: str) -> list[str]:
    """Return the hosts of the addresses in environment variables."""
    return [split_url(environment[name]).hostname or "" for name in variables if name in environment]


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = split_url(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        port = parts.port  # raises if it is not a number
    except ValueError:
        valid, parts, port = False, None, None
    del port
    if not valid:
        raise ConfigError("endpoint_url= is not an address of the form https://host:port")
    if parts is not None and "@" in parts.netloc:
        raise ConfigError("endpoint_url= must not contain a user name or password; pass credentials as options")
    check_host_name((parts.hostname or "") if parts is not None else "")
