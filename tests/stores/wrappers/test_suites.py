"""Wrappers pass the suite of stores, alone and all together."""

from __future__ import annotations

import functools
import hashlib
import secrets

import pytest

from streamloader.config import Retry
from streamloader.testing import StoreSuite
from streamloader.testing.stores.life import LifeSuite
from streamloader.testing.stores.reads import ReadSuite


class InMemory:
    """Binding of the wrapped store."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.scratch = tmp_path

    @functools.cached_property
    def space(self):
        return f"memory://wrapped-{secrets.token_hex(4)}"


@pytest.mark.slow  # a part of TestAll
class TestRooted(InMemory, StoreSuite):
    def location(self):
        return f"{self.space}/a/root", {}


@pytest.mark.slow
class TestRetrying(InMemory, StoreSuite):
    def location(self):
        return self.space, {"retry": Retry(attempts=3)}


@pytest.mark.slow  # TestAll has one as well
class TestCache(InMemory, StoreSuite):
    def location(self):
        return self.space, {"cache_dir": str(self.scratch / "cache")}


@pytest.mark.slow
class TestSmallCache(InMemory, StoreSuite):
    def location(self):
        return self.space, {"cache_dir": str(self.scratch / "cache"), "cache_bytes": 40 << 20}


class TestAll(InMemory, StoreSuite):
    def location(self):
        options = {"cache_dir": str(self.scratch / "cache"), "retry": Retry(), "digests": {}}
        return f"{self.space}/root", options


class Digested(InMemory):
    """Each object that was populated has a digest: reading it any other way would fail."""

    @functools.cached_property
    def digests(self):
        return {}

    def location(self):
        return self.space, {"digests": dict(self.digests)}

    def populate(self, files):
        for name in files:
            self.digests.pop(name, None)
        super().populate(files)
        self.digests.update({name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in files.items()})


class TestVerify(Digested, ReadSuite, LifeSuite):
    pass


@pytest.mark.slow
class TestVerifyOfACache(Digested, ReadSuite, LifeSuite):
    def location(self):
        return f"{self.space}/root", {"digests": dict(self.digests), "cache_dir": str(self.scratch / "cache")}
