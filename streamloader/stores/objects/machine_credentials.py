"""Credentials that AWS gives to a machine: for a web identity, a container, or an instance.

All requests of a store have them from here: obstore's own, and those of :mod:`streamloader.stores.objects.s3_client`.

- Web identities (EKS and others): https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
- Containers (ECS, EKS Pod Identity): https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
- Instances (version 2 of the metadata service):
  https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

from __future__ import annotations

import abc
import asyncio
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import quote, urlencode

import aiohttp
from typing_extensions import override

from streamloader.common.printable import make_printable
from streamloader.config import Limits, Timeouts
from streamloader.errors import AccessDenied, ConfigError, ProtocolError, ServerBusy, StoreTimeout
from streamloader.stores.addresses import split_url
from streamloader.stores.http.address_scope import AddressScope
from streamloader.stores.http.client import HttpClient, HttpServerConfig
from streamloader.stores.http.responses import BUSY_STATUSES, ErrorContext, parse_retry_after, read_beginning

__all__ = ["ContainerCredentials", "InstanceCredentials", "MachineCredentials", "WebIdentityCredentials"]

_TIMEOUT_S: Final = 10.0  # of one request
_CONNECT_TIMEOUT_S: Final = 3.0  # outside of a cloud, nothing answers
_MAX_RESPONSE_BYTES: Final = 1 << 16
_TOKEN_LIFETIME_S: Final = 21_600
_SESSION_LIFETIME_S: Final = 3_600
# Expiries are that much earlier than AWS says, so that no request is signed with keys that are about to expire.
_EXPIRY_MARGIN: Final = timedelta(minutes=2)
# Hosts that may receive the token of a container without encryption, by AWS's documentation; and this machine.
_CONTAINER_HOSTS: Final = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost", "::1")
_CONTAINER_ROOT: Final = "http://169.254.170.2"
_ROLE_NAME: Final = re.compile(r"[\w+=,.@-]{1,128}", re.ASCII)
_FIELD: Final = re.compile(r"<(AccessKeyId|SecretAccessKey|SessionToken|Expiration|Code|Message)>([^<]*)</")


class MachineCredentials(abc.ABC):
    """Provider of credentials that a machine has without any key of the user.

    Attributes:
        source: Name of the service, for messages.
        host: Host of the service.
    """

    source: ClassVar[str]
    host: str

    @abc.abstractmethod
    async def __call__(self) -> dict[str, Any]:
        """Return credentials in obstore's format.

        Raises:
            AccessDenied: If the service has none for this machine, or there is no service.
            StoreError: If the service does not answer as it should.
        """


class InstanceCredentials(MachineCredentials):
    """Provider of the credentials of the role of an instance, from its metadata service.

    Args:
        endpoint: Address of the service.
        allows_version_1: Whether version 1 of the service is used where version 2 is refused.
    """

    source = "the metadata service"

    def __init__(self, endpoint: str, *, allows_version_1: bool = False) -> None:
        self._endpoint = endpoint.rstrip("/")
        self.host = split_url(endpoint).hostname or ""
        self._allows_version_1 = allows_version_1

    @override
    async def __call__(self) -> dict[str, Any]:
        async with _open_session() as session:
            lifetime = {"x-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFETIME_S)}
            status, token = await _fetch(session, "PUT", f"{self._endpoint}/latest/api/token", lifetime)
            if status == HTTPStatus.OK:
                headers = {"x-aws-ec2-metadata-token": token.strip()}
            elif self._allows_version_1:
                headers = {}
            else:
                raise _make_refusal(self._endpoint, status)
            folder = f"{self._endpoint}/latest/meta-data/iam/security-credentials/"
            status, roles = await _fetch(session, "GET", folder, headers)
            role = roles.strip().partition("\n")[0].strip()
            if status != HTTPStatus.OK or _ROLE_NAME.fullmatch(role) is None:
                raise _make_refusal(self._endpoint, status)
            status, text = await _fetch(session, "GET", f"{folder}{quote(role, safe='')}", headers)
        return _parse_document(self._endpoint, status, text)


class ContainerCredentials(MachineCredentials):
    """Provider of the credentials of a container, from the agent that its environment names.

    Args:
        settings: Environment variables.
    """

    source = "the agent of the container"

    def __init__(self, settings: Mapping[str, str]) -> None:
        relative = settings.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        self._url = f"{_CONTAINER_ROOT}{relative}" if relative else settings["AWS_CONTAINER_CREDENTIALS_FULL_URI"]
        parts = split_url(self._url)
        self.host = host = parts.hostname or ""
        if parts.scheme != "https" and not (host in _CONTAINER_HOSTS or re.fullmatch(r"127(\.\d{1,3}){3}", host)):
            raise ConfigError(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI is not encrypted, and neither that of this machine nor of an agent "
                "of AWS: it would receive a token of this container"
            )
        self._file = settings.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        self._token = settings.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")

    @override
    async def __call__(self) -> dict[str, Any]:
        token = self._token if self._file is None else await asyncio.to_thread(_read_token, self._file)
        if token is not None and ("\r" in token or "\n" in token):
            raise ConfigError("the authorization token of the container has several lines")
        async with _open_session() as session:
            status, text = await _fetch(session, "GET", self._url, {"Authorization": token} if token else {})
        return _parse_document(self._url, status, text)


class WebIdentityCredentials(MachineCredentials):
    """Provider of the credentials of a role that a token of this machine may assume.

    Args:
        endpoint: Address of the service STS.
        role: ARN of the role.
        session_name: Name of the session, which the logs of AWS show.
        token_file: Path of the token, which others renew.
        ca_file: PEM file of the trusted certificate authorities, or None.
    """

    source = "a web identity"

    def __init__(self, endpoint: str, role: str, session_name: str, token_file: str, ca_file: str | None) -> None:
        parts = split_url(endpoint)
        self._root, self._path = f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")
        self.host = parts.hostname or ""
        self._role, self._session_name, self._token_file = role, session_name, token_file
        self._ca_file = ca_file

    @override
    async def __call__(self) -> dict[str, Any]:
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "DurationSeconds": str(_SESSION_LIFETIME_S),
            "RoleArn": self._role,
            "RoleSessionName": self._session_name,
            "Version": "2011-06-15",
            "WebIdentityToken": await asyncio.to_thread(_read_token, self._token_file),
        }
        timeouts = Timeouts(connect=_TIMEOUT_S)
        server = HttpServerConfig(self._root, {}, AddressScope.SPECIAL, self._ca_file, {})
        client = HttpClient(server, timeouts, Limits(redirects=0))
        await client.open()
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
            async with asyncio.timeout(_TIMEOUT_S):
                context = ErrorContext(self._root)
                response = await client.send("POST", self._path, headers, context, body=urlencode(form).encode())
                try:
                    text = await read_beginning(response, _MAX_RESPONSE_BYTES)
                finally:
                    client.release(response)
        except TimeoutError as error:
            raise _make_timeout(self._root) from error
        finally:
            await client.aclose()
        fields = dict(_FIELD.findall(text))
        if response.status != HTTPStatus.OK or "AccessKeyId" not in fields:
            reason = make_printable(f"{fields.get('Code', '')}: {fields.get('Message', '')}".strip(": "), 300)
            raise _make_refusal(self._root, response.status, reason, parse_retry_after(response.headers))
        names = {"Token": fields.get("SessionToken")} | fields
        return _make_credentials(self._root, names)


def _open_session() -> aiohttp.ClientSession:
    """Open a session without proxies: these services are on this machine, or next to it."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
    return aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())


async def _fetch(session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]) -> tuple[int, str]:
    """Return the status and the text of a response. Redirects are not followed.

    Raises:
        AccessDenied: If nothing answers.
        ServerBusy: If the service is busy or failing.
        StoreTimeout: If it does not answer in time.
    """
    try:
        async with session.request(method, url, headers=headers, allow_redirects=False) as response:
            text = await read_beginning(response, _MAX_RESPONSE_BYTES)
    except aiohttp.ConnectionTimeoutError:
        raise _make_absence(url) from None
    except TimeoutError:
        raise _make_timeout(url) from None
    except (aiohttp.ClientError, OSError):
        raise _make_absence(url) from None
    if response.status in BUSY_STATUSES:
        raise _make_refusal(url, response.status, "", parse_retry_after(response.headers))
    return response.status, text


def _parse_document(url: str, status: int, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if status != HTTPStatus.OK or not isinstance(document, dict) or "AccessKeyId" not in document:
        code = document.get("Code", document.get("code", "")) if isinstance(document, dict) else ""
        raise _make_refusal(url, status, make_printable(str(code), 100))
    return _make_credentials(url, document)


def _make_credentials(url: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        expires_at = datetime.fromisoformat(fields["Expiration"])
        if expires_at.tzinfo is None:
            raise ValueError
        return {
            "access_key_id": str(fields["AccessKeyId"]),
            "secret_access_key": str(fields["SecretAccessKey"]),
            "token": fields.get("Token"),
            "expires_at": expires_at - _EXPIRY_MARGIN,
        }
    except (KeyError, TypeError, ValueError):  # not chained: the message could contain the document
        raise ProtocolError(f"{_name_server(url)} sent no complete credentials", address=_name_server(url)) from None


def _read_token(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessDenied(
            f"the token of this machine's identity cannot be read from {path}: {type(error).__name__}"
        ) from error


def _make_refusal(
    url: str, status: int, reason: str = "", retry_after: float | None = None
) -> AccessDenied | ServerBusy:
    server = _name_server(url)
    details = f"status {status}" + f", {reason}" * bool(reason)
    if status in BUSY_STATUSES:
        message = f"{server}, which gives the credentials, is busy or failing ({details})"
        return ServerBusy(message, address=server, status=status, retry_after=retry_after)
    return AccessDenied(
        f"no credentials were found: {server} gives none to this machine ({details}). Pass them as options (profile=, "
        "access_key_id=, ...), set the environment variables, or pass anonymous=True",
        address=server,
    )


def _make_absence(url: str) -> AccessDenied:
    server = _name_server(url)
    return AccessDenied(
        "no credentials were found: pass them as options (profile=, access_key_id=, token=, ...), set the environment "
        f"variables, or pass anonymous=True; {server}, the metadata service of this machine, cannot be reached",
        address=server,
    )


def _make_timeout(url: str) -> StoreTimeout:
    server = _name_server(url)
    return StoreTimeout(
        f"waited {_TIMEOUT_S:.1f} s for {server} (credentials): no response",
        address=server,
        waited=_TIMEOUT_S,
        stage="credentials",
    )


def _name_server(url: str) -> str:
    parts = split_url(url)
    return f"{parts.scheme}://{parts.netloc}"
