"""Host and user names of SSH addresses reach the shell of a ProxyCommand, so they consist of harmless characters."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from streamloader.errors import ConfigError, StreamloaderError
from streamloader.stores.registry import open_store
from streamloader.stores.ssh.connect import SshTarget

# The usual form for cloud instances: a shell that gets the host, as "%h" or "%n", and the user, as "%r".
PROXY = 'sh -c "echo %r %h %n > ran; exec {python} {relay} 127.0.0.1 {port}"'
RELAY = """
import os, socket, sys, threading
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def send():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := peer.recv(65536):
    os.write(1, data)
"""

HOSTILE_PARTS = [
    "i-$(id > hit)",
    "i-$(id>hit)",
    "i-`id>hit`",
    "i-;id>hit;",
    "i-&id>hit&",
    "i-|id>hit",
    "i-x>hit",
    'i-"id>hit"',
    "i-'id>hit'",
    "i-\nid>hit\n",
    "i-\tid",
    "i-${IFS}id",
    "i-\\",
    "i-(id>hit)",
    "i-{id,hit}",
    "i-~",
    "i-*",
    "i-!1",
    "i-%h",
    "i-%24(id>hit)",
    "-oProxyCommand=id>hit",
    ".",
]


@pytest.fixture
def config(ssh_server, tmp_path, monkeypatch):
    """Provide a function that writes an SSH configuration with the ProxyCommand, and options to use it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relay.py").write_text(RELAY)
    proxy = PROXY.format(python=sys.executable, relay=tmp_path / "relay.py", port=ssh_server.port)

    def write(lines="", hosts="*"):
        text = f"Host {hosts}\n  {lines}\n  ProxyCommand {proxy}\n  HostKeyAlias [127.0.0.1]:{ssh_server.port}\n"
        (tmp_path / "config").write_text(text)
        return {**ssh_server.options(), "config": str(tmp_path / "config")}

    return write


def read(url, path, options):
    async def fetch():
        async with open_store(url, retry=None, **options) as store:
            return await store.read(path)

    return asyncio.run(fetch())


def test_a_proxy_command_gets_the_names_of_honest_addresses(ssh_server, config, tmp_path):
    (ssh_server.data / "object").write_bytes(b"honest")
    url = f"ssh://{ssh_server.user}@i-0ab1_c.eu-west-1"
    assert read(url, ssh_server.path("object"), config()) == b"honest"
    assert (tmp_path / "ran").read_text().split() == [ssh_server.user, "i-0ab1_c.eu-west-1", "i-0ab1_c.eu-west-1"]


@pytest.mark.parametrize("part", HOSTILE_PARTS)
def test_no_command_runs_for_a_hostile_name(ssh_server, config, part):
    quoted = "".join(f"%{byte:02X}" for byte in part.encode())  # a user name may be percent-encoded
    options = config()
    for url, more in (
        (f"ssh://{part}", {}),
        (f"ssh://{ssh_server.user}@{part}:22", {}),
        (f"ssh://{quoted}@i-1", {}),
        (f"sftp://{quoted}:password@i-1", {}),
        ("ssh://i-1", {"jump": part}),
        ("ssh://i-1", {"jump": ["i-2", f"{quoted}@i-3"]}),
    ):
        with pytest.raises(StreamloaderError) as caught:
            read(f"{url}/data", "a.bin", {**options, **more})
        assert isinstance(caught.value, ConfigError), url
    assert sorted(os.listdir()) == ["config", "relay.py"]


@pytest.mark.parametrize(
    "lines",
    [
        "HostName i-$(id>hit)",
        "HostName -i",
        "User $(id>hit)",
        "User a;id>hit",
        "ProxyJump i-$(id>hit)",
        "ProxyJump honest@i-1,$(id>hit)@i-2",
    ],
)
def test_no_command_runs_for_a_hostile_name_of_the_configuration(ssh_server, config, lines):
    with pytest.raises(ConfigError):
        read("ssh://i-1/data", "a.bin", config(lines, hosts="i-1"))
    assert sorted(os.listdir()) == ["config", "relay.py"]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("ssh://me@box:2222", ("box", 2222, "me")),
        ("ssh://Box_7.local-", ("Box_7.local-", None, None)),
        ("ssh://[fe80::1%eth0]:22", ("fe80::1%eth0", 22, None)),
        ("ssh://m%40e.org@10.0.0.1", ("10.0.0.1", None, "m@e.org")),
        ("ssh://CORP%5Cme@box", ("box", None, "CORP\\me")),
        ("ssh://jürgen@größe.test", ("größe.test", None, "jürgen")),
    ],
)
def test_honest_names(address, target):
    parsed = SshTarget.parse(address)
    assert (parsed.host, parsed.port, parsed.user) == target


@pytest.mark.parametrize("address", ["ssh://box?x", "ssh://box#x", "ssh://me@box?-oProxyCommand=id"])
def test_text_after_the_host_is_refused(address):
    with pytest.raises(ConfigError):
        SshTarget.parse(address)
