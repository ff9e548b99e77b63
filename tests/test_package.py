from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import logging
import pickle
import subprocess
import sys

import pytest

import streamloader as sl
from streamloader import errors
from streamloader.redaction import redact

HEAVY = ("torch", "av", "aiohttp", "asyncssh", "motor", "uvloop", "numpy", "anyio")
ERRORS = sorted(
    (kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.StreamloaderError)),
    key=lambda kind: kind.__name__,
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = run_python("import sys, streamloader; dir(streamloader); print(*sys.modules)").split()
    assert "streamloader" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_the_errors_load_nothing_heavy():
    loaded = run_python("import sys, streamloader; streamloader.ConfigError('x'); print(*sys.modules)").split()
    assert "streamloader.errors" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


@pytest.mark.parametrize("name", sl.__all__)
def test_every_public_name_resolves(name):
    assert getattr(sl, name) is getattr(sl, name)
    assert name in dir(sl)


def test_public_names_say_where_they_live():
    homes = {name: value.__module__ for name in sl.__all__ if inspect.isclass(value := getattr(sl, name))}
    assert {name: home for name, home in homes.items() if not home.startswith("streamloader.")} == {}
    assert homes["MultiStreamer"] == "streamloader.loader.multistreamer"


def test_every_error_is_public():
    assert {kind.__name__ for kind in ERRORS} - set(sl.__all__) == set()


def test_star_import_works():
    names = {}
    exec("from streamloader import *", names)
    assert set(names) - {"__builtins__"} == set(sl.__all__)


@pytest.mark.slow
def test_star_import_works_in_a_program_that_has_imported_nothing():
    assert (
        run_python("from streamloader import *; print(MultiStreamer.__name__, Field.__name__)")
        == "MultiStreamer Field\n"
    )


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'MultiSteamer'"):
        _ = sl.MultiSteamer


def test_version_is_that_of_the_distribution():
    assert sl.__version__ == importlib.metadata.version("streamloader")


def test_the_types_are_shipped():
    assert importlib.resources.files("streamloader").joinpath("py.typed").is_file()


def test_the_logger_stays_silent_where_nobody_listens():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("streamloader").handlers)
    assert run_python("import logging, streamloader; logging.getLogger('streamloader').error('x')") == ""


def example(kind: type[errors.StreamloaderError]) -> errors.StreamloaderError:
    return kind(
        "it broke; fix it",
        stream="a.mp4",
        address="ssh://me:hunter2@box/a.mp4?token=abc",
        offset=7,
        worker_traceback="Traceback: ...",
        lane=3,
        stage="decode",
    )


def looks(error: errors.StreamloaderError) -> tuple[object, ...]:
    return type(error), str(error), error.message, error.stream, error.address, error.offset, error.details


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_survive_pickling(kind):
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert looks(again) == looks(error)
    assert again.worker_traceback == error.worker_traceback


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_survive_the_wire(kind):
    try:
        raise example(kind)
    except errors.StreamloaderError as caught:
        error = caught
    wire = json.loads(json.dumps(errors.to_wire(error)))
    again = errors.from_wire(wire)
    error.worker_traceback = again.worker_traceback  # the wire brings the whole traceback
    assert looks(again) == looks(error)
    assert "raise example(kind)" in str(again)


def test_foreign_errors_become_stream_failures_that_name_them():
    try:
        raise KeyError("frame_17")
    except KeyError as caught:
        again = errors.from_wire(json.loads(json.dumps(errors.to_wire(caught))))
    assert type(again) is errors.StreamFailed
    assert again.message == "KeyError: 'frame_17'"
    assert again.details == {"cause": "KeyError"}
    assert 'raise KeyError("frame_17")' in str(again)


def test_the_wire_carries_plain_values_only():
    error = errors.WorkerDied("gone", pid=5, lanes=[1, 2], socket=object())
    assert errors.to_wire(error)["details"] == {"pid": 5, "lanes": [1, 2]}


def test_the_wire_cannot_name_a_class_outside_of_the_tree():
    wire = {"ours": True, "type": "SystemExit", "message": "no"}
    assert type(errors.from_wire(wire)) is errors.StreamloaderError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://me:hunter2@box/a.mp4", "ssh://***@box/a.mp4"),
        ("ssh://me@box/a.mp4", "ssh://***@box/a.mp4"),
        ("https://host/a?X-Amz-Signature=abc&part=2", "https://host/a?X-Amz-Signature=***&part=2"),
        ("https://host/a?token=abc", "https://host/a?token=***"),
        ("password=hunter2 api_key=k1 access_key='k2'", "password=*** api_key=*** access_key=***"),
        ("mail me@box about /data/a@b.mp4", "mail me@box about /data/a@b.mp4"),
    ],
)
def test_secrets_are_removed(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize("secret", ["hunter2", "abc"])
def test_no_error_shows_a_secret_anywhere(secret):
    error = errors.StreamNotFound(
        "nothing at ssh://me:hunter2@box/?token=abc", address="ssh://me:hunter2@box/?token=abc"
    )
    assert secret not in str(error)
    assert secret not in repr(error)
    assert secret not in json.dumps(errors.to_wire(error))
    assert secret.encode() not in pickle.dumps(error)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.StreamNotFound, FileNotFoundError),
        (errors.UnreadableStream, OSError),
        (errors.LoaderTimeout, TimeoutError),
        (errors.RingTooLarge, MemoryError),
        (errors.NotEnoughMemory, MemoryError),
        (errors.LengthUnknown, TypeError),
        (errors.MissingDependency, ImportError),
    ],
)
def test_errors_are_what_python_calls_them(kind, builtin):
    with pytest.raises(builtin, match="fix it"):
        raise kind("fix it")
