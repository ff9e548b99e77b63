"""Secrets for logins of the tests, and a watch that searches all output for them: no secret may leak.

Server fixtures take their passwords, keys and tokens from here, so that they travel wherever a user's would. Every log
record of every library, every error of ours that is made anywhere, and every report of a test is searched for them.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
from contextlib import contextmanager

from streamloader import errors

NAMES = (
    "ssh-password",
    "ssh-address-password",
    "ssh-wrong-password",
    "ssh-passphrase",
    "ssh-jump-password",
    "s3-secret-key",
    "s3-wrong-secret-key",
    "s3-session-token",
    "s3-profile-secret-key",
    "s3-read-only-secret-key",
    "gs-token",
    "az-key",
    "http-password",
    "http-address-password",
    "http-bearer",
    "http-header",
    "http-signature",
    "http-netrc",
    "ipfs-rpc-token",
    "fsspec-password",
    "mongo-password",
)


def canary(name: str) -> str:
    """Return the secret of this name: the same in every process."""
    if name not in NAMES:
        raise KeyError(name)
    return "Canary" + hashlib.sha256(name.encode()).hexdigest()[:26]


VALUES = {canary(name): name for name in NAMES}


def find_secrets(text: str) -> list[str]:
    """Return the names of the secrets that `text` tells."""
    return [name for value, name in VALUES.items() if value in text]


class Watch(logging.Handler):
    """Collects the places where secrets leaked.

    Attributes:
        lines: one for each time, without the secret itself.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def look(self, where: str, text: str) -> None:
        """Search one text."""
        self.lines += [f"{where} tells the secret {name!r}" for name in find_secrets(text)]

    def emit(self, record: logging.LogRecord) -> None:
        """Search a log record, its arguments and its traceback."""
        text = f"{record.getMessage()} {record.args!r}"
        if record.exc_info and record.exc_info[1] is not None:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        self.look(f"a log record of {record.name!r}", text)

    @contextmanager
    def over_errors(self):
        """Search every error of ours, as soon as it is made."""
        original = errors.StreamloaderError.__init__

        def init(error: errors.StreamloaderError, *args: object, **kwargs: object) -> None:
            original(error, *args, **kwargs)
            places = (error.stream, error.address, error.offset, error.details, error.worker_traceback)
            self.look(f"a {type(error).__name__}", f"{error} {error!r} {error.args!r} {places!r}")

        errors.StreamloaderError.__init__ = init
        try:
            yield
        finally:
            errors.StreamloaderError.__init__ = original
