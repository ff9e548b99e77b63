"""Install this package into an environment with locked requirements: `python requirements/install.py sources`.

It is the last step of each environment of tox. Nothing is downloaded without a known hash: torch, in a build for CPUs
if pip finds one, and else with the CUDA libraries, or not at all with `--no-cuda`; with `sources`, the test servers
that are released as sources only; then the package itself. What has to be built is built with the tools that are locked
as well. At the end, pip compares all versions.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_S = 1800
PIP = (sys.executable, "-I", "-m", "pip", "--disable-pip-version-check")
WITHOUT_TORCH = "requires torch, which is not installed."


def main(arguments: list[str]) -> int:
    """Install what is missing, and return the exit status of the step that failed, or of the last one.

    Args:
        arguments: Names of the locked files with packages to build, ``--editable`` to use the package in its place, and
            ``--no-cuda`` to go without torch rather than to install its CUDA libraries.
    """
    sources = [argument for argument in arguments if not argument.startswith("--")]
    package = ["--editable", str(HERE.parent)] if "--editable" in arguments else [str(HERE.parent)]
    has_torch = not install_locked("torch-cpu", "--only-binary=:all:", output=subprocess.DEVNULL)
    if not has_torch and "--no-cuda" in arguments and sys.platform == "linux":  # elsewhere, the release is without CUDA
        print("requirements: pip finds no build of torch for CPUs, so this environment is without torch")
    elif not has_torch:
        print("requirements: pip finds no build of torch for CPUs, so it installs the release, with its CUDA libraries")
        if status := install_locked("torch", "--only-binary=:all:"):
            return status
        has_torch = True
    for name in sources:
        if status := install_locked(name, "--no-build-isolation"):
            return status
    status = run_pip("install", "--no-deps", "--no-index", "--no-build-isolation", *package)
    return status or check_versions(has_torch=has_torch)


def install_locked(name: str, *options: str, output: int | None = None) -> int:
    """Install what a locked file lists, and return pip's exit status."""
    options = ("--no-deps", "--require-hashes", *options)
    return run_pip("install", *options, "--requirement", f"{HERE}/{name}.txt", output=output)


def check_versions(*, has_torch: bool) -> int:
    """Let pip compare all versions, and return 1 if it complains about more than a torch that is left out."""
    report = subprocess.run([*PIP, "check"], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False)
    lines = report.stdout.splitlines() if report.returncode else []
    complaints = [line for line in lines if has_torch or not line.endswith(WITHOUT_TORCH)]
    print("\n".join(complaints), end="\n" if complaints else "")
    return int(bool(complaints) or (report.returncode != 0 and not lines))


def run_pip(*arguments: str, output: int | None = None) -> int:
    """Run pip in this environment, and return its exit status."""
    return subprocess.run(
        [*PIP, "--quiet", *arguments], stdout=output, stderr=output, timeout=TIMEOUT_S, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
