"""Credentials and settings of the profiles in ``~/.aws/config`` and ``~/.aws/credentials``.

File format: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html, and for ``credential_process``
https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html
"""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import importlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from streamloader.errors import AccessDenied, ConfigError, MissingDependency

__all__ = [
    "AwsProfile",
    "ProfileCredentials",
    "is_metadata_service_disabled",
    "may_query_metadata_service",
    "read_profile",
]

# Keys are read from the files again after this time, because login tools write new keys there.
_REFRESH_INTERVAL: Final = timedelta(minutes=5)
_PROCESS_TIMEOUT_S: Final = 60.0
# Settings of profiles that log in with boto3.
_BOTO3_SETTINGS: Final = ("role_arn", "sso_session", "sso_start_url", "credential_source", "login_session")


@dataclass(frozen=True)
class AwsProfile:
    """One profile.

    Attributes:
        name: Name of the profile.
        settings: Settings from both files. Those of the credentials file take precedence.
        services: Settings of the services section that the profile refers to.
    """

    name: str
    settings: Mapping[str, str] = field(repr=False)
    services: Mapping[str, str] = field(repr=False)

    @property
    def region(self) -> str | None:
        """Region of the profile, or None."""
        return self.settings.get("region")

    @property
    def endpoint_url(self) -> str | None:
        """Endpoint for S3 if the profile has one, otherwise its endpoint for all services, or None."""
        for text in (self.settings.get("s3"), self.services.get("s3")):
            if text and (endpoint := _parse_nested(text).get("endpoint_url")):
                return endpoint
        return self.settings.get("endpoint_url")

    @property
    def has_credentials(self) -> bool:
        """Whether the profile has keys or names a way to get them."""
        return any(key in self.settings for key in ("aws_access_key_id", "credential_process", *_BOTO3_SETTINGS))

    @property
    def web_identity(self) -> dict[str, str] | None:
        """Settings for obstore if the profile assumes a role with a token of this machine, otherwise None."""
        names = ("role_arn", "web_identity_token_file", "role_session_name")
        settings = {name: self.settings[name] for name in names if name in self.settings}
        return settings if "web_identity_token_file" in settings and "role_arn" in settings else None


def read_profile(name: str | None) -> AwsProfile | None:
    """Read a profile from the files.

    Args:
        name: Name of the profile. None for the one in $AWS_PROFILE, or "default".

    Returns:
        The profile, or None if `name` is None and there is no default profile.

    Raises:
        ConfigError: If there is no profile of this name, or a file cannot be parsed.
    """
    wanted = name or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    config = _parse_aws_file("AWS_CONFIG_FILE", "config")
    credentials = _parse_aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    settings: dict[str, str] = {}
    exists = False
    for parser, section in ((config, "default" if wanted == "default" else f"profile {wanted}"), (credentials, wanted)):
        if parser.has_section(section):
            exists = True
            settings.update(parser.items(section))
    if not exists:
        if name is None and wanted == "default":
            return None
        raise ConfigError(f"there is no profile {wanted!r} in ~/.aws/config or ~/.aws/credentials")
    services = f"services {settings.get('services', '')}"
    return AwsProfile(wanted, settings, dict(config.items(services)) if config.has_section(services) else {})


class ProfileCredentials:
    """Provide the credentials of a profile, and new ones when they expire. Can be pickled.

    Args:
        name: Name of the profile.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self) -> dict[str, Any]:
        """Return credentials in obstore's format.

        Raises:
            AccessDenied: If the profile provides no credentials.
            MissingDependency: If the login needs boto3 and it is not installed.
        """
        profile = await asyncio.to_thread(read_profile, self.name)
        assert profile is not None  # because it has a name
        settings = profile.settings
        if "aws_access_key_id" in settings and "aws_secret_access_key" in settings:
            return {
                "access_key_id": settings["aws_access_key_id"],
                "secret_access_key": settings["aws_secret_access_key"],
                "token": settings.get("aws_session_token"),
                "expires_at": datetime.now(UTC) + _REFRESH_INTERVAL,
            }
        if "credential_process" in settings:
            return await _run_credential_process(settings["credential_process"], self.name)
        if profile.has_credentials:
            may_query = (
                profile.settings.get("credential_source") == "Ec2InstanceMetadata" or may_query_metadata_service()
            )
            return await asyncio.to_thread(_get_boto3_credentials, self.name, may_query_metadata=may_query)
        raise AccessDenied(f"the AWS profile {self.name!r} has no credentials and names no way to get them")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


async def _run_credential_process(command: str, name: str) -> dict[str, Any]:
    """Run the credential_process of a profile and parse its output."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except (OSError, ValueError) as error:
        raise AccessDenied(f"the credential_process of the AWS profile {name!r} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(_PROCESS_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise AccessDenied(
            f"the credential_process of the AWS profile {name!r} took more than {_PROCESS_TIMEOUT_S:.0f} s"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise AccessDenied(
            f"the credential_process of the AWS profile {name!r} failed (exit status {process.returncode}): run it "
            "yourself to see why"
        )
    try:
        document = json.loads(output)
        if document["Version"] != 1:
            raise ValueError
        expiration = document.get("Expiration")
        return {
            "access_key_id": str(document["AccessKeyId"]),
            "secret_access_key": str(document["SecretAccessKey"]),
            "token": document.get("SessionToken"),
            "expires_at": _parse_time(expiration) if expiration else datetime.now(UTC) + _REFRESH_INTERVAL,
        }
    except (ValueError, KeyError, TypeError):  # not chained: the message could contain the output
        raise AccessDenied(
            f"the credential_process of the AWS profile {name!r} printed no credentials of version 1"
        ) from None


def is_metadata_service_disabled() -> bool:
    """Return whether AWS_EC2_METADATA_DISABLED forbids to query the metadata service."""
    return os.environ.get("AWS_EC2_METADATA_DISABLED", "").strip().lower() not in ("", "false")


def may_query_metadata_service() -> bool:
    """Return whether the environment names the metadata service of this machine, or allows to query the usual one."""
    disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").strip().lower()
    return disabled == "false" or (not disabled and bool(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")))


def _get_boto3_credentials(name: str, *, may_query_metadata: bool) -> dict[str, Any]:
    """Log in with boto3, which supports roles and single sign-on."""
    try:
        boto3, session = importlib.import_module("boto3"), importlib.import_module("botocore.session")
        exceptions = importlib.import_module("botocore.exceptions")
    except ImportError as error:
        raise MissingDependency(
            f"the AWS profile {name!r} assumes a role or uses single sign-on, which needs boto3: pip install boto3"
        ) from error
    try:
        settings = session.Session(profile=name)
        if not may_query_metadata:  # boto3 would query it if all else failed
            settings.set_config_variable("metadata_service_num_attempts", 0)
        credentials = boto3.Session(botocore_session=settings).get_credentials()
        frozen = credentials.get_frozen_credentials()
    except (exceptions.BotoCoreError, exceptions.ClientError, AttributeError) as error:
        raise AccessDenied(f"the AWS profile {name!r} provides no credentials ({type(error).__name__})") from None
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _REFRESH_INTERVAL,
    }


def _parse_aws_file(variable: str, file: str) -> configparser.RawConfigParser:
    """Parse the file named by an environment variable, or `file` in ``~/.aws``."""
    path = os.path.expanduser(os.environ.get(variable) or f"~/.aws/{file}")
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # not chained: the message quotes the line, which may hold a key
        raise ConfigError(f"{path} cannot be parsed as an AWS configuration file") from None
    return parser


def _parse_nested(text: str) -> dict[str, str]:
    """Parse the nested settings of a service."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
