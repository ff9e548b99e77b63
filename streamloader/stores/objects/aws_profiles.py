"""Profiles of the AWS files ``~/.aws/config`` and ``~/.aws/credentials``.

Their format: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-files.html, and for ``credential_process``
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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from streamloader.errors import AccessDenied, ConfigError, MissingExtra

__all__ = ["Profile", "ProfileCredentials", "read_profile"]

_LOOK_AGAIN: Final = timedelta(minutes=5)  # into the files: tools that log in write new keys there
_PROCESS_SECONDS: Final = 60.0
_BOTO: Final = ("role_arn", "sso_session", "sso_start_url", "credential_source", "login_session")


@dataclass(frozen=True)
class Profile:
    """One profile: its name and its settings from both files, those for credentials winning."""

    name: str
    settings: Mapping[str, str]
    services: Mapping[str, str]

    @property
    def region(self) -> str | None:
        """The region that it says."""
        return self.settings.get("region")

    @property
    def endpoint_url(self) -> str | None:
        """The endpoint that it says: the one for S3, or the one for everything."""
        for text in (self.settings.get("s3"), self.services.get("s3")):
            if text and (found := _nested(text).get("endpoint_url")):
                return found
        return self.settings.get("endpoint_url")

    @property
    def has_credentials(self) -> bool:
        """Whether it says how to get credentials."""
        return any(key in self.settings for key in ("aws_access_key_id", "credential_process", *_BOTO))

    @property
    def web_identity(self) -> dict[str, str] | None:
        """What obstore needs to take on a role by a token of this machine, if that is how this profile logs in."""
        found = {
            ours: self.settings[theirs]
            for ours, theirs in (
                ("role_arn", "role_arn"),
                ("web_identity_token_file", "web_identity_token_file"),
                ("role_session_name", "role_session_name"),
            )
            if theirs in self.settings
        }
        return found if "web_identity_token_file" in found and "role_arn" in found else None


def read_profile(name: str | None) -> Profile | None:
    """Return a profile from the files; without a name the one of AWS_PROFILE, or "default", None if there is none.

    Raises:
        ConfigError: there is no profile of this name, or a file cannot be understood.
    """
    wanted = name or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    config, credentials = _parsed("AWS_CONFIG_FILE", "config"), _parsed("AWS_SHARED_CREDENTIALS_FILE", "credentials")
    settings: dict[str, str] = {}
    found = False
    for parser, section in ((config, "default" if wanted == "default" else f"profile {wanted}"), (credentials, wanted)):
        if parser.has_section(section):
            found = True
            settings.update(parser.items(section))
    if not found:
        if name is None and wanted == "default":
            return None
        raise ConfigError(f"there is no profile {wanted!r} in ~/.aws/config or ~/.aws/credentials")
    services = f"services {settings.get('services', '')}"
    return Profile(wanted, settings, dict(config.items(services)) if config.has_section(services) else {})


class ProfileCredentials:
    """Gives the credentials of a profile, and new ones when they have run out. It can be pickled."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def __call__(self) -> dict[str, Any]:
        """Return credentials as obstore takes them.

        Raises:
            AccessDenied: the profile gives none.
            MissingExtra: it takes boto3 to log in as it says.
        """
        profile = await asyncio.to_thread(read_profile, self._name)
        assert profile is not None  # it has a name
        settings = profile.settings
        if "aws_access_key_id" in settings and "aws_secret_access_key" in settings:
            return {
                "access_key_id": settings["aws_access_key_id"],
                "secret_access_key": settings["aws_secret_access_key"],
                "token": settings.get("aws_session_token"),
                "expires_at": datetime.now(UTC) + _LOOK_AGAIN,
            }
        if "credential_process" in settings:
            return await _ask_process(settings["credential_process"], self._name)
        if profile.has_credentials:
            return await asyncio.to_thread(_ask_boto, self._name)
        raise AccessDenied(f"the AWS profile {self._name!r} has no credentials, and does not say how to get some")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


async def _ask_process(command: str, name: str) -> dict[str, Any]:
    """Run the program that a profile names, and take what it prints."""
    try:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(command), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except (OSError, ValueError) as error:
        raise AccessDenied(f"the credential_process of the AWS profile {name!r} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(_PROCESS_SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        raise AccessDenied(
            f"the credential_process of the AWS profile {name!r} took more than {_PROCESS_SECONDS:.0f} s"
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
        found = json.loads(said)
        if found["Version"] != 1:
            raise ValueError
        ends = found.get("Expiration")
        return {
            "access_key_id": str(found["AccessKeyId"]),
            "secret_access_key": str(found["SecretAccessKey"]),
            "token": found.get("SessionToken"),
            "expires_at": _time(ends) if ends else datetime.now(UTC) + _LOOK_AGAIN,
        }
    except (ValueError, KeyError, TypeError):  # whose text would tell what it printed
        raise AccessDenied(
            f"the credential_process of the AWS profile {name!r} printed no credentials of version 1"
        ) from None


def _ask_boto(name: str) -> dict[str, Any]:
    """Log in with boto3: roles and single sign-on."""
    try:
        boto3, problems = importlib.import_module("boto3"), importlib.import_module("botocore.exceptions")
    except ImportError as error:
        raise MissingExtra(
            f"the AWS profile {name!r} takes on a role or uses single sign-on, which needs boto3: pip install boto3"
        ) from error
    try:
        credentials = boto3.Session(profile_name=name).get_credentials()
        frozen = credentials.get_frozen_credentials()
    except (problems.BotoCoreError, problems.ClientError, AttributeError) as error:
        raise AccessDenied(f"the AWS profile {name!r} gives no credentials ({type(error).__name__})") from None
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _LOOK_AGAIN,
    }


def _parsed(variable: str, file: str) -> configparser.RawConfigParser:
    path = os.path.expanduser(os.environ.get(variable) or f"~/.aws/{file}")
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # whose text quotes the line, perhaps a key
        raise ConfigError(f"{path} cannot be understood as an AWS file of profiles") from None
    return parser


def _nested(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
