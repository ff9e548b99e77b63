"""Look into files of private keys: which cannot be one, and which are encrypted."""

from __future__ import annotations

import base64
import binascii
import logging
import os
from collections.abc import Iterable
from typing import Any, Final

import asyncssh

from streamloader.common.printable import make_printable
from streamloader.errors import ConfigError

__all__ = ["check_client_keys", "find_locked_keys", "select_client_keys"]

_DEFAULT_KEYS: Final = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed448", "id_ed25519", "id_ecdsa", "id_rsa", "id_dsa")
_ENCRYPTED_KEY_MARKS: Final = (b"ENCRYPTED", b"bcrypt")
_PUTTY_MARK: Final = b"PuTTY-User-Key-File"
_PUBLIC_KEY_MARKS: Final = (b"ssh-", b"ecdsa-", b"sk-", b"---- BEGIN SSH2 PUBLIC KEY")
_MAX_KEY_FILE_BYTES: Final = 64 << 10
_MAX_KEY_HEAD_BYTES: Final = 64
_log: Final = logging.getLogger("streamloader")


def check_client_keys(paths: Iterable[str]) -> None:
    """Check that files which the user named are private keys. Encrypted ones are not decrypted.

    Raises:
        ConfigError: If one is not. The message names it, and tells what it is.
    """
    for path in paths:
        data = _read_key_file(path)
        if _is_public_key(data):
            raise ConfigError(f"client_keys={path!r} is a public key: name the private key, usually without .pub")
        if (problem := _find_problem(data)) is not None:
            raise ConfigError(f"client_keys={path!r} cannot be used: {problem}")


def select_client_keys(paths: Iterable[str], *, keep_public: bool) -> list[str]:
    """Return those files of an SSH configuration that are private keys. OpenSSH passes over the others, too.

    Args:
        paths: Existing files.
        keep_public: Whether public keys are kept, which select keys of the agent.
    """
    selected = []
    for path in paths:
        try:
            data = _read_key_file(path)
        except ConfigError as error:
            _log.warning("%s: this key is not used", error.message)
            continue
        if _is_public_key(data):
            selected += [path] if keep_public else []
        elif (problem := _find_problem(data)) is None:
            selected.append(path)
        else:
            _log.warning("%s: this key is not used: %s", make_printable(path), problem)
    return selected


def find_locked_keys(config: Any) -> list[str]:
    """Return the private keys of an SSH configuration, or the default ones, that are encrypted."""
    configured = config.get("IdentityFile") or [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]
    return [str(path) for path in configured if _is_encrypted_file(os.path.expanduser(str(path)))]


def _read_key_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read: {error.strerror}") from error


def _is_public_key(data: bytes) -> bool:
    return data.lstrip().startswith(_PUBLIC_KEY_MARKS)


def _find_problem(data: bytes) -> str | None:
    """Return why data is no private key that can be used, or None."""
    if data.lstrip().startswith(_PUTTY_MARK):
        return "it is a key of PuTTY: convert it (puttygen key.ppk -O private-openssh -o key)"
    if not data.strip():
        return "the file is empty"
    try:
        asyncssh.import_private_key(data)
    except asyncssh.KeyImportError as error:
        return None if _is_encrypted(data) else f"it is no private key, or damaged ({make_printable(error)})"
    except (asyncssh.KeyEncryptionError, ValueError):  # encrypted in one of the ways of PEM
        return None
    return None


def _is_encrypted_file(path: str) -> bool:
    try:
        return _is_encrypted(_read_key_file(path))
    except ConfigError:
        return False


def _is_encrypted(data: bytes) -> bool:
    """Return whether data is a private key with a passphrase."""
    if b"OPENSSH PRIVATE KEY" in data:  # the name of the key derivation is among the first bytes
        try:
            data = base64.b64decode(b"".join(data.split(b"-----")[2].split()), validate=True)[:_MAX_KEY_HEAD_BYTES]
        except (IndexError, binascii.Error):
            return False
    return any(mark in data for mark in _ENCRYPTED_KEY_MARKS)
