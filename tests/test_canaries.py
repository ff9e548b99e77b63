"""The watch over secrets finds what it is there for."""

from __future__ import annotations

import logging

import pytest
from canaries import NAMES, Watch, canary, find_secrets

import streamloader as sl
from streamloader.redaction import redact


@pytest.fixture
def watch():
    watch = Watch()
    logger = logging.getLogger("somebody.else")
    logger.addHandler(watch)
    logger.propagate = False
    with watch.over_errors():
        yield watch
    logger.removeHandler(watch)
    logger.propagate = True


@pytest.fixture
def secret(secrets_watch):
    """A secret that may leak: the watch of all tests forgets it."""
    yield canary("ssh-password")
    secrets_watch.lines.clear()


def test_there_are_twenty_one_different_secrets():
    assert len({canary(name) for name in NAMES}) == len(NAMES) == 21
    assert find_secrets(f"a {canary('az-key')} b {canary('s3-session-token')}") == ["s3-session-token", "az-key"]


def test_log_records_and_their_tracebacks_are_searched(watch, secret):
    logger = logging.getLogger("somebody.else")
    logger.warning("logged in with %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        logger.warning("it failed", exc_info=True)
    logger.warning("%(name)s", {"name": "plain", "other": secret})
    logger.warning("nothing to see")
    assert watch.lines == ["a log record of 'somebody.else' tells the secret 'ssh-password'"] * 3


@pytest.mark.parametrize("where", ["message", "details"])
def test_errors_are_searched_as_they_are_made(watch, secret, where):
    if where == "message":
        sl.StoreError(f"cannot log in with {secret}", address="ssh://box")
    else:
        sl.StoreError("cannot log in", address="ssh://box", given={"word": secret})
    assert set(watch.lines) == {"a StoreError tells the secret 'ssh-password'"}


@pytest.mark.parametrize(
    "address",
    [
        "ssh://user:{}@box/a.mp4",
        "https://{}@host/a",
        "https://host/a.mp4?X-Amz-Signature={}&x=1",
        "https://host/a.mp4?x=1&token={}",
        "https://host/a?sig={}",
        "https://host/a?X-Amz-Credential={}",
        "https://host/a?AWSAccessKeyId={}",
        "https://account.host/a?sv=1&sig={}&se=2",
        "https://host/a?Policy=x&Signature={}",
        "https://host/a?access_token={}",
        "https://host/a?api-key={}",
        "https://host/a?key={}",
        "https://host/a?auth={}",
        "https://host/a?jwt={}#part",
    ],
)
def test_addresses_are_shown_without_secrets(address):
    text = redact(f"cannot read {address.format(canary('http-signature'))}: refused")
    assert find_secrets(text) == []
    assert "host" in text or "box" in text
    assert text.endswith(": refused") or "?" in address
