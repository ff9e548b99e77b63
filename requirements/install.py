"""Install this package into an environment with locked requirements: `python requirements/install.py sources`.

It is the last step of each environment of tox. Nothing is downloaded without a known hash: torch, in a build for CPUs
if pip finds one, and else with the CUDA libraries; with `sources`, the test servers that are released as sources only;
then the package itself. What has to be built is built with the tools that are locked as well. At the end, pip compares
all versions.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_S = 1800


def main(arguments: list[str]) -> int:
    """Install what is missing, and return the exit status of the step that failed, or of the last one.

    Args:
        arguments: Names of the locked files with packages to build, and ``--editable`` to use the package in its place.
    """
    sources = [argument for argument in arguments if not argument.startswith("--")]
    package = ["--editable", str(HERE.parent)] if "--editable" in arguments else [str(HERE.parent)]
    if install_locked("torch-cpu", "--only-binary=:all:", output=subprocess.DEVNULL):
        print("requirements: pip finds no build of torch for CPUs, so it installs the release, with its CUDA libraries")
        if status := install_locked("torch", "--only-binary=:all:"):
            return status
    for name in sources:
        if status := install_locked(name, "--no-build-isolation"):
            return status
    return run_pip("install", "--no-deps", "--no-index", "--no-build-isolation", *package) or run_pip("check")


def install_locked(name: str, *options: str, output: int | None = None) -> int:
    """Install what a locked file lists, and return pip's exit status."""
    options = ("--no-deps", "--require-hashes", *options)
    return run_pip("install", *options, "--requirement", f"{HERE}/{name}.txt", output=output)


def run_pip(*arguments: str, output: int | None = None) -> int:
    """Run pip in this environment, and return its exit status."""
    command = [sys.executable, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stdout=output, stderr=output, timeout=TIMEOUT_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
