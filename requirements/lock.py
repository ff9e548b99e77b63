"""Write the locked versions: `tox -e lock`, or `tox -e lock -- --upgrade` to move on to the newest releases.

Each environment of tox installs one of the files ``requirements/*.txt``: every package that it needs, also indirectly,
in one version and with the SHA-256 of all files of that release. pip refuses every other file. ``constraints.txt`` has
the same versions without hashes. The versions in it are kept, so to change one, edit it there and run this again.

pip installs what is listed and resolves nothing (``--no-deps``), because the files also differ by what is left out:

* torch: releases for Linux need gigabytes of CUDA libraries. Builds for CPUs have versions of their own (+cpu), which a
  machine may have in a local folder: ``torch-cpu.txt``. ``torch.txt`` has the release with the CUDA libraries, and
  ``requirements/install.py`` takes the first one that pip finds.
* what has no wheels, and is built with the tools that are locked: ``sources.txt``.
* the servers of the tests: each has an environment of its own, see ``tests/servers/mongo.py``.

The same command updates ``tests/servers/npm/package-lock.json``, with which npm installs js-ipfs. One of its optional
dependencies (headless, for WebRTC, which no test uses) would come from a web address without a hash; ``package.json``
puts a small package of the registry in its place.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
CONSTRAINTS = ROOT / "constraints.txt"
NPM_FOLDER = ROOT / "tests" / "servers" / "npm"
OLDEST_PYTHON = "3.11"
TORCH = "torch==2.13.0"  # a range would pick the newest; see above
CUDA_LIBRARIES = ("cuda", "nvidia-", "triton")  # how the names of its dependencies for GPUs start
SOURCES = ("pyftpdlib",)  # released without wheels: in sources.txt, built with the setuptools of the lock
BUILD_TOOLS = ("editables", "hatchling")  # `pip install --no-build-isolation` of this package takes them
TIMEOUT_S = 1200


@dataclass(frozen=True)
class Lock:
    """One locked file.

    Attributes:
        name: Name of the file, without its suffix.
        extras: Extras of this package whose dependencies it contains.
        packages: Other requirements in it.
        includes: Name of the lock that is installed with it, whose packages it does not repeat.
        project: Whether it contains the dependencies of this package.
        separate: Whether it is resolved on its own, because its pins conflict with the others.
    """

    name: str
    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    includes: str | None = None
    project: bool = True
    separate: bool = False


LOCKS = (
    Lock("tox", packages=("tox",), project=False),
    Lock("lock", packages=("uv",), project=False),
    Lock("lint", packages=("import-linter", "ruff"), project=False),
    Lock("demo", ("demo",), BUILD_TOOLS),
    Lock("test", ("test",), includes="demo"),
    Lock("slow", ("ray", "test"), includes="test"),
    Lock("types", ("types",), includes="slow"),
    Lock("bench", ("bench",), includes="demo"),
    Lock("dev", ("dev",), includes="types"),
    Lock("nx", packages=("nx-27017==0.8.1",), project=False, separate=True),
    Lock("secantus", packages=("secantusdb==0.7.0b3",), project=False, separate=True),
)


def main(arguments: list[str]) -> int:
    """Write all files. With ``--upgrade``, ignore the versions in them."""
    upgrade = "--upgrade" in arguments
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(Path(folder), upgrade=upgrade)
        written: dict[str, dict[str, str]] = {}
        sources: dict[str, str] = {}
        for lock in LOCKS:
            entries = compiler.compile(lock)
            sources |= {key: entries.pop(key) for key in list(entries) if key.startswith(SOURCES)}
            entries.pop(TORCH, None)
            if lock.includes is not None:
                included = written[lock.includes]
                own = {key: entry for key, entry in entries.items() if included.get(key) != entry}
                written[lock.name] = included | entries
            else:
                own = written[lock.name] = entries
            write(lock.name, own, lock.includes)
        write("sources", sources, None)
        torch = compiler.compile_torch()
        write("torch", {key: entry for key, entry in torch.items() if key not in written["demo"]}, None)
        if compiler.cpu_build is not None:
            write("torch-cpu", compiler.cpu_build, None)
        shutil.copyfile(compiler.constraints, CONSTRAINTS)
    lock_npm(upgrade=upgrade)
    return 0


class Compiler:
    """Resolves locks with uv, all of them to the same versions.

    Args:
        folder: Temporary folder.
        upgrade: Whether the versions in ``constraints.txt`` are ignored.

    Attributes:
        constraints: File with the versions, without hashes.
        cpu_build: Entry of a build of torch for CPUs, or None if pip finds none on this machine.
    """

    def __init__(self, folder: Path, *, upgrade: bool) -> None:
        self.constraints = folder / "constraints.txt"
        self.folder = folder
        version, digest, requirements = find_torch()
        self.cpu_build = add_cpu_build(version, digest) if "+cpu" in version else None
        self._config = folder / "uv.toml"
        quoted = ", ".join(json.dumps(line) for line in requirements)
        self._config.write_text(
            f'[[dependency-metadata]]\nname = "torch"\nversion = "{TORCH[7:]}"\nrequires-dist = [{quoted}]\n'
        )
        together = [lock for lock in LOCKS if not lock.separate]
        all_of_them = Lock(
            "all",
            tuple(sorted({extra for lock in together for extra in lock.extras})),
            tuple(sorted({package for lock in together for package in lock.packages})),
        )
        old = [] if upgrade else ["--constraint", str(CONSTRAINTS)]
        header = "".join(line for line in CONSTRAINTS.read_text().splitlines(keepends=True) if line.startswith("#"))
        pins = self._run_uv(all_of_them, [*old, "--no-strip-markers"])
        self.constraints.write_text(header + "".join(f"{line}\n" for line in pins.splitlines()))

    def compile(self, lock: Lock) -> dict[str, str]:
        """Return the entries of a lock by requirement: the name with version and marker."""
        options = [] if lock.separate else ["--constraint", str(self.constraints)]
        if lock.separate and (HERE / f"{lock.name}.txt").exists():
            options = ["--constraint", str(self._strip_hashes(HERE / f"{lock.name}.txt"))]
        return split_entries(self._run_uv(lock, [*options, "--generate-hashes"]))

    def compile_torch(self) -> dict[str, str]:
        """Return the entries of the release of torch with its CUDA libraries."""
        self._config.write_text("")
        options = ["--constraint", str(self.constraints), "--generate-hashes"]
        return split_entries(self._run_uv(Lock("torch", packages=(TORCH,), project=False), options))

    def _strip_hashes(self, path: Path) -> Path:
        stripped = self.folder / path.name
        stripped.write_text("".join(f"{key}\n" for key in split_entries(path.read_text())))
        return stripped

    def _run_uv(self, lock: Lock, options: list[str]) -> str:
        source = self.folder / f"{lock.name}.in"
        source.write_text("".join(f"{package}\n" for package in (TORCH, *lock.packages)))
        if not lock.project and lock.name != "torch":
            source.write_text("".join(f"{package}\n" for package in lock.packages))
        project = [str(ROOT / "pyproject.toml")] if lock.project else []
        command = [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-header", "--no-annotate"),
            *("--python-version", OLDEST_PYTHON, "--native-tls", "--config-file", str(self._config)),
            *("--only-binary", ":all:", *(word for name in SOURCES for word in ("--no-binary", name))),
            *(word for extra in lock.extras for word in ("--extra", extra)),
            *options,
            *project,
            str(source),
        ]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
        return done.stdout


def find_torch() -> tuple[str, str, list[str]]:
    """Return version and hash of the file of torch that pip finds here, and its dependencies without CUDA libraries."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    done = subprocess.run(
        [*command, "--report", "-", TORCH], stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
    )
    (item,) = json.loads(done.stdout)["install"]
    requirements = [
        line
        for line in item["metadata"]["requires_dist"]
        if "extra ==" not in line and not line.startswith(CUDA_LIBRARIES)
    ]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return item["metadata"]["version"], f"sha256:{digest}", requirements


def add_cpu_build(version: str, digest: str) -> dict[str, str]:
    """Return the entry of a CPU build of torch, which keeps the hashes that other machines have added."""
    path, key = HERE / "torch-cpu.txt", f"torch=={version}"
    old = split_entries(path.read_text()).get(key, "") if path.exists() else ""
    hashes = sorted({digest, *re.findall(r"sha256:[0-9a-f]{64}", old)})
    return {key: " \\\n".join([key, *(f"    --hash={each}" for each in hashes)]) + "\n"}


def split_entries(text: str) -> dict[str, str]:
    """Return the entries of a file by their requirement."""
    entries = {}
    for entry in re.findall(r"^[A-Za-z0-9].*(?:\n[ ].*)*\n?", text, re.MULTILINE):
        entries[entry.splitlines()[0].removesuffix("\\").strip()] = entry if entry.endswith("\n") else f"{entry}\n"
    return entries


def write(name: str, entries: dict[str, str], includes: str | None) -> None:
    """Write a locked file."""
    lines = ["# Written by `tox -e lock`: see requirements/lock.py.\n"]
    if includes is not None:
        lines.append(f"-r {includes}.txt\n")
    (HERE / f"{name}.txt").write_text("".join([*lines, *entries.values()]))


def lock_npm(*, upgrade: bool) -> None:
    """Update the lock of js-ipfs. Addresses of the registry are left out of it."""
    npm = shutil.which("npm")
    if npm is None:
        print("requirements: there is no npm, so the lock of js-ipfs was not updated", file=sys.stderr)
        return
    if upgrade:
        (NPM_FOLDER / "package-lock.json").unlink(missing_ok=True)
    command = [npm, "install", "--package-lock-only", "--omit-lockfile-registry-resolved"]
    command += ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=NPM_FOLDER, timeout=TIMEOUT_S, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
