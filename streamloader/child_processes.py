"""Start worker processes: new Python interpreters with the flags, the folder and the environment of this one."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamloader.common.subprocesses import OUTSIDE_SIGNALS
from streamloader.errors import ConfigError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Surroundings", "keep_off_standard_streams", "module_search_path"]

_PYTHON_VARIABLE: Final = "STREAMLOADER_PYTHON"
_PYTHON_NAME: Final = re.compile(r"python|pypy|graalpy", re.IGNORECASE)
_THREAD_COUNT_VARIABLES: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM",
)  # fmt: skip
_START_MODULE: Final = (
    "import json, runpy, sys; _, path, module, *sys.argv[1:] = sys.argv; sys.path[:] = json.loads(path); "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_FIRST_OTHER_FD: Final = 3  # behind stdin, stdout and stderr


class Surroundings:
    """What worker processes inherit from this process, as it was when this object was created.

    A worker that replaces another one gets the same, whatever this process has changed since: its current folder, its
    environment, its module search path, or where its stdout and stderr lead.

    If this interpreter ignores the environment, the user's packages or the current folder (``-I``, ``-E``, ``-s``,
    ``-P``), so do the workers: a ``sitecustomize`` module that this process did not run is not run there either. They
    have the module search path of this process without the current folder, and find this package first. Numeric
    libraries start no threads there, unless the environment says how many.

    Raises:
        ConfigError: If this process is an application that contains Python, so that it is unknown how to start an
            interpreter. ``STREAMLOADER_PYTHON`` names one.
    """

    def __init__(self) -> None:
        package_parent = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
        path = [package_parent, *_make_absolute(entry for entry in sys.path if entry)]
        self._command = [_find_python(), *_interpreter_flags(), "-c", _START_MODULE, json.dumps(path)]
        self._environment = dict.fromkeys(_THREAD_COUNT_VARIABLES, "1") | dict(os.environ)
        self._folder: str | None = None
        with contextlib.suppress(OSError):  # it was deleted
            self._folder = os.getcwd()
        self._output_fds = [_duplicate(number) for number in (1, 2)]

    def command(self, module: str, *arguments: object) -> list[str]:
        """Return the command that runs a module in a new interpreter.

        Args:
            module: Name of the module.
            arguments: Arguments of the module.
        """
        return [*self._command, module, *map(str, arguments)]

    def start(
        self,
        module: str,
        *arguments: object,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        **streams: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a module in a new interpreter. It inherits no descriptors but these.

        Signals to the whole job are blocked until it calls ``shield_from_signals``.

        Args:
            module: Name of the module.
            arguments: Arguments of the module.
            pass_fds: Descriptors that it inherits.
            environment: Variables to be set besides those of this process.
            streams: `stdin`, `stdout` or `stderr`, as for ``Popen``. They default to an empty input, and to the stdout
                and stderr of this process.

        Raises:
            OSError: If the system cannot start a process.
        """
        stdout, stderr = (subprocess.DEVNULL if fd < 0 else fd for fd in self._output_fds)
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr} | streams
        options |= {"pass_fds": tuple(pass_fds), "env": self._environment | dict(environment or {})}
        command = self.command(module, *arguments)
        folder = self._folder if self._folder is not None and os.path.isdir(self._folder) else None
        with _block_signals():
            return subprocess.Popen(command, cwd=folder, **options)

    def close(self) -> None:
        """Close the copies of stdout and stderr. Safe to call again."""
        fds, self._output_fds = self._output_fds, [-1, -1]
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        """Return the surroundings, which are closed at the end of the block."""
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def module_search_path() -> list[str]:
    """Return this process's whole module search path in absolute paths, for objects that a worker unpickles."""
    return list(_make_absolute(sys.path))


def _make_absolute(entries: Iterable[str]) -> Iterator[str]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # it is relative, and the current folder was deleted
            yield os.path.abspath(entry)


def keep_off_standard_streams(fd: int) -> int:
    """Return a descriptor that a child can inherit beside stdin, stdout and stderr.

    A process that has closed some of these gets their numbers for new descriptors.

    Args:
        fd: Descriptor, which is closed if another one is returned.
    """
    if fd >= _FIRST_OTHER_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_OTHER_FD)
    finally:
        os.close(fd)


def _find_python() -> str:
    python = os.environ.get(_PYTHON_VARIABLE)
    if python:
        return os.path.abspath(python)
    is_application = bool(getattr(sys, "frozen", False)) or not sys.executable
    if is_application or not _PYTHON_NAME.search(os.path.basename(sys.executable)):
        application = repr(sys.executable) if sys.executable else "of an unknown file"
        raise ConfigError(
            f"workers are new Python processes, but this one is the application {application}, "
            f"which would be started again and again. Set {_PYTHON_VARIABLE} to a Python {sys.version_info.major}."
            f"{sys.version_info.minor} that has the same packages, or use num_workers=0"
        )
    return os.path.abspath(sys.executable)


def _interpreter_flags() -> list[str]:
    """Return the flags of this interpreter, and ``-P``, which keeps the current folder off the search path."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    options = [name if value is True else f"{name}={value}" for name, value in sys._xoptions.items()]  # noqa: SLF001
    passed = {option for flag, option in itertools.pairwise(flags) if flag == "-X"}
    for option in options:
        if option not in passed:
            flags += ["-X", option]
    return flags if "-P" in flags or "-I" in flags else [*flags, "-P"]


def _duplicate(fd: int) -> int:
    """Return a copy of a descriptor behind those of the standard streams, or -1 if it is closed."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_OTHER_FD)
    except OSError:
        return -1


@contextlib.contextmanager
def _block_signals() -> Iterator[None]:
    """Block the signals to whole jobs in this thread, and in a child until it calls ``shield_from_signals``."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, OUTSIDE_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
