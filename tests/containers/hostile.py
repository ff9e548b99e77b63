"""Reads hostile containers in both ways, and checks what every one of them has to fulfil."""

from __future__ import annotations

import functools
import inspect
import secrets

from streamloader.config import Limits
from streamloader.containers.base import ContainerSource
from streamloader.errors import NotSupported
from streamloader.stores.memory import MemoryStore
from streamloader.testing.containers.binding import run_with_deadline
from streamloader.testing.containers.counting import CountingStore
from streamloader.testing.containers.verdict import read_pass, read_scan

AFTER = ("after", b"still readable")


def read_both(container_class, data, path="set", *, limits=None):
    """Return what a scan with reads returns, and what a pass returns. All errors are typed, and name the container."""

    async def read():
        store = CountingStore(MemoryStore(f"memory://hostile-{secrets.token_hex(4)}", limits=limits or Limits()))
        async with store:
            name = path if "." in path else f"{path}{container_class.suffixes[0]}"
            await store.write(name, data)
            container = container_class(ContainerSource(store, await store.head(name)))
            outcomes = [await read_scan(container), await read_pass(container)]
            assert store.open_transfers == 0
            await store.delete(name)
            return outcomes

    return run_with_deadline(read)


def contents(outcome):
    """Return name and bytes of the readable members."""
    return [(member.name, content) for member, content in outcome.members if isinstance(content, bytes)]


def check_refused(outcomes, reason, name=None):
    """Check that the first member is never read for a reason, and that the one after it is."""
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        (member, content), *others = outcome.members
        assert member.problem is not None, member
        assert reason in member.problem, member.problem
        assert isinstance(content, NotSupported)
        assert reason in str(content)
        assert name is None or member.name == name
        assert [(other.name, found) for other, found in others] == [AFTER]


def check_fails(outcomes, kinds, text=""):
    """Check that both lists of members end with an error of these kinds."""
    for outcome in outcomes:
        assert isinstance(outcome.error, kinds), outcome
        assert text in str(outcome.error)


def check_reads_or_fails(outcomes, *wanted):
    """Check that both ways return one of these lists of (name, bytes), or end with an error."""
    for outcome in outcomes:
        found = contents(outcome)
        if outcome.error is None:
            assert found in wanted, found
        else:
            assert any(found == some[: len(found)] for some in wanted), found


def each(names, values):
    """Call a test with each value, as `pytest.mark.parametrize` does, but as one test: a call takes milliseconds."""
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)

    def decorate(function):
        @functools.wraps(function)
        def test(**others):
            for value in values:
                arguments = dict(zip(names, value if len(names) > 1 else (value,), strict=True))
                try:
                    function(**arguments, **others)
                except BaseException as error:
                    error.add_note(f"with {arguments!r:.300}")
                    raise

        parameters = inspect.signature(function).parameters.values()
        test.__signature__ = inspect.Signature([one for one in parameters if one.name not in names])
        return test

    return decorate
