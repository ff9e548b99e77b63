"""Installing Debian packages leaves no service behind. apt and its kin are small scripts here that record calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from polling import wait_until
from servers import debian, install

APT = """#!/bin/sh
echo "apt-get $*" >> {log}
case "$*" in
  *install*)
    {policy} nginx start; echo "policy: $?" >> {log}
    printf 'ii  nginx-light\\nii  libfine\\nii  openssh-server\\n' > {installed}
    {then}
    exit {status};;
esac
"""
DPKG = """#!/bin/sh
case "$1" in
  --show) cat {installed};;
  --listfiles) case "$2" in
    nginx-light) printf '%s\\n' /. /lib/systemd/system/nginx.service /lib/systemd/system/x@.service /etc/init.d/nginx;;
    openssh-server) printf '%s\\n' /usr/lib/systemd/system/ssh.service /etc/init.d/ssh;;
    *) printf '/usr/lib/libfine.so\\n';;
  esac;;
esac
"""
RECORD = '#!/bin/sh\necho "$(basename "$0") $*" >> {log}\n'
PROGRAM = (
    "from pathlib import Path; from servers import debian; debian.POLICY = Path({policy!r}); debian.main({packages!r})"
)


class Machine:
    """A machine with programs of Debian that only record how they are called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs, self.log, self.installed = folder / "bin", folder / "log", folder / "installed"
        self.policy = folder / "policy-rc.d"
        self.programs.mkdir()
        self.log.write_text("")
        self.installed.write_text("ii  openssh-server\nrc  nginx-light\n")
        self.write_apt()
        self._write("dpkg-query", DPKG.format(installed=self.installed))
        for name in ("systemctl", "update-rc.d"):
            self._write(name, RECORD.format(log=self.log))
        monkeypatch.setenv("PATH", f"{self.programs}:{os.environ['PATH']}")
        monkeypatch.setenv("STREAMLOADER_TEST_CACHE", str(folder / "cache"))
        monkeypatch.setattr(debian, "POLICY", self.policy)

    def write_apt(self, status: int = 0, then: str = "") -> None:
        text = APT.format(policy=self.policy, log=self.log, installed=self.installed, status=status, then=then)
        self._write("apt-get", text)

    def _write(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the program as install.py does."""
        program = PROGRAM.format(policy=str(self.policy), packages=["nginx-light"])
        return subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1], start_new_session=True)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(params=["none", "file", "link"])
def before(request, machine):
    """What is in the place of policy-rc.d before, and a function that checks that it is there again."""
    policy = machine.policy
    if request.param == "file":
        policy.write_text("#!/bin/sh\nexit 0\n")
        policy.chmod(0o750)
    elif request.param == "link":
        policy.symlink_to("/bin/true")

    def check():
        assert sorted(path.name for path in policy.parent.glob("policy*")) == (
            [policy.name] * (request.param != "none")
        )
        if request.param == "file":
            assert (policy.read_text(), policy.stat().st_mode & 0o777) == ("#!/bin/sh\nexit 0\n", 0o750)
        elif request.param == "link":
            assert os.readlink(policy) == "/bin/true"

    return check


@pytest.mark.parametrize("status", [0, 100])
def test_services_neither_start_nor_stop_and_new_ones_are_disabled(machine, before, status):
    machine.write_apt(status)
    assert debian.install(["nginx-light", "openssh-server"]) == status
    calls = machine.calls()
    assert [call.rpartition("=")[2].partition(" ")[2] for call in calls[:2]] == [
        "update",
        "install -y --no-install-recommends nginx-light openssh-server",
    ]
    assert calls[2] == "policy: 101"
    # openssh-server was there before: its service is not touched, whether it runs or not.
    assert calls[3:] == ["systemctl disable nginx.service", "update-rc.d nginx disable"]
    before()


def test_the_policy_is_restored_after_an_error(machine, before, monkeypatch):
    def fail(*_):
        raise OSError("no apt-get")

    monkeypatch.setattr(debian, "run_apt", fail)
    with pytest.raises(OSError, match="no apt-get"):
        debian.install(["nginx-light"])
    before()


def test_interrupts_do_not_end_it_halfway(machine, before, tmp_path):
    os.mkfifo(tmp_path / "go")
    machine.write_apt(then=f"read -r _ < {tmp_path / 'go'}; echo 'apt ended' >> {machine.log}")
    with machine.start() as process:
        wait_until(lambda: "policy: 101" in machine.calls())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.killpg(process.pid, number)  # apt has the same group
        (tmp_path / "go").write_text("\n")
        assert process.wait(60) == 0
    assert machine.calls()[3:] == ["apt ended", "systemctl disable nginx.service", "update-rc.d nginx disable"]
    before()


def test_what_a_killed_run_left_is_restored_by_the_next_one(machine, before, tmp_path):
    os.mkfifo(tmp_path / "go")
    machine.write_apt(then=f"read -r _ < {tmp_path / 'go'}")
    with machine.start() as process:
        wait_until(lambda: "policy: 101" in machine.calls())
        os.killpg(process.pid, signal.SIGKILL)
    assert "exit 101" in machine.policy.read_text()
    machine.write_apt()
    assert debian.install(["nginx-light"]) == 0
    before()


def test_the_policy_of_someone_else_is_no_leftover(machine):
    machine.policy.write_bytes(b"#!/bin/sh\n# \xff\nexit 101\n")
    debian.restore(machine.policy, machine.policy.with_name("saved"))
    assert machine.policy.exists()


def test_the_installer_names_what_is_missing_without_root(machine, monkeypatch):
    monkeypatch.setattr(install, "_find", lambda program: None if program == "nginx" else "/usr/sbin/it")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert install._install_debian_packages() == ["install nginx-light, which takes root"]
    assert machine.calls() == []
