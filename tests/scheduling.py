"""In which order and in which process tests run: files stay whole, so that what a module makes is made once."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from servers.jsipfs import INSTALL_TIMEOUT_S
from xdist.scheduler import LoadScopeScheduling

# Started first, because they take longest. The tests in SPLIT share nothing and are distributed one by one.
SPLIT = (
    "tests/chaos/test_chaos.py",
    "tests/test_examples.py",
    "tests/loader/test_ddp.py",
    "tests/loader/test_integrations.py",
    "tests/cli/test_main.py",
)
LONG = ("tests/chaos/", "tests/loader/", "tests/streams/", "tests/archive/", "tests/faults/")
SHORT = ("tests/testing/", "tests/viz/", "tests/test_")
JSIPFS = "js-ipfs"


class Scheduling(LoadScopeScheduling):
    """Deals out files, tests of the files in SPLIT, and all tests of js-ipfs together."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(SPLIT):
            return nodeid
        return JSIPFS if needs_jsipfs(nodeid) else nodeid.split("::", 1)[0]


def needs_jsipfs(nodeid: str) -> bool:
    """Whether a test uses the js-ipfs node. One process has all of them, since a node takes ten seconds to start."""
    file, _, test = nodeid.partition("::")
    return file == "tests/stores/ipfs/test_store.py" or (file == "tests/stores/test_loaders.py" and "[ipfs" in test)


def sort_tests(items: list[pytest.Item]) -> None:
    """Put the longest first, so that no process is the last for long, and js-ipfs late: npm may be at work."""

    def rank(item: pytest.Item) -> int:
        if needs_jsipfs(item.nodeid):
            return 3
        kinds: Iterable[tuple[str, ...]] = (SPLIT, LONG)
        early = (number for number, names in enumerate(kinds) if item.nodeid.startswith(names))
        return next(early, 4 if item.nodeid.startswith(SHORT) else 2)

    items.sort(key=rank)
    for item in items:
        if needs_jsipfs(item.nodeid) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(INSTALL_TIMEOUT_S + 300))  # the first of them may wait for npm
