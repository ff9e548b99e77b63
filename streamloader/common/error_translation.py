"""Context managers that raise another error in place of one, and keep nothing alive with it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from typing_extensions import override

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["async_error_translator", "error_translator"]

P = ParamSpec("P")
T = TypeVar("T")


def error_translator(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Return a context manager of a generator that catches errors at its ``yield``, and raises others from them.

    It is used like :func:`contextlib.contextmanager`. With that, from Python 3.12 on, the first error refers to the
    generator's frame, this to that of its caller, and this to the first error: all that the failed call has used, such
    as open files and mapped memory, stays until the garbage collector finds the circle.
    """

    @functools.wraps(function)
    def make_manager(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Translator(cast("Any", function), args, kwargs)

    return make_manager


def async_error_translator(function: Callable[P, AsyncIterator[T]]) -> Callable[P, AbstractAsyncContextManager[T]]:
    """Do what :func:`error_translator` does, for :func:`contextlib.asynccontextmanager`."""

    @functools.wraps(function)
    def make_manager(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T]:
        return _AsyncTranslator(cast("Any", function), args, kwargs)

    return make_manager


class _Translator(contextlib._GeneratorContextManager):  # type: ignore[type-arg]  # noqa: SLF001
    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        try:
            return super().__exit__(kind, error, traceback)
        finally:
            if error is not None:
                error.__traceback__ = traceback  # without the frames of the generator and of this call


class _AsyncTranslator(contextlib._AsyncGeneratorContextManager):  # type: ignore[type-arg]  # noqa: SLF001
    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        try:
            return await super().__aexit__(kind, error, traceback)
        finally:
            if error is not None:
                error.__traceback__ = traceback
