"""Install Debian packages of servers without starting the servers: `python -m servers.debian PACKAGE...`.

Debian starts a service when its package is installed, and again when the machine starts. Tests start the programs
themselves, so neither is wanted: ``policy-rc.d`` forbids it while apt works, and the services of packages that are new
are disabled. Services that were there before keep running, and stay as they are.

This is a program, in a session of its own, so that it restores ``policy-rc.d`` even if tox or the user stops the
program that started it. If it is killed itself, the next run restores the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from servers.cache import open_cache_folder

from streamloader.common.guarded_files import lock_file

POLICY = Path("/usr/sbin/policy-rc.d")
FORBIDDEN = 101  # exit status of a policy that forbids an action, see invoke-rc.d(8)
APT_TIMEOUT_S = 900.0
LOCK_TIMEOUT_S = 900.0
_MARK = "written by the tests of streamloader"
_SERVICE_FILES = re.compile(r"(?:/usr)?/lib/systemd/system/([^/@]+\.(?:service|socket|timer))|/etc/init\.d/([^/]+)")


def main(packages: list[str]) -> int:
    """Install packages, and return the exit status of apt-get."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # apt would leave packages half installed
    with open_cache_folder() as cache, lock_file(cache, "debian.lock", LOCK_TIMEOUT_S):
        return install(packages)


def install(packages: list[str]) -> int:
    """Install packages without starting their services, and return the exit status of apt-get."""
    before = list_installed()
    with forbid_starts(POLICY):
        status = run_apt("update")
        status = status or run_apt("install", "-y", "--no-install-recommends", *packages)
        for package in sorted(list_installed() - before):
            disable_services(package)
    return status


@contextlib.contextmanager
def forbid_starts(policy: Path) -> Iterator[None]:
    """Forbid packages to start and stop services during the block.

    Args:
        policy: Path of ``policy-rc.d``. Its previous content is kept beside it, and restored at the end.
    """
    saved = policy.with_name(f"{policy.name}.streamloader-saved")
    restore(policy, saved)  # if an earlier run was killed
    if os.path.lexists(policy):
        policy.rename(saved)
    new = policy.with_name(f"{policy.name}.streamloader-new")
    new.write_text(f"#!/bin/sh\n# {_MARK}\nexit {FORBIDDEN}\n")
    new.chmod(0o755)
    new.rename(policy)
    try:
        yield
    finally:
        restore(policy, saved)


def restore(policy: Path, saved: Path) -> None:
    """Put the previous policy in its place again, if it is not there."""
    if os.path.lexists(saved):
        saved.rename(policy)
    else:
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            if _MARK in policy.read_text():
                policy.unlink()


def run_apt(*arguments: str) -> int:
    """Run apt-get, and return its exit status."""
    return subprocess.run(
        ["apt-get", "-qq", "-o", f"DPkg::Lock::Timeout={APT_TIMEOUT_S:.0f}", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=APT_TIMEOUT_S,
        check=False,
    ).returncode


def list_installed() -> set[str]:
    """Return the names of the installed packages."""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev} ${Package}\n"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("ii")}


def disable_services(package: str) -> None:
    """Let the services of a package not start with the machine."""
    done = subprocess.run(["dpkg-query", "--listfiles", package], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        if (match := _SERVICE_FILES.fullmatch(line)) is None:
            continue
        unit, script = match.groups()
        command = ["systemctl", "disable", unit] if unit else ["update-rc.d", script, "disable"]
        if shutil.which(command[0]) is not None:
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
