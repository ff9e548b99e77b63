"""What is installed is locked: one version of each package, with the hashes of its files."""

from __future__ import annotations

import configparser
import functools
import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from servers import mongo
from servers.jsipfs import LOCKED, is_install_of

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {**PROJECT["optional-dependencies"], "": PROJECT["dependencies"]}
TESTED_PYTHONS = ("3.11", "3.12", "3.13")
FLAGS = {"--no-deps", "--require-hashes", "--only-binary=:all:"}  # of each pip that installs
ADDRESS = re.compile(r"://|index-url|find-links")


@functools.cache
def read_lock(path: Path) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Return name -> requirements with their hashes, those of included files too."""
    entries: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("-r "):
            for name, requirements in read_lock(path.parent / line[3:]).items():
                entries.setdefault(name, []).extend(requirements)
        elif line.strip() and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            parsed = Requirement(requirement)
            entries.setdefault(parsed.name, []).append((parsed, hashes))
    return entries


def versions(path: Path, python: str) -> dict[str, str]:
    """Return what is installed on Linux with a version of Python."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    chosen: dict[str, str] = {}
    for name, requirements in read_lock(path).items():
        pins = {str(r.specifier) for r, _ in requirements if r.marker is None or r.marker.evaluate(environment)}
        assert len(pins) <= 1, f"{name} in {len(pins)} versions"
        if pins:
            chosen[name] = pins.pop().removeprefix("==")
    return chosen


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(extra: str, python: str) -> set[Requirement]:
    """Return what an extra requires on Linux, the extras of this package that it contains resolved."""
    required: set[Requirement] = set()
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                required |= requirements_of(inner, python)
        elif requirement.marker is None or requirement.marker.evaluate(
            {**default_environment(), "sys_platform": "linux", "python_version": python}
        ):
            required.add(requirement)
    return required


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_has_one_version_and_hashes(path):
    entries = read_lock(path)
    assert entries
    for requirements in entries.values():
        for requirement, hashes in requirements:
            assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
            assert requirement.url is None
            assert hashes, requirement
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement
    assert all(versions(path, python) for python in TESTED_PYTHONS)
    assert ADDRESS.search(path.read_text()) is None  # where packages come from is the business of each machine


@pytest.mark.parametrize("python", TESTED_PYTHONS)
@pytest.mark.parametrize("name", ["demo", "test", "slow", "types", "bench", "dev"])
def test_the_locks_have_what_the_package_requires(name, python):
    names = ["torch", name] if name in ("demo", "bench") else ["torch", name, "sources"]  # as in tox.ini
    locked = {
        normalize(key): version
        for lock in names
        for key, version in versions(ROOT / "requirements" / f"{lock}.txt", python).items()
    }
    extras = {"slow": ("ray", "test")}.get(name, (name,))
    for requirement in set().union(*(requirements_of(extra, python) for extra in ("", *extras))):
        assert requirement.specifier.contains(locked[normalize(requirement.name)], prereleases=True), requirement
    assert "hatchling" in locked  # builds the package


def test_the_constraints_are_the_same_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    constraints: dict[str, set[str]] = {}
    for requirement in map(Requirement, lines):
        constraints.setdefault(normalize(requirement.name), set()).add(str(requirement.specifier))
    for path in LOCKS:
        if path.stem in ("torch-cpu", *mongo.KINDS):
            continue
        libraries = ("cuda-", "nvidia-", "triton") if path.stem == "torch" else ()
        for name, requirements in read_lock(path).items():
            if not name.startswith(libraries):
                pins = {str(requirement.specifier) for requirement, _ in requirements}
                assert pins <= constraints[normalize(name)], name


def test_both_builds_of_torch_are_of_the_same_version():
    (release,), (build,) = (
        read_lock(ROOT / "requirements" / f"{name}.txt")["torch"] for name in ("torch", "torch-cpu")
    )
    assert str(build[0].specifier) == f"{release[0].specifier}+cpu"
    assert all("torch" not in read_lock(path) for path in LOCKS if not path.stem.startswith("torch"))


def test_whatever_installs_in_ci_asks_for_hashes():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert set(tox["testenv"]["install_command"].split()) >= FLAGS
    for name in tox.sections():
        if name.startswith("testenv"):
            section = tox[name]
            assert {"package", "extras", "install_command"} & section.keys() == (
                {"package", "install_command"} if name == "testenv" else set()
            )
            for line in section.get("deps", "-r requirements/test.txt").splitlines():
                assert (ROOT / line.removeprefix("-r ")) in LOCKS
    assert tox["testenv"]["package"] == "skip"  # else tox would install its dependencies without hashes
    programs = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    assert len(programs) == 3
    commands = [line for program in programs for line in program.read_text().splitlines() if "pip install" in line]
    assert len(commands) == 4  # tox three times, and hatchling
    for command in commands:
        assert set(command.split()) >= FLAGS


@pytest.fixture
def install_program():
    spec = importlib.util.spec_from_file_location("install_program", ROOT / "requirements" / "install.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


@pytest.mark.parametrize("failing", ["", "torch-cpu", "torch", "sources", "check"])
def test_torch_is_installed_in_the_build_that_pip_finds(failing, install_program, monkeypatch):
    calls = []

    def run_pip(*arguments, output=None):
        name = Path(arguments[-1]).stem
        calls.append((name, set(arguments)))
        return int(name in ([failing, "torch-cpu"] if failing == "torch" else [failing]))

    def check_versions(*, has_torch):
        assert has_torch
        return run_pip("check")

    monkeypatch.setattr(install_program, "run_pip", run_pip)
    monkeypatch.setattr(install_program, "check_versions", check_versions)
    status = install_program.main(["sources"])
    names = [name for name, _ in calls]
    if failing in ("", "check"):
        assert names == ["torch-cpu", "sources", ROOT.name, "check"]
    else:
        assert (
            names
            == {
                "torch-cpu": ["torch-cpu", "torch", "sources", ROOT.name, "check"],
                "torch": ["torch-cpu", "torch"],
                "sources": ["torch-cpu", "sources"],
            }[failing]
        )
    assert status == int(failing not in ("", "torch-cpu"))
    for name, arguments in calls:
        if name == ROOT.name:
            assert {"--no-index", "--no-deps", "--no-build-isolation"} <= arguments
        elif name != "check":
            assert {"--require-hashes", "--no-deps"} <= arguments
            assert ("--only-binary=:all:" in arguments) is (name != "sources")


@pytest.mark.parametrize(
    ("platform", "found", "wanted"),
    [
        ("linux", True, ["torch-cpu", "sources", ROOT.name]),
        ("linux", False, ["torch-cpu", "sources", ROOT.name]),
        ("darwin", False, ["torch-cpu", "torch", "sources", ROOT.name]),  # its release has no CUDA libraries
    ],
)
def test_an_environment_can_do_without_torch(platform, found, wanted, install_program, monkeypatch):
    names, checks = [], []

    def run_pip(*arguments, output=None):
        names.append(Path(arguments[-1]).stem)
        return int(names[-1] == "torch-cpu" and not found)

    monkeypatch.setattr(install_program, "run_pip", run_pip)
    monkeypatch.setattr(install_program, "check_versions", lambda *, has_torch: checks.append(has_torch) or 0)
    monkeypatch.setattr(install_program.sys, "platform", platform)
    assert install_program.main(["sources", "--no-cuda"]) == 0
    assert names == wanted
    assert checks == [found or platform == "darwin"]


@pytest.mark.parametrize(
    ("lines", "has_torch", "status"),
    [
        ([], True, 0),
        (["a 1.0 requires torch, which is not installed."], False, 0),
        (["a 1.0 requires torch, which is not installed."], True, 1),
        (["a 1.0 requires torch, which is not installed.", "b 1.0 requires c, which is not installed."], False, 1),
    ],
)
def test_only_a_torch_that_is_left_out_may_be_missing(lines, has_torch, status, install_program, monkeypatch, capfd):
    program = f"import sys; print({chr(10).join(lines)!r}); sys.exit({int(bool(lines))})"
    monkeypatch.setattr(install_program, "PIP", (sys.executable, "-c", program))
    assert install_program.check_versions(has_torch=has_torch) == status
    assert ("b 1.0" in capfd.readouterr().out) is (len(lines) > 1)


def test_the_lock_of_js_ipfs_has_hashes_and_no_addresses():
    lock = json.loads((LOCKED / "package-lock.json").read_text())
    wanted = json.loads((LOCKED / "package.json").read_text())["dependencies"]
    assert lock["packages"][""]["dependencies"] == wanted
    packages = {path: package for path, package in lock["packages"].items() if path}
    assert packages["node_modules/ipfs"]["version"] == wanted["ipfs"]
    assert {path for path, package in packages.items() if not package["integrity"].startswith("sha512-")} == set()
    assert {path for path, package in packages.items() if "resolved" in package} == set()
    # npm ci refuses a lock without a package that another one names, even if that is optional.
    locked = {path.rpartition("node_modules/")[2] for path in packages}
    named = {
        name
        for package in packages.values()
        for kind in ("dependencies", "optionalDependencies")
        for name in package.get(kind, {})
        if name not in package.get("bundleDependencies", ())
    }
    assert named - locked == set()


def test_js_ipfs_is_installed_if_it_is_what_is_locked():
    locked = {"packages": {"": {}, "a": {"integrity": "1"}, "b": {"integrity": "2", "optional": True}}}
    assert is_install_of({"packages": {"a": {"integrity": "1"}, "b": {"integrity": "2"}}}, locked)
    assert is_install_of({"packages": {"a": {"integrity": "1"}}}, locked)  # made for another system
    for other in ({}, {"a": {}}, {"a": {"integrity": "2"}}, {"b": {"integrity": "2"}}):
        assert not is_install_of({"packages": other}, locked)
    assert not is_install_of({"packages": {"a": {"integrity": "1"}, "c": {"integrity": "3"}}}, locked)


def test_the_recipe_without_torch_installs_all_other_requirements():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    (command,) = re.findall(r"^\$ (pip install \"(?:[^\\\n]|\\\n)*)", text, re.MULTILINE)
    required = {line.partition(";")[0].strip() for line in PROJECT["dependencies"]}
    assert {line for line in required if line.startswith("torch")} == {"torch>=2.4"}
    assert set(re.findall(r'"([^"]+)"', command)) == required - {"torch>=2.4"}
