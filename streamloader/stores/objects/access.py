"""Describe the server of an object store, and where its credentials come from."""

from __future__ import annotations

from typing import Final

from streamloader.redaction import redact_address
from streamloader.stores.access import ServerAddress, StoreAccess
from streamloader.stores.environment import find_proxy
from streamloader.stores.objects.aws_profiles import ProfileCredentials
from streamloader.stores.objects.config import ObjectStoreConfig, ObstoreSettings
from streamloader.stores.objects.credentials import EnvironmentCredentials, NoCredentials, StaticCredentials
from streamloader.stores.objects.machine_credentials import MachineCredentials

__all__ = ["describe_access"]

_CREDENTIAL_OPTIONS: Final = (
    "access_key_id", "secret_access_key", "session_token", "token", "account_key", "sas_token", "connection_string",
)  # fmt: skip


def describe_access(config: ObjectStoreConfig) -> StoreAccess:
    """Return how a bucket is reached.

    Raises:
        ConfigError: If an option or a profile is invalid.
    """
    settings = config.find_settings()
    facts = {
        "bucket": config.bucket,
        "endpoint": redact_address(settings.endpoint),
        "credentials": _describe_credentials(config, settings),
    }
    if region := settings.config.get("region"):
        facts["region"] = str(region)
    given_proxy = config.client_options.get("proxy_url")
    proxy = str(given_proxy) if given_proxy else find_proxy(settings.endpoint)
    if proxy is None:
        return StoreAccess((ServerAddress.from_url("server", settings.endpoint),), facts)
    facts["proxy"] = f"{redact_address(proxy)} of the {'option client_options' if given_proxy else 'environment'}"
    server = ServerAddress.from_url("proxy", proxy if "://" in proxy else f"http://{proxy}")
    return StoreAccess((server,) if server.host and server.port else (), facts)


def _describe_credentials(  # noqa: PLR0911 - one for each source
    config: ObjectStoreConfig, settings: ObstoreSettings
) -> str:
    """Return the source of the credentials. Only its name is shown, never a key."""
    provider = settings.provider
    if config.anonymous:
        return "none: requests are anonymous"
    if isinstance(provider, StaticCredentials):
        names = [name for name in _CREDENTIAL_OPTIONS if getattr(config, name)]
        return f"options {', '.join(names)}" if names else "account key or connection string of the environment"
    if isinstance(provider, EnvironmentCredentials):
        return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment"
    if isinstance(provider, ProfileCredentials):
        return f"AWS profile {provider.name}"
    if isinstance(provider, NoCredentials):
        return "none found"
    if isinstance(provider, MachineCredentials):
        return f"{provider.source} ({provider.host})"
    if provider is not None:
        return "option credential_provider"
    if config.service_account:
        return "service account of the option service_account"
    hosts = ", ".join(settings.credential_hosts)
    return "web identity, container, login file or metadata service" + (f" ({hosts})" if hosts else "")
