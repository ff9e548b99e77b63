"""Say what is wrong and what to do, for the error of a step."""

from __future__ import annotations

import re
from typing import Final

from streamloader.common.printable import make_printable
from streamloader.errors import (
    AccessDenied,
    CatalogError,
    IntegrityError,
    MissingDependency,
    NotFound,
    ObjectChanged,
    ProtocolError,
    ServerBusy,
    StoreTimeout,
    StreamloaderError,
    TransferInterrupted,
    Unreachable,
    UntrustedHost,
)

__all__ = ["describe_failure"]

# Messages of this package say what is wrong, and often what to do.
_ADVICE_START: Final = re.compile(r"(?:\. (?=[A-Z])|[:;] (?=(?:check|install|name|pass|put|raise|read|set) ))")
_CREDENTIALS: Final = {
    "ssh": "name a key that the server accepts (client_keys), start the agent that has it, or add an offered key to "
    "authorized_keys on the server",
    "sftp": "name a key that the server accepts (client_keys), or start the agent that has it",
    "http": "put the login into the address, the options (auth, token) or the netrc file",
    "https": "put the login into the address, the options (auth, token) or the netrc file",
    "s3": "check the credentials and the rights of the bucket (access_key_id, profile, or anonymous for public data)",
    "gs": "check the credentials and the rights of the bucket (service_account, token, or anonymous for public data)",
    "az": "check the credentials and the rights of the container (account_key, sas_token; anonymous for public data)",
    "file": "let this user read the file, and enter the directories above it",
}
_NO_TLS: Final = "WRONG_VERSION_NUMBER"  # OpenSSL's name for an answer that is no TLS record
_STEP_ADVICE: Final = {
    "resolve": "check the host name in the address, and the name service or VPN of this machine",
    "connect": "check the port, that the server runs and listens there, and that no firewall stands between",
    "tls": "pass ca_file with the certificate of your own authority, or correct the certificate of the server",
}


_NO_ANSWER: Final = "check the address and the port: a firewall that drops packets looks like this"
_TOO_SLOW: Final = "check the load of the server and the line to it, or pass a higher --timeout"
_HOST_KEY: Final = (
    "compare the fingerprint with that of the server's own file (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub "
    "there), and put the right key into known_hosts"
)
_ERROR_ADVICE: Final[tuple[tuple[tuple[type[StreamloaderError], ...], str], ...]] = (
    ((NotFound,), "check the spelling of the address, and list the directory above it"),
    ((ServerBusy,), "wait and try again, or lower the number of requests and connections (Limits)"),
    ((Unreachable, TransferInterrupted), _STEP_ADVICE["connect"]),
    (
        (ProtocolError, ObjectChanged, IntegrityError),
        "check what answers at this address: a proxy, a login page or another service may stand between",
    ),
    ((CatalogError,), "check the address of the catalog, its server and the credentials"),
    ((MissingDependency,), "install the package that the message names"),
)
_MAX_ADVICE_CHARACTERS: Final = 400


def describe_failure(step: str, error: StreamloaderError, url: str) -> tuple[str, str]:
    """Return what is wrong, and what to do.

    Args:
        step: Name of the step that failed.
        error: Error of the step.
        url: Address of the store, without secrets.
    """
    problem, advice = error.message, ""
    if (split := _ADVICE_START.search(problem)) is not None:
        problem, advice = problem[: split.start()], problem[split.end() :]
    offered = error.details.get("offered")
    if isinstance(error, AccessDenied) and not isinstance(error, UntrustedHost) and offered is not None:
        problem += f" (offered: {', '.join(offered) if offered else 'no key'})"
    scheme = url.partition("://")[0] if "://" in url else "file"
    return problem, make_printable(advice, _MAX_ADVICE_CHARACTERS) or _find_advice(step, error, scheme)


def _find_advice(step: str, error: StreamloaderError, scheme: str) -> str:
    if step == "tls" and _NO_TLS in error.message:
        return "the server does not speak TLS there: write http:// instead of https://, or correct the port"
    if isinstance(error, StoreTimeout):
        return _NO_ANSWER if step in ("resolve", "connect") else _TOO_SLOW
    if step in _STEP_ADVICE:
        return _STEP_ADVICE[step]
    if isinstance(error, UntrustedHost):
        return _HOST_KEY if scheme in ("ssh", "sftp") else _STEP_ADVICE["tls"]
    if isinstance(error, AccessDenied):
        return _CREDENTIALS.get(scheme, "check the credentials in the options of the store")
    return next((advice for kinds, advice in _ERROR_ADVICE if isinstance(error, kinds)), "see the message of the step")
