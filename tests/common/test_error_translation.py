"""An error that is raised in place of another one keeps nothing of the failed call alive."""

from __future__ import annotations

import ast
import gc
import weakref
from pathlib import Path

import pytest

import streamloader
from streamloader.common.error_translation import async_error_translator, error_translator

PACKAGE = Path(streamloader.__file__).parent


class Resource:
    pass


@error_translator
def translate():
    try:
        yield
    except OSError as error:
        raise ValueError("another") from error


@async_error_translator
async def translate_async():
    try:
        yield
    except OSError as error:
        raise ValueError("another") from error


def fail(error, resources):
    resource = Resource()
    resources.append(weakref.ref(resource))
    with translate():
        raise error("first")


async def fail_async(error, resources):
    resource = Resource()
    resources.append(weakref.ref(resource))
    async with translate_async():
        raise error("first")


def run_async(error, resources):
    fail_async(error, resources).send(None)  # an event loop would keep the error


@pytest.mark.parametrize("call", [fail, run_async])
@pytest.mark.parametrize(("raised", "expected"), [(OSError, ValueError), (KeyError, KeyError)])
def test_nothing_is_left_for_the_collector(call, raised, expected):
    resources = []
    gc.disable()
    try:
        cause = ""
        try:
            call(raised, resources)
        except expected as error:
            cause = repr(error.__cause__)
        assert cause == ("OSError('first')" if raised is OSError else "None")
        assert resources[0]() is None
    finally:
        gc.enable()


def _catches_and_raises(function):
    """Return whether a generator raises another error at its ``yield``."""
    tries = [node for node in ast.walk(function) if isinstance(node, ast.Try)]
    return any(
        any(isinstance(node, ast.Yield) for statement in one.body for node in ast.walk(statement))
        and any(isinstance(node, ast.Raise) and node.exc for handler in one.handlers for node in ast.walk(handler))
        for one in tries
    )


def test_all_context_managers_of_this_kind_use_it():
    found, wrong = 0, []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            decorators = [ast.unparse(one) for one in getattr(node, "decorator_list", ())]
            is_manager = any(one.endswith(("contextmanager", "error_translator")) for one in decorators)
            if is_manager and _catches_and_raises(node):
                found += 1
                if not any(one.endswith("error_translator") for one in decorators):
                    wrong.append(f"{path}: {node.name}")
    assert found >= 15
    assert not wrong
