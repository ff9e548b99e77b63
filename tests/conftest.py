"""What every test has: the real clips, a cache and a temporary folder of the run, a check that it leaves nothing."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
from canaries import Watch
from leak_check import MARK, AsyncioComplaints, Holdings, left_behind
from media_data import ClipsMissing, fetch_clips
from scheduling import Scheduling, sort_tests
from servers.cache import cache_folder
from servers.jsipfs import is_being_installed
from servers.jsipfs_fixture import jsipfs_node  # noqa: F401 - the real servers are fixtures, started once a process
from servers.nginx_fixture import nginx_server  # noqa: F401
from servers.seaweed_fixture import seaweed_server  # noqa: F401
from servers.sshd_fixture import own_ssh_server, second_ssh_server, ssh_server  # noqa: F401
from tiers import mark_repeats

from streamloader.demo.mnist import fetch_mnist
from streamloader.errors import NotFound
from streamloader.torch_support import has_torch

try:
    import uvloop
except ImportError:  # there is none for this interpreter
    uvloop = None

_PASSED = pytest.StashKey[bool]()
_SCRATCH = pytest.StashKey[Path]()

# The cores are shared with other processes: how long it takes to draw or run an example says nothing.
_ANY_SPEED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("local", **_ANY_SPEED)
hypothesis.settings.register_profile("ci", **_ANY_SPEED, derandomize=True, database=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config):
    # What a shell starts in the background ignores interrupts, and would hand that on to the programs of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its own folders for a while
    scratch = Path(tempfile.mkdtemp(prefix="sl-tests-"))
    config.stash[_SCRATCH] = scratch
    for variable, folder in (("STREAMLOADER_CACHE", scratch / "cache"), ("TMPDIR", scratch / "tmp")):
        folder.mkdir()
        os.environ[variable] = str(folder)
    tempfile.tempdir = None  # to be looked up again
    # Each core has a test process already: programs of the tests that use torch with a thread per core crawl.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[MARK] = str(os.getpid())


def pytest_report_header():
    return "js-ipfs is being installed: its tests run late, and wait for it" if is_being_installed() else None


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items):
    mark_repeats(items)
    sort_tests(items)


class _ModuleWithTorch(pytest.Module):
    """Test file that is skipped where it cannot be imported, because it needs torch."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            while missing is not None and getattr(missing, "name", None) != "torch":
                missing = missing.__cause__
            if missing is None:
                raise
        pytest.skip("torch is not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return None if has_torch() else _ModuleWithTorch.from_parent(parent, path=module_path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.option.dist != "load":
        return None
    config.option.loadscopereorder = False  # the order is sort_tests'
    return Scheduling(config, log)


def pytest_unconfigure(config):
    shutil.rmtree(config.stash[_SCRATCH], ignore_errors=True)


def pytest_collection_finish():
    if uvloop is not None:
        uvloop.new_event_loop().close()  # the first loop makes libuv open a pipe that stays until the process ends
    # What was imported so far stays until the end: neither the collector nor the leak check needs to look at it again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def clips():
    """Name -> path of the real clips (see media_data.CLIPS for what is known of each)."""
    try:
        return fetch_clips()
    except ClipsMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def mnist_cache():
    """Cache folder with the images of MNIST, for ``$STREAMLOADER_CACHE`` of programs."""
    folder = cache_folder()
    try:
        fetch_mnist(folder / "mnist")
    except NotFound as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    return str(folder)


@pytest.fixture(scope="session")
def secrets_watch():
    """Searches all that is logged, and all errors, for the secrets that the tests log in with."""
    watch = Watch()
    root = logging.getLogger()
    root.addHandler(watch)
    with watch.over_errors():
        yield watch
    root.removeHandler(watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    watch = item.funcargs.get("secrets_watch") if hasattr(item, "funcargs") else None
    if watch is not None:
        for name, text in report.sections:
            watch.look(name, text)
    return report


@pytest.fixture(autouse=True)
def tells_no_secret(secrets_watch):
    """Fail a test that leaks a secret in a log, an error or its output."""
    yield
    leaks, secrets_watch.lines[:] = list(dict.fromkeys(secrets_watch.lines)), []
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def collects_quickly():
    """Take what a module imported out of the collector's sight: the leak check collects after many a test."""
    yield
    gc.collect()
    gc.freeze()


def _release_shared():
    """Close what is meant to stay for a while: shared stores, and the cache of indexes."""
    shared_stores = sys.modules.get("streamloader.stores.io_thread")
    if shared_stores is not None:
        shared_stores.close_shared_stores()
    index_database = sys.modules.get("streamloader.media.video.index_database")
    if index_database is not None:
        index_database.close_databases()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request):
    """Fail a test that passed but left a process, descriptor, thread, task, file or shared memory behind."""
    marker = request.node.get_closest_marker("may_leak")
    if marker is not None and not (marker.args and marker.args[0]):
        pytest.fail("may_leak needs a reason")
    complaints = AsyncioComplaints()
    logging.getLogger("asyncio").addHandler(complaints)
    before = Holdings.now()
    yield
    _release_shared()
    request.node.funcargs.clear()  # pytest would hold what fixtures returned beyond their own end
    # A failed test holds what its traceback shows, and has been reported already.
    is_checked = request.node.stash.get(_PASSED, False) and marker is None
    lines = left_behind(before, patience=60.0, release=_release_shared) if is_checked else []
    logging.getLogger("asyncio").removeHandler(complaints)
    if lines or (complaints.lines and marker is None):
        pytest.fail("the test left behind:\n  " + "\n  ".join(lines + complaints.lines), pytrace=False)
